"""Variants of image formats that Pillow does not decode, such as a 12-bit JPEG, by the bytes of a file.

The names are for messages to users. The functions accept any bytes and raise no exception.
"""

from collections.abc import Iterator, Mapping

from dreamcore import tiff_directory as tags
from dreamcore.tiff_directory import Directory

__all__ = ["jpeg_segments", "tiff_form", "unsupported_variant"]

_TIFF_COMPRESSIONS: Mapping[int, str] = {  # that Pillow does not decode, or not always
    6: "old-style JPEG",
    9: "JBIG",
    10: "JBIG",
    262: "Kodak 262",
    32766: "NeXT",
    32809: "ThunderScan",
    32867: "Kodak KDC",
    32908: "Pixar Film",
    32909: "Pixar Log",
    32947: "Kodak DCS",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv",
    34712: "JPEG 2000",
    34713: "Nikon NEF",
    34715: "JBIG2",
    34718: "Microsoft document imaging",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    34933: "PNG",
    34934: "JPEG XR",
    22610: "JPEG XR",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
    65000: "Kodak DCR",
    65535: "Pentax PEF",
}
_TIFF_COLORS: Mapping[int, tuple[str, int]] = {  # name and number of samples, by the tag PhotometricInterpretation
    0: ("gray", 1),
    1: ("gray", 1),
    2: ("RGB", 3),
    3: ("palette", 1),
    4: ("mask", 1),
    5: ("CMYK", 4),
    6: ("YCbCr", 3),
    8: ("CIELAB", 3),
    9: ("ICCLAB", 3),
    10: ("ITULAB", 3),
    32844: ("LogL", 1),
    32845: ("LogLuv", 3),
}
_READABLE_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32771, 32773, 32946, 34925, 50000)
_JPEG_PROCESSES: Mapping[int, str] = {  # by the low byte of the frame marker; Pillow decodes 0, 1, 2, 3, 9 and 10
    5: "hierarchical JPEG",
    6: "hierarchical JPEG",
    7: "hierarchical lossless JPEG",
    11: "lossless JPEG with arithmetic coding",
    13: "hierarchical JPEG",
    14: "hierarchical JPEG",
    15: "hierarchical lossless JPEG",
}


def unsupported_variant(data: bytes, name: str) -> str | None:
    """Return what Pillow does not decode in a file of format `name`, or None if nothing is known.

    Example:
        >>> unsupported_variant(bytes.fromhex("ffd8 ffc1 0008 0c 0010 0010 01"), "JPEG")
        '12-bit JPEG'
    """
    match name:
        case "JPEG":
            return _jpeg_variant(data)
        case "TIFF":
            return _tiff_variant(data)
        case "AVIF" | "HEIC" | "HEIF" if b"mini" in (data[20:24], data[24:28]):  # the box after a short `ftyp` box
            return f"{name} with a short header"
        case "PNG" if data[12:16] == b"CgBI":
            return "PNG of Apple's CgBI variant"
    return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, the start and the end of each segment of a JPEG before its first scan.

    The marker is the second byte of the segment. Its content begins four bytes after the start.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
        if marker == 0xFF:  # fill bytes may precede a marker
            at += 1
            continue
        if marker in (0xD9, 0xDA) or end > len(data):
            return
        yield marker, at, end
        at = end


def _jpeg_variant(data: bytes) -> str | None:
    for marker, start, end in jpeg_segments(data):
        frame = data[start + 4 : end]
        if marker == 0xF7:
            return "JPEG-LS"
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(frame) >= 6:
            bits, height, components = frame[0], int.from_bytes(frame[1:3], "big"), frame[5]
            if bits != 8:
                return f"{bits}-bit {'lossless ' if marker == 0xC3 else ''}JPEG"
            if marker - 0xC0 in _JPEG_PROCESSES:
                return _JPEG_PROCESSES[marker - 0xC0]
            if height == 0:
                return "JPEG that states its height after the pixels"
            return f"JPEG with {components} components" if components not in (1, 3, 4) else None
    return None


def _tiff_variant(data: bytes) -> str | None:
    if data[:4] == b"MM\0+":
        return "big-endian BigTIFF"
    directory = Directory.first(data)
    if directory is None:
        return None
    (compression, *_) = directory.values(tags.COMPRESSION) or [1]
    bits = directory.values(tags.BITS)
    if compression in _TIFF_COMPRESSIONS:
        return f"TIFF with compression {compression} ({_TIFF_COMPRESSIONS[compression]})"
    if compression not in _READABLE_COMPRESSIONS:
        return f"TIFF with compression {compression}"
    if compression == 7 and bits and bits[0] != 8:
        return f"TIFF with {bits[0]}-bit JPEG compression"
    return None


def tiff_form(data: bytes) -> str:
    """Return how the first image of a TIFF stores its pixels, such as `16-bit gray with alpha`."""
    directory = Directory.first(data)
    if directory is None:
        return "a malformed header"

    def first(tag: int, default: int) -> int:
        return (directory.values(tag) or [default])[0]

    color, samples = _TIFF_COLORS.get(first(tags.PHOTOMETRIC, 0), (f"photometric {first(tags.PHOTOMETRIC, 0)}", 1))
    bits = directory.values(tags.BITS) or [1]
    depth = "/".join(map(str, bits[:1] if len(set(bits)) == 1 else bits[:5]))
    kind = {2: "signed ", 3: "float ", 5: "complex ", 6: "complex "}.get(first(tags.SAMPLE_FORMAT, 1), "")
    extra = first(tags.SAMPLES, 1) - samples
    if extra == 1 and first(tags.EXTRA_SAMPLES, 0) in (1, 2):
        more = " with alpha"
    else:
        more = f" with {extra} extra sample{'s' if extra > 1 else ''}" if extra > 0 else ""
    return f"{depth}-bit {kind}{color}{more}"
