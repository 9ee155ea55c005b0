"""Remove from image files the metadata that could make Pillow refuse an image.

Pillow limits the size of texts and color profiles in a PNG, and raises errors for some malformed metadata. The
functions keep everything that determines the pixels: also transparency, color profiles and the EXIF orientation. They
accept any bytes and raise no exception.
"""

import zlib

from dreamcore.image_variants import jpeg_segments

__all__ = ["strip_jpeg", "strip_png"]

_PNG_START = 8  # the length of the signature
_PNG_KEPT = (b"tRNS", b"eXIf")  # besides critical chunks; only these change the pixels of the first frame
_MAX_PROFILE_BYTES = 2**24
_JPEG_KEPT = (  # by marker: how the content begins, and its smallest length
    (0xE0, b"JFIF\0", 14),
    (0xE1, b"Exif\0\0", 8),
    (0xE2, b"ICC_PROFILE\0", 14),
    (0xEE, b"Adobe", 12),
)


def strip_png(data: bytes) -> tuple[bytes, bytes | None]:
    """Return a PNG without texts and other metadata, and its ICC profile, which may be larger than Pillow allows.

    A profile of more than 16 MiB, or a malformed one, is left out. EXIF data whose checksum is wrong are left out.
    """
    pieces, profile = [], None
    view = memoryview(data)
    kept = at = _PNG_START
    while at + 12 <= len(data):
        name, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if name == b"IEND" or end > len(data):
            break
        critical = not name[0] & 0x20
        if not critical and (name not in _PNG_KEPT or (name == b"eXIf" and not _is_intact(view[at + 4 : end]))):
            pieces.append(view[kept:at])
            kept = end
            if name == b"iCCP" and profile is None:
                profile = _profile(data[at + 8 : end - 4])
        at = end
    return (b"".join([view[:_PNG_START], *pieces, view[kept:]]) if pieces else data), profile


def _is_intact(chunk: memoryview) -> bool:
    """Return whether the last four bytes of a PNG chunk are the checksum of its name and content."""
    return zlib.crc32(chunk[:-4]) == int.from_bytes(chunk[-4:], "big")


def _profile(chunk: bytes) -> bytes | None:
    """Return the ICC profile in a PNG chunk: a name, a zero, the compression method 0, and compressed bytes."""
    _, _, content = chunk.partition(b"\0")
    decompressor = zlib.decompressobj()
    try:
        profile = decompressor.decompress(content[1:], _MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if decompressor.eof and content[:1] == b"\0" else None


def strip_jpeg(data: bytes) -> bytes:
    """Return a JPEG with only the first image, and without comments and other metadata."""
    pieces, at = [data[:2]], 2
    for marker, start, end in jpeg_segments(data):
        content = data[start + 4 : end]
        metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not metadata or any(
            marker == kept and content.startswith(beginning) and len(content) >= length
            for kept, beginning, length in _JPEG_KEPT
        ):
            pieces.append(data[start:end])
        at = end
    return b"".join([*pieces, data[at:]])
