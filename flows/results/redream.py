"""Reproduce one dream from the settings inside its file, and compare both files.

The same machine, settings and number of threads give the same bits. There is one exception: with some networks, such
as ResNet-18, oneDNN sums a gradient in an order that depends on the batch size, so a dream that was computed in a batch
may differ. The workers of a run use one thread each, and `dreamgrid image` uses all threads of torch. Only the dreams
of a run name their source in S3. So a dream that names one is reproduced on one thread, and any other one on all.

A file may come from an untrusted person. Its description is validated before anything else is read or dreamt. The new
dream has the size of the given file. Its octaves may have up to four times the sides of the file.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dreamcore.errors import ImageError, InvalidInput, Unavailable
from dreamcore.fields import Output, format_of
from dreamcore.images import Photograph, encode
from dreamcore.settings import settings_id
from flows.contact_sheets.sheet_rows import find_numbered, split_number
from flows.destination.manifest import find_results
from flows.jobs.job import explain_validation
from flows.jobs.noise_source import noise_size
from flows.machine.terminal import one_line
from flows.pictures.single import (
    check_output_path,
    decode_named,
    description,
    dream_resolved,
    read_file,
    read_source,
    write_file,
)
from flows.results.description import Description, read_description, resolve_untrusted, with_files
from flows.s3.layout import parse_uri
from flows.s3.storage import FAIL_FAST, Storage

if TYPE_CHECKING:
    from dreamcore.batch import Dream, OnStep

__all__ = [
    "Reproduction",
    "find_dream",
    "output_for",
    "psnr",
    "read_dream",
    "read_photograph",
    "redream",
    "threads",
]

REMEDY = "give the photograph with --source FILE"

_DIGITS = re.compile("[0-9a-f]{4,16}")


@dataclass(frozen=True)
class Reproduction:
    """A reproduced dream, compared with the original dream."""

    settings_id: str
    """Identity of the settings inside the original dream, computed with the present weights and algorithm."""
    same_settings: bool
    """Whether the original dream has the same identity."""
    psnr_db: float
    """PSNR in dB between the decoded pixels of both files; infinite if they are equal."""
    score_after_then: float
    score_after_now: float
    result: str
    differences: tuple[str, ...]
    """What has changed since the original dream was made."""

    @property
    def equal(self) -> bool:
        """Whether both files have the same pixels."""
        return math.isinf(self.psnr_db)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values. JSON has no infinity, so `psnr_db` is null if the pixels are equal."""
        return {
            "settings_id": self.settings_id,
            "same_settings": self.same_settings,
            "psnr_db": None if self.equal else self.psnr_db,
            "score_after_then": self.score_after_then,
            "score_after_now": self.score_after_now,
            "result": self.result,
            "differences": list(self.differences),
        }


def find_dream(destination: str, result_id: str) -> str:
    """Return the address of the dream with this `result_id` in a destination.

    Args:
        destination: folder of the results, with a slash at its end.
        result_id: the identity, or the first digits of it, at least four; or the name of a photograph and the number of
            a dream on its contact sheet, such as `cat.jpg#37`.

    Raises:
        InvalidInput: the text is not a `result_id`, or the destination has no such dream, or several.
        Unavailable: S3 does not respond.
    """
    if numbered := split_number(result_id):
        return find_numbered(destination, Storage(FAIL_FAST), *numbered)
    digits = result_id.lower()
    if not _DIGITS.fullmatch(digits):
        raise InvalidInput(
            f"{one_line(result_id)!r} is not the id of a dream: give the 16 hex digits that `dreamgrid gallery "
            f"{destination}` shows and the file name ends with, or the photograph and the number on the contact sheet, "
            "such as cat.jpg#37"
        )
    found = find_results(Storage(FAIL_FAST), destination, digits)
    if len(found) > 1:
        raise InvalidInput(f"{destination} has {len(found)} dreams whose id begins with {digits}: give more digits")
    if not found:
        raise InvalidInput(
            f"{destination} has no dream with the id {digits}: take one from `dreamgrid gallery {destination}`, from a "
            "contact sheet, from the end of a file name below images/, or from the column result_id of the manifest"
        )
    return found.popitem()[1]


def redream(
    dream: str, result: Path, source: Path | None, on_step: "OnStep", files: Mapping[str, Path] | None = None
) -> Reproduction:
    """Reproduce the dream in `dream`, write the new dream to `result`, and compare both.

    Args:
        dream: a file or an S3 address: a dream of a run or of `dreamgrid image`.
        result: the file to write; its suffix determines the format.
        source: the photograph, or `noise:WIDTHxHEIGHT`; None reads the version that the description names from S3.
        on_step: called after every step with the finished and the total number of steps.
        files: `guide`, `mask`, `weights` and `enlarge` as files, if they are not where the description says.

    Raises:
        InvalidInput: a file or the network does not exist, the description is missing or malformed, `result` cannot be
            written, or the photograph has changed; nothing was dreamt.
        ImageError: `dream` or the photograph is not an image, or cannot be dreamt.
        Unavailable: S3 does not respond.
    """
    data = read_dream(dream)
    then = read_description(data, dream)
    if then.diversity:
        raise InvalidInput(f"{dream} is one of several samples that depend on one another: draw all of them again")
    output = output_for(then.settings.output, result)
    files = files or {}
    check_output_path(result, dream, source or dream, *files.values())
    settings = resolve_untrusted(with_files(then.settings, files, dream).model_copy(update={"output": output}))
    photograph = read_photograph(then, source, dream)
    original = decode_named(data, dream).pixels
    _check_size(photograph, original, dream)
    with threads(1 if then.source_uri else None):
        new = dream_resolved(photograph, settings, on_step)
    encoded = encode(new.pixels, output.format, output.quality, _metadata(new, None if source else then))
    write_file(result, encoded)
    identity = settings_id(then.settings, new.weights)
    return Reproduction(
        settings_id=identity,
        same_settings=identity == then.settings_id,
        psnr_db=psnr(original, decode_named(encoded, result).pixels),
        score_after_then=then.score_after,
        score_after_now=new.measurements.score_after,
        result=str(result),
        differences=then.differences(new),
    )


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio in dB between two images (H, W, 3) of 8 bits; infinite if equal."""
    error = float(np.square(one.astype(np.int32) - other).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads inside the `with` block; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_dream(dream: str) -> bytes:
    """Return the bytes of a dream, a file or an S3 address.

    Raises:
        InvalidInput: there is no such file or object.
        Unavailable: S3 does not respond.
    """
    if not dream.startswith("s3://"):
        return read_file(Path(dream))
    try:
        _, key = parse_uri(dream)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    data = Storage(FAIL_FAST).read(dream) if key else None
    if data is None:
        raise InvalidInput(f"there is no dream {dream}: give an address from the column result_uri of the manifest")
    return data


def output_for(then: Output, result: Path) -> Output:
    """Return the format of the new file: that of the dream with its quality, or another one by the suffix."""
    suffix = format_of(result.suffix)
    try:
        return then if suffix == then.format else Output.model_validate({"format": suffix})
    except ValidationError as error:
        raise InvalidInput(f"{result}: {explain_validation(error)}") from error


def read_photograph(then: Description, source: Path | None, dream: str) -> Photograph:
    """Return the photograph from `source`, or from S3 in the version that was dreamt, at the size that it is dreamt.

    Raises:
        InvalidInput: the photograph does not exist any more or has changed; the message says how to give it as a file.
        ImageError: it is not an image.
        Unavailable: S3 does not respond.
    """
    found = _read_photograph(then, source, dream)
    if then.settings.enlarge is None:
        return found
    from dreamcore.enlarge import enlarged_photograph  # this imports torch

    return enlarged_photograph(found, then.settings.max_pixels)


def _read_photograph(then: Description, source: Path | None, dream: str) -> Photograph:
    if source is not None:
        return read_source(source, then.settings)
    if then.source_uri is None or then.source_etag is None:
        raise InvalidInput(f"{dream} names no source in S3 (dreams of `dreamgrid image` name none): {REMEDY}")
    if noise_size(then.source_uri):
        return read_source(Path(then.source_uri), then.settings)
    uri = one_line(then.source_uri)
    try:
        data = Storage(FAIL_FAST).read_version(then.source_uri, then.source_etag)
    except ImageError as error:
        reasons = {"source_missing": "does not exist any more", "source_changed": "has changed since it was dreamt"}
        reason = reasons.get(error.kind, f"cannot be read ({one_line(str(error))})")
        raise InvalidInput(f"{uri} {reason}: {REMEDY}") from error
    except (InvalidInput, Unavailable) as error:
        raise type(error)(f"{one_line(str(error))}; or {REMEDY}") from error
    return decode_named(data, uri, then.settings.max_pixels)


def _check_size(photograph: Photograph, original: NDArray[np.uint8], dream: str) -> None:
    """Raise `InvalidInput` if the new dream would not have the size of the original."""
    (height, width), (new_height, new_width) = original.shape[:2], photograph.pixels.shape[:2]
    if (height, width) != (new_height, new_width):
        raise InvalidInput(
            f"{dream} has {width} x {height} pixels, but its settings make {new_width} x {new_height} pixels of this "
            f"photograph: either it is another photograph ({REMEDY}), or the dream was resized"
        )


def _metadata(dream: "Dream", then: Description | None) -> dict[str, Any]:
    """Return the metadata of the new file. `then` adds the source, if it is known to be the same."""
    found = description(dream) | {"created_at": datetime.now(UTC).isoformat()}
    return found | (then.model_dump(include={"source_uri", "source_etag"}) if then else {})
