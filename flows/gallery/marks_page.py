"""Marks that a page sends, and marks of others for a page that is open."""

from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from dreamcore.errors import InvalidInput, Unavailable
from flows.destination.favourites import Mark
from flows.gallery.context import dream_or_404, form_of, params_of, place_of
from flows.gallery.marks import REJECTED
from flows.gallery.site import Place

__all__ = ["mark", "news"]

_MARKS = {str(each): each for each in range(REJECTED, 6)}
_MOST = 1000
"""Marks of one request."""


async def mark(request: Request) -> Response:
    """Set the marks of dreams: `id` and `mark`, once for each dream. The marks are in S3 when the answer is 204."""
    place, form = place_of(request), await form_of(request)
    ids, texts = form.all("id"), form.all("mark")
    if len(ids) != len(texts) or not 1 <= len(ids) <= _MOST or any(text not in _MARKS for text in texts):
        raise HTTPException(400, "A mark is a number from 0 to 5, or -1 to reject.")
    try:
        await run_in_threadpool(_add, place, ids, [_MARKS[text] for text in texts])
    except (InvalidInput, Unavailable) as error:
        return PlainTextResponse(str(error), 503 if isinstance(error, Unavailable) else 403)
    return Response(status_code=204)


def _add(place: Place, ids: Sequence[str], marks: Sequence[int]) -> None:
    rows = [dream_or_404(place, each) for each in ids]
    place.marks.add(
        Mark(row.result_id, value, row.source_uri, row.settings_id) for row, value in zip(rows, marks, strict=True)
    )


def news(request: Request) -> Response:
    """Send the marks that changed since the version `since`, as JSON; nothing if none changed."""
    place, since = place_of(request), params_of(request).get("since")
    found = place.marks.news(since)
    if found.version == since:
        return Response(status_code=204)
    values = {"version": found.version, "marks": dict(found.marks), "all": found.is_all}
    return JSONResponse(values | {"favourites": place.queries.favourite_count()})
