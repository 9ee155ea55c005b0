"""Convert image samples of any depth and range to 8 bits.

Pillow has no mode for 16-bit color, so it keeps only the high byte of such a sample. That is within one level of the
exact value. With transparency the errors of two samples add up, so such a file is decoded twice, once for each byte.
"""

import sys

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

__all__ = ["Array", "from_bits", "has_low_bytes", "load_both_bytes", "scale_transparent_gray", "stretch"]

Array = NDArray[np.uint8]
"""Pixels with 8 bits: (H, W, 3) in sRGB, or (H, W) of gray."""

_BANDS = 64  # whole images in double precision would dominate the memory
_NATIVE = "L" if sys.byteorder == "little" else "B"
_OTHER_BYTE = {"L": "B", "B": "L"}


def from_bits(values: NDArray[np.uint16], bits: int) -> Array:
    """Scale unsigned integers from 0 .. 2**bits - 1 to 0 .. 255, rounded. `bits` is at most 16."""
    white = (1 << bits) - 1
    table = ((np.arange(white + 1) * 255 + white // 2) // white).astype(np.uint8)
    scaled: Array = table[values]
    return scaled


def stretch(values: NDArray[np.generic]) -> Array:
    """Map gray (H, W) of unknown range, of any real type, to 8 bits.

    White is the smallest of 1, 255 and 65535 that is not below any value. If a value is negative or above 65535, the
    lowest value becomes black and the highest value becomes white. NaN becomes black.
    """
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        low = float(np.min(values, initial=np.inf, where=finite))
        high = float(np.max(values, initial=-np.inf, where=finite))
    else:
        low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535:
        low, high = 0.0, next(white for white in (1.0, 255.0, 65535.0) if high <= white)
    pixels = np.empty(values.shape, np.uint8)
    for band, result in zip(np.array_split(values, _BANDS), np.array_split(pixels, _BANDS), strict=True):
        known = np.nan_to_num(band.astype(np.float64), nan=low, posinf=high, neginf=low)
        result[:] = np.rint((known - low) * (255 / ((high - low) or 1.0)))
    return pixels


def scale_transparent_gray(image: ImageFile.ImageFile) -> None:
    """Scale the transparent gray value of a PNG that is not loaded yet, as Pillow scales its 2-bit or 4-bit pixels."""
    scale = {"L;2": 85, "L;4": 17}.get(_rawmode(image))
    if scale and "transparency" in image.info:
        image.info["transparency"] *= scale


def has_low_bytes(image: ImageFile.ImageFile, shrunk: bool) -> bool:
    """Return whether `load_both_bytes` is needed for an image that is not loaded yet.

    Args:
        image: an opened image file.
        shrunk: the image will be resized. The low byte of an alpha channel then does not matter.
    """
    rawmode = _rawmode(image)
    if rawmode == "RGB;16B":
        return "transparency" in image.info  # a single color is transparent, which must be equal in both bytes
    return not shrunk and rawmode.startswith(("LA;16", "RGBA;16", "RGBa;16", "CMYK;16"))


def load_both_bytes(image: ImageFile.ImageFile, again: ImageFile.ImageFile) -> Image.Image:
    """Decode an image with 16 bits per sample, for which `has_low_bytes` is true.

    Args:
        image: the opened file. It is loaded, and keeps its metadata.
        again: the same file, opened a second time.

    Returns:
        RGBA or CMYK with 8 bits, which give the same color within one level when they are composited or converted.
    """
    rawmode = _rawmode(image)
    if rawmode == "LA;16B":  # the four bytes of a pixel are read as the four channels of RGBA
        again._mode = "RGBA"
        _set_rawmode(again, "RGBA")
        image.load()
        again.load()
        return _round(again, again, "LA")
    mode, _, order = rawmode.replace("a", "A").partition(";16")
    order = order.replace("N", _NATIVE)
    _set_rawmode(image, f"{mode};16{order}")
    _set_rawmode(again, f"{mode};16{_OTHER_BYTE[order]}")
    image.load()
    again.load()
    if mode == "RGB":
        return _with_transparent_color(image, again, image.info["transparency"])
    return _round(image, again, rawmode[:4])


def _rawmode(image: ImageFile.ImageFile) -> str:
    """Return how Pillow will unpack the first tile of an image, or an empty string."""
    arguments = image.tile[0].args if image.tile else None
    rawmode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return rawmode if isinstance(rawmode, str) else ""


def _set_rawmode(image: ImageFile.ImageFile, rawmode: str) -> None:
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]


def _with_transparent_color(high: Image.Image, low: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Return RGBA in which pixels of exactly this 16-bit color are transparent."""
    first, second = np.array(color) >> 8, np.array(color) & 255
    alpha = np.empty((high.height, high.width), np.uint8)
    for rows in np.array_split(np.arange(high.height), _BANDS):
        if len(rows):
            box = (0, int(rows[0]), high.width, int(rows[-1]) + 1)
            equal = (np.asarray(high.crop(box)) == first) & (np.asarray(low.crop(box)) == second)
            alpha[rows] = np.where(equal.all(axis=2), 0, 255)
    return Image.merge("RGBA", [*high.split(), Image.fromarray(alpha)])


def _round(high: Image.Image, low: Image.Image, kind: str) -> Image.Image:
    """Return 16-bit samples as 8-bit RGBA or CMYK. The result is `low`, which is overwritten.

    The last channel q (alpha, or 1 - black) is rounded. The others are then chosen so that the visible color, which is
    p * q + (1 - q) over white or p * q in print, has the smallest error. p is a color, or 1 - an ink.

    Args:
        high: the high bytes. For `LA`, all bytes: high and low of gray, high and low of alpha.
        low: the low bytes, in the mode of the result.
        kind: `LA`, `RGBA`, `RGBa` (colors are multiplied by alpha) or `CMYK`.
    """
    for rows in np.array_split(np.arange(low.height), _BANDS):
        if not len(rows):
            continue
        box = (0, int(rows[0]), low.width, int(rows[-1]) + 1)
        bytes_1, bytes_2 = (np.asarray(part.crop(box)).astype(np.float32) for part in (high, low))
        if kind == "LA":
            values = (bytes_1[..., 0::2] * 256 + bytes_1[..., 1::2])[..., [0, 0, 0, 1]] / 257
        else:
            values = (bytes_1 * 256 + bytes_2) / 257  # 0 to 255
        if kind == "CMYK":
            values = 255 - values
        colors, alpha = values[..., :3], values[..., 3:]
        white = 0 if kind == "CMYK" else 255
        visible = colors if kind == "RGBa" else colors * (alpha / 255)  # without the white behind it
        rounded = np.rint(alpha)
        colors = (visible + (rounded - alpha) * (white / 255)) * (255 / np.maximum(rounded, 1))
        values = np.rint(np.concatenate([np.clip(colors, 0, 255), rounded], axis=2))
        if kind == "CMYK":
            values = 255 - values
        band = np.ascontiguousarray(values.astype(np.uint8))
        low.paste(Image.frombuffer(low.mode, (low.width, len(rows)), band, "raw", low.mode, 0, 1), box)
    return low
