"""Enlarged dreams stand apart from the grid: each repeats the settings of another dream, at another size."""

from collections.abc import Sequence
from dataclasses import replace

from flows.gallery.context import point_of
from flows.gallery.planned import Planned
from flows.gallery.records import DreamRow

__all__ = ["apart", "awaited", "without_enlarged"]


def apart(rows: Sequence[DreamRow]) -> tuple[list[DreamRow], list[DreamRow]]:
    """Return the rows of the grid and those of enlarged dreams. If all are enlarged, these are the grid."""
    grid = [row for row in rows if not point_of(row).enlarges]
    enlarged = [row for row in rows if point_of(row).enlarges]
    return (grid, enlarged) if grid else (enlarged, [])


def without_enlarged(planned: Planned | None) -> Planned | None:
    """Return what an unfinished run adds to the grid."""
    return planned and replace(planned, points=tuple(point for point in planned.points if not point.enlarges))


def awaited(planned: Planned | None, rows: Sequence[DreamRow]) -> int:
    """Return how many enlarged dreams an unfinished run still makes of a photograph with these rows."""
    files = {(row.result_uri or "").rpartition("/")[2] for row in rows}
    there = {row.settings_id for row in rows}
    points = planned.points if planned else ()
    return sum(point.enlarges in files and point.settings_id not in there for point in points if point.enlarges)
