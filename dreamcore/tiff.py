"""TIFF: which forms are decoded, and the corrections that Pillow's pixels need.

A TIFF stores samples in any combination of color model, bits, number type, byte order, plane order and compression.
Pillow decodes most forms that photographs have. Some others it decodes to wrong pixels without an error. This module
corrects those that are common and refuses the rest as `unsupported`. The tests compare every form with tifffile.
tifffile itself would need a package of fifty codecs at run time, so Pillow's libtiff is used.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from dreamcore.errors import ImageError
from dreamcore.samples import from_bits, stretch

__all__ = ["corrected", "prepare"]

# Values of the tag PhotometricInterpretation.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # values of the tag SampleFormat
_UNCOMPRESSED, _JPEG = 1, 7  # values of the tag Compression
_WITH_PREDICTOR = (5, 8, 32946, 34925, 50000)  # LZW, deflate (two numbers), LZMA, Zstandard
_HORIZONTAL, _FLOATING_POINT = 2, 3  # values of the tag Predictor

# libtiff returns samples in the byte order of the machine. Pillow unpacks these in the byte order of the file.
_NATIVE = {
    "I;16S": "I;16NS",
    "I;16BS": "I;16NS",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
    "F;32F": "F;32NF",
    "F;32BF": "F;32NF",
}


@dataclass(frozen=True)
class _Form:
    """How a TIFF stores its samples."""

    photometric: int
    compression: int
    bits: int  # of the first sample; Pillow opens no file with samples of different depth
    sample_format: int
    samples: int
    planar: bool
    reversed_bits: bool
    predictor: int
    subsampling: tuple[int, ...]
    ink_set: int


def prepare(image: TiffImageFile) -> None:
    """Choose how Pillow decodes a TIFF that is not loaded yet.

    Raises:
        ImageError: `unsupported`: Pillow would decode this form to wrong pixels, or not at all. `damaged`: the file
            has fewer strips or tiles than its size needs.
    """
    form = _form(image)
    reason = _refusal(form)
    if reason:
        raise ImageError("unsupported", f"TIFF: not supported: {reason}")
    if not image.tile:  # the caller has loaded it
        return
    if form.compression == _UNCOMPRESSED:  # libtiff checks the others
        _check_strips(image, form)
    rawmode = _rawmode(image)
    planes = form.planar and form.samples > 1
    if form.compression == _UNCOMPRESSED and (planes or form.reversed_bits):
        # Pillow's own reader takes 16-bit planes for 8-bit planes, and cannot reverse the bits of a palette image.
        rawmode = image.mode if planes else rawmode.removesuffix("R").removesuffix(";")
        rawmode = f"{rawmode.partition(';')[0]};16N" if form.bits == 16 else rawmode
        image.tile = [ImageFile._Tile("libtiff", (0, 0, *image._tile_size), 0, (rawmode, False, image.tag_v2._offset))]
        image.use_load_libtiff = True
    elif rawmode in _NATIVE and image.tile[0].codec_name == "libtiff":
        image.tile = [image.tile[0]._replace(args=(_NATIVE[rawmode], False, image.tag_v2._offset))]


def _check_strips(image: TiffImageFile, form: _Form) -> None:
    """Raise an ImageError if strips or tiles are missing. Pillow would leave their pixels black."""
    tags = image.tag_v2
    width, height = image._tile_size
    if 324 in tags:  # TileOffsets
        found, kind = len(tags[324]), "tiles"
        needed = math.ceil(width / (tags.get(322) or width)) * math.ceil(height / (tags.get(323) or height))
    else:
        found, kind = len(tags.get(273, ())), "strips"
        needed = math.ceil(height / (tags.get(278) or height))
    needed *= form.samples if form.planar else 1
    if found < needed:
        raise ImageError("damaged", f"TIFF: {found} of {needed} {kind} are in the file")


def corrected(image: TiffImageFile) -> Image.Image:
    """Return a loaded TIFF with the colors and gray values that the file means. Gray has 8 bits, and 0 is black.

    Integers with a sign, integers of 32 bits and floats are mapped by `samples.stretch`, because such files do not say
    which value is white. Images that Pillow decodes correctly are returned unchanged.
    """
    form = _form(image)
    if form.photometric == _PALETTE:
        return _with_8_bit_colors(image)
    if form.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) or "A" in image.mode.upper():
        return image
    values = np.asarray(image)
    if form.bits in (12, 16) and form.sample_format == _UNSIGNED:
        pixels = from_bits(values, form.bits)
    elif form.bits == 8 and form.sample_format == _SIGNED:
        pixels = stretch(values.view(np.int8))
    elif form.bits == 32 and form.sample_format == _UNSIGNED:
        pixels = stretch(values.view(np.uint32))
    elif image.mode in ("I", "F"):
        pixels = stretch(values)
    else:
        return image
    return Image.fromarray(255 - pixels if form.photometric == _WHITE_IS_ZERO else pixels)


def _with_8_bit_colors(image: TiffImageFile) -> Image.Image:
    """Correct a palette whose colors are 0 to 255. Some old programs write them; the standard says 0 to 65535."""
    colors = image.tag_v2.get(320, ())
    if image.mode != "P" or max(colors, default=0) > 255:
        return image
    result = image.copy()
    result.putpalette(np.array(colors, np.uint8).reshape(3, -1).T.tobytes())
    return result


def _rawmode(image: TiffImageFile) -> str:
    arguments = image.tile[0].args
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _form(image: TiffImageFile) -> _Form:
    tags = image.tag_v2

    def values(tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        value: Any = tags.get(tag, default)
        return value if isinstance(value, tuple) else (value,)

    def first(tag: int, default: int) -> int:
        return int(values(tag, (default,))[0])

    return _Form(
        photometric=first(262, _WHITE_IS_ZERO),  # the default is Pillow's
        compression=first(259, _UNCOMPRESSED),
        bits=first(258, 1),
        sample_format=first(339, _UNSIGNED),
        samples=first(277, 1),
        planar=first(284, 1) == 2,
        reversed_bits=first(266, 1) == 2,
        predictor=first(317, 1),
        subsampling=values(530, (2, 2)),
        ink_set=first(332, 1),
    )


def _refusal(form: _Form) -> str | None:
    """Return which property of the file cannot be decoded correctly, or None."""
    return _planar_refusal(form) if form.planar and form.samples > 1 else _chunky_refusal(form)


def _chunky_refusal(form: _Form) -> str | None:
    if form.compression == _JPEG and (form.bits != 8 or form.photometric == _LAB):
        return f"JPEG compression of {'CIELAB colors' if form.bits == 8 else f'{form.bits}-bit samples'}"
    if form.photometric == _CMYK and form.ink_set != 1:
        return "an ink set other than CMYK"
    if form.photometric == _YCBCR and form.compression == _UNCOMPRESSED and form.subsampling != (1, 1):
        return "uncompressed YCbCr with subsampling"
    if form.compression in _WITH_PREDICTOR and form.predictor != 1:
        horizontal = form.predictor == _HORIZONTAL and form.bits in (8, 16, 32)
        if not horizontal and not (form.predictor == _FLOATING_POINT and form.sample_format == _FLOAT):
            return f"predictor {form.predictor} of {form.bits}-bit samples"
    return None


def _planar_refusal(form: _Form) -> str | None:
    if form.photometric not in (_RGB, _CMYK):
        return "separate planes of gray, YCbCr or CIELAB"
    if form.samples > 4:
        return "more than four separate planes"
    if form.samples == 4 and form.bits == 16:
        return "four separate planes of 16-bit samples"
    return _chunky_refusal(form)
