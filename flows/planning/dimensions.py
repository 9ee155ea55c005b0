"""The size of an image in pixels, from the first bytes of its file.

Estimates use it. No image library is involved, because the files are untrusted. The size is only a hint: the decoder
may see another one.
"""

import struct
from collections.abc import Callable

__all__ = ["HEAD_BYTES", "image_size"]

HEAD_BYTES = 2**17
"""Bytes that are usually enough: a camera's JPEG has a thumbnail and a color profile before its size."""

_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}


def image_size(head: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG, PNG, GIF, WebP or BMP; None for other files and incomplete headers.

    Args:
        head: the first bytes of the file.

    Example:
        >>> image_size(b"GIF89a" + bytes([64, 0, 48, 0]))
        (64, 48)
    """
    for magic, read in _READERS.items():
        if head.startswith(magic):
            try:
                size = read(head)
            except (struct.error, IndexError):
                return None
            return size if size and min(size) > 0 else None
    return None


def _jpeg(head: bytes) -> tuple[int, int] | None:
    place = 2
    while head[place] == 0xFF:
        marker = head[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", head, place + 5)
            return width, height
        else:
            place += 2 if marker in _JPEG_ALONE else 2 + struct.unpack_from(">H", head, place + 2)[0]
    return None


def _webp(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X":
        width, width_high, height, height_high = struct.unpack_from("<HBHB", head, 24)
        return 1 + width + (width_high << 16), 1 + height + (height_high << 16)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", head, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _two(layout: str, offset: int) -> Callable[[bytes], tuple[int, int]]:
    """Return a function that reads width and height as two numbers at `offset`."""

    def read(head: bytes) -> tuple[int, int]:
        width, height = struct.unpack_from(layout, head, offset)
        return width, abs(height)  # negative in a BMP whose rows run downwards

    return read


_READERS: dict[bytes, Callable[[bytes], tuple[int, int] | None]] = {
    b"\xff\xd8\xff": _jpeg,
    b"\x89PNG\r\n\x1a\n": _two(">II", 16),
    b"GIF8": _two("<HH", 6),
    b"RIFF": _webp,
    b"BM": _two("<ii", 18),
}
