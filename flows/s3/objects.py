"""Objects in S3 as listings and HEAD requests describe them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["ObjectInfo", "Page", "object_info"]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing describes it."""

    uri: str
    etag: str
    """An opaque version of the content, without quotation marks."""
    size: int
    """Size in bytes."""
    modified: float = field(default=0.0, compare=False)
    """When the object was written, in seconds since 1970; 0 if the listing does not say it."""


class Page(NamedTuple):
    """One page of a listing, up to 1,000 entries."""

    objects: Sequence[ObjectInfo]
    folders: Sequence[str] = ()
    """Addresses that end with a slash, one for each folder, if the listing is by folder."""
    token: str | None = None
    """Names the next page; None on the last page."""


def object_info(uri: str, described: Mapping[str, Any]) -> ObjectInfo:
    """Return an object from an entry of a listing, or from the response to a HEAD request."""
    size, modified = described.get("Size", described.get("ContentLength")), described.get("LastModified")
    return ObjectInfo(uri, described["ETag"].strip('"'), size or 0, modified.timestamp() if modified else 0.0)
