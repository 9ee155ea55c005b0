"""Decode image files to pixels, and encode dreams to image files. Image files may come from untrusted sources.

`decode` returns upright sRGB pixels for every supported file, or raises an `ImageError`. `encode` writes a dream with
its metadata inside, and `read_metadata` reads them back. Only pixels pass from a source to a dream, so that no EXIF
data, GPS position, color profile or comment of a source can reach a dream. This module does not import networks,
settings or storage.
"""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from dreamcore import bmp, tiff
from dreamcore.colors import over_white, profile_of, to_srgb
from dreamcore.errors import ImageError
from dreamcore.image_formats import FORMATS, SUFFIXES, has_image_suffix, one_line, open_image, reading, unread_format
from dreamcore.png import encode_png
from dreamcore.samples import Array, from_bits, has_low_bytes, load_both_bytes, scale_transparent_gray, stretch
from dreamcore.sizes import MAX_SOURCE_PIXELS

__all__ = [
    "FORMATS",
    "MAX_METADATA_BYTES",
    "MAX_SOURCE_PIXELS",
    "SUFFIXES",
    "Array",
    "Format",
    "Photograph",
    "content_type",
    "decode",
    "encode",
    "from_pillow",
    "has_image_suffix",
    "read_metadata",
    "unread_format",
]

Format = Literal["png", "webp", "jpg"]
"""Formats of dreams."""

MAX_METADATA_BYTES = 60_000
"""Largest JSON text inside a dream. In a JPEG, EXIF is one segment of at most 64 KiB."""

_CONTENT_TYPES: Mapping[Format, str] = {"png": "image/png", "webp": "image/webp", "jpg": "image/jpeg"}
_MAX_SIDE: Mapping[Format, int] = {"png": 2**31 - 1, "webp": 16_383, "jpg": 65_500}
_SOFTWARE = "dreamgrid"
_ASCII = b"ASCII\0\0\0"  # the prefix by which EXIF marks the character code of a UserComment
_TRANSPOSITIONS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, eq=False)
class Photograph:
    """A decoded source image."""

    pixels: Array
    """(H, W, 3), sRGB, upright, possibly shrunk."""
    width: int
    """Width of the upright image in pixels before it was shrunk."""
    height: int
    """Height of the upright image in pixels before it was shrunk."""


def decode(data: bytes, *, max_pixels: int | None = None, max_source_pixels: int = MAX_SOURCE_PIXELS) -> Photograph:
    """Decode the first frame of an image file to upright sRGB pixels.

    The EXIF orientation and the ICC profile are applied, transparent pixels are composited over white, and 16 bits
    become 8.

    Args:
        data: the bytes of the file, in one of `FORMATS`.
        max_pixels: shrink larger images to at most this many pixels, with the same aspect ratio. Images are never
            enlarged. None: do not shrink.
        max_source_pixels: reject larger images. The size is read from the header, before any pixel is decoded.

    Raises:
        ImageError: no other exception, whatever the bytes: `not_an_image`, `unsupported`, `damaged`, `too_large` or
            `out_of_memory`.

    Example:
        >>> import numpy as np
        >>> data = encode(np.zeros((20, 30, 3), np.uint8), "png", quality=100, metadata={})
        >>> photograph = decode(data, max_pixels=150)
        >>> photograph.pixels.shape, photograph.width, photograph.height
        ((10, 15, 3), 30, 20)
    """
    if bmp.is_bmp(data):
        with reading(data):
            header = bmp.read_header(data)
            size = _allowed_size(header.width, header.height, max_pixels, max_source_pixels)
            return _convert(bmp.pixels_of(data, header), (header.width, header.height), size)
    with open_image(data, max_pixels=max_source_pixels, extras=True) as image:
        original = image.size
        size = _allowed_size(*original, max_pixels, max_source_pixels)
        draft = image.draft(None, size)  # decodes a JPEG at 1/2, 1/4 or 1/8 of its size if that is still large enough
        frame = _load(image, data, shrunk=size != original)
        return _convert(frame, original, size, draft[1] if draft else None, image)


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
        _prepare(image)
        image.load()
        return _convert(image, image.size, _fit(*image.size, max_pixels))
    except ValueError as error:
        raise ImageError("unsupported", f"mode {image.mode} cannot be converted to RGB: {one_line(error)}") from error
    except (OSError, SyntaxError, TypeError, IndexError) as error:  # malformed tags raise the last two
        raise ImageError("damaged", f"the file cannot be decoded: {one_line(error)}") from error


def _load(image: ImageFile.ImageFile, data: bytes, shrunk: bool) -> Image.Image:
    """Decode an opened image file, and return its pixels in any mode. `shrunk`: they will be resized."""
    _prepare(image)
    if has_low_bytes(image, shrunk):
        with open_image(data) as again:
            _prepare(again)
            return load_both_bytes(image, again)
    image.load()
    return image


def _prepare(image: Image.Image) -> None:
    """Correct how Pillow will load an image file, or raise an ImageError if its pixels would be wrong."""
    if isinstance(image, TiffImageFile):
        tiff.prepare(image)
    elif isinstance(image, PngImageFile):
        scale_transparent_gray(image)
    elif isinstance(image, WebPImageFile) and image.is_animated:
        image._mode = image.rawmode = "RGBA"  # the canvas around the first frame is transparent, also without alpha


def _convert(
    image: Image.Image,
    original: tuple[int, int],
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    file: Image.Image | None = None,
) -> Photograph:
    """Convert a loaded image of any mode to upright sRGB.

    Args:
        image: the pixels.
        original: the size of the file's image, (W, H).
        size: the size of the result before it is turned upright, (W, H).
        box: the part of `image` that is used.
        file: the image that has the metadata, if it is not `image`.
    """
    width, height = original
    orientation = _orientation(file or image)
    profile = profile_of(file or image)
    frame = _to_8_bits(image)
    if frame.size != size:
        frame = frame.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    frame = over_white(to_srgb(frame, profile))
    if orientation in _TRANSPOSITIONS:
        frame = frame.transpose(_TRANSPOSITIONS[orientation])
    if orientation >= 5:
        width, height = height, width
    return Photograph(np.array(frame), width, height)


def encode(pixels: Array, format: Format, quality: int, metadata: Mapping[str, object]) -> bytes:
    """Encode a dream as an image file, with metadata inside.

    The metadata are canonical JSON in the EXIF tag UserComment, in the same way for all formats.

    Args:
        pixels: (H, W, 3), sRGB.
        format: `png`, `webp` or `jpg`.
        quality: 1 to 100. PNG is always lossless, WebP is lossless at 100. JPEG keeps colors at full resolution.
        metadata: values that JSON can represent.

    Raises:
        ValueError: `metadata` contain NaN or infinity, or exceed `MAX_METADATA_BYTES`.
        TypeError: `metadata` contain a value that JSON cannot represent.
        ImageError: `too_large`: a side is longer than the format allows.

    Example:
        >>> import numpy as np
        >>> data = encode(np.zeros((2, 3, 3), np.uint8), "jpg", quality=95, metadata={"seed": 1})
        >>> read_metadata(data)
        {'seed': 1}
    """
    height, width = pixels.shape[:2]
    if max(width, height) > _MAX_SIDE[format]:
        limit = f"{format} allows at most {_MAX_SIDE[format]} pixels per side"
        raise ImageError("too_large", f"{width} x {height} pixels cannot be written: {limit}")
    exif = _exif(metadata)
    if format == "png":
        return encode_png(pixels, exif)
    options: dict[str, Any]
    if format == "webp" and quality == 100:
        # In lossless mode both numbers are effort. method=1 would save 8 % of the size for five times the time.
        options = {"format": "WEBP", "lossless": True, "quality": 0, "method": 0}
    elif format == "webp":
        options = {"format": "WEBP", "quality": quality, "method": 2}
    else:
        # Optimized or progressive files would be 10 % smaller, but noise can overflow the buffer that Pillow allocates.
        options = {"format": "JPEG", "quality": quality, "subsampling": 0}
    result = io.BytesIO()
    Image.fromarray(pixels).save(result, exif=exif, **options)
    return result.getvalue()


def read_metadata(data: bytes) -> dict[str, object] | None:
    """Return the metadata that `encode` wrote into an image file, without decoding pixels.

    Args:
        data: the bytes of the file, in one of `FORMATS`.

    Returns:
        The metadata; None if there are none, if another program wrote them, or if they are malformed.

    Raises:
        ImageError: `data` is not an image that `decode` would open.

    Example:
        >>> import numpy as np
        >>> read_metadata(encode(np.zeros((2, 3, 3), np.uint8), "png", quality=100, metadata={"layers": "blocks.4"}))
        {'layers': 'blocks.4'}
    """
    with open_image(data) as image:
        raw = image.info.get("exif")  # not getexif(), which decodes a PNG to find EXIF data behind its pixels
    exif = Image.Exif()
    try:
        exif.load(raw or b"")
        software = exif.get(ExifTags.Base.Software)
        comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except Exception:  # malformed EXIF data raise many exception types
        return None
    # Other programs also write JSON into this tag, so the software tag must name this one.
    if software != _SOFTWARE or not isinstance(comment, bytes) or not comment.startswith(_ASCII):
        return None
    if len(comment) > len(_ASCII) + MAX_METADATA_BYTES:
        return None
    try:
        metadata = json.loads(comment.removeprefix(_ASCII))
    except (ValueError, RecursionError):
        return None
    return metadata if isinstance(metadata, dict) else None


def content_type(format: Format) -> str:
    """Return the media type of a result format: `image/png` for `png`."""
    return _CONTENT_TYPES[format]


def _allowed_size(width: int, height: int, max_pixels: int | None, max_source_pixels: int) -> tuple[int, int]:
    """Return the size to which a source is shrunk, or raise an ImageError if the source is too large."""
    if width * height > max_source_pixels:
        raise ImageError("too_large", f"{width} x {height} pixels are over the limit of {max_source_pixels}")
    return _fit(width, height, max_pixels)


def _fit(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """Return the largest size of at most `max_pixels` with the same aspect ratio, to within a pixel."""
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    new_width = max(1, math.isqrt(max_pixels * width // height))
    new_height = max(1, min(math.isqrt(max_pixels * height // width), max_pixels // new_width))
    return min(new_width, max_pixels // new_height), new_height


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8. Pillow rotates a TIFF itself while loading it, and this is then 1."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # malformed EXIF data do not make an image unreadable
        return 1
    return orientation if orientation in _TRANSPOSITIONS else 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Convert any mode to L, RGB, RGBA, CMYK or LAB, which can be resized and have their own ICC profiles."""
    if isinstance(image, TiffImageFile):
        image = tiff.corrected(image)
    elif isinstance(image, GifImageFile):
        image = _whole_screen(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray(_from_16_bits(image))
    if image.mode in ("I", "F"):
        return Image.fromarray(stretch(np.asarray(image)))
    if image.mode == "La":  # Pillow converts this mode only to LA
        image = image.convert("LA")
    if image.has_transparency_data and image.mode != "RGBA":
        return image.convert("RGBA")
    if image.mode in ("L", "RGB", "RGBA", "CMYK", "LAB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _from_16_bits(image: Image.Image) -> Array:
    """Scale 16-bit gray (H, W) by 1/257. Pillow would clip it to white. The transparent gray value becomes white."""
    values = np.asarray(image)
    pixels = from_bits(values, 16)
    if "transparency" in image.info:
        pixels[values == image.info["transparency"]] = 255
    return pixels


def _whole_screen(image: GifImageFile) -> Image.Image:
    """Return the first frame of a GIF on a transparent screen. Pillow fills the rest of the screen with color 0."""
    box = image.dispose_extent if image.tell() == 0 else None
    if box is None or box == (0, 0, *image.size):
        return image
    screen = Image.new("RGBA", image.size, (255, 255, 255, 0))
    screen.paste(image.crop(box).convert("RGBA"), box)
    return screen


def _exif(metadata: Mapping[str, object]) -> bytes:
    """Return EXIF data with `metadata` as canonical JSON."""
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    if len(text) > MAX_METADATA_BYTES:
        raise ValueError(f"{len(text)} bytes of metadata are over the limit of {MAX_METADATA_BYTES}")
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = _SOFTWARE
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII + text.encode("ascii")
    return exif.tobytes()
