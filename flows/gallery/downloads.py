"""Downloads of the favourites: the original files in a zip, or a share pack. Both are streams."""

import logging
import re
from collections.abc import Iterator
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse

from flows.gallery.context import params_of, place_of, point_of
from flows.gallery.favourites_page import marks_of
from flows.gallery.records import DreamRow
from flows.gallery.share import ChosenDream, stream_share_pack, stream_zip
from flows.gallery.site import Place
from flows.gallery.whole import look_of
from flows.s3.layout import images_folder

__all__ = ["originals", "share_pack"]

_LOG = logging.getLogger(__name__)
_PER_PAGE = 2000
_UNSAFE = re.compile(r"[^\w.-]+", re.ASCII)


def originals(request: Request) -> StreamingResponse:
    """Send the files of the favourites as they are stored."""
    place, least = place_of(request), marks_of(params_of(request))
    return _zip(place, "favourites", stream_zip(_chosen(place, least), place.storage, _note))


def share_pack(request: Request) -> StreamingResponse:
    """Send the favourites as small JPEGs without metadata, with captions."""
    place, least = place_of(request), marks_of(params_of(request))
    return _zip(place, "share", stream_share_pack(_chosen(place, least), place.storage, _note))


def _chosen(place: Place, least: int) -> list[ChosenDream]:
    """Return the favourites, the best first.

    Raises:
        HTTPException: there are none.
    """
    place.refresh()
    chosen, cursor = list[ChosenDream](), None
    while True:
        rows, cursor = place.queries.favourites(least, after=cursor, limit=_PER_PAGE)
        chosen += [dream for row in rows for dream in _dreams_of(row, place)]
        if cursor is None:
            break
    if not chosen:
        raise HTTPException(404, f"No dream is marked {least} or more.")
    return chosen


def _dreams_of(row: DreamRow, place: Place) -> Iterator[ChosenDream]:
    """Yield the dream of a row, unless the row names an object outside of the destination."""
    if row.result_uri is None or not row.result_uri.startswith(images_folder(place.destination)):
        return
    point = point_of(row)
    octaves, steps = (int(point.value(name)) for name in ("octaves", "steps"))
    words = row.result_id, row.result_uri, row.source_uri, row.model, row.layers
    yield ChosenDream(*words, octaves, steps, row.mark or 0, look_of(point))


def _note(dream: ChosenDream) -> None:
    _LOG.warning("%s is missing or cannot be read: the download goes without it", dream.result_uri)


def _zip(place: Place, name: str, pieces: Iterator[bytes]) -> StreamingResponse:
    """Return a response that downloads a zip. If S3 fails on the way, the connection breaks and the browser says so."""
    folder = _UNSAFE.sub("-", place.destination.removeprefix("s3://")).strip("-.") or "dreams"
    headers = {
        "Content-Disposition": f'attachment; filename="{quote(folder[-80:])}-{name}.zip"',
        "Content-Encoding": "identity",  # the files are compressed already
    }
    return StreamingResponse(pieces, media_type="application/zip", headers=headers)
