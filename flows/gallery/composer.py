"""The job that an address of the gallery describes: which dreams are chosen, and what to make of them.

?kind=like&ids=ID,ID&seeds=4&channels=2&mixes=2&half=1     variations of the dreams
?kind=all&marks_min=4&source=s3://photos/                  their settings on a whole collection
?kind=enlarge&ids=ID&megapixels=12&strength=0.5            the same dreams, larger
?kind=retry&error=damaged                                  failed dreams again
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from dreamcore.errors import InvalidInput
from dreamcore.settings import DreamSettings
from flows.destination import run_record
from flows.gallery.address import Params
from flows.gallery.jobs import ChosenDream, Variations, enlarge, more_like, retry_failed, whole_collection
from flows.gallery.records import DreamRow
from flows.gallery.site import Place
from flows.jobs.job import DreamJob
from flows.jobs.job_options import EnlargeOptions, RetryFailed

__all__ = ["FORMATS", "KINDS", "OTHER_KINDS", "Choice", "choice_of", "compose"]

KINDS = ("like", "all", "enlarge")
"""The kinds of jobs of chosen dreams, the usual one first."""
OTHER_KINDS = ("retry", "resume")
"""The kinds of jobs for which no dream is chosen."""
MAX_CHOSEN = 1000
FORMATS = ("jpg", "png", "webp")
"""Formats of enlarged dreams, the usual one first."""
_SEEDS, _CHANNELS, _MIXES = 4, 2, 2
_MIXED_DREAMS = 4
"""With more dreams than these, the form begins without mixes: each two would be mixed."""
_MAX_NUMBER = 10_000
_NOT_STEPPED = ("seed", "max_pixels")
_PHOTOGRAPHS_WITH_AXES = 20
"""Photographs whose dreams say which settings vary."""


@dataclass(frozen=True)
class Choice:
    """The chosen dreams, what to make of them, and the values of the form."""

    kind: str
    rows: tuple[DreamRow, ...]
    missing: int
    """Number of ids that no dream has."""
    fields: Mapping[str, str]
    """The value of each field of the form of this kind, as text."""
    axes: Mapping[str, tuple[float, ...]]
    """For `like`: the settings with numbers that vary among the dreams of the photographs, with their values."""


def choice_of(place: Place, params: Params) -> Choice:
    """Return what an address chooses.

    Raises:
        InvalidInput: too many dreams are chosen, or `marks_min` is not a number.
    """
    kind = params.get("kind")
    kind = kind if kind in KINDS + OTHER_KINDS else KINDS[0]
    if kind in OTHER_KINDS:
        return Choice(kind, (), 0, {"error": params.get("error")}, {})
    rows, missing = _rows(place, params)
    fields = {name: params.get(name, usual) for name, usual in _usual_fields(place, kind, rows).items()}
    return Choice(kind, tuple(rows), missing, fields, _axes(place, rows) if kind == "like" else {})


def _rows(place: Place, params: Params) -> tuple[list[DreamRow], int]:
    """Return the chosen dreams, and the number of ids that no dream has."""
    if marks_min := params.get("marks_min"):
        rows, more = place.queries.favourites(_whole("marks_min", marks_min), limit=MAX_CHOSEN)
        if more:
            raise InvalidInput(f"more than {MAX_CHOSEN:,} dreams have the mark {marks_min}: choose a higher mark")
        return rows, 0
    ids = list(dict.fromkeys(each for value in params.all("ids") for each in value.split(",") if each))
    if len(ids) > MAX_CHOSEN:
        raise InvalidInput(f"{len(ids):,} dreams are chosen, but a job takes {MAX_CHOSEN:,}: choose fewer")
    found = place.queries.chosen(ids)
    return found, len(ids) - len(found)


def _usual_fields(place: Place, kind: str, rows: Sequence[DreamRow]) -> dict[str, str]:
    """Return the fields of the form of a kind, with the values that the form begins with."""
    if kind == "all":
        return {"source": _source_of(place, rows[0]) if rows else ""}
    if kind == "enlarge":
        options = EnlargeOptions.model_fields
        pixels, strength = options["max_pixels"].default, options["strength"].default
        return {"megapixels": f"{pixels / 1e6:g}", "strength": f"{strength:g}", "format": FORMATS[0]}
    channels = _CHANNELS if any(":" in row.layers for row in rows) else 0
    mixes = _MIXES if 2 <= len(rows) <= _MIXED_DREAMS else 0
    return {"seeds": str(_SEEDS), "channels": str(channels), "mixes": str(mixes), "half": "1"}


def _source_of(place: Place, row: DreamRow) -> str:
    """Return the prefix that the run of a dream read; if it read a list or one photograph, the photograph's folder.

    Noise has no folder.
    """
    sources = (run.job.get("source") for run in place.queries.runs() if run.run_id == row.run_id)
    source = next(sources, None)
    if source and source != row.source_uri:
        return str(source)
    folder, slash, _ = row.source_uri.rpartition("/")
    return folder + slash


def _axes(place: Place, rows: Sequence[DreamRow]) -> dict[str, tuple[float, ...]]:
    """Return the settings with numbers that vary among the dreams of the chosen photographs."""
    values: dict[str, set[float]] = {}
    for uri in list(dict.fromkeys(row.source_uri for row in rows))[:_PHOTOGRAPHS_WITH_AXES]:
        for axis in place.queries.axes(uri):
            usual = getattr(DreamSettings(), axis.name, None)
            if axis.name not in _NOT_STEPPED and isinstance(usual, (int, float)) and not isinstance(usual, bool):
                with suppress(ValueError):  # another version has written something else
                    values.setdefault(axis.name, set()).update([float(each) for each in axis.values])
    return {name: tuple(sorted(each)) for name, each in values.items()}


def compose(place: Place, choice: Choice) -> DreamJob:
    """Return the job of a choice.

    Raises:
        InvalidInput: nothing is chosen, or the fields make no job.
    """
    fields, destination = choice.fields, place.destination
    if choice.kind == "resume":
        return DreamJob.model_validate(run_record.active_job(destination, place.storage))
    if choice.kind == "retry":
        kinds = cast("RetryFailed", (fields["error"],) if fields["error"] else True)
        return retry_failed(destination, kinds, place.storage)
    if choice.kind == "enlarge":
        megapixels, strength = (_number(name, fields[name]) for name in ("megapixels", "strength"))
        dreams = {row.result_id: row.source_uri for row in choice.rows}
        options = {"max_pixels": round(megapixels * 1e6), "strength": strength}
        return enlarge(dreams, destination, options, fields["format"])
    chosen = [
        ChosenDream.from_row({"source_uri": row.source_uri, "settings": row.settings_json}) for row in choice.rows
    ]
    if choice.kind == "all":
        return whole_collection(chosen, fields["source"], destination)
    counts = {name: _whole(name, fields[name]) for name in ("seeds", "channels", "mixes")}
    half_steps = choice.axes if fields["half"] == "1" else None
    return more_like(chosen, Variations(**counts, half_steps=half_steps), destination)


def _number(name: str, text: str) -> float:
    """Return a number of the form."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MAX_NUMBER:
        raise InvalidInput(f"{name} is a number from 0 to {_MAX_NUMBER:,}, not {text[:40]!r}")
    return value


def _whole(name: str, text: str) -> int:
    value = _number(name, text)
    if not value.is_integer():
        raise InvalidInput(f"{name} is a whole number, not {text[:40]!r}")
    return int(value)
