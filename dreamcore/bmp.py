"""BMP: decode every kind of pixels that Windows, OS/2 and image editors write.

Pillow reads a header's alpha mask only for some masks, ignores it in 16-bit images, takes an 8-bit image with a palette
of black and white for a 1-bit image, and loses empty rows of run-length encoded images. Therefore this module parses
the header and uses only Pillow's fast unpackers.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dreamcore.errors import ImageError

__all__ = ["Header", "is_bmp", "pixels_of", "read_header"]

_CORE, _OS2, _SHORT_OS2 = 12, 64, 16  # sizes of OS/2 headers in bytes
_HEADER_SIZES = (_CORE, _SHORT_OS2, 40, 52, 56, _OS2, 108, 124)
_V3 = 56  # from this size on, headers have an alpha mask
_V5 = 124  # headers of this size can have an ICC profile
_RGB, _RLE8, _RLE4, _BITFIELDS, _ALPHA_BITFIELDS = 0, 1, 2, 3, 6  # compressions
_OTHER_COMPRESSIONS = {4: "JPEG", 5: "PNG", 11: "CMYK", 12: "CMYK", 13: "CMYK"}

_Masks = tuple[int, int, int, int]  # which bits of a pixel are red, green, blue and alpha
_DEFAULT_MASKS: dict[int, _Masks] = {
    16: (0x7C00, 0x3E0, 0x1F, 0),
    24: (0xFF0000, 0xFF00, 0xFF, 0),
    32: (0xFF0000, 0xFF00, 0xFF, 0),
}
_UNPACKERS: dict[tuple[int, _Masks], str] = {  # to Pillow's raw modes
    (16, (0x7C00, 0x3E0, 0x1F, 0)): "BGR;15",
    (16, (0xF800, 0x7E0, 0x1F, 0)): "BGR;16",
    (24, (0xFF0000, 0xFF00, 0xFF, 0)): "BGR",
    (32, (0xFF0000, 0xFF00, 0xFF, 0)): "BGRX",
    (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)): "BGRA",
    (32, (0xFF, 0xFF00, 0xFF0000, 0)): "RGBX",
    (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)): "RGBA",
}
_PALETTE_UNPACKERS = {1: "P;1", 2: "P;2", 4: "P;4", 8: "P"}
_BAND = 1 << 20  # pixels that are unpacked by numpy at a time


@dataclass(frozen=True)
class Header:
    """What the header of a BMP file says."""

    width: int
    height: int
    top_down: bool
    bits: int
    compression: int
    masks: _Masks
    palette: bytes
    """Blue, green, red for each of 256 colors; empty for images without a palette."""
    start: int
    """Offset of the pixels in the file."""
    profile: bytes
    """ICC profile, or empty."""


def is_bmp(data: bytes) -> bool:
    """Return whether the bytes may be a BMP file. Other files can begin with the same two letters."""
    return data.startswith(b"BM")


def read_header(data: bytes) -> Header:
    """Parse the header of a BMP file.

    Raises:
        ImageError: `unsupported`: the kind of pixels has no decoder here.
        ValueError, struct.error: the header is malformed.
    """
    start, size = struct.unpack_from("<II", data, 10)
    if size not in _HEADER_SIZES:
        raise ValueError(f"malformed header of {size} bytes")
    compression = colors = 0
    if size == _CORE:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
    if size > _SHORT_OS2:
        compression, colors = struct.unpack_from("<I12xI", data, 30)
    _check(size, bits, compression)
    if width <= 0 or height == 0:
        raise ValueError(f"malformed size of {width} x {height} pixels")
    palette, end = b"", 14 + size
    if bits <= 8:
        palette, end = _palette(data, end, bits, colors, 3 if size == _CORE else 4)
    if bits <= 8 and start == 14 + size:  # some programs leave the palette out of this number
        start = end
    profile = b""
    if size >= _V5 and data[70:74] == b"DEBM":  # the color space "MBED", little-endian: an embedded profile
        offset, length = struct.unpack_from("<II", data, 126)
        profile = data[14 + offset : 14 + offset + length]
    masks = _masks(data, size, bits, compression) if bits > 8 else (0, 0, 0, 0)
    return Header(width, abs(height), height < 0, bits, compression, masks, palette, start or end, profile)


def pixels_of(data: bytes, header: Header) -> Image.Image:
    """Decode the pixels of a BMP file to P, RGB or RGBA.

    Raises:
        ValueError: the file is truncated.
    """
    size = (header.width, header.height)
    if header.bits <= 8:
        image = _indexed(data, header)
        image.putpalette(header.palette, "BGR")
    elif rawmode := _UNPACKERS.get((header.bits, header.masks)):
        image = Image.frombytes("RGBA" if "A" in rawmode else "RGB", size, *_raw(data, header, rawmode))
    else:
        image = _masked(data, header)
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image.putalpha(255)  # programs that do not use transparency leave these bytes zero
    if header.profile:
        image.info["icc_profile"] = header.profile
    return image


def _check(size: int, bits: int, compression: int) -> None:
    """Raise an ImageError if these pixels have no decoder here."""
    if size == _OS2 and compression in (3, 4):  # in OS/2 these numbers mean Huffman and 24-bit RLE
        raise ImageError("unsupported", "BMP: compression of OS/2 is not supported")
    if name := _OTHER_COMPRESSIONS.get(compression):
        raise ImageError("unsupported", f"BMP: {name} inside BMP is not supported")
    allowed = {
        _RGB: (1, 2, 4, 8, 16, 24, 32),
        _RLE8: (8,),
        _RLE4: (4,),
        _BITFIELDS: (16, 24, 32),
        _ALPHA_BITFIELDS: (16, 24, 32),
    }
    if bits not in allowed.get(compression, ()):
        raise ImageError("unsupported", f"BMP: {bits} bits with compression {compression} is not supported")


def _palette(data: bytes, begin: int, bits: int, colors: int, entry: int) -> tuple[bytes, int]:
    """Return the palette as 256 times blue, green, red, and the offset behind it. Missing colors are black."""
    count = colors if 0 < colors <= 256 else 1 << bits
    end = begin + count * entry
    table = np.frombuffer(data[begin:end].ljust(count * entry, b"\0"), np.uint8).reshape(count, entry)
    return table[: 1 << bits, :3].tobytes().ljust(768, b"\0"), end


def _masks(data: bytes, size: int, bits: int, compression: int) -> _Masks:
    """Return the masks of a header; without bit fields, the default masks and the header's alpha mask."""
    alpha = struct.unpack_from("<I", data, 66)[0] if size >= _V3 and size != _OS2 else 0
    if compression == _RGB:
        red, green, blue, _ = _DEFAULT_MASKS[bits]
        return red, green, blue, alpha & ~(red | green | blue) & ((1 << bits) - 1)
    red, green, blue = struct.unpack_from("<III", data, 54)
    if compression == _ALPHA_BITFIELDS:
        alpha = struct.unpack_from("<I", data, 66)[0]
    masks = (red, green, blue, alpha) if red | green | blue else _DEFAULT_MASKS[bits]
    for mask in masks:
        if mask >> bits or (mask and not _contiguous(mask)):
            raise ImageError("unsupported", f"BMP: the bit mask {mask:#x} in {bits} bits is not supported")
    if bits == 24 and (bits, masks) not in _UNPACKERS:
        raise ImageError("unsupported", "BMP: bit masks in 24 bits are not supported")
    return masks


def _contiguous(mask: int) -> bool:
    ones = mask // (mask & -mask)
    return ones & (ones + 1) == 0


def _raw(data: bytes, header: Header, rawmode: str) -> tuple[memoryview, str, str, int, int]:
    """Return the arguments of `Image.frombytes` that read uncompressed pixels."""
    return memoryview(data)[header.start :], "raw", rawmode, _stride(header), 1 if header.top_down else -1


def _stride(header: Header) -> int:
    """Return the bytes of a row, which begins at a multiple of four."""
    return (header.width * header.bits + 31) // 32 * 4


def _masked(data: bytes, header: Header) -> Image.Image:
    """Decode 16 or 32 bits by any masks."""
    stride, size = _stride(header), header.bits // 8
    used = header.width * size
    if len(data) < header.start + stride * (header.height - 1) + used:
        raise ValueError("image file is truncated")
    kind = np.dtype("<u2" if size == 2 else "<u4")
    masks = header.masks if header.masks[3] else header.masks[:3]
    image = Image.new("RGBA" if header.masks[3] else "RGB", (header.width, header.height))
    step = max(1, _BAND // header.width)
    for top in range(0, header.height, step):
        count = min(step, header.height - top)
        first = top if header.top_down else header.height - top - count
        begin = header.start + first * stride
        rows = np.frombuffer(data[begin : begin + count * stride].ljust(count * stride, b"\0"), np.uint8)
        values = np.ascontiguousarray(rows.reshape(count, stride)[:, :used]).view(kind)
        band = np.stack([_channel(values, mask) for mask in masks], axis=2)
        image.paste(Image.fromarray(band if header.top_down else np.ascontiguousarray(band[::-1])), (0, top))
    return image


def _channel(values: NDArray[np.unsignedinteger], mask: int) -> NDArray[np.uint8]:
    """Return the bits of a mask, scaled to 0 .. 255. An empty mask gives 0."""
    if not mask:
        return np.zeros(values.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    scaled = ((values & mask) >> shift).astype(np.float64) * (255 / (mask >> shift))
    channel: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return channel


def _indexed(data: bytes, header: Header) -> Image.Image:
    size = (header.width, header.height)
    if header.compression == _RGB:
        return Image.frombytes("P", size, *_raw(data, header, _PALETTE_UNPACKERS[header.bits]))
    return Image.frombytes("P", size, _unpack_runs(data, header), "raw", "P", 0, 1 if header.top_down else -1)


def _unpack_runs(data: bytes, header: Header) -> bytearray:
    """Decode run-length encoded color numbers, one byte a pixel, in the row order of the file.

    Pixels that the file skips get color 0.
    """
    width, height, four_bits = header.width, header.height, header.bits == 4
    pixels = bytearray(width * height)
    x = y = 0
    at, end = header.start, len(data)
    while y < height:
        if at + 2 > end:
            if y == height - 1 and x >= width:
                break
            raise ValueError("image file is truncated")
        count, value = data[at], data[at + 1]
        at += 2
        if count:  # a run of one color, or of two that alternate
            run = bytes((value >> 4, value & 15)) * (count // 2 + 1) if four_bits else bytes((value,)) * count
        elif value == 0:
            x, y = 0, y + 1
            continue
        elif value == 1:
            break
        elif value == 2:
            if at + 2 > end:
                raise ValueError("image file is truncated")
            x, y, at = x + data[at], y + data[at + 1], at + 2
            continue
        else:  # literal colors, padded to an even number of bytes
            count = value
            length = (count + 1) // 2 if four_bits else count
            run = data[at : at + length]
            if len(run) < length:
                raise ValueError("image file is truncated")
            if four_bits:
                run = bytes(color for pair in run for color in (pair >> 4, pair & 15))
            at += length + length % 2
        fits = max(0, min(count, width - x))
        begin = y * width + x
        pixels[begin : begin + fits] = run[:fits]
        x += count
    return pixels
