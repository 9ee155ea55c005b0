"""PNG files of every color type, depth and transparency agree with pypng, an independent decoder."""

import itertools
import struct
import zlib
from typing import Any

import numpy as np
import png as pypng
from numpy.typing import NDArray

from dreamcore.errors import ImageError
from dreamcore.images import decode

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
