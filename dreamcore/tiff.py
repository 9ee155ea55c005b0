"""TIFF: which forms are decoded, and the corrections that Pillow's pixels need.

A TIFF stores samples in any combination of color model, bits, number type, byte order, plane order and compression.
Pillow decodes most forms that photographs have. Some others it decodes to wrong pixels without an error. This module
corrects those that are common and refuses the rest as `unsupported`. The tests compare every form with tifffile.
tifffile itself would need a package of fifty codecs at run time, so Pillow's libtiff is used.
"""

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
    predictor: int
    subsampling: tuple[int, ...]
    ink_set: int


def prepare(image: TiffImageFile) -> None:
    """Choose how Pillow decodes a TIFF that is not loaded yet.

    Raises:
        ImageError: `unsupported`: Pillow would decode this form to wrong pixels, or not at all.
    """
    form = _form(image)
    reason = _refusal(form)
    if reason:
        raise ImageError("unsupported", f"TIFF: {reason} is not supported")
    if not image.tile:  # the caller has loaded it
        return
    if form.compression == _UNCOMPRESSED and form.planar and form.samples > 1:
        # Pillow's own reader takes 16-bit planes for 8-bit planes. libtiff reads every plane correctly.
        extents = (0, 0, *image._tile_size)
        rawmode = f"{image.mode};16N" if form.bits == 16 else image.mode
        image.tile = [ImageFile._Tile("libtiff", extents, 0, (rawmode, False, image.tag_v2._offset))]
        image.use_load_libtiff = True
    elif image.tile[0].codec_name == "libtiff":
        tile = image.tile[0]
        rawmode, *others = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        image.tile = [tile._replace(args=(_NATIVE.get(str(rawmode), rawmode), *others))]


def corrected(image: TiffImageFile) -> Image.Image:
    """Return a loaded TIFF with the gray values that the file means: in 8 bits, with 0 for black.

    Integers with a sign, integers of 32 bits and floats are mapped by `samples.stretch`, because such files do not say
    which value is white. Images that Pillow decodes correctly are returned unchanged.
    """
    form = _form(image)
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


def _form(image: TiffImageFile) -> _Form:
    tags = image.tag_v2

    def first(tag: int, default: int) -> int:
        value: Any = tags.get(tag, default)
        return int(value[0] if isinstance(value, tuple) else value)

    return _Form(
        photometric=first(262, _WHITE_IS_ZERO),  # the default is Pillow's
        compression=first(259, _UNCOMPRESSED),
        bits=first(258, 1),
        sample_format=first(339, _UNSIGNED),
        samples=first(277, 1),
        planar=first(284, 1) == 2,
        predictor=first(317, 1),
        subsampling=tuple(tags.get(530, (2, 2))),
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
