"""A run that enlarges dreams of its destination: its settings, one point for each dream, and the images it reads."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow.compute as pc

from dreamcore.errors import ImageError, InvalidInput
from dreamcore.fields import Enlarge
from dreamcore.images import MAX_SOURCE_PIXELS, Photograph
from dreamcore.settings import DreamSettings, read_recorded
from flows.destination import manifest
from flows.jobs.assets import load_dream
from flows.jobs.job import DreamJob
from flows.jobs.job_options import EnlargeOptions
from flows.jobs.noise_source import noise_size
from flows.jobs.work import PlannedSettings
from flows.s3.storage import Storage

__all__ = ["Originals", "enlargements", "large_photographs", "load_originals"]

_COLUMNS = (
    "result_id", "result_uri", "result_sha256", "source_uri", "source_etag", "settings", "status", "width", "height",
)  # fmt: skip


class Originals(NamedTuple):
    """The dreams that the settings of a run enlarge."""

    dreams: dict[str, Photograph]
    """The decoded dreams by the `settings_id` of the enlarged dream."""
    errors: dict[str, ImageError]
    """Why there is no dream, in the same way."""


def enlargements(job: DreamJob, storage: Storage) -> Iterator[tuple[DreamSettings, tuple[str, str]]]:
    """Yield the settings of each enlarged dream of a job, and address and ETag of its photograph.

    Equal photographs in several files have equal dreams with one `result_id`. Then one of them is enlarged.

    Args:
        job: a job with `enlarge`.
        storage: access to S3.

    Raises:
        InvalidInput: the destination has no such dream, a dream is not smaller than asked for, or its photograph is
            not in the source or has changed.
        Unavailable: S3 failed.
    """
    options = job.enlarge
    if options is None:
        return
    chosen = pc.field("result_id").isin(options.dreams) & (pc.field("status") == "done")
    found = manifest.read(storage, job.destination, _COLUMNS, where=chosen)
    rows = {row["result_id"]: row for row in sorted(found.to_pylist(), key=lambda row: str(row["source_uri"]))[::-1]}
    for result_id in options.dreams:
        if result_id not in rows:
            raise InvalidInput(f"enlarge: {job.destination} has no dream with the id {result_id}")
        row = rows[result_id]
        _check_size(row, options)
        _check_photograph(row, job, storage)
        yield _settings(row, job, options), (row["source_uri"], row["source_etag"])


def large_photographs(photographs: Mapping[int, Photograph]) -> dict[int, Photograph]:
    """Return photographs, by `max_pixels`, at the size of the enlarged dreams."""
    from dreamcore.enlarge import enlarged_photograph  # imports torch, which a plan does not need

    return {size: enlarged_photograph(each, size) for size, each in photographs.items()}


def load_originals(planned: Iterable[PlannedSettings], storage: Storage) -> Originals:
    """Read the dreams that these settings enlarge.

    Raises:
        Unavailable: S3 failed.
    """
    found = Originals({}, {})
    for each in planned:
        try:
            if dream := load_dream(each.settings, lambda: storage):
                found.dreams[each.settings_id] = dream
        except InvalidInput as error:  # deleted or replaced after the run was planned
            found.errors[each.settings_id] = ImageError("source_missing", str(error))
    return found


def _settings(row: dict[str, Any], job: DreamJob, options: EnlargeOptions) -> DreamSettings:
    """Return the settings of one enlarged dream from the row of the dream."""
    settings = read_recorded(json.loads(row["settings"]))
    if settings.movie:
        raise InvalidInput(f"enlarge: {row['result_id']} is a movie, which cannot be enlarged: leave it out")
    enlarge = Enlarge(uri=row["result_uri"], sha256=row["result_sha256"], strength=options.strength)
    return settings.model_copy(update={"enlarge": enlarge, "max_pixels": options.max_pixels, "output": job.output})


def _check_size(row: dict[str, Any], options: EnlargeOptions) -> None:
    if not row["width"] * row["height"] < options.max_pixels <= MAX_SOURCE_PIXELS:
        raise InvalidInput(
            f"enlarge: max_pixels is {options.max_pixels:,}, and the dream {row['result_id']} has {row['width']} x "
            f"{row['height']} pixels: give a number over {row['width'] * row['height']:,}, at most "
            f"{MAX_SOURCE_PIXELS:,}"
        )


def _check_photograph(row: dict[str, Any], job: DreamJob, storage: Storage) -> None:
    uri = str(row["source_uri"])
    if not any(uri == source or uri.startswith(source.rstrip("/") + "/") for source in job.addresses):
        raise InvalidInput(
            f"enlarge: the photograph {uri} of the dream {row['result_id']} is not in {job.source_in_words}: choose a "
            "source that contains it"
        )
    if noise_size(uri):
        return  # noise never changes
    photograph = storage.find(uri)
    if photograph is None or photograph.etag != row["source_etag"]:
        what = "does not exist any more" if photograph is None else "has changed since it was dreamt"
        raise InvalidInput(
            f"enlarge: the photograph {uri} {what}: leave out the dream {row['result_id']}, or restore the photograph"
        )
