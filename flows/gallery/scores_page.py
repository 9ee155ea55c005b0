"""The scores: gain over two settings, gain against cost, and the distribution of the gain.

Every value is in a table with a link to its pictures; the script draws the tables as charts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import HTMLResponse

from flows.gallery.address import SETTING, Params, filters_of
from flows.gallery.context import params_of, place_of, render, unfinished_run
from flows.gallery.formats import gain
from flows.gallery.pages import chips_of
from flows.gallery.records import Axis, CostPoint, Histogram, ScoreMap
from flows.gallery.whole import names_of

__all__ = ["scores"]

_MAX_ROWS, _MAX_COLUMNS, _MAX_POINTS, _MAX_OBJECTIVES = 40, 24, 1000, 6
_BINS = 24
_OBJECTIVE = f"{SETTING}objective"
_ENLARGE = f"{SETTING}enlarge"
"""The filter that leaves out enlarged dreams, as the scores do."""
_FIELDS = ("model", "layers")
"""Settings that have a filter of their own in the library."""


class Value(NamedTuple):
    """A place of a chart."""

    value: float
    """A gain, or a rank from 0 to 100."""
    text: str
    dreams: int
    query: str
    """The query of the library that shows its pictures."""


class CostRow(NamedTuple):
    """The dreams of one settings."""

    name: str
    seconds: float
    value: Value


def scores(request: Request) -> HTMLResponse:
    """Show the scores of the dreams within the filters."""
    place, params = place_of(request), params_of(request)
    place.refresh()
    filters = filters_of(params)
    any_objective = replace(filters, settings=tuple(each for each in filters.settings if each[0] != "objective"))
    axes = place.queries.score_axes(filters)
    costs = place.queries.gain_against_cost(filters)
    by_rank = len({each.point.objective for each in costs}) > 1
    found = _map(axes, params)
    score_map = place.queries.score_map(*found, filters) if found else None
    own = [pair for pair in params.pairs if pair[0] not in ("x", "y", "after", "chosen")]
    if any(point.enlarges for point in place.queries.cache.points.values()):
        own = [(_ENLARGE, "none"), *(pair for pair in own if pair[0] != _ENLARGE)]
    pictures = Params(own)
    histograms = place.queries.gain_histogram(filters, _BINS)
    values = {
        "params": params,
        "pictures": pictures.with_changes({}),
        "kept": [pair for pair in pictures.pairs if pair[0] != _OBJECTIVE],
        "chips": [chip for chip in chips_of(place, params) if not chip.text.startswith("objective: ")],
        "dreams": sum(each.dreams for each in costs),
        "objective": params.get(_OBJECTIVE),
        "objective_name": _OBJECTIVE,
        "objectives": place.queries.objectives(any_objective),
        "by_rank": by_rank,
        "alone": by_rank and max(Counter(each.point.objective for each in costs).values()) == 1,
        "axes": axes,
        "map": score_map,
        "rows": _rows(score_map, pictures) if score_map else [],
        "cut": score_map and (len(score_map.y.values) > _MAX_ROWS or len(score_map.x.values) > _MAX_COLUMNS),
        "max_columns": _MAX_COLUMNS,
        "costs": _cost_rows(costs, pictures, by_rank=by_rank),
        "all_costs": len(costs),
        "histograms": [(each.objective, _bins(each, pictures)) for each in histograms[:_MAX_OBJECTIVES]],
        "all_histograms": len(histograms),
        "running": unfinished_run(place),
    }
    return render(request, "scores.html", "scores", values, place=place)


def _map(axes: Sequence[Axis], params: Params) -> tuple[str, str] | None:
    """Return the settings across and down; None if no setting varies. Of a single setting, the map has one row."""
    names = [axis.name for axis in axes]
    if not names:
        return None
    if len(names) == 1:
        return names[0], next(name for name in _FIELDS if name != names[0])
    x, y = params.get("x"), params.get("y")
    y = y if y in names and y != x else next(name for name in names if name != x)
    x = x if x in names else next(name for name in names if name != y)
    return x, y


def _rows(found: ScoreMap, pictures: Params) -> list[tuple[str, list[Value | None]]]:
    """Return the rows of the map with their values."""
    rows = []
    for y, cells in list(zip(found.y.values, found.cells, strict=True))[:_MAX_ROWS]:
        values: list[Value | None] = []
        for x, cell in list(zip(found.x.values, cells, strict=True))[:_MAX_COLUMNS]:
            if cell is None:
                values.append(None)
                continue
            query = pictures.with_changes({_filter(found.x.name): x, _filter(found.y.name): y})
            values.append(_value(cell.value, cell.dreams, query, by_rank=found.by == "rank"))
        rows.append((y, values))
    return rows


def _filter(name: str) -> str:
    return name if name in _FIELDS else SETTING + name


def _value(value: float, dreams: int, query: str, *, by_rank: bool) -> Value:
    if by_rank:
        return Value(100 * value, f"{100 * value:.0f}", dreams, query)
    return Value(value, gain(value), dreams, query)


def _cost_rows(costs: Sequence[CostPoint], pictures: Params, *, by_rank: bool) -> list[CostRow]:
    """Return the settings with the highest values, the highest first."""
    ordered = sorted(costs, key=lambda each: each.rank if by_rank else each.gain, reverse=True)
    names = names_of([each.point for each in costs])
    return [
        CostRow(
            names[each.point.settings_id],
            each.seconds,
            _value(
                each.rank if by_rank else each.gain,
                each.dreams,
                pictures.with_changes({f"{SETTING}settings_id": each.point.settings_id}),
                by_rank=by_rank,
            ),
        )
        for each in ordered[:_MAX_POINTS]
    ]


def _bins(found: Histogram, pictures: Params) -> list[tuple[float, float, Value]]:
    """Return the limits of each bin, and the number of its dreams. The outer bins have no outer limit in the filter."""
    bins = []
    last = len(found.counts) - 1
    for place, count in enumerate(found.counts):
        low, high = found.edges[place], found.edges[place + 1]
        limits = {"gain_min": repr(low) if place else None, "gain_max": repr(high) if place < last else None}
        query = pictures.with_changes({_OBJECTIVE: found.objective, **limits})
        bins.append((low, high, Value(count, f"{count:,}", count, query)))
    return bins
