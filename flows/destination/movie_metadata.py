"""The description of a movie inside its file, as dreams contain theirs.

It is JSON in a box of the type `uuid` at the end of the MP4 file (ISO/IEC 14496-12, 11.1 and 4.2). Players ignore such
boxes. Nothing is decoded here, so the file may come from anybody.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from uuid import UUID

__all__ = ["MOVIE_TYPE", "is_mp4", "read_movie_metadata", "with_metadata", "without_metadata"]

MOVIE_TYPE = "video/mp4"
_TYPE = b"uuid"
_OURS = UUID("5d5f0f6e-2b0b-4f1b-9a39-5f7d9c1c3e61").bytes
_HEADER = struct.Struct(">I4s")
_LARGE = struct.Struct(">Q")
_MAX_BYTES = 2**24
"""Bytes of a description that are read."""


class _Box(NamedTuple):
    kind: bytes
    start: int
    """Where its content begins."""
    end: int


def is_mp4(data: bytes) -> bool:
    """Return whether bytes begin as the movies of `flows.movies.movie` do."""
    return data[4:12] in (b"ftypisom", b"ftypmp42")


def with_metadata(movie: bytes, fields: Mapping[str, Any]) -> bytes:
    """Return an MP4 file with a description at its end.

    Example:
        >>> movie = bytes.fromhex("00000010") + b"ftypisom" + bytes(4)
        >>> described = with_metadata(movie, {"width": 64})
        >>> read_movie_metadata(described), without_metadata(described) == movie
        ({'width': 64}, True)
    """
    content = _OURS + json.dumps(fields).encode()
    return movie + _HEADER.pack(_HEADER.size + len(content), _TYPE) + content


def read_movie_metadata(data: bytes) -> dict[str, Any] | None:
    """Return the description inside an MP4 file; None if it contains none that can be read."""
    for box in _boxes(data):
        if _is_ours(data, box) and box.end - box.start <= _MAX_BYTES:
            try:
                fields = json.loads(data[box.start + len(_OURS) : box.end])
            except (ValueError, RecursionError):
                return None
            return fields if isinstance(fields, dict) else None
    return None


def without_metadata(data: bytes) -> bytes:
    """Return an MP4 file without its description."""
    ours = next((box for box in _boxes(data) if _is_ours(data, box)), None)
    return data if ours is None else data[: ours.start - _HEADER.size] + data[ours.end :]


def _is_ours(data: bytes, box: _Box) -> bool:
    return box.kind == _TYPE and data[box.start : box.start + len(_OURS)] == _OURS


def _boxes(data: bytes) -> Iterator[_Box]:
    """Yield the outermost boxes of a file, up to the first one that is damaged."""
    place = 0
    while place + _HEADER.size <= len(data):
        size, kind = _HEADER.unpack_from(data, place)
        start = place + _HEADER.size
        if size == 1 and start + _LARGE.size <= len(data):
            (size,), start = _LARGE.unpack_from(data, start), start + _LARGE.size
        end = place + size if size else len(data)
        if not start <= end <= len(data):
            return
        yield _Box(kind, start, end)
        place = end
