"""Pictures: thumbnails, whole dreams and photographs.

Only pictures that the manifest names are served, and of dreams only those below the destination. A picture that cannot
be shown is replaced by a drawing that names its object.
"""

import tempfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast
from urllib.parse import quote

from markupsafe import escape
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from dreamcore.errors import DreamgridError, ImageError, Unavailable
from flows.gallery.context import dream_or_404, place_of, point_of
from flows.gallery.formats import plain
from flows.gallery.records import DreamRow
from flows.gallery.site import Place
from flows.gallery.thumbnails import Missing, pixels_of
from flows.s3.layout import images_folder

__all__ = ["full", "photograph", "photograph_thumb", "thumb"]

_FOREVER = "private, max-age=31536000, immutable"
"""An address names one version of one picture, which never changes."""
_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "mp4": "video/mp4"}
_IN_MEMORY = 2**24
"""Bytes of a dream that are kept in memory while it is sent; more go into a temporary file."""
_CHUNK = 2**18
_LINE = 34
"""Characters of a line in a drawing."""


def thumb(request: Request) -> Response:
    """Send the thumbnail of a dream."""
    place = place_of(request)
    return _picture(place, request, lambda row: place.thumbnails.of_dream(_result_uri(place, row), row.result_id))


def photograph_thumb(request: Request) -> Response:
    """Send a small picture of the photograph of a dream."""
    place = place_of(request)

    def read(row: DreamRow) -> bytes:
        return place.thumbnails.of_photograph(row.source_uri, row.source_etag, point_of(row).seed)

    return _picture(place, request, read)


def photograph(request: Request) -> Response:
    """Send the photograph of a dream at the size of the dream, so that one covers the other."""
    place = place_of(request)

    def read(row: DreamRow) -> bytes:
        pixels = pixels_of(row.width, row.height)
        return place.thumbnails.photograph(row.source_uri, row.source_etag, pixels, point_of(row).seed)

    return _picture(place, request, read)


def full(request: Request) -> Response:
    """Send a whole dream as it is stored."""
    place = place_of(request)
    row = dream_or_404(place, request.path_params["result_id"])
    file = cast("BinaryIO", tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115 - closed when it is sent
    try:
        uri = _result_uri(place, row)
        if not place.storage.copy_to(uri, file):
            raise Missing(f"{uri} does not exist")
    except DreamgridError as error:
        file.close()
        return _drawing(error)
    length = file.tell()
    file.seek(0)
    headers = {"Cache-Control": _FOREVER, "Content-Length": str(length)}
    if request.query_params.get("download"):
        name = "-".join(uri.split("/")[-2:])
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    suffix = uri.rpartition(".")[2]
    return StreamingResponse(_chunks(file), media_type=_TYPES.get(suffix, "application/octet-stream"), headers=headers)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _result_uri(place: Place, row: DreamRow) -> str:
    """Return the address of a dream; a manifest may come from other people and name anything."""
    uri = row.result_uri
    if uri is None:
        raise Missing(f"the dream {row.result_id} was not made")
    if not uri.startswith(images_folder(place.destination)):
        raise HTTPException(403, "The manifest names a dream outside of its destination.")
    return uri


def _picture(place: Place, request: Request, read: Callable[[DreamRow], bytes]) -> Response:
    row = dream_or_404(place, request.path_params["result_id"])
    try:
        data = read(row)
    except DreamgridError as error:
        return _drawing(error)
    media_type = "image/jpeg" if data.startswith(b"\xff\xd8") else "image/webp"
    return Response(data, media_type=media_type, headers={"Cache-Control": _FOREVER})


def _drawing(error: DreamgridError) -> Response:
    """Return a drawing that says why a picture is not shown. Browsers show it whatever the status code is."""
    if isinstance(error, Missing) or (isinstance(error, ImageError) and error.kind == "source_missing"):
        code, title = 404, "missing"
    elif isinstance(error, Unavailable):
        code, title = 503, "the store does not respond"
    else:
        code, title = 422, "cannot be shown"
    text = plain(error)
    lines = [text[start : start + _LINE] for start in range(0, min(len(text), 8 * _LINE), _LINE)]
    rows = "".join(f'<text x="16" y="{58 + 16 * i}">{escape(line)}</text>' for i, line in enumerate(lines))
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 260 {80 + 16 * len(lines)}" font-family="monospace" '
        f'font-size="11" fill="#808080"><text x="16" y="32" font-size="15">{title}</text>{rows}</svg>'
    )
    headers = {"Cache-Control": "no-store"}
    return Response(drawing, code, media_type="image/svg+xml", headers=headers)
