"""The grid: the dreams of one photograph, with any two settings as rows and columns and the others as sliders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from flows.gallery.address import AXIS, Params
from flows.gallery.axes import axes_of, in_order
from flows.gallery.context import inspector_values, params_of, place_of, point_of, render, unfinished_run
from flows.gallery.planned import Planned
from flows.gallery.ratios import ratio_class
from flows.gallery.records import Axis, DreamRow, Filters
from flows.gallery.site import Place
from flows.gallery.whole import is_sparse, names_of, whole_axis
from flows.noise_source import noise_size

__all__ = ["grid", "news"]

_MAX_ROWS, _MAX_COLUMNS = 40, 24
_CAPTIONS = ("scores", "classes", "none")


@dataclass(frozen=True)
class Cell:
    """One place of the grid."""

    name: str
    """The name of the element in the page."""
    kind: Literal["dream", "failed", "planned", "none"]
    value: str
    """The value of the axis across."""
    row: DreamRow | None = None


class Line(NamedTuple):
    """A row or a column of the grid."""

    value: str
    mean: float | None
    """The mean gain; None if the dreams have several objectives."""
    cells: list[Cell]


class Slider(NamedTuple):
    """A setting that is neither a row nor a column."""

    name: str
    values: tuple[str, ...]
    value: str
    position: int


class Tally(NamedTuple):
    """How many dreams of the photograph there are, fail, and are to come."""

    done: int
    failed: int
    planned: int


def grid(request: Request) -> HTMLResponse:
    """Show the grid of one photograph."""
    place, params = place_of(request), params_of(request)
    place.refresh()
    values = _values(place, params)
    source_uri = values["source_uri"]
    previous, following = place.queries.neighbours(source_uri, Filters())
    values |= {"previous": previous, "next": following} | inspector_values(values["chosen_row"])
    return render(request, "grid.html", "grid", values, place=place)


def news(request: Request) -> Response:
    """Send the cells of a grid anew if there are dreams that the page does not have yet."""
    place, params = place_of(request), params_of(request)
    place.refresh()
    values = _values(place, params)
    if str(values["known"]) == params.get("known"):
        return Response(status_code=204)
    return render(request, "news.html", "grid", values, place=place)


def _values(place: Place, params: Params) -> dict[str, Any]:
    source_uri = params.get("photo")
    photograph = place.queries.photograph(source_uri)
    planned = place.planned()
    planned = planned if planned and planned.covers(source_uri) else None
    if photograph is None:
        raise HTTPException(404, f"{place.destination} has no dreams of {source_uri or 'this photograph'}.")
    rows = place.queries.dreams(source_uri)
    sample = next((row for row in rows if row.width), rows[0])
    axes = _axes(place.queries.axes(source_uri), rows, planned)
    points = [*map(point_of, rows), *(planned.points if planned else ())]
    whole = whole_axis(points)
    down, across = _chosen_axes(axes, whole, params)
    others = [axis for axis in axes if axis not in (down, across) and down != whole]
    sliders = _sliders(others, params, _row_of(rows, params))
    names = names_of(points) if down == whole else {}
    lines = _lines(place, source_uri, (down, across), sliders, planned, names)
    cells = [cell for line in lines for cell in line.cells]
    dreams = [cell.row for cell in cells if cell.kind == "dream" and cell.row]
    chosen = next((row for row in dreams if row.result_id == params.get("chosen")), dreams[0] if dreams else None)
    one_objective = len({row.objective for row in dreams}) < 2
    columns = [Line(value, _mean([line.cells[i] for line in lines]), []) for i, value in enumerate(_values_of(across))]
    tally = _tally(rows, planned)
    seeds = {point.seed for point in points} if noise_size(source_uri) else ()
    shows_source = len(seeds) < 2  # noise is another picture for each seed
    running = unfinished_run(place) if planned else None
    return {
        "params": params,
        "source_uri": source_uri,
        "name": photograph.name,
        "axes": [whole, *axes] if len(axes) > 1 else axes,
        "down": down and down.name,
        "across": across and across.name,
        "rest": sliders,
        "swapped": params.with_changes({"down": across.name, "across": down.name}) if down and across else "",
        "lines": lines,
        "columns": columns[:_MAX_COLUMNS],
        "one_objective": one_objective,
        "cut": _cut(down, across),
        "captions": params.get("captions") if params.get("captions") in _CAPTIONS else "scores",
        "shape": ratio_class(sample.width or 3, sample.height or 2),
        "source_thumb": f"/d/{place.slug}/photograph/{sample.result_id}/small" if tally.done and shows_source else "",
        "tally": tally,
        "known": f"{tally.done}-{tally.failed}-{tally.planned}",
        "chosen": chosen and chosen.result_id,
        "chosen_row": chosen,
        "running": running,
    }


def _row_of(rows: Sequence[DreamRow], params: Params) -> DreamRow | None:
    """Return the dream that an address names, whose settings the sliders then show."""
    return next((row for row in rows if row.result_id == params.get("chosen")), None)


def _axes(axes: Sequence[Axis], rows: Sequence[DreamRow], planned: Planned | None) -> list[Axis]:
    """Return the settings that vary among the dreams that exist and those that are planned."""
    if planned is None:
        return list(axes)
    known = {axis.name: axis.values for axis in axes}
    points = [*planned.points, *(point_of(row) for row in rows[:1])]
    found = [Axis(axis.name, in_order({*axis.values, *known.pop(axis.name, ())})) for axis in axes_of(points)]
    return found + [Axis(name, values) for name, values in known.items()]


def _chosen_axes(axes: Sequence[Axis], whole: Axis, params: Params) -> tuple[Axis | None, Axis | None]:
    """Return the axes of rows and columns. With one axis, there is only a row of pictures; without any, one picture.

    If a table would be nearly empty, the one axis is `whole`: all dreams stand in one row.
    """
    by_name = {axis.name: axis for axis in (whole, *axes)}
    down, across = by_name.get(params.get("down")), by_name.get(params.get("across"))
    if len(axes) < 2:
        return (axes[0] if axes else None), None
    if whole in (down, across) or (down is across is None and is_sparse(axes, len(whole.values))):
        return whole, None
    if down is None:
        down = next(axis for axis in axes if axis != across)
    if across is None or across == down:
        across = next(axis for axis in axes if axis != down)
    return down, across


def _sliders(axes: Sequence[Axis], params: Params, row: DreamRow | None) -> list[Slider]:
    given = params.below(AXIS)
    point = point_of(row) if row else None
    sliders = []
    for axis in axes:
        value = given.get(axis.name) or (point.value(axis.name) if point else "")
        value = value if value in axis.values else axis.values[0]
        sliders.append(Slider(axis.name, axis.values, value, axis.values.index(value)))
    return sliders


def _values_of(axis: Axis | None) -> Sequence[str]:
    return axis.values if axis else ("",)


def _cut(down: Axis | None, across: Axis | None) -> tuple[int, int] | None:
    """Return the whole size of a table that is too large to be shown."""
    height, width = len(_values_of(down)), len(_values_of(across))
    return (height, width) if across and (height > _MAX_ROWS or width > _MAX_COLUMNS) else None


def _lines(
    place: Place,
    source_uri: str,
    axes: tuple[Axis | None, Axis | None],
    sliders: Sequence[Slider],
    planned: Planned | None,
    names: Mapping[str, str],
) -> list[Line]:
    """Return the rows of the table; of a single axis, one row with all of its cells. `names` replaces values."""
    down, across = axes
    fixed = {slider.name: slider.value for slider in sliders}
    if across is None:
        across, down = down, None
    shown = [
        down and replace(down, values=down.values[:_MAX_ROWS]),
        across and replace(across, values=across.values[: _MAX_COLUMNS if down else _MAX_ROWS * _MAX_COLUMNS]),
    ]
    lines = []
    found = _found(place, source_uri, shown[0], shown[1], fixed)
    for value in _values_of(shown[0]):
        cells = []
        for other in _values_of(shown[1]):
            row = found.get((value, other))
            at = dict(fixed) | ({down.name: value} if down else {}) | ({across.name: other} if across else {})
            cells.append(_cell(row, at, names.get(other, other), planned))
        lines.append(Line(value, _mean(cells), cells))
    return lines


def _found(
    place: Place, source_uri: str, down: Axis | None, across: Axis | None, fixed: Mapping[str, str]
) -> dict[tuple[str, str], DreamRow]:
    """Return the rows of the table by the values of both axes."""
    found: dict[tuple[str, str], DreamRow] = {}
    for row in place.queries.dreams(source_uri):
        point = point_of(row)
        if all(point.value(name) == value for name, value in fixed.items()):
            place_of_row = (point.value(down.name) if down else "", point.value(across.name) if across else "")
            known = found.get(place_of_row)
            if known is None or known.status != "done" or (row.status == "done" and row.created_at > known.created_at):
                found[place_of_row] = row
    return found


def _cell(row: DreamRow | None, at: Mapping[str, str], value: str, planned: Planned | None) -> Cell:
    name = "cell-" + sha256(repr(sorted(at.items())).encode()).hexdigest()[:12]
    if row and row.status == "done":
        return Cell(name, "dream", value, row)
    if row:
        return Cell(name, "failed", value, row)
    return Cell(name, "planned" if planned and planned.has(at) else "none", value)


def _mean(cells: Sequence[Cell]) -> float | None:
    """Return the mean gain of dreams that can be compared."""
    rows = [cell.row for cell in cells if cell.kind == "dream" and cell.row and cell.row.gain is not None]
    if not rows or len({row.objective for row in rows}) > 1:
        return None
    return sum(row.gain or 0.0 for row in rows) / len(rows)


def _tally(rows: Sequence[DreamRow], planned: Planned | None) -> Tally:
    there = {row.settings_id for row in rows}
    to_come = sum(point.settings_id not in there for point in planned.points) if planned else 0
    done = sum(row.status == "done" for row in rows)
    return Tally(done, len(rows) - done, to_come)
