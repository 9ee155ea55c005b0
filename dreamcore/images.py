"""Bytes <-> pictures, safely: the one place where Dreamgrid meets files that strangers made.

`decode` gives upright sRGB pixels, whatever the file held, or an `ImageError` that says why not. `encode` writes a
dream with its description inside; `describe` reads it back. Only pixels pass from one to the other, so no EXIF, GPS
position, profile or comment of a source can reach a dream. Nothing here knows networks, settings or storage.
"""

import io
import json
import math
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, UnidentifiedImageError

from dreamcore.errors import ImageError

Array = NDArray[np.uint8]  # (H, W, 3), sRGB
Format = Literal["png", "webp", "jpg"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
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
MAX_SOURCE_PIXELS = 100_000_000  # at most about 1 GB while decoding; Pillow itself refuses more than 179 million
MAX_DESCRIPTION = 60_000  # bytes; EXIF in a JPEG is one segment of at most 64 KiB

_CONTENT_TYPES: Mapping[Format, str] = {"png": "image/png", "webp": "image/webp", "jpg": "image/jpeg"}
_MAX_SIDE: Mapping[Format, int] = {"png": 2**31 - 1, "webp": 16_383, "jpg": 65_500}
_SOFTWARE = "dreamgrid"
_ASCII = b"ASCII\0\0\0"  # how EXIF marks the character code of a UserComment

# What the first bytes say. The formats that are not in FORMATS are here so that the error can name them.
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
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FROM_16_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Photograph:
    """A decoded source: ``pixels`` (H, W, 3) uint8, sRGB, upright; ``width`` and ``height`` as before shrinking."""

    pixels: Array
    width: int
    height: int


def decode(data: bytes, *, max_pixels: int | None = None, max_source_pixels: int = MAX_SOURCE_PIXELS) -> Photograph:
    """Decode the first frame of a picture into upright sRGB.

    EXIF orientation and ICC profile are applied, transparency is laid over white, 16 bits become 8. A picture of more
    than ``max_pixels`` is shrunk to at most that many, its aspect kept; nothing is ever enlarged.

    Raises:
        ImageError: and nothing else, for any bytes: ``not_an_image``, ``unsupported``, ``damaged``, ``out_of_memory``,
            or ``too_large``, by the word of the header, before any pixel is decoded.
    """
    with _opened(data) as image:
        width, height = image.size
        if width * height > max_source_pixels:
            raise ImageError("too_large", f"{width} x {height} pixels are over the limit of {max_source_pixels}")
        size = _fit(width, height, max_pixels)
        draft = image.draft(None, size)  # a JPEG decodes at 1/2, 1/4 or 1/8 where that is still large enough
        image.load()
        return _convert(image, (width, height), size, draft[1] if draft else None)


def from_pillow(image: Image.Image, *, max_pixels: int | None = None) -> Photograph:
    """Convert a Pillow image of any mode to upright sRGB, in the same way as `decode` converts a file.

    Args:
        image: the image; it stays unchanged.
        max_pixels: an image with more pixels is shrunk to at most this many.

    Raises:
        ImageError: ``damaged``: the file behind the image cannot be decoded; ``unsupported``: the mode has no
            conversion to RGB.
    """
    try:
        image.load()
        return _convert(image, image.size, _fit(*image.size, max_pixels))
    except ValueError as error:
        raise ImageError("unsupported", f"mode {image.mode} cannot be converted to RGB: {_one_line(error)}") from error
    except (OSError, SyntaxError) as error:
        raise ImageError("damaged", f"the file cannot be decoded: {_one_line(error)}") from error


def _convert(
    image: Image.Image,
    original: tuple[int, int],
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Photograph:
    """Convert a loaded image of any mode to upright sRGB of `size` (W, H); `box` is the part of it that is used."""
    width, height = original
    orientation = _orientation(image)
    picture = _eight_bits(image)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    picture = _over_white(_to_srgb(picture, image.info.get("icc_profile")))
    if orientation in _TURNS:
        picture = picture.transpose(_TURNS[orientation])
    if orientation >= 5:
        width, height = height, width
    return Photograph(np.array(picture), width, height)


def encode(pixels: Array, format: Format, quality: int, description: Mapping[str, object]) -> bytes:
    """Encode a dream (H, W, 3) with ``description`` inside: canonical JSON in EXIF UserComment, alike in all formats.

    ``quality`` is 1 to 100. PNG is always lossless, WebP is at 100, and JPEG keeps its colours at full resolution.

    Raises:
        ValueError: ``description`` holds NaN or infinity, or is longer than ``MAX_DESCRIPTION``.
        TypeError: ``description`` holds something that JSON cannot.
        ImageError: ``too_large``: a side is longer than the format can hold.
    """
    height, width = pixels.shape[:2]
    if max(width, height) > _MAX_SIDE[format]:
        limit = f"{format} holds at most {_MAX_SIDE[format]} pixels a side"
        raise ImageError("too_large", f"{width} x {height} pixels cannot be written: {limit}")
    options: dict[str, Any]
    if format == "png":
        # Noisy dreams hold no long repeats: run lengths alone come within 1 % of the default's size in half its time.
        options = {"format": "PNG", "compress_type": zlib.Z_RLE}
    elif format == "webp" and quality == 100:
        # Both numbers mean effort here; one more of method saves 8 % of size for five times the time.
        options = {"format": "WEBP", "lossless": True, "quality": 0, "method": 0}
    elif format == "webp":
        options = {"format": "WEBP", "quality": quality, "method": 2}
    else:
        # Optimised or progressive would be 10 % smaller, but Pillow guesses a buffer for those that noise overflows.
        options = {"format": "JPEG", "quality": quality, "subsampling": 0}
    result = io.BytesIO()
    Image.fromarray(pixels).save(result, exif=_exif(description), **options)
    return result.getvalue()


def read_metadata(data: bytes) -> dict[str, object] | None:
    """Read the description that `encode` put inside, without decoding pixels; None if there is none or it is malformed.

    Raises:
        ImageError: ``data`` is no picture that `decode` would read.
    """
    with _opened(data) as image:
        raw = image.info.get("exif")  # not getexif(), which decodes a PNG to look for EXIF behind its pixels
    exif = Image.Exif()
    try:
        exif.load(raw or b"")
        software = exif.get(ExifTags.Base.Software)
        comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except Exception:  # the EXIF of strangers fails in as many ways as its parser has lines
        return None
    # Other programs write JSON into this tag too: ours is what says so.
    if software != _SOFTWARE or not isinstance(comment, bytes) or not comment.startswith(_ASCII):
        return None
    if len(comment) > len(_ASCII) + MAX_DESCRIPTION:
        return None
    try:
        description = json.loads(comment.removeprefix(_ASCII))
    except (ValueError, RecursionError):
        return None
    return description if isinstance(description, dict) else None


def has_image_suffix(key: str) -> bool:
    """Whether an object's key ends in one of `SUFFIXES`, in upper or lower case."""
    _, dot, suffix = key.rpartition(".")
    return bool(dot) and suffix.lower() in SUFFIXES


def content_type(format: Format) -> str:
    """Give the media type of a result format: ``image/png`` for ``png``."""
    return _CONTENT_TYPES[format]


@contextmanager
def _opened(data: bytes) -> Iterator[ImageFile.ImageFile]:
    """Open ``data``, and turn whatever goes wrong with it, inside the block too, into an ImageError."""
    # Pillow warns of what is refused or passed over here anyway. `catch_warnings` would restore the filters afterwards,
    # but it is not safe in threads, and photographs are decoded in threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", _one_line(error)) from error
    except MemoryError as error:
        raise ImageError("out_of_memory", f"{_format_of(data)}: there is not enough memory to decode it") from error
    except Exception as error:  # on corrupt bytes Pillow raises nearly every exception that Python has
        raise _refusal(data, error) from error


def _refusal(data: bytes, error: Exception) -> ImageError:
    """Say why ``data`` could not be opened or decoded."""
    name = _format_of(data)
    if name is None:
        return ImageError(
            "not_an_image", f"no picture: begins with {data[:16]!r}" if data else "no picture: it is empty"
        )
    if name not in FORMATS:
        return ImageError("unsupported", f"{name} is not read; {', '.join(FORMATS)} are")
    if isinstance(error, UnidentifiedImageError):
        error = _header_error(name, data)
    # Pillow has one type of exception for what it does not read and for what is broken; only its words differ.
    unsupported = re.search("unsupported|unknown pixel mode", str(error), re.IGNORECASE)
    return ImageError("unsupported" if unsupported else "damaged", f"{name}: {_one_line(error)}")


def _header_error(name: str, data: bytes) -> Exception:
    """Ask the plugin again for its reason, which `Image.open` keeps to itself."""
    try:
        Image.OPEN[name][0](io.BytesIO(data), "")
    except Exception as error:
        return error
    return SyntaxError("its header cannot be read")


def _format_of(data: bytes) -> str | None:
    return next((name for signature, name in _SIGNATURES if re.match(signature, data, re.DOTALL)), None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _fit(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """Give the largest size of at most ``max_pixels`` that has the same aspect to within a pixel."""
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    new_width = max(1, math.isqrt(max_pixels * width // height))
    new_height = max(1, min(math.isqrt(max_pixels * height // width), max_pixels // new_width))
    return min(new_width, max_pixels // new_height), new_height


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8. Pillow turns a TIFF itself while loading it, and this is then 1."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF spoils no picture
        return 1
    return orientation if orientation in _TURNS else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert any mode to L, RGB, RGBA or CMYK: they can all be resized, and each has profiles of its own."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(_from_16_bits(image))
    if image.mode in ("I", "F"):
        return Image.fromarray(_stretched(np.asarray(image, dtype=np.float32)))
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _from_16_bits(image: Image.Image) -> Array:
    """Scale 16-bit gray (H, W) by 1/257, which Pillow would clip to white; the gray that means transparent is white."""
    values = np.asarray(image)
    pixels: Array = _FROM_16_BITS[values]
    if "transparency" in image.info:
        pixels[values == image.info["transparency"]] = 255
    return pixels


def _stretched(values: NDArray[np.float32]) -> Array:
    """Map gray (H, W) of unknown range to 8 bits.

    White is the least of 1, 255 and 65535 that holds all values; where none does, or some are negative, the lowest
    value becomes black and the highest white.
    """
    finite = np.isfinite(values)
    low = float(np.min(values, initial=np.inf, where=finite))
    high = float(np.max(values, initial=-np.inf, where=finite))
    if low >= 0 and high <= 65535:
        low, high = 0.0, next(white for white in (1.0, 255.0, 65535.0) if high <= white)
    pixels = np.empty(values.shape, np.uint8)
    # In bands: the whole of it in double precision would be the largest thing in memory.
    for band, result in zip(np.array_split(values, 64), np.array_split(pixels, 64), strict=True):
        known = np.nan_to_num(band.astype(np.float64), nan=low, posinf=high, neginf=low)
        result[:] = np.rint((known - low) * (255 / ((high - low) or 1.0)))
    return pixels


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert L, RGB, RGBA or CMYK to RGB (RGBA stays so) by its ICC profile; plainly if that is absent or broken."""
    plain = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    if not profile:
        return plain
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        gray_as_rgb = image.mode == "L" and source.profile.xcolor_space.strip() == "RGB"
        colours = plain if gray_as_rgb else image
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(colours, source, srgb, outputMode=plain.mode) or plain
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return plain


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return page.convert("RGB")


def _exif(description: Mapping[str, object]) -> bytes:
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    if len(text) > MAX_DESCRIPTION:
        raise ValueError(f"a description of {len(text)} bytes is over the limit of {MAX_DESCRIPTION}")
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = _SOFTWARE
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII + text.encode("ascii")
    return exif.tobytes()
