"""Deliver dreams: the last of the three stages of a shard.

A dream is written first, if it does not exist. Then its thumbnail is written. A process may be killed in between, so a
dream may lack a thumbnail, and readers make it then. A thumbnail never changes or fails the row of its dream.
"""

import hashlib
import logging
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, Literal

from dreamcore.batch import Dream
from dreamcore.errors import ImageError, InvalidInput, Unavailable
from dreamcore.fields import Output
from dreamcore.images import Array, content_type, encode, read_metadata
from dreamcore.thumbnail import THUMBNAIL_TYPE, encode_thumbnail
from flows import layout
from flows.manifest import Row
from flows.storage import Storage

__all__ = ["Delivery", "failed_row"]

_SOURCE = ("source_uri", "source_etag")
_logger = logging.getLogger(__name__)


class Delivery:
    """Writes the dreams of one shard and their thumbnails. Several threads may call it."""

    def __init__(self, destination: str, storage: Storage) -> None:
        self.destination, self.storage = destination, storage
        self._writes_thumbnails = True  # False as soon as the store refuses one

    def deliver(self, row: Row, dream: Dream | None, output: Output) -> Row:
        """Write a dream if none exists, and return the row of the dream that exists then: the first writer wins.

        Args:
            row: the row of a dream that is done, with what was measured.
            dream: the dream; None if an earlier attempt wrote it.
            output: the format of the dream.

        Raises:
            InvalidInput: another object is in the place of the dream, or access is refused.
            Unavailable: S3 failed.
        """
        if dream is None:
            return self._take_over(row)
        metadata = dream.metadata() | {name: getattr(row, name) for name in _SOURCE}
        metadata["created_at"] = row.created_at.isoformat()
        metadata |= {"enlarged_from": row.enlarged_from} if row.enlarged_from else {}
        try:
            data = encode(dream.pixels, output.format, output.quality, metadata)
        except ImageError as error:
            return failed_row(row, error)
        if not self.storage.write_if_absent(str(row.result_uri), data, content_type(output.format)):
            return self._take_over(row)
        self._write_thumbnail(str(row.result_uri), dream.pixels)
        return _with_result(row, data)

    def _write_thumbnail(self, result_uri: str, pixels: Array) -> None:
        """Write the thumbnail of the dream that was just written. It replaces one that a deleted dream may have left.

        Credentials for an earlier version may not write thumbnails. The shard does without them then.
        """
        if not self._writes_thumbnails:
            return
        uri = layout.thumb_uri(self.destination, result_uri)
        try:
            self.storage.write(uri, encode_thumbnail(pixels), THUMBNAIL_TYPE)
        except ImageError as error:
            _logger.warning("%s gets no thumbnail: %s", result_uri, error)
        except InvalidInput as error:
            self._writes_thumbnails = False
            _logger.warning("no thumbnails are written: %s", error)

    def _take_over(self, row: Row) -> Row:
        """Return the row of a dream that another attempt wrote, from the metadata inside the image."""
        data = self.storage.read(str(row.result_uri))
        if data is None:
            raise Unavailable(f"{row.result_uri} existed and was removed during the run: find out what removes dreams")
        try:
            inside = read_metadata(data) or {}
        except ImageError:
            inside = {}
        if inside.get("settings_id") != row.settings_id:
            raise InvalidInput(f"{row.result_uri} exists but is not the dream that belongs there: move it away")
        columns = {field.name for field in fields(Row)} - {"settings", *_SOURCE}
        measured: dict[str, Any] = {name: value for name, value in inside.items() if name in columns}
        measured["created_at"] = datetime.fromisoformat(measured["created_at"])
        return _with_result(replace(row, **measured), data)


def failed_row(row: Row, error: ImageError) -> Row:
    """Return the row of a photograph that could not be dreamt, or that was removed or replaced after the scan."""
    gone = error.kind in ("source_missing", "source_changed")
    status: Literal["skipped", "failed"] = "skipped" if gone else "failed"
    return replace(row, status=status, error_kind=error.kind, error=str(error), result_uri=None, result_id=None)


def _with_result(row: Row, data: bytes) -> Row:
    return replace(row, result_bytes=len(data), result_sha256=hashlib.sha256(data).hexdigest())
