"""The grid: the dreams of one photograph, with any two settings as rows and columns and the others as sliders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from flows.gallery.address import AXIS, Params
from flows.gallery.axes import axes_of, in_order
from flows.gallery.context import inspector_values, params_of, place_of, point_of, render, unfinished_run
from flows.gallery.enlarged import apart, awaited, without_enlarged
from flows.gallery.planned import Planned
from flows.gallery.ratios import ratio_class
from flows.gallery.records import Axis, DreamRow, Filters
from flows.gallery.site import Place
from flows.gallery.whole import is_sparse, names_of, whole_axis
from flows.gallery.windows import Window, window
from flows.jobs.noise_source import noise_size

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


class GridCounts(NamedTuple):
    """How many dreams of the photograph are done, failed or were skipped, and are still planned."""

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
    values |= {"previous": previous, "next": following} | inspector_values(place, values["chosen_row"])
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
    everything = place.queries.dreams(source_uri)
    rows, enlarged = apart(everything)
    to_come, planned = awaited(planned, everything), without_enlarged(planned)
    sample = next((row for row in rows if row.width), rows[0])
    axes = _axes(rows, planned)
    points = [*map(point_of, rows), *(planned.points if planned else ())]
    whole = whole_axis(points)
    down, across = _chosen_axes(axes, whole, params)
    others = [axis for axis in axes if axis not in (down, across) and down != whole]
    wanted = _wanted(rows, params)
    sliders = _sliders(others, params, wanted)
    names = names_of(points) if down == whole else {}
    shown_down, shown_across, windows = _windows(down, across, params, wanted)
    lines = _lines(rows, (shown_down, shown_across), sliders, planned, names)
    cells = [cell for line in lines for cell in line.cells]
    dreams = [cell.row for cell in cells if cell.kind == "dream" and cell.row]
    shown = dreams + [row for row in enlarged if row.status == "done"]
    chosen = _wanted(shown, params) or (shown[0] if shown else None)
    columns = [
        Line(value, _mean([line.cells[i] for line in lines]), []) for i, value in enumerate(_values_of(shown_across))
    ]
    counts = _counts(everything, planned, to_come)
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
        "columns": columns,
        "windows": windows,
        "enlarged": enlarged,
        "enlarging": to_come,
        "captions": params.get("captions") if params.get("captions") in _CAPTIONS else "scores",
        "shape": ratio_class(sample.width or 3, sample.height or 2),
        "source_thumb": f"/d/{place.slug}/photograph/{sample.result_id}/small" if counts.done and shows_source else "",
        "counts": counts,
        "known": f"{counts.done}-{counts.failed}-{counts.planned}",
        "chosen": chosen and chosen.result_id,
        "chosen_row": chosen,
        "running": running,
    }


def _wanted(rows: Sequence[DreamRow], params: Params) -> DreamRow | None:
    """Return the dream that an address names, or else the first one of the run that it names."""
    chosen = next((row for row in rows if row.result_id == params.get("chosen")), None)
    run = params.get("run")
    return chosen or next((row for row in rows if run and row.run_id == run and row.status == "done"), None)


def _axes(rows: Sequence[DreamRow], planned: Planned | None) -> list[Axis]:
    """Return the settings that vary among the dreams that exist and those that are planned."""
    axes = axes_of([point_of(row) for row in rows])
    if planned is None:
        return axes
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


def _windows(
    down: Axis | None, across: Axis | None, params: Params, wanted: DreamRow | None
) -> tuple[Axis | None, Axis | None, dict[str, Window]]:
    """Return the parts of both axes that the page shows, and the windows by what they show: rows, columns, dreams."""
    point, windows = point_of(wanted) if wanted else None, {}

    def part(axis: Axis | None, what: str, most: int) -> Axis | None:
        if axis is None:
            return None
        shown, found = window(axis, most, f"first_{what}", params, point.value(axis.name) if point else "")
        if found:
            windows[what] = found
        return shown

    if across is None:
        return part(down, "dreams", _MAX_ROWS * _MAX_COLUMNS), None, windows
    return part(down, "rows", _MAX_ROWS), part(across, "columns", _MAX_COLUMNS), windows


def _lines(
    rows: Sequence[DreamRow],
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
    lines = []
    found = _found(rows, down, across, fixed)
    for value in _values_of(down):
        cells = []
        for other in _values_of(across):
            row = found.get((value, other))
            at = dict(fixed) | ({down.name: value} if down else {}) | ({across.name: other} if across else {})
            cells.append(_cell(row, at, names.get(other, other), planned))
        lines.append(Line(value, _mean(cells), cells))
    return lines


def _found(
    rows: Sequence[DreamRow], down: Axis | None, across: Axis | None, fixed: Mapping[str, str]
) -> dict[tuple[str, str], DreamRow]:
    """Return the rows of the table by the values of both axes."""
    found: dict[tuple[str, str], DreamRow] = {}
    for row in rows:
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


def _counts(rows: Sequence[DreamRow], planned: Planned | None, enlarging: int) -> GridCounts:
    there = {row.settings_id for row in rows}
    to_come = sum(point.settings_id not in there for point in planned.points) if planned else 0
    done = sum(row.status == "done" for row in rows)
    return GridCounts(done, len(rows) - done, to_come + enlarging)
