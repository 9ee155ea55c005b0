"""Image files for tests, with known pixels."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dreamcore.images import Array

LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "BMP": {}}


def photo(width: int, height: int, seed: int = 0) -> Array:
    """Return pixels (H, W, 3) of color gradients and waves with a little noise, without any symmetry."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [x, y, (np.sin(9 * x + 5 * y * y) + 1) / 2]
    grain = np.random.default_rng(seed).normal(0, 2, (height, width, 3))
    return np.clip(np.stack(waves, axis=-1) * 230 + 10 + grain, 0, 255).astype(np.uint8)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    """Return `image` as a file, saved by Pillow."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, color_type: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a hand-made PNG, for variants that Pillow reads but does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    body = b"".join(chunk(*c) for c in (*chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


D50 = (0.9642, 1.0, 0.8249)
"""The white point of ICC profiles, in XYZ."""
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
"""From linear Display P3 to XYZ at D50."""
GAMMA = 563 / 256


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Return a minimal ICC profile of a display, version 2."""
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    white = b"".join(struct.pack(">i", round(v * 65536)) for v in D50)
    header = struct.pack(">I4xI4s4s4s12x4s", start + len(body), 0x02100000, b"mntr", space, b"XYZ ", b"acsp")
    return header + bytes(68 - len(header)) + white + bytes(48) + table + body


def xyz(values: Any) -> bytes:
    """Return an ICC tag of type XYZ."""
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def curve(gamma: float) -> bytes:
    """Return an ICC tag with a gamma curve."""
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(matrix: NDArray[np.float64]) -> bytes:
    """Return an ICC profile with gamma `GAMMA` and this matrix from linear RGB to XYZ at D50."""
    columns = {name + b"XYZ": xyz(matrix[:, i]) for i, name in enumerate((b"r", b"g", b"b"))}
    return icc(b"RGB ", {b"wtpt": xyz(D50), **columns, **{name + b"TRC": curve(GAMMA) for name in (b"r", b"g", b"b")}})
