"""Addresses of the gallery's pages, for everything that links to a gallery which somebody else serves."""

import os
from hashlib import sha256
from urllib.parse import urlencode, urlsplit

from dreamcore.errors import InvalidInput
from flows.s3.layout import folder_uri

__all__ = ["run_page", "slug_of"]

_VARIABLE = "DREAMGRID_GALLERY_URL"


def slug_of(destination: str) -> str:
    """Return the name of a destination in addresses: 8 hex digits that depend only on the destination."""
    return sha256(folder_uri(destination).encode()).hexdigest()[:8]


def run_page(destination: str, run_id: str) -> str | None:
    """Return the page of a run in the gallery at `DREAMGRID_GALLERY_URL`; None if the variable is not set.

    Raises:
        InvalidInput: the variable is not an address of a web page.
    """
    given = os.environ.get(_VARIABLE, "").strip()
    if not given:
        return None
    try:
        url = urlsplit(given)
    except ValueError as error:
        raise InvalidInput(_wrong(given)) from error
    if url.scheme not in ("http", "https") or not url.hostname:
        raise InvalidInput(_wrong(given))
    # a token in the variable is left out: everybody who may see the run would get it
    place = f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"
    return f"{place}/d/{slug_of(destination)}/library?{urlencode({'run': run_id})}"


def _wrong(given: str) -> str:
    return f"{_VARIABLE} is {given!r}, which is no address of a gallery: give one such as http://127.0.0.1:8470"
