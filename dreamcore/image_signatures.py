"""Recognize image formats by the bytes of a file, without decoding it.

The names are for messages to users. `format_of` names a format and `raw_format` a camera's raw format. The functions
accept any bytes and raise no exception.
"""

import re
import zlib
from collections.abc import Mapping

from dreamcore import tiff_directory as tags
from dreamcore.tiff_directory import Directory

__all__ = ["format_of", "is_tiff_thumbnail", "jxl_size", "raw_format"]

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

_SENSOR_PHOTOMETRICS = (32803, 34892)  # a color filter array, and DNG's linear raw


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
    main = Directory.first(data)
    if main is None:
        return None
    if tags.DNG_VERSION in main.entries:
        return "DNG"
    if 8 not in main.values(tags.STRIP_OFFSETS) + main.values(tags.TILE_OFFSETS):
        for pattern, name in _RAW_TIFF_SIGNATURES:
            if _begins(pattern, data[8:16]):
                return name
    photometrics = (value for found in Directory.all(data) for value in found.values(tags.PHOTOMETRIC))
    if not any(value in _SENSOR_PHOTOMETRICS for value in photometrics):
        return None
    make = main.text(tags.MAKE).lower()
    return next((name for pattern, name in _RAW_MAKERS if re.search(pattern, make)), "TIFF")


def is_tiff_thumbnail(data: bytes) -> bool:
    """Return whether the first image of a TIFF is a reduced one, and the file also has the full image."""
    found = Directory.all(data) if format_of(data) == "TIFF" else []
    return (
        bool(found)
        and found[0].is_reduced
        and any(not other.is_reduced and other.pixels > found[0].pixels for other in found[1:])
    )


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
    """Return the format of a file that begins with an `ftyp` box, such as AVIF or HEIC; None for any other file."""
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
