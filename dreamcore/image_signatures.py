"""Recognize image formats and their variants by the bytes of a file, without decoding it.

The names are for messages to users. `format_of` names a format, `raw_format` a camera's raw format, and
`unsupported_variant` a variant that Pillow does not decode, such as a 12-bit JPEG. The functions accept any bytes and
raise no exception.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

__all__ = [
    "format_of",
    "is_tiff_thumbnail",
    "jpeg_segments",
    "jxl_size",
    "raw_format",
    "tiff_form",
    "unsupported_variant",
]

_SIGNATURES = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"\x8aMNG\r\n\x1a\n", "MNG"),
    (rb"\x8bJNG\r\n\x1a\n", "JNG"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"GIF8[79]a", "GIF"),
    (rb"BM(....\0\0\0\0|.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0)", "BMP"),
    (rb"II\xbc[\0\1]", "JPEG XR"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", "JPEG 2000"),
    (rb"8BPS\0[\1\2]", "PSD"),
    (rb"gimp xcf ", "XCF"),
    (rb"\0\0[\1\2]\0", "ICO"),
    (rb"icns", "ICNS"),
    (rb"DDS ", "DDS"),
    (rb"qoif", "QOI"),
    (rb"BPG\xfb", "BPG"),
    (rb"FLIF", "FLIF"),
    (rb"\x76\x2f\x31\x01", "OpenEXR"),
    (rb"#\?(RADIANCE|RGBE)", "Radiance HDR"),
    (rb"P[1-7fF]\s", "PNM"),
    (rb"\n[\0-\5]\x01[\1\2\4\x08]", "PCX"),
    (rb"SIMPLE  =", "FITS"),
    (rb".{128}DICM", "DICOM"),
    (rb"AT&TFORM", "DjVu"),
    (rb"\x01\xda[\0\1][\1\2]\0[\1-\3]", "SGI"),
    (rb"SDPX|XPDS", "DPX"),
    (rb"/\* XPM \*/", "XPM"),
    (rb"\xd7\xcd\xc6\x9a\0\0|\x01\0\0\0.{36} EMF", "WMF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "EPS"),
    (rb"%PDF-", "PDF"),
)
_SVG = rb"(?=.{,4000}<svg[\s>])(\xef\xbb\xbf)?\s*<(\?xml|!--|!DOCTYPE svg|svg)[\s>-]"
_BRANDS: Mapping[bytes, str] = {  # of files of the ISO base media format
    b"avif": "AVIF",
    b"avis": "AVIF",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
}
_OTHER_BRANDS: Mapping[bytes, str] = {  # of compressions that are not read
    **dict.fromkeys((b"avci", b"avcs"), "HEIF (H.264)"),
    **dict.fromkeys((b"j2ki", b"j2is"), "HEIF (JPEG 2000)"),
    **dict.fromkeys((b"vvic", b"vvis"), "HEIF (H.266)"),
    **dict.fromkeys((b"evbi", b"evbs", b"evmi", b"evms"), "HEIF (EVC)"),
    **dict.fromkeys((b"jpeg", b"jpgs"), "HEIF (JPEG)"),
}
_CONTAINER_BRANDS = (b"mif1", b"mif2", b"mif3", b"msf1", b"miaf", b"heif")  # the other brands name the compression

_RAW_SIGNATURES = (
    (rb"....ftypcrx ", "CR3"),
    (rb"II\x1a\0\0\0HEAPCCDR", "CRW"),
    (rb"FUJIFILMCCD-RAW", "RAF"),
    (rb"IIR[OS]|MMOR", "ORF"),
    (rb"IIU\0", "RW2"),
    (rb"\0MRM", "MRW"),
    (rb"FOVb", "X3F"),
    (rb"ARRI....", "ARI"),
)
_RAW_TIFF_SIGNATURES = (  # after the header of 8 bytes, where other TIFF files may have pixels
    (rb"CR\x02", "CR2"),
    (rb"IIII.waR|MMMMRaw.", "IIQ"),
)
_RAW_MAKERS = (  # patterns of the TIFF tag Make
    (rb"nikon", "NEF"),
    (rb"sony", "ARW"),
    (rb"pentax|ricoh", "PEF"),
    (rb"samsung", "SRW"),
    (rb"hasselblad", "3FR"),
    (rb"kodak", "DCR"),
    (rb"leica", "RWL"),
    (rb"leaf", "MOS"),
    (rb"mamiya", "MEF"),
    (rb"phase ?one", "IIQ"),
    (rb"epson|seiko", "ERF"),
)

_BITS, _COMPRESSION, _PHOTOMETRIC, _MAKE, _SUB_IFDS, _DNG_VERSION = 258, 259, 262, 271, 330, 50706
_SUBFILE_TYPE, _WIDTH, _HEIGHT, _STRIP_OFFSETS, _TILE_OFFSETS = 254, 256, 257, 273, 324
_SENSOR_PHOTOMETRICS = (32803, 34892)  # a color filter array, and DNG's linear raw
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
_SAMPLES, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 277, 338, 339
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


def format_of(data: bytes) -> str | None:
    """Return the name of an image format, or None if `data` are not a known image format."""
    name = _iso_format(data) or next((name for pattern, name in _SIGNATURES if _begins(pattern, data)), None)
    return name or ("SVG" if _begins(_SVG, _text_of(data)) else None)


def raw_format(data: bytes) -> str | None:
    """Return the name of a camera's raw format, such as `CR2`, or None.

    Most raw files are TIFF files whose first image is a thumbnail, which Pillow would decode.
    """
    name = next((name for pattern, name in _RAW_SIGNATURES if _begins(pattern, data)), None)
    if name is not None or format_of(data) != "TIFF":
        return name
    main = _Directory.first(data)
    if main is None:
        return None
    if _DNG_VERSION in main.entries:
        return "DNG"
    if 8 not in main.values(_STRIP_OFFSETS) + main.values(_TILE_OFFSETS):
        for pattern, name in _RAW_TIFF_SIGNATURES:
            if _begins(pattern, data[8:16]):
                return name
    photometrics = (value for found in _Directory.all(data) for value in found.values(_PHOTOMETRIC))
    if not any(value in _SENSOR_PHOTOMETRICS for value in photometrics):
        return None
    make = main.text(_MAKE).lower()
    return next((name for pattern, name in _RAW_MAKERS if re.search(pattern, make)), "TIFF")


def is_tiff_thumbnail(data: bytes) -> bool:
    """Return whether the first image of a TIFF is a reduced one, and the file also has the full image."""
    found = _Directory.all(data) if format_of(data) == "TIFF" else []
    return (
        bool(found)
        and found[0].is_reduced
        and any(not other.is_reduced and other.pixels > found[0].pixels for other in found[1:])
    )


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
        case "AVIF" | "HEIC" | "HEIF" if b"mini" in (data[20:24], data[24:28]):  # after a short box of file type
            return f"{name} with a short header"
        case "PNG" if data[12:16] == b"CgBI":
            return "PNG of Apple's CgBI variant"
    return None


def _begins(pattern: bytes, data: bytes) -> bool:
    return re.match(pattern, data[:4096], re.DOTALL) is not None


def _text_of(data: bytes) -> bytes:
    """Return the beginning of a text, in UTF-8, if it is compressed by gzip or encoded in UTF-16."""
    text = data[:4096]
    if text[:2] == b"\x1f\x8b":
        try:
            text = zlib.decompressobj(wbits=31).decompress(text, 4096)
        except zlib.error:
            return b""
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = text.decode("utf-16", "ignore").encode("utf-8", "ignore")
    return text


def _iso_format(data: bytes) -> str | None:
    """Return the format of a file that begins with a box of file type."""
    if data[4:8] != b"ftyp":
        return None
    size = min(int.from_bytes(data[:4], "big"), 256)
    # A file with the brand mif3 may name its only other brand in the place of the version.
    others = [data[start : start + 4] for start in range(12 if data[8:12] == b"mif3" else 16, size, 4)]
    major = data[8:12]
    if major in _OTHER_BRANDS:
        return _OTHER_BRANDS[major]
    if major not in _BRANDS and major not in _CONTAINER_BRANDS:
        return None  # a video, or a raw file
    names = [names[brand] for names in (_BRANDS, _OTHER_BRANDS) for brand in (major, *others) if brand in names]
    return names[0] if names else "HEIF"


# --- JPEG


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


# --- TIFF


def _tiff_variant(data: bytes) -> str | None:
    if data[:4] == b"MM\0+":
        return "big-endian BigTIFF"
    directory = _Directory.first(data)
    if directory is None:
        return None
    (compression, *_) = directory.values(_COMPRESSION) or [1]
    bits = directory.values(_BITS)
    if compression in _TIFF_COMPRESSIONS:
        return f"TIFF with compression {compression} ({_TIFF_COMPRESSIONS[compression]})"
    if compression not in _READABLE_COMPRESSIONS:
        return f"TIFF with compression {compression}"
    if compression == 7 and bits and bits[0] != 8:
        return f"TIFF with {bits[0]}-bit JPEG compression"
    return None


def tiff_form(data: bytes) -> str:
    """Return how the first image of a TIFF stores its pixels, such as `16-bit gray with alpha`."""
    directory = _Directory.first(data)
    if directory is None:
        return "a malformed header"

    def first(tag: int, default: int) -> int:
        return (directory.values(tag) or [default])[0]

    color, samples = _TIFF_COLORS.get(first(_PHOTOMETRIC, 0), (f"photometric {first(_PHOTOMETRIC, 0)}", 1))
    bits = directory.values(_BITS) or [1]
    depth = "/".join(map(str, bits[:1] if len(set(bits)) == 1 else bits[:5]))
    kind = {2: "signed ", 3: "float ", 5: "complex ", 6: "complex "}.get(first(_SAMPLE_FORMAT, 1), "")
    extra = first(_SAMPLES, 1) - samples
    if extra == 1 and first(_EXTRA_SAMPLES, 0) in (1, 2):
        more = " with alpha"
    else:
        more = f" with {extra} extra sample{'s' if extra > 1 else ''}" if extra > 0 else ""
    return f"{depth}-bit {kind}{color}{more}"


class _Header(NamedTuple):
    """How a TIFF file stores numbers."""

    order: str  # the byte order, as a prefix of struct's formats
    big: bool  # BigTIFF, with 64-bit offsets


class _Directory:
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

    def __init__(self, header: _Header, data: bytes, offset: int) -> None:
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
    def first(cls, data: bytes) -> "_Directory | None":
        """Return the first directory of a file, or None if the header is cut off."""
        header = _Header("<" if data[:2] == b"II" else ">", b"+" in data[2:4])
        at, form = (8, "Q") if header.big else (4, "I")
        if len(data) < at + struct.calcsize("=" + form):
            return None
        return cls(header, data, struct.unpack_from(header.order + form, data, at)[0])

    @classmethod
    def all(cls, data: bytes) -> "list[_Directory]":
        """Return the directories of a file, the first one first, and all directories below them."""
        first = cls.first(data)
        found = [] if first is None else [first]
        known = {0}
        for directory in found:  # the list grows
            for offset in (*directory.values(_SUB_IFDS), directory.next):
                if offset not in known and len(found) < cls._MOST_DIRECTORIES:
                    known.add(offset)
                    found.append(cls(directory.header, data, offset))
        return found

    @property
    def is_reduced(self) -> bool:
        """Whether the image is a smaller copy of another one in the file."""
        return any(value & 1 for value in self.values(_SUBFILE_TYPE))

    @property
    def pixels(self) -> int:
        """The number of pixels, or 0."""
        return max(self.values(_WIDTH), default=0) * max(self.values(_HEIGHT), default=0)

    def values(self, tag: int) -> list[int]:
        """Return the first integers of a tag, or an empty list."""
        kind, raw = self.entries.get(tag, (0, b""))
        form, size = self._TYPES.get(kind, ("", 0))
        if form in ("", "s"):
            return []
        return list(struct.unpack(f"{self.header.order}{len(raw) // size}{form}", raw[: len(raw) // size * size]))

    def text(self, tag: int) -> bytes:
        """Return the first characters of a text tag, or no bytes."""
        return self.entries.get(tag, (0, b""))[1].rstrip(b"\0")


# --- JPEG XL


def jxl_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG XL file, before its orientation is applied, or None if they are not found."""
    codestream = _jxl_codestream(data)
    if codestream[:2] != b"\xff\x0a":
        return None
    bits = _Bits(codestream[2:14])
    small = bits.read(1)

    def side() -> int:
        return (bits.read(5) + 1) * 8 if small else bits.read((9, 13, 18, 30)[bits.read(2)]) + 1

    height, ratio = side(), bits.read(3)
    if ratio == 0:
        return side(), height
    numerator, denominator = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * numerator // denominator, height


def _jxl_codestream(data: bytes) -> bytes:
    """Return the beginning of the codestream, which is the file itself or in a box of the file."""
    if data[4:8] != b"JXL ":
        return data[:32]
    at = 0
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        header = 16 if size == 1 else 8
        if name in (b"jxlc", b"jxlp"):  # a partial codestream begins with its number
            start = at + header + (4 if name == b"jxlp" else 0)
            return data[start : start + 32]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < header:
            break
        at += size
    return b""


class _Bits:
    """Numbers from the bits of a JPEG XL header, the lowest bit of each byte first. Missing bits are 0."""

    def __init__(self, data: bytes) -> None:
        self.value = int.from_bytes(data, "little")

    def read(self, count: int) -> int:
        number = self.value & ((1 << count) - 1)
        self.value >>= count
        return number
