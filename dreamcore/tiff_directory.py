"""Reads the image file directories of a TIFF file: its tags and their values, without its pixels.

The structure is that of the TIFF 6.0 specification (Adobe, 1992), and of BigTIFF. Malformed directories raise no
exception. They have fewer entries.
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Directory"]

SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, MAKE = 254, 256, 257, 258, 259, 262, 271
STRIP_OFFSETS, SAMPLES, TILE_OFFSETS, SUB_IFDS, EXTRA_SAMPLES, SAMPLE_FORMAT = 273, 277, 324, 330, 338, 339
DNG_VERSION = 50706


class Header(NamedTuple):
    """How a TIFF file stores numbers."""

    order: str  # the byte order, as a prefix of struct's formats
    big: bool  # BigTIFF, with 64-bit offsets


class Directory:
    """The entries of one image file directory of a TIFF file. A malformed directory has fewer entries."""

    _TYPES: Mapping[int, tuple[str, int]] = {
        1: ("B", 1),
        2: ("s", 1),
        3: ("H", 2),
        4: ("I", 4),
        13: ("I", 4),
        16: ("Q", 8),
        18: ("Q", 8),
    }
    _MOST_ENTRIES, _MOST_VALUES, _MOST_DIRECTORIES = 1000, 256, 256

    def __init__(self, header: Header, data: bytes, offset: int) -> None:
        self.header = header
        self.entries: dict[int, tuple[int, bytes]] = {}  # type and bytes of the values, by tag
        self.next = 0  # the offset of the next directory
        count_format, entry_format = ("Q", "HHQ8s") if header.big else ("H", "HHI4s")
        count_size, entry_size = struct.calcsize("=" + count_format), struct.calcsize("=" + entry_format)
        if offset + count_size > len(data):
            return
        (count,) = struct.unpack_from(header.order + count_format, data, offset)
        for number in range(min(count, self._MOST_ENTRIES)):
            at = offset + count_size + number * entry_size
            if at + entry_size > len(data):
                return
            tag, kind, length, value = struct.unpack_from(header.order + entry_format, data, at)
            width = self._TYPES.get(kind, ("", 0))[1]
            size = min(length, self._MOST_VALUES) * width
            if length * width > len(value):
                (start,) = struct.unpack(header.order + ("Q" if header.big else "I"), value)
                value = data[start : start + size]
            self.entries.setdefault(tag, (kind, value[:size]))
        at = offset + count_size + count * entry_size
        next_format = header.order + ("Q" if header.big else "I")
        if at + struct.calcsize(next_format) <= len(data):
            (self.next,) = struct.unpack_from(next_format, data, at)

    @classmethod
    def first(cls, data: bytes) -> "Directory | None":
        """Return the first directory of a file; None if the file ends within its header."""
        header = Header("<" if data[:2] == b"II" else ">", b"+" in data[2:4])
        at, form = (8, "Q") if header.big else (4, "I")
        if len(data) < at + struct.calcsize("=" + form):
            return None
        return cls(header, data, struct.unpack_from(header.order + form, data, at)[0])

    @classmethod
    def all(cls, data: bytes) -> "list[Directory]":
        """Return up to 256 directories of a file, the first one first, with all directories below them."""
        first = cls.first(data)
        found = [] if first is None else [first]
        known = {0}
        for directory in found:  # the list grows
            for offset in (*directory.values(SUB_IFDS), directory.next):
                if offset not in known and len(found) < cls._MOST_DIRECTORIES:
                    known.add(offset)
                    found.append(cls(directory.header, data, offset))
        return found

    @property
    def is_reduced(self) -> bool:
        """Whether the image is a smaller copy of another one in the file."""
        return any(value & 1 for value in self.values(SUBFILE_TYPE))

    @property
    def pixels(self) -> int:
        """The number of pixels; 0 if the directory does not say it."""
        return max(self.values(WIDTH), default=0) * max(self.values(HEIGHT), default=0)

    def values(self, tag: int) -> list[int]:
        """Return up to 256 integers of a tag; an empty list if the tag is missing or has no integers."""
        kind, raw = self.entries.get(tag, (0, b""))
        form, size = self._TYPES.get(kind, ("", 0))
        if form in ("", "s"):
            return []
        return list(struct.unpack(f"{self.header.order}{len(raw) // size}{form}", raw[: len(raw) // size * size]))

    def text(self, tag: int) -> bytes:
        """Return up to 256 bytes of a text tag, without zeros at the end; no bytes if the tag is missing."""
        return self.entries.get(tag, (0, b""))[1].rstrip(b"\0")
