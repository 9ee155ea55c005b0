"""Axes: the settings that vary among dreams, and the order of their values."""

import re
from collections.abc import Collection, Iterable

from dreamcore.settings import DreamSettings
from flows.gallery.points import Point
from flows.gallery.records import Axis

__all__ = ["axes_of", "in_order"]

_NAMES = ("layers", "model", *(name for name in DreamSettings.model_fields if name not in ("layers", "model")))
"""All settings; those that make the best rows and columns are first."""
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", re.ASCII)
_FIRST = {"none": 0, "no": 1, "": 0}


def axes_of(points: Collection[Point]) -> list[Axis]:
    """Return the settings that vary among `points`: layers and model first, then the settings in their usual order."""
    others = {name for point in points for name in point.settings} - set(_NAMES)
    axes = []
    for name in (*_NAMES, *sorted(others)):
        values = {point.value(name) for point in points}
        if len(values) > 1:
            axes.append(Axis(name, in_order(values)))
    return axes


def in_order(values: Iterable[str]) -> tuple[str, ...]:
    """Return distinct values with numbers ordered as numbers, also within text; `none` and `no` are first.

    Example:
        >>> in_order(["10", "9", "none", "0.5"])
        ('none', '0.5', '9', '10')
        >>> in_order(["blocks.10", "blocks.9:2", "blocks.9:12"])
        ('blocks.9:2', 'blocks.9:12', 'blocks.10')
    """
    return tuple(sorted(set(values), key=_key))


def _key(value: str) -> tuple[object, ...]:
    if value in _FIRST:
        return (0, _FIRST[value])
    if _NUMBER.fullmatch(value):
        return (1, float(value), value)
    pieces = re.split(r"(\d+)", value)  # text and digits in turn
    return (
        2,
        [(piece.casefold(), 0) if place % 2 == 0 else ("", int(piece)) for place, piece in enumerate(pieces)],
        value,
    )
