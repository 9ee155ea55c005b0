"""What every page of the gallery needs: the destination of the request, and the templates."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse

from flows.gallery.address import Params
from flows.gallery.formats import FILTERS
from flows.gallery.points import Point, defaults, read_point
from flows.gallery.records import DreamRow, Run
from flows.gallery.site import Place, Site

__all__ = [
    "FOLDER",
    "dream_or_404",
    "form_of",
    "inspector_values",
    "params_of",
    "place_of",
    "point_of",
    "render",
    "text_of",
    "unfinished_run",
]

FOLDER = Path(__file__).parent
_MAIN_SETTINGS = ("octaves", "steps", "step_size", "seed")
"""Settings that the inspector always shows."""
_MAX_FORM = 2**20
"""Bytes."""
KEYMAP = (
    ("arrows", "the next picture in that direction"),
    ("Enter", "open"),
    ("Esc", "back"),
    ("1 to 5", "mark"),
    ("f", "favourite: mark 5"),
    ("x", "reject"),
    ("0", "remove the mark"),
    ("shift with a mark", "mark, and go on"),
    ("z", "undo the last mark"),
    ("s, held", "the photograph instead"),
    ("c", "compare: this one, then the other"),
    ("o", "the other one of those compared"),
    ("m", "more like it"),
    ("v", "choose several for one job"),
    ("[ and ]", "the slider, one value on"),
    ("p", "flip through the slider"),
    ("t", "swap the axes"),
    ("PgUp, PgDn", "the photograph before, or after"),
    ("+ and −, wheel", "zoom in the loupe; drag or arrows move"),
    ("y", "copy the command"),
    ("h", "hide the panels: pictures alone"),
    ("g then l, f, s, e, r", "library, favourites, scores, errors, runs"),
    ("/", "find photographs"),
    ("?", "this list"),
)

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(FILTERS)


def place_of(request: Request) -> Place:
    """Return the destination in the path of a request, with its newest rows.

    Raises:
        HTTPException: the gallery has no such destination.
    """
    site: Site = request.app.state.site
    place = site.place(request.path_params["slug"])
    if place is None:
        raise HTTPException(404, "The gallery was started without this destination.")
    request.state.marks_version = place.marks.version()  # before the page reads them, so that it misses no later mark
    return place


def point_of(row: DreamRow) -> Point:
    """Return the settings of a row."""
    return _point(row.settings_id, row.settings_json)


_point = lru_cache(4096)(read_point)


def params_of(request: Request) -> Params:
    """Return the parameters of a request."""
    return Params(request.query_params.multi_items())


async def form_of(request: Request) -> Params:
    """Return the fields that a page sent, URL-encoded.

    Raises:
        HTTPException: the body is too long, or not UTF-8.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM:
            raise HTTPException(413, "The form is too long.")
    try:
        return Params(parse_qsl(body.decode()))
    except ValueError as error:
        raise HTTPException(400, "The form is malformed.") from error


def dream_or_404(place: Place, result_id: str) -> DreamRow:
    """Return the row of a dream.

    Raises:
        HTTPException: the destination has no such dream.
    """
    if len(result_id) == 16:
        if row := place.queries.dream(result_id):
            return row
        place.refresh()  # the dream may be new, or the first page was served by an earlier gallery
        if row := place.queries.dream(result_id):
            return row
    raise HTTPException(404, f"{place.destination} has no dream with the id {result_id[:16]}. It may be pruned.")


def inspector_values(place: Place, row: DreamRow | None) -> dict[str, Any]:
    """Return what the inspector shows of a dream: its row, the defaults, and the dreams that it is related to."""
    known = defaults()
    shown = {*_MAIN_SETTINGS, *(row.settings if row else ())}
    at_default = [name for name in known if name not in shown]
    return {
        "row": row,
        "main_settings": _MAIN_SETTINGS,
        "defaults": known,
        "at_default": at_default,
        "original": place.queries.dream(row.enlarged_from) if row and row.enlarged_from else None,
        "enlarged_dreams": place.queries.enlarged(row.result_id) if row else [],
    }


def unfinished_run(place: Place) -> Run | None:
    """Return the unfinished run of a destination, with its progress."""
    if place.planned() is None:
        return None
    return next((run for run in place.queries.runs() if run.state == "unfinished"), None)


def render(
    request: Request,
    template: str,
    view: str,
    values: Mapping[str, Any],
    *,
    place: Place | None = None,
    code: int = 200,
) -> HTMLResponse:
    """Return a page or a part of one."""
    site: Site = request.app.state.site
    frame = {
        "view": view,
        "place": place,
        "base": f"/d/{place.slug}" if place else "",
        "several": len(site.destinations) > 1,
        "csrf": request.app.state.access.csrf,
        "read_only": site.read_only,
        "keymap": KEYMAP,
        "running": None,
        "trouble": (place.trouble or place.marks.trouble) if place else "",
        "favourite_count": place.queries.favourite_count if place else None,
        "marks_version": getattr(request.state, "marks_version", ""),
    }
    return HTMLResponse(text_of(template, frame | dict(values)), code)


def text_of(template: str, values: Mapping[str, Any]) -> str:
    """Return the text of a template with these values, which are escaped."""
    return _ENVIRONMENT.get_template(template).render(values)
