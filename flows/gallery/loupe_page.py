"""The loupe: one dream at full size, against its photograph, or beside other dreams."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse

from flows.gallery.address import Params
from flows.gallery.context import dream_or_404, inspector_values, params_of, place_of, point_of, render, unfinished_run
from flows.gallery.formats import figure, gain, setting
from flows.gallery.records import DreamRow, Filters
from flows.gallery.site import Place

__all__ = ["loupe"]

_MAX_PANES = 4
_MAX_FILM = 600
"""Pictures in the strip below the loupe."""


class Comparison(NamedTuple):
    """One line of the comparison of several dreams."""

    name: str
    values: list[str]
    differs: bool


def loupe(request: Request) -> HTMLResponse:
    """Show one dream or several."""
    place = place_of(request)
    place.refresh()
    params = _of_photograph(place, params_of(request))
    ids = list(dict.fromkeys(params.all("id")))[:_MAX_PANES] or [""]
    chosen = [dream_or_404(place, each) for each in ids]
    dreams = [row for row in place.queries.dreams(chosen[0].source_uri) if row.status == "done"]
    film = _film(dreams, chosen[0])
    mode = params.get("mode", "several" if len(chosen) > 1 else "one")
    mode = mode if mode in ("one", "split", "photograph", "several") else "one"
    panes = _panes(chosen, film, params) if mode == "several" else chosen[:1]
    active = next((i for i in range(len(panes)) if params.get("active") == str(i)), 0)
    row = panes[active]
    previous, following = place.queries.neighbours(row.source_uri, Filters())
    values: dict[str, Any] = {
        "params": params,
        "name": row.source_name,
        "mode": mode,
        "shown_mode": f"{mode}-{len(panes)}" if mode == "several" else mode,
        "modes": _modes(params, [each.result_id for each in chosen], panes, row),
        "pager": [
            ("Previous", "‹", "prev", _beside(params, mode, row, previous)),
            ("Next", "›", "next", _beside(params, mode, row, following)),
        ],
        "panes": panes,
        "active": active,
        "film": film,
        "film_of": len(dreams),
        "versus": _compare(panes) if len(panes) > 1 else [],
        "chosen": row.result_id,
        "running": unfinished_run(place),
    }
    return render(request, "loupe.html", "loupe", values | inspector_values(place, row), place=place)


def _of_photograph(place: Place, params: Params) -> Params:
    """Return the parameters for the dream of another photograph, if an address names one.

    It is the dream with the same settings, or else the best one.
    """
    uri, given = params.get("photo"), params.get("id")
    others = Params([pair for pair in params.pairs if pair[0] != "photo"])
    row = dream_or_404(place, given) if uri else None
    if row is None or row.source_uri == uri:
        return others
    photograph = place.queries.photograph(uri)
    if photograph is None or photograph.best is None:
        raise HTTPException(404, f"{place.destination} has no dreams of {uri}.")
    alike = (each for each in place.queries.dreams(uri) if each.settings_id == row.settings_id)
    found = next((each for each in alike if each.status == "done"), photograph.best)
    return Params([("id", found.result_id), *(pair for pair in others.pairs if pair[0] != "id")])


def _beside(params: Params, mode: str, row: DreamRow, uri: str | None) -> str:
    """Return the query of the loupe with another photograph; empty if there is none."""
    kept = None if mode == "several" else mode
    changes = {"photo": uri, "id": row.result_id, "mode": kept, "panes": None, "active": None}
    return params.with_changes(changes) if uri else ""


def _film(dreams: Sequence[DreamRow], chosen: DreamRow) -> Sequence[DreamRow]:
    """Return the dreams of the strip: all of them, or those around the chosen one."""
    position = next((i for i, row in enumerate(dreams) if row.result_id == chosen.result_id), 0)
    start = max(0, min(position - _MAX_FILM // 2, len(dreams) - _MAX_FILM))
    return dreams[start : start + _MAX_FILM]


def _panes(chosen: Sequence[DreamRow], film: Sequence[DreamRow], params: Params) -> list[DreamRow]:
    """Return the dreams to show beside each other.

    What is missing is the dream that the first one enlarges, and then those next to it.
    """
    wanted = 4 if params.get("panes") == "4" else max(2, len(chosen))
    ids = [row.result_id for row in film]
    start = ids.index(chosen[0].result_id) + 1 if chosen[0].result_id in ids else 0
    others = [row for row in [*film[start:], *film[:start]] if row.result_id not in {each.result_id for each in chosen}]
    others.sort(key=lambda row: row.result_id != chosen[0].enlarged_from)
    return [*chosen, *others][:wanted]


def _modes(params: Params, ids: list[str], panes: Sequence[DreamRow], row: DreamRow) -> list[tuple[str, str, str, str]]:
    """Return for each way to show dreams its name, its text, its key and the query of its address."""
    first = [row.result_id]
    keep = [each.result_id for each in panes] if len(panes) > 1 else ids

    def query(mode: str, ids: list[str], panes: str | None = None) -> str:
        return params.with_changes({"mode": mode, "id": ids, "panes": panes, "active": None})

    return [
        ("one", "Dream", "", query("one", first)),
        ("split", "Photograph | dream", "", query("split", first)),
        ("several-2", "Two", "c", query("several", keep[:2])),
        ("several-4", "Four", "", query("several", keep[:4], "4")),
    ]


def _compare(rows: Sequence[DreamRow]) -> list[Comparison]:
    """Return what differs between dreams, then what is equal."""
    points = [point_of(row) for row in rows]
    names = ["model", "layers", *dict.fromkeys(name for point in points for name in point.settings)]
    lines = [
        ("photograph", [row.source_name for row in rows]),
        *((name, [point.value(name) for point in points]) for name in names),
    ]
    settings = [
        Comparison(name, [setting(value, name) for value in values], len(set(values)) > 1) for name, values in lines
    ]
    one_objective = len({row.objective for row in rows}) == 1
    outcomes = [
        ("gain" if one_objective else "gain, of different objectives", [gain(row.gain) for row in rows]),
        ("score", [figure(row.score_after) for row in rows]),
        ("seen", [row.classes_after[0].label if row.classes_after else "" for row in rows]),
        ("cost", [f"{row.seconds:.1f} s" if row.seconds is not None else "" for row in rows]),
        ("size", [f"{row.width} × {row.height}" for row in rows]),
    ]
    found = [Comparison(name, values, len(set(values)) > 1) for name, values in outcomes]
    differing = [line for line in settings if line.differs]
    return differing + found + [line for line in settings if not line.differs and line.name != "photograph"]
