"""Enlarge one dream from the settings inside its file: `dreamgrid enlarge`.

The dream may come from an untrusted person, as in `redream`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamcore.errors import InvalidInput
from dreamcore.fields import Enlarge, Reference
from dreamcore.images import MAX_SOURCE_PIXELS, Photograph, encode
from dreamcore.settings import result_id
from flows.pictures.single import check_output_path, decode_named, description, dream_resolved, write_file
from flows.results.description import Description, read_description, resolve_untrusted, with_files
from flows.results.redream import REMEDY, output_for, read_dream, read_photograph
from flows.s3.layout import result_id_of

if TYPE_CHECKING:
    from dreamcore.batch import OnStep

__all__ = ["MAX_PIXELS", "Enlargement", "Order", "enlarge"]

MAX_PIXELS = 12_000_000
"""Pixels of an enlarged dream by default: 40 cm wide in print at 250 dpi."""


@dataclass(frozen=True)
class Order:
    """What to enlarge, and how."""

    dream: str
    """The dream: a file or an S3 address."""
    result: Path
    """The file to write; its suffix determines the format."""
    max_pixels: int = MAX_PIXELS
    """Number of pixels of the result, at most."""
    strength: float = Enlarge.model_fields["strength"].default
    """Factor of the step size in the new octaves, 0 to 2."""
    source: Path | None = None
    """The photograph, or `noise:WIDTHxHEIGHT`; None reads the version that was dreamt from S3."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """`guide`, `mask` and `weights` as files, if they are not where the dream says."""


@dataclass(frozen=True)
class Enlargement:
    """An enlarged dream, and the dream that it was made from."""

    result: str
    dream: str
    width: int
    height: int
    """Size of the enlarged dream in pixels."""
    dream_width: int
    dream_height: int
    """Size of the dream in pixels."""
    settings_id: str
    """Identity of the settings of the enlarged dream."""
    enlarged_from: str | None
    """The `result_id` of the dream; None if its photograph was not in S3."""
    octave_scores: list[float]
    """The score of the dream, and then the score after each new octave."""
    differences: tuple[str, ...]
    """What has changed since the dream was made."""


def enlarge(order: Order, on_step: "OnStep") -> Enlargement:
    """Enlarge a dream, and write the enlarged dream with its settings inside.

    Args:
        order: what to enlarge, and how.
        on_step: called after every step with the finished and the total number of steps.

    Raises:
        InvalidInput: a file or the network does not exist, the description is missing or malformed, the result cannot
            be written, the photograph has changed or is another one, or the dream is not smaller; nothing was dreamt.
        ImageError: the dream or the photograph is not an image, or cannot be dreamt.
        Unavailable: S3 does not respond.
    """
    from dreamcore.enlarge import enlarged_settings

    data = read_dream(order.dream)
    then = read_description(data, order.dream)
    output = output_for(then.settings.output, order.result)
    check_output_path(order.result, order.dream, order.source or order.dream, *order.files.values())
    original = decode_named(data, order.dream)
    _check_pixels(original, order)
    dream = Reference(uri=order.dream, sha256=hashlib.sha256(data).hexdigest())
    own = then.settings.model_copy(update={"enlarge": None, "output": output})
    given = with_files(own, order.files, order.dream)
    settings = resolve_untrusted(enlarged_settings(given, dream, order.strength, order.max_pixels))
    photograph = read_photograph(then.model_copy(update={"settings": settings}), order.source, order.dream)
    _check_shape(photograph, original, order)
    new = dream_resolved(photograph, settings, on_step)
    origin = _origin(then, order)
    metadata = description(new) | {"created_at": datetime.now(UTC).isoformat()} | origin
    write_file(order.result, encode(new.pixels, output.format, output.quality, metadata))
    return Enlargement(
        result=str(order.result),
        dream=order.dream,
        width=new.pixels.shape[1],
        height=new.pixels.shape[0],
        dream_width=original.pixels.shape[1],
        dream_height=original.pixels.shape[0],
        settings_id=new.settings_id,
        enlarged_from=origin["enlarged_from"],
        octave_scores=new.octave_scores,
        differences=tuple(then.changed_network(new.weights)),
    )


def _check_pixels(dream: Photograph, order: Order) -> None:
    """Raise `InvalidInput` if the dream is not smaller than what is asked for, or if that is too large."""
    height, width = dream.pixels.shape[:2]
    if order.max_pixels <= height * width:
        raise InvalidInput(
            f"{order.dream} has {width} x {height} pixels, and --max-pixels is {order.max_pixels:,}: give a number "
            f"over {height * width:,}"
        )
    if order.max_pixels > MAX_SOURCE_PIXELS:
        raise InvalidInput(f"--max-pixels is {order.max_pixels:,}: give at most {MAX_SOURCE_PIXELS:,}")


def _check_shape(photograph: Photograph, dream: Photograph, order: Order) -> None:
    """Raise `InvalidInput` if the photograph has another aspect ratio than the dream, to within a pixel."""
    (height, width), (new_height, new_width) = dream.pixels.shape[:2], photograph.pixels.shape[:2]
    if abs(width * new_height - new_width * height) > new_width + new_height:
        raise InvalidInput(
            f"{order.dream} has {width} x {height} pixels, and its photograph would have {new_width} x {new_height}: "
            f"either it is another photograph ({REMEDY}), or the dream was cropped"
        )


def _origin(then: Description, order: Order) -> dict[str, Any]:
    """Return the metadata that name the photograph and the dream."""
    source = {} if order.source else then.model_dump(include={"source_uri", "source_etag"})
    found = result_id(then.source_etag, then.settings_id) if then.source_etag else result_id_of(order.dream)
    return source | {"enlarged_from": found}
