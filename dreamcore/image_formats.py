"""Image formats: which are read, how a file is recognized, and why a file is rejected."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from PIL import Image, ImageFile, UnidentifiedImageError

from dreamcore.errors import ImageError

__all__ = ["EXTRAS", "FORMATS", "SUFFIXES", "Extra", "has_image_suffix", "one_line", "open_image", "unread_format"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats that every installation reads, by Pillow's names."""


@dataclass(frozen=True)
class Extra:
    """An optional package that adds a format to Pillow."""

    name: str
    """The extra of Dreamgrid: `pip install 'dreamgrid[name]'`."""
    package: str
    """The package to import."""

    @property
    def installed(self) -> bool:
        """Whether the package is installed."""
        return find_spec(self.package) is not None


EXTRAS: Mapping[str, Extra] = {"HEIC": Extra("heic", "pillow_heif"), "JPEG XL": Extra("jxl", "pillow_jxl")}
"""Formats that need an optional package."""

_SUFFIXES_OF = {
    "JPEG": "jpg jpeg jpe jfif pjpeg pjp mpo",
    "PNG": "png apng",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif tiff",
    "AVIF": "avif",
    "HEIC": "heic heif hif",
    "JPEG XL": "jxl",
    "PSD": "psd psb",
    "XCF": "xcf",
    "SVG": "svg svgz",
    "EPS": "eps",
    "ICO": "ico",
    "ICNS": "icns",
    "DDS": "dds",
    "TGA": "tga",
    "QOI": "qoi",
    "OpenEXR": "exr",
    "Radiance HDR": "hdr",
    "JPEG 2000": "jp2 j2k jpf jpx",
    "JPEG XR": "jxr wdp",
    "PNM": "pbm pgm ppm pnm pam pfm",
    "PCX": "pcx",
    "WMF": "wmf emf",
}
_RAW_SUFFIXES = "3fr arw cr2 cr3 crw dcr dng erf gpr iiq kdc mef mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
_FORMAT_OF_SUFFIX = {suffix: name for name, suffixes in _SUFFIXES_OF.items() for suffix in suffixes.split()}
_FORMAT_OF_SUFFIX |= {suffix: f"RAW ({suffix.upper()})" for suffix in _RAW_SUFFIXES.split()}

SUFFIXES: Mapping[str, str] = {
    suffix: name
    for suffix, name in _FORMAT_OF_SUFFIX.items()
    if name in FORMATS or (name in EXTRAS and EXTRAS[name].installed)
}
"""Lower-case file name suffixes of the formats that this installation reads."""

# Patterns of the first bytes. Formats that are not in FORMATS are listed so that the error can name them.
_SIGNATURES = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"GIF8[79]a", "GIF"),
    (rb"BM....\0\0\0\0", "BMP"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"....ftyp(hei|hev|mif1|msf1)", "HEIC"),
    (rb"....ftypavi[fs]", "AVIF"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", "JPEG 2000"),
    (rb"8BPS\0[\1\2]", "PSD"),
    (rb"\0\0[\1\2]\0", "ICO"),
    (rb"icns", "ICNS"),
    (rb"DDS ", "DDS"),
    (rb"qoif", "QOI"),
    (rb"P[1-7fF]\s", "PNM"),
    (rb"%!PS", "EPS"),
)


def has_image_suffix(key: str) -> bool:
    """Return whether an object's key ends in one of `SUFFIXES`, in upper or lower case.

    Example:
        >>> has_image_suffix("holiday/beach.JPG"), has_image_suffix("holiday/notes.txt")
        (True, False)
    """
    return _suffix(key) in SUFFIXES


def unread_format(key: str) -> str | None:
    """Return the image format that a key's suffix names, if this installation does not read the format.

    Returns:
        The name for messages, such as `HEIC`, `RAW (NEF)` or `PSD`; None if the suffix is in `SUFFIXES`, or names no
        known image format.

    Example:
        >>> unread_format("holiday/beach.NEF"), unread_format("holiday/beach.jpg"), unread_format("holiday/notes.txt")
        ('RAW (NEF)', None, None)
    """
    suffix = _suffix(key)
    return None if suffix in SUFFIXES else _FORMAT_OF_SUFFIX.get(suffix)


def _suffix(key: str) -> str:
    """Return the lower-case suffix of a key without its dot, or an empty string."""
    _, dot, suffix = key.rpartition(".")
    return suffix.lower() if dot else ""


@contextmanager
def open_image(data: bytes) -> Iterator[ImageFile.ImageFile]:
    """Open the bytes of an image file with Pillow. Pixels are not decoded yet.

    Raises:
        ImageError: for any failure, also inside the `with` block: `not_an_image`, `unsupported`, `damaged`,
            `too_large` or `out_of_memory`.
    """
    # Pillow warns about problems that are handled here. `catch_warnings` would restore the filters afterwards, but it
    # is not thread-safe, and photographs are decoded in threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", one_line(error)) from error
    except MemoryError as error:
        raise ImageError("out_of_memory", f"{_format_of(data)}: not enough memory to decode the image") from error
    except Exception as error:  # for corrupt bytes Pillow raises almost every exception type of Python
        raise _rejection(data, error) from error


def _rejection(data: bytes, error: Exception) -> ImageError:
    """Return why `data` could not be opened or decoded."""
    name = _format_of(data)
    if name is None:
        reason = f"begins with {data[:16]!r}" if data else "the file is empty"
        return ImageError("not_an_image", f"not an image: {reason}")
    if name not in FORMATS:
        return ImageError("unsupported", f"{name} is not supported: use {', '.join(FORMATS)}")
    if isinstance(error, UnidentifiedImageError):
        error = _header_error(name, data)
    # Pillow raises the same exception type for unsupported and for damaged files. Only the messages differ.
    unsupported = re.search("unsupported|unknown pixel mode", str(error), re.IGNORECASE)
    return ImageError("unsupported" if unsupported else "damaged", f"{name}: {one_line(error)}")


def _header_error(name: str, data: bytes) -> Exception:
    """Return the error of the format's plugin, which `Image.open` hides."""
    try:
        Image.OPEN[name][0](io.BytesIO(data), "")
    except Exception as error:
        return error
    return SyntaxError("the header is malformed")


def _format_of(data: bytes) -> str | None:
    return next((name for signature, name in _SIGNATURES if re.match(signature, data, re.DOTALL)), None)


def one_line(error: Exception) -> str:
    """Return the message of an error on one line of at most 200 characters, or the name of its type."""
    return " ".join(str(error).split())[:200] or type(error).__name__
