"""The axis of whole settings: one value for each point of the grid.

Looks and single points change many settings together. A table of any two of these settings would be nearly empty, so
the grid shows such dreams in one row, each with the name of its look or with what distinguishes it.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from dreamcore.looks import LOOKS
from dreamcore.settings import DreamSettings
from flows.gallery.axes import axes_of
from flows.gallery.points import WHOLE, Point, read_point
from flows.gallery.records import Axis

__all__ = ["is_sparse", "look_of", "looks_by_layers", "names_of", "whole_axis"]

_SPARSE = 2
"""A table with more than this many cells for each dream is not the first thing to show."""
_NOT_OF_A_LOOK = ("seed", "max_pixels", "output", "enlarge", "movie")
_ENLARGED = "enlarged"
_SHOWN = 3
"""Settings that a name tells, at most."""


def whole_axis(points: Iterable[Point]) -> Axis:
    """Return the axis of all points, in the given order."""
    return Axis(WHOLE, tuple(dict.fromkeys(point.settings_id for point in points)))


def is_sparse(axes: Sequence[Axis], count: int) -> bool:
    """Return whether a table of the axes would be mostly empty. `count` is the number of points that exist."""
    return math.prod(len(axis.values) for axis in axes) > _SPARSE * count


def names_of(points: Sequence[Point]) -> dict[str, str]:
    """Return for each point, by `settings_id`, its look or its layers, and the other settings that distinguish it.

    No two names are equal: a name that would be that of two points has the start of the `settings_id`.
    """
    varying = [axis.name for axis in axes_of([each for each in points if not each.enlarges]) if axis.name != "layers"]
    names = {point.settings_id: _name(point, varying) for point in points}
    counts = Counter(names.values())
    return {each: name if counts[name] == 1 else f"{name} ({each[:6]})" for each, name in names.items()}


def look_of(point: Point) -> str:
    """Return the name of the look that a point has, such as `architecture, seed 2`; empty if it has none.

    The size of a dream and the file format are no part of the name. An enlarged dream has the name of its original.
    """
    look = _look(point)
    others = [f"seed {point.value('seed')}"] if "seed" in point.settings else []
    others += [word for name, word in (("movie", "movie"), ("enlarge", _ENLARGED)) if name in point.settings]
    return ", ".join([look, *others]) if look else ""


def looks_by_layers(points: Iterable[Point]) -> dict[str, str]:
    """Return the names of the looks for each value of the layers that only looks have among these points."""
    found = defaultdict[str, set[str]](set)
    for point in points:
        found[point.layers].add(_look(point))
    return {layers: ", ".join(sorted(looks)) for layers, looks in found.items() if "" not in looks}


def _name(point: Point, varying: Sequence[str]) -> str:
    look = _look(point)
    told = [name for name in varying if name in _NOT_OF_A_LOOK] if look else varying
    told = [name for name in told if name != "max_pixels"] if point.enlarges else told
    others = [f"{name} {point.value(name)}" for name in told if name in point.settings or name == "model"]
    return ", ".join([look or point.layers, *others[:_SHOWN], *([_ENLARGED] if point.enlarges else [])])


def _look(point: Point) -> str:
    """Return the name of the look with these settings; empty if there is none."""
    return _looks().get((point.model, point.layers), {}).get(_others(point), "")


@lru_cache
def _looks() -> Mapping[tuple[str, str], Mapping[frozenset[tuple[str, str]], str]]:
    """Return the names of the looks by model and layers, and then by their other settings."""
    named: dict[str, DreamSettings] = {name: DreamSettings.model_validate({"look": name}) for name in LOOKS}
    named["default"] = DreamSettings()
    found = defaultdict[tuple[str, str], dict[frozenset[tuple[str, str]], str]](dict)
    for name, settings in named.items():
        point = read_point("", settings.canonical_json())
        found[point.model, point.layers][_others(point)] = name
    return dict(found)


def _others(point: Point) -> frozenset[tuple[str, str]]:
    return frozenset((name, value) for name, value in point.settings.items() if name not in _NOT_OF_A_LOOK)
