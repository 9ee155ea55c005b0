"""Image formats: which are read, how a file is opened with Pillow, and why a file is rejected."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from PIL import AvifImagePlugin, Image, ImageFile, UnidentifiedImageError

from dreamcore.errors import ImageError
from dreamcore.image_metadata import strip_jpeg, strip_png
from dreamcore.image_signatures import format_of, is_tiff_thumbnail, jxl_size, raw_format
from dreamcore.image_variants import tiff_form, unsupported_variant

__all__ = [
    "EXTRAS",
    "FORMATS",
    "SUFFIXES",
    "Extra",
    "has_image_suffix",
    "load_plugins",
    "needs_thread",
    "one_line",
    "open_image",
    "reading",
    "unread_format",
]

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
    "SGI": "sgi",
    "DPX": "dpx",
    "XPM": "xpm",
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


def load_plugins(*, one_thread: bool = False) -> None:
    """Load the plugins of all formats into Pillow, so that decoding opens no files later.

    Args:
        one_thread: decode in one thread where the plugin allows this; see `needs_thread`. This changes Pillow and its
            plugins for the whole process.
    """
    Image.init()
    _load_extras()
    if one_thread:
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
        if "HEIC" in _load_extras():
            import_module("pillow_heif").register_heif_opener(decode_threads=1)
        if "JPEG XL" in _load_extras():
            vars(import_module("pillow_jxl.JpegXLImagePlugin"))["DECODE_THREADS"] = 0


def needs_thread() -> bool:
    """Return whether a loaded plugin always starts a thread to decode: libde265, which decodes HEIC."""
    return "HEIC" in _load_extras()


@cache
def _load_extras() -> Mapping[str, str]:
    """Load the optional plugins that are installed. Return Pillow's names of their formats by our names."""
    loaded = {}
    with suppress(ImportError):
        heif = import_module("pillow_heif")
        heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
        loaded["HEIC"] = "HEIF"
    with suppress(ImportError):
        import_module("pillow_jxl")
        loaded["JPEG XL"] = "JXL"
    return loaded


@contextmanager
def open_image(data: bytes, *, max_pixels: int | None = None, extras: bool = False) -> Iterator[ImageFile.ImageFile]:
    """Open the bytes of an image file with Pillow. Pixels are not decoded yet, except those of a JPEG XL.

    Args:
        data: the bytes of the file.
        max_pixels: refuse larger images by their header.
        extras: read also the formats of `EXTRAS` whose packages are installed.

    Raises:
        ImageError: for any failure, also inside the `with` block: `not_an_image`, `unsupported`, `damaged`,
            `too_large` or `out_of_memory`.
    """
    with reading(data):
        name = format_of(data)
        readable = {**{name: name for name in FORMATS}, **(_load_extras() if extras else {})}
        _refuse_unreadable(data, name, readable)
        if name == "JPEG XL":
            _check_size(jxl_size(data), max_pixels)
        with _opened(data, name, tuple(readable.values())) as image:
            _check_size(image.size, max_pixels)
            yield image


@contextmanager
def reading(data: bytes) -> Iterator[None]:
    """Turn every exception inside the `with` block, which reads the image file `data`, into an ImageError."""
    # Pillow warns about problems that are handled here. `catch_warnings` would restore the filters afterwards, but it
    # is not thread-safe, and photographs are decoded in threads.
    warnings.filterwarnings("ignore", module=r"PIL\.|pillow_")
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", one_line(error)) from error
    except MemoryError as error:
        raise ImageError("out_of_memory", f"{format_of(data)}: not enough memory to decode the image") from error
    except Exception as error:  # for corrupt bytes Pillow raises almost every exception type of Python
        raise _rejection(data, error) from error


def _refuse_unreadable(data: bytes, name: str | None, readable: Mapping[str, str]) -> None:
    """Raise an error that names the format if it is not read here."""
    use = f"use {', '.join(FORMATS)}"
    raw = raw_format(data)
    if raw is not None:
        raise ImageError("unsupported", f"RAW ({raw}) is not supported: develop the photograph, then {use}")
    if name is None:
        raise _not_an_image(data)
    if is_tiff_thumbnail(data):
        raise ImageError(
            "unsupported", "TIFF whose first image is a thumbnail is not supported: save the full image first"
        )
    if name in readable or (name == "HEIF" and "HEIC" in readable):
        return
    extra = EXTRAS.get("HEIC" if name == "HEIF" else name)
    if extra is not None:
        raise ImageError("unsupported", f"{name} needs a package: pip install 'dreamgrid[{extra.name}]', or {use}")
    raise ImageError("unsupported", f"{name} is not supported: {use}")


def _opened(data: bytes, name: str | None, formats: tuple[str, ...]) -> ImageFile.ImageFile:
    """Open an image file without the metadata that Pillow might refuse."""
    profile = None
    data = _with_known_brand(data, name)
    if name == "PNG":
        data, profile = strip_png(data)
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except (MemoryError, Image.DecompressionBombError):
        raise
    except Exception:
        if name != "JPEG":
            raise
        image = Image.open(io.BytesIO(strip_jpeg(data)), formats=formats)
    if profile is not None:
        image.info["icc_profile"] = profile
    if image.format == "JXL" and not getattr(image, "jpeg", False):  # the decoder has applied the orientation
        image.info.pop("exif", None)
    return image


def _with_known_brand(data: bytes, name: str | None) -> bytes:
    """Return an AVIF or HEIC with a major brand that Pillow's plugins know."""
    brand = {"AVIF": b"avif", "HEIC": b"heic", "HEIF": b"mif1"}.get(name or "")
    if brand is None or data[8:12] not in (b"miaf", b"mif2", b"mif3", b"heif"):
        return data
    return data[:8] + brand + data[12:]


def _check_size(size: tuple[int, int] | None, max_pixels: int | None) -> None:
    if size is not None and max_pixels is not None and size[0] * size[1] > max_pixels:
        raise ImageError("too_large", f"{size[0]} x {size[1]} pixels are over the limit of {max_pixels}")


def _not_an_image(data: bytes) -> ImageError:
    text = data[:16].decode("ascii", "replace")
    is_text = text.isascii() and "".join(text.split()).isprintable()
    start = repr(text) if is_text else f"the bytes {data[:16].hex(' ')}"
    return ImageError("not_an_image", f"not an image: {f'it begins with {start}' if data else 'the file is empty'}")


def _rejection(data: bytes, error: Exception) -> ImageError:
    """Return why `data` could not be opened or decoded."""
    name = format_of(data)
    if name is None:
        return _not_an_image(data)
    variant = unsupported_variant(data, name)
    if variant is not None:
        return ImageError("unsupported", f"{variant} is not supported")
    if isinstance(error, UnidentifiedImageError):
        error = _header_error(name, data)
    if name == "TIFF" and "string index out of range" in str(error):  # Pillow counts the planes of a pixel wrongly
        return ImageError("unsupported", "TIFF: extra samples in separate planes are not supported")
    if name == "TIFF" and "unknown pixel mode" in str(error):
        return ImageError("unsupported", f"TIFF: not supported: {tiff_form(data)}")
    # Pillow raises the same exception type for unsupported and for damaged files. Only the messages differ.
    unsupported = re.search("unsupported|not installed", str(error), re.IGNORECASE)
    return ImageError("unsupported" if unsupported else "damaged", f"{name}: {one_line(error)}")


def _header_error(name: str, data: bytes) -> Exception:
    """Return the error of the format's plugin, which `Image.open` hides."""
    try:
        Image.OPEN[_load_extras().get(name, name)][0](io.BytesIO(_with_known_brand(data, name)), "")
    except Exception as error:
        return error
    return SyntaxError("the header is malformed")


def one_line(error: Exception) -> str:
    """Return the message of an error on one line of at most 200 characters, or the name of its type."""
    return " ".join(str(error).split())[:200] or type(error).__name__
