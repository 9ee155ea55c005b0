"""Image formats: which are read, how a file is recognized, and why a file is rejected."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from PIL import Image, ImageFile, UnidentifiedImageError

from dreamcore.errors import ImageError

__all__ = ["FORMATS", "SUFFIXES", "has_image_suffix", "open_image", "reading"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are read, by Pillow's names."""

SUFFIXES: Mapping[str, str] = {
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "jpe": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
}
"""Lower-case file name suffixes of these formats."""

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
    _, dot, suffix = key.rpartition(".")
    return bool(dot) and suffix.lower() in SUFFIXES


@contextmanager
def open_image(data: bytes) -> Iterator[ImageFile.ImageFile]:
    """Open the bytes of an image file with Pillow. Pixels are not decoded yet.

    Raises:
        ImageError: for any failure, also inside the `with` block: `not_an_image`, `unsupported`, `damaged`,
            `too_large` or `out_of_memory`.
    """
    with reading(data), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        yield image


@contextmanager
def reading(data: bytes) -> Iterator[None]:
    """Turn every exception inside the `with` block, which reads the image file `data`, into an ImageError."""
    # Pillow warns about problems that are handled here. `catch_warnings` would restore the filters afterwards, but it
    # is not thread-safe, and photographs are decoded in threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
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
    if name == "TIFF" and "string index out of range" in str(error):  # Pillow counts the planes of a pixel wrongly
        return ImageError("unsupported", "TIFF: extra samples in separate planes are not supported")
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
    return " ".join(str(error).split())[:200] or type(error).__name__
