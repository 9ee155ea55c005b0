"""Deliver dreams: the last of the three stages of a shard.

A dream is written first, if it does not exist. Then its thumbnail is written. A process may be killed in between, so a
dream may lack a thumbnail, and readers make it then. A thumbnail never changes or fails the row of its dream.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal

from dreamcore.errors import ImageError, InvalidInput, Unavailable
from dreamcore.fields import Output
from dreamcore.images import Array, content_type, encode, read_metadata
from dreamcore.settings import ALGORITHM_VERSION, result_id
from dreamcore.thumbnail import THUMBNAIL_TYPE, encode_thumbnail
from flows.destination.manifest import Row
from flows.destination.movie_metadata import MOVIE_TYPE, read_movie_metadata, with_metadata
from flows.destination.run_record import Run
from flows.jobs.work import PlannedSettings, Source
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["Delivery", "Picture", "failed_row", "find_existing", "planned_row"]

_SOURCE = ("source_uri", "source_etag")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Picture:
    """A dream that is to be written."""

    pixels: Array
    """(H, W, 3)"""
    description: Mapping[str, Any]
    """What is written into the file, as `Dream.metadata` returns it."""


class Delivery:
    """Writes the dreams of one shard and their thumbnails. Several threads may call it."""

    def __init__(self, destination: str, storage: Storage) -> None:
        self.destination, self.storage = destination, storage
        self._writes_thumbnails = True  # False as soon as the store refuses one

    def deliver(self, row: Row, picture: Picture | None, output: Output) -> Row:
        """Write a dream if none exists, and return the row of the dream that exists then: the first writer wins.

        Args:
            row: the row of a dream that is done, with what was measured.
            picture: the dream; None if an earlier attempt wrote it.
            output: the format of the dream.

        Raises:
            InvalidInput: another object is in the place of the dream, or access is refused.
            Unavailable: S3 failed.
        """
        if picture is None:
            return self._take_over(row)
        try:
            data = encode(picture.pixels, output.format, output.quality, _metadata(row, picture.description))
        except ImageError as error:
            return failed_row(row, error)
        return self._write(row, data, content_type(output.format), picture.pixels)

    def deliver_movie(self, row: Row, movie: bytes, description: Mapping[str, Any], poster: Array) -> Row:
        """Write a movie if none exists, and return the row of the movie that exists then; see `deliver`.

        Args:
            row: the row of the movie, with what was measured.
            movie: the MP4 file.
            description: what is written into the file, as `Dream.metadata` returns it.
            poster: the pixels (H, W, 3) from which the thumbnail is made.
        """
        return self._write(row, with_metadata(movie, _metadata(row, description)), MOVIE_TYPE, poster)

    def _write(self, row: Row, data: bytes, media_type: str, pixels: Array) -> Row:
        """Write a file and the thumbnail of these pixels, or take over the file that exists."""
        if not self.storage.write_if_absent(str(row.result_uri), data, media_type):
            return self._take_over(row)
        self._write_thumbnail(str(row.result_uri), pixels)
        return _with_result(row, data)

    def _write_thumbnail(self, result_uri: str, pixels: Array) -> None:
        """Write the thumbnail of the dream that was just written. It replaces one that a deleted dream may have left.

        Credentials that were made for an earlier version may not allow this. Then the shard writes no thumbnails.
        """
        if not self._writes_thumbnails:
            return
        uri = layout.thumb_uri(self.destination, result_uri)
        try:
            self.storage.write(uri, encode_thumbnail(pixels), THUMBNAIL_TYPE)
        except ImageError as error:
            _logger.warning("%s gets no thumbnail: %s", result_uri, error)
        except InvalidInput as error:
            self._writes_thumbnails = False
            _logger.warning("no thumbnails are written: %s", error)

    def _take_over(self, row: Row) -> Row:
        """Return the row of a dream that another attempt wrote, from the metadata inside the image or the movie."""
        data = self.storage.read(str(row.result_uri))
        if data is None:
            raise Unavailable(f"{row.result_uri} existed and was removed during the run: find out what removes dreams")
        try:
            inside = (read_movie_metadata if layout.is_movie(str(row.result_uri)) else read_metadata)(data) or {}
        except ImageError:
            inside = {}
        if inside.get("settings_id") != row.settings_id:
            raise InvalidInput(f"{row.result_uri} exists but is not the dream that belongs there: move it away")
        columns = {field.name for field in fields(Row)} - {"settings", *_SOURCE}
        measured: dict[str, Any] = {name: value for name, value in inside.items() if name in columns}
        measured["created_at"] = datetime.fromisoformat(measured["created_at"])
        return _with_result(replace(row, **measured), data)


def find_existing(results: Iterable[str], list_folder: Callable[[str], Sequence[str]]) -> dict[str, str]:
    """Return the address of each dream of one photograph that exists, by its planned address.

    A dream is found by its `result_id`. The label in its file name may be that of another version of Dreamgrid.

    Args:
        results: the planned addresses, in one folder.
        list_folder: returns the addresses of the objects in a folder, sorted.
    """
    planned = sorted(results)
    listed = list_folder(planned[0].rpartition("/")[0] + "/")
    by_place = {layout.result_place(uri): uri for uri in listed}  # deeper folders are other places
    by_place |= {layout.result_place(uri): uri for uri in set(listed).intersection(planned)}
    places = ((uri, layout.result_place(uri)) for uri in planned)
    return {uri: by_place[place] for uri, place in places if place in by_place}


def planned_row(run: Run, shard: int, source: Source, planned: PlannedSettings) -> Row:
    """Return the row of one dream of a shard before anything is measured."""
    settings = planned.settings
    return Row(
        run_id=run.run_id,
        job_id=run.job.job_id,
        shard=shard,
        status="done",
        source_uri=source.uri,
        source_etag=source.etag,
        source_bytes=source.size,
        settings_id=planned.settings_id,
        model=settings.model,
        weights_sha256=planned.weights,
        layers=[{"name": t.layer, "channels": list(t.channels), "weight": t.weight} for t in settings.layers],
        octaves=settings.octaves,
        octave_scale=settings.octave_scale,
        steps=settings.steps,
        step_size=settings.step_size,
        jitter=settings.jitter,
        seed=settings.seed,
        settings=settings.canonical_json(),
        result_uri=run.result_uri(source, planned),
        result_id=result_id(source.etag, planned.settings_id),
        enlarged_from=layout.result_id_of(settings.enlarge.uri) if settings.enlarge else None,
        algorithm_version=ALGORITHM_VERSION,
        created_at=datetime.now(UTC),
    )


def failed_row(row: Row, error: ImageError) -> Row:
    """Return the row of a photograph that could not be dreamt, or that was removed or replaced after the scan."""
    gone = error.kind in ("source_missing", "source_changed")
    status: Literal["skipped", "failed"] = "skipped" if gone else "failed"
    return replace(row, status=status, error_kind=error.kind, error=str(error), result_uri=None, result_id=None)


def _metadata(row: Row, description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is written into the file of a dream."""
    found = {**description, **{name: getattr(row, name) for name in _SOURCE}, "created_at": row.created_at.isoformat()}
    return found | ({"enlarged_from": row.enlarged_from} if row.enlarged_from else {})


def _with_result(row: Row, data: bytes) -> Row:
    return replace(row, result_bytes=len(data), result_sha256=hashlib.sha256(data).hexdigest())
