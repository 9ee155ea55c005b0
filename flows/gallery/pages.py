"""The pages of the library, the failures and the runs, and what is known of one dream."""

from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from flows.gallery.address import SETTING, Params, best_by_of, filters_of, sort_of
from flows.gallery.at_work import work_of
from flows.gallery.context import dream_or_404, inspector_values, params_of, place_of, render, unfinished_run
from flows.gallery.records import BestBy, Filters, Sort
from flows.gallery.site import Place, Site
from flows.gallery.whole import looks_by_layers

__all__ = ["chips_of", "destinations", "dream", "failures", "home", "library", "now", "runs"]

PER_PAGE = 100
FACET_OPTIONS = 12
"""Values of a facet that are listed; others are found by searching."""
FAILURES_PER_PAGE = 50
_FACETS = (
    ("status", "Status"),
    ("layers", "Layers"),
    ("model", "Model"),
    ("seen", "Seen in the dream"),
    ("run", "Run"),
)
_STATUSES = ("done", "failed", "skipped")
_MARKS = {
    "": "all",
    "1": "1 or more",
    "2": "2 or more",
    "3": "3 or more",
    "4": "4 or more",
    "5": "5",
    "none": "not marked",
}
_KINDS = {
    "not_an_image": ("The file is not an image, whatever its name says.", "Look at the file: it may be a web page."),
    "unsupported": ("The format, or this variant of it, is not read.", "Convert the file to PNG or JPEG."),
    "damaged": ("The file is truncated or corrupt.", "Upload the photograph again."),
    "too_large": ("The photograph has too many pixels or bytes.", "Make it smaller."),
    "too_small": ("The photograph is smaller than the network accepts.", "Leave it out, or make it larger."),
    "undecodable": ("The decoder failed or took too long.", "Convert the file with another program."),
    "out_of_memory": ("The photograph needs more memory than there is.", "Lower max_pixels, or give --max-memory."),
    "non_finite": ("A gradient was not a finite number.", "Lower step_size."),
    "source_changed": ("The photograph was replaced after the scan.", "Run the job again: it dreams the new version."),
    "source_missing": ("The photograph was deleted after the scan.", "Restore it if that was a mistake."),
    "source_unreadable": ("The store does not deliver the file.", "It may be archived or encrypted: check the object."),
}  # fmt: skip


class Option(NamedTuple):
    """One value of a facet."""

    value: str
    label: str
    dreams: int | None
    checked: bool


class Facet(NamedTuple):
    """A group of filters of the library."""

    name: str
    title: str
    options: list[Option]
    single: bool
    more: int


class Chip(NamedTuple):
    """A filter that is set, and the query without it."""

    text: str
    query: str


def home(request: Request) -> Response:
    """Show the list of destinations, or go to the only one."""
    site: Site = request.app.state.site
    if len(site.destinations) == 1:
        return RedirectResponse(f"/d/{next(iter(site.destinations))}/library", 307)
    return destinations(request)


def destinations(request: Request) -> HTMLResponse:
    """Show the destinations of the gallery."""
    return render(request, "destinations.html", "destinations", {"destinations": request.app.state.site.destinations})


def open_place(request: Request) -> Response:
    """Go to the library of a destination."""
    return RedirectResponse(f"/d/{place_of(request).slug}/library", 307)


def library(request: Request) -> HTMLResponse:
    """Show the photographs with their best dreams; with `after`, only the next ones to a script."""
    place, params = place_of(request), params_of(request)
    place.refresh()
    filters, best_by, sort = filters_of(params), best_by_of(params), sort_of(params)
    photographs, cursor = place.queries.photographs(
        filters, best_by=best_by, sort=sort, after=params.get("after") or None, limit=PER_PAGE
    )
    chosen = params.get("chosen")
    shown = [photo.best for photo in photographs if photo.best]
    row = next((best for best in shown if best.result_id == chosen), shown[0] if shown else None)
    values = {
        "params": params,
        "photographs": photographs,
        "cursor": cursor,
        "next_query": params.with_changes({"after": cursor, "chosen": None}),
        "chosen": "" if params.get("after") else row and row.result_id,
        "chosen_row": None if params.get("after") else row,  # equal photographs have dreams with the same id
    }
    if params.get("after") and request.headers.get("HX-Request"):
        return render(request, "library_pictures.html", "library", values, place=place)
    chips = chips_of(place, params)
    by_rank = len({row.objective for row in shown}) > 1 or any(photo.objectives > 1 for photo in photographs)
    values |= {
        "filters": filters,
        "best_by": best_by,
        "sort": sort,
        "counts": place.queries.counts(filters),
        "facets": _facets(place, filters, params),
        "chips": chips,
        "by_rank": by_rank,
        "order": _order(best_by, sort, by_rank=by_rank),
        "running": unfinished_run(place),
    }
    return render(request, "library.html", "library", values | inspector_values(place, row), place=place)


def _order(best_by: BestBy, sort: Sort, *, by_rank: bool) -> list[str]:
    """Return sentences that say which dream of a photograph is shown, and in which order the photographs are.

    The usual choice, the highest gain, is left out if all gains can be compared.
    """
    within = ", by rank within its objective" if by_rank else ""
    best = {
        "gain": f"The picture of a photograph is its dream with the highest gain{within}." if by_rank else "",
        "score": f"The picture of a photograph is its dream with the highest score{within}.",
        "mark": "The picture of a photograph is its dream with the highest mark.",
    }[best_by]
    order = {
        "gain": "The photographs are sorted by this rank, not by the number below the picture." if by_rank else "",
        "mark": "The photographs with the highest marks come first.",
    }.get(sort, "")
    if sort == "gain" and by_rank and best_by != "gain":
        order = "The photographs are sorted by the rank of the highest gain within its objective."
    why = "Gains of different layers cannot be compared: the same number may be much for one and little for another."
    return [each for each in (best, order, why if by_rank and (best_by != "mark" or sort == "gain") else "") if each]


def _facets(place: Place, filters: Filters, params: Params) -> list[Facet]:
    found = place.queries.facets(filters)
    facets, looks = [], looks_by_layers(place.queries.cache.points.values())
    for name, title in _FACETS:
        values = found.get(name, [])
        chosen = params.all(name)
        single = name in ("status", "run")
        if name == "status":
            counts = dict(values)
            chosen = chosen or ("done",)
            options = [Option(each, each, counts.get(each, 0), each in chosen) for each in _STATUSES]
            facets.append(Facet(name, title, options, single, 0))
            facets.append(_marks_facet(params))
            continue
        listed = values[:FACET_OPTIONS] + [pair for pair in values[FACET_OPTIONS:] if pair[0] in chosen]
        listed += [(each, 0) for each in chosen if each not in dict(listed)]
        names = looks if name == "layers" else {}
        options = [Option(value, names.get(value, value), count, value in chosen) for value, count in listed]
        if single and options:
            options = [Option("", "all", None, not chosen), *options]
        if len(values) > 1 or chosen:
            facets.append(Facet(name, title, options, single, len(values) - len(values[:FACET_OPTIONS])))
    return facets


def _marks_facet(params: Params) -> Facet:
    chosen = params.get("marks")
    return Facet(
        "marks", "Marks", [Option(value, text, None, value == chosen) for value, text in _MARKS.items()], True, 0
    )


def chips_of(place: Place, params: Params) -> list[Chip]:
    """Return the filters that an address sets."""
    words = {"q": "", "hide": "", "marks": "marks: ", "since": "since ", "until": "before ", "seen": "seen: "}
    words |= {"gain_min": "gain from ", "gain_max": "gain up to "}
    looks = looks_by_layers(place.queries.cache.points.values()) if params.get("layers") else {}
    texts = {"marks": _MARKS, "hide": {"1": "rejected hidden"}, "layers": looks}
    shown = {*words, *(name for name, _ in _FACETS)}
    return [
        Chip(words.get(name, f"{name.removeprefix(SETTING)}: ") + texts.get(name, {}).get(value, value), rest)
        for name, value in params.pairs
        if (name in shown or name.startswith(SETTING)) and (name, value) != ("status", "done")
        for rest in (params.without(name, value),)
    ]


def dream(request: Request) -> HTMLResponse:
    """Show what is known of one dream, as a part of a page."""
    place = place_of(request)
    row = dream_or_404(place, request.path_params["result_id"])
    view = request.query_params.get("view", "")
    return render(request, "inspector.html", view, inspector_values(place, row), place=place)


def failures(request: Request) -> HTMLResponse:
    """Show the photographs that failed or were skipped, by the kind of error."""
    place, params = place_of(request), params_of(request)
    place.refresh()
    only = params.get("kind")
    kinds: list[dict[str, Any]] = []
    for found in place.queries.failure_kinds():
        if only and found.kind != only and params.get("after"):
            continue
        after = params.get("after") or None if found.kind == only else None
        rows, cursor = place.queries.failures(found.kind, after=after, limit=FAILURES_PER_PAGE)
        what, remedy = _KINDS.get(found.kind, ("", ""))
        kinds.append(
            {
                "kind": found.kind, "dreams": found.dreams, "photographs": found.photographs, "failures": rows,
                "next": cursor, "what": what, "remedy": remedy, "limit": FAILURES_PER_PAGE,
            }
        )  # fmt: skip
    work = work_of(place)
    values = {
        "kinds": kinds,
        "total": sum(kind["dreams"] for kind in kinds),
        "counts": place.queries.counts(Filters()),
        "running": unfinished_run(place),
        "params": params,
        "going_on": work and work.words,
    }
    return render(request, "failures.html", "failures", values, place=place)


def runs(request: Request) -> HTMLResponse:
    """Show the runs of a destination with their progress."""
    place = place_of(request)
    values = {"runs": place.queries.runs(), "running": unfinished_run(place)}
    return render(request, "runs.html", "runs", values, place=place)


def now(request: Request) -> HTMLResponse:
    """Show the progress of the unfinished run, as a part of a page; nothing if there is none."""
    place = place_of(request)
    running = unfinished_run(place)
    if running is None:
        return HTMLResponse("")
    return render(request, "running.html", "", {"running": running}, place=place)
