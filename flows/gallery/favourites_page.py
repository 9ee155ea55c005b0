"""The page of the favourites: all dreams with marks, the best first."""

from collections.abc import Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import HTMLResponse

from flows.gallery.address import Params
from flows.gallery.context import inspector_values, params_of, place_of, render, unfinished_run
from flows.gallery.marks import REJECTED
from flows.gallery.records import MarkCount

__all__ = ["favourites"]

PER_PAGE = 100
_HIGHEST = 5


class Level(NamedTuple):
    """The dreams with at least this mark."""

    least: int
    dreams: int
    bytes: int


def favourites(request: Request) -> HTMLResponse:
    """Show the marked dreams; with `after`, only the next ones to a script."""
    place, params = place_of(request), params_of(request)
    place.refresh()
    least, rejected = marks_of(params), params.get("rejected") == "1"
    rows, cursor = place.queries.favourites(
        least, with_rejected=rejected, after=params.get("after") or None, limit=PER_PAGE
    )
    row = next((each for each in rows if each.result_id == params.get("chosen")), rows[0] if rows else None)
    values = {
        "params": params,
        "rows": rows,
        "cursor": cursor,
        "next_query": params.with_changes({"after": cursor, "chosen": None}),
        "chosen": "" if params.get("after") else row and row.result_id,
        "chosen_row": None if params.get("after") else row,  # equal photographs have dreams with the same id
    }
    if params.get("after") and request.headers.get("HX-Request"):
        return render(request, "favourites_pictures.html", "favourites", values, place=place)
    counts = place.queries.marked()
    levels = _levels(counts)
    values |= {
        "levels": levels,
        "level": levels[least - 1],
        "with_rejected": rejected,
        "rejected": sum(each.dreams for each in counts if each.mark == REJECTED),
        "running": unfinished_run(place),
    }
    return render(request, "favourites.html", "favourites", values | inspector_values(place, row), place=place)


def marks_of(params: Params) -> int:
    """Return the lowest mark that an address asks for, from 1 to 5; 1 without one."""
    text = params.get("marks")
    return int(text) if text in {str(mark) for mark in range(1, _HIGHEST + 1)} else 1


def _levels(counts: Sequence[MarkCount]) -> list[Level]:
    levels = []
    for least in range(1, _HIGHEST + 1):
        found = [each for each in counts if each.mark >= least]
        levels.append(Level(least, sum(each.dreams for each in found), sum(each.bytes for each in found)))
    return levels
