"""PNG files are decoded as by pypng, an independent decoder, and encoded so that pypng and Pillow agree on them."""

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import png as pypng
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dreamcore.errors import ImageError
from dreamcore.images import Array, decode
from dreamcore.png import STRIP_BYTES, encode_png
from tests.support.pictures import photo

WIDTH, HEIGHT = 31, 23
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
DEPTHS = {GRAY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GRAY_ALPHA: (8, 16), RGBA: (8, 16)}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def packed(values: NDArray[np.integer], depth: int) -> bytes:
    """Return the scan lines of values (H, W, C)."""
    lines = values.reshape(len(values), -1)
    if depth == 16:
        lines = lines.astype(">u2").view(np.uint8)
    elif depth < 8:
        bits = (lines[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
        lines = np.packbits(bits.reshape(len(lines), -1).astype(np.uint8), axis=1)
    return b"".join(b"\0" + line.astype(np.uint8).tobytes() for line in lines)


def file_of(
    values: NDArray[np.integer], depth: int, color_type: int, interlaced: bool, chunks: list[tuple[bytes, bytes]]
) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    lines = b"".join(packed(values[y::dy, x::dx], depth) for x, y, dx, dy in passes)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, color_type, 0, 0, interlaced)
    body = b"".join(chunk(*c) for c in [*chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def reference(data: bytes) -> Any:
    """Decode with pypng, over white."""
    width, height, lines, info = pypng.Reader(bytes=data).read()
    values = np.array([list(line) for line in lines], float).reshape(height, width, -1)
    if "palette" in info:
        colors = np.array([(*color, 255)[:4] for color in info["palette"]], float)[values[..., 0].astype(int)]
        color, alpha = colors[..., :3], colors[..., 3:] / 255
    else:
        white = 2 ** info["bitdepth"] - 1
        color, alpha = values * 255 / white, np.ones((height, width, 1))
        if info.get("transparent") is not None:
            alpha = (values != np.array(info["transparent"])).any(axis=2, keepdims=True).astype(float)
        if info["alpha"]:
            color, alpha = color[..., :-1], values[..., -1:] / white
    return color * alpha + 255 * (1 - alpha)


def transparency(values: NDArray[np.integer], depth: int, color_type: int) -> bytes:
    """Return a tRNS chunk. Some pixels get the transparent color, and some differ from it in one byte."""
    if color_type == PALETTE:
        return np.random.default_rng(depth).integers(0, 256, 1 << depth, dtype=np.uint8).tobytes()
    color = values[3, 4].copy()
    values[5:9, 5:9] = values[10:13] = color
    values[11] ^= 1
    if depth == 16:
        values[12] ^= 256
    return struct.pack(f">{len(color)}H", *color)


def test_every_color_type_agrees_with_pypng() -> None:
    failures, rng = [], np.random.default_rng(0)
    for color_type, depths in DEPTHS.items():
        for depth, interlaced, transparent in itertools.product(depths, (False, True), (False, True)):
            if transparent and color_type in (GRAY_ALPHA, RGBA):
                continue
            values = rng.integers(0, 1 << depth, (HEIGHT, WIDTH, CHANNELS[color_type]))
            chunks = []
            if color_type == PALETTE:
                chunks.append((b"PLTE", rng.integers(0, 256, 3 << depth, dtype=np.uint8).tobytes()))
            if transparent:
                chunks.append((b"tRNS", transparency(values, depth, color_type)))
            data = file_of(values, depth, color_type, interlaced, chunks)
            name = f"color type {color_type}, {depth} bits, {interlaced=}, {transparent=}"
            try:
                worst = np.abs(decode(data).pixels - reference(data)).max()
            except ImageError as error:
                failures.append(f"{name}: {error}")
                continue
            if worst > 1:
                failures.append(f"{name}: {worst:.1f} levels off")
    assert not failures


def test_the_transparent_color_of_a_shrunk_image_needs_both_bytes() -> None:
    values = np.full((HEIGHT, WIDTH, 3), 1000)
    values[0, 0] = 1001  # the same high byte, and this is the transparent color
    chunks = [(b"tRNS", struct.pack(">3H", 1001, 1001, 1001))]
    assert decode(file_of(values, 16, RGB, False, chunks), max_pixels=50).pixels[2:].max() < 10


# --- encoding

CONTENTS: dict[str, Callable[[int, int], Array]] = {
    "a photograph": photo,
    "noise": lambda width, height: np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8),
    "one color": lambda width, height: np.full((height, width, 3), 200, np.uint8),
    "black and white": lambda width, height: np.indices((height, width, 3), np.uint8).sum(0) % 2 * np.uint8(255),
}


def chunk_names(data: bytes) -> list[bytes]:
    return [name for name, _ in pypng.Reader(bytes=data).chunks()]


def check_two_decoders(data: bytes, pixels: Array) -> None:
    """Both decoders also check the checksum of every chunk."""
    width, height, lines, info = pypng.Reader(bytes=data).read()
    assert (info["bitdepth"], info["planes"], info["interlace"]) == (8, 3, 0)
    np.testing.assert_array_equal(np.vstack([np.asarray(line) for line in lines]).reshape(height, width, 3), pixels)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(image), pixels)


@settings(max_examples=80)
@given(
    width=st.integers(1, 70), height=st.integers(1, 70), content=st.sampled_from(sorted(CONTENTS)),
    strip=st.integers(1, 5000), turned=st.booleans(),
)  # fmt: skip
def test_an_encoded_file_has_the_same_pixels_in_two_decoders(
    width: int, height: int, content: str, strip: int, turned: bool
) -> None:
    pixels = CONTENTS[content](width, height)
    if turned:
        pixels = pixels.transpose(1, 0, 2)[::-1]  # not contiguous
    with mock.patch("dreamcore.png.STRIP_BYTES", strip):
        check_two_decoders(encode_png(pixels), pixels)


@pytest.mark.parametrize(("width", "height"), [(400, 300), (STRIP_BYTES // 3 + 1, 2)])
def test_large_files_have_several_parts(width: int, height: int) -> None:
    pixels = photo(width, height)
    data = encode_png(pixels)
    assert chunk_names(data).count(b"IDAT") > 1
    check_two_decoders(data, pixels)


def test_exif_data_come_before_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x0131] = "dreamgrid"  # the tag Software
    for raw in (exif.tobytes(), exif.tobytes().removeprefix(b"Exif\0\0")):
        data = encode_png(photo(20, 10), raw)
        assert chunk_names(data)[:3] == [b"IHDR", b"eXIf", b"IDAT"]
        with Image.open(io.BytesIO(data)) as image:
            assert image.getexif()[0x0131] == "dreamgrid"
    assert b"eXIf" not in encode_png(photo(20, 10))
