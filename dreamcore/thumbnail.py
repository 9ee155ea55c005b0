"""Encode thumbnails of dreams: small WebP files without metadata."""

import io

from PIL import Image

from dreamcore.errors import ImageError
from dreamcore.images import Array

__all__ = ["MAX_BYTES", "MAX_LONGER_SIDE", "MAX_SHORTER_SIDE", "THUMBNAIL_TYPE", "encode_thumbnail"]

MAX_SHORTER_SIDE, MAX_LONGER_SIDE = 320, 640
"""Pixels. The second limit is for panoramas."""
MAX_BYTES = 25_000
"""Size of a thumbnail's file, at most."""
THUMBNAIL_TYPE = "image/webp"
"""The content type of a thumbnail."""

_QUALITIES = {80: 1.0, 60: 0.7, 45: 0.57, 30: 0.46, 20: 0.38, 10: 0.25, 5: 0.17, 0: 0.1}
"""Size of the file at each quality, relative to that at the first one, as measured on dreams."""


def encode_thumbnail(pixels: Array) -> bytes:
    """Return a thumbnail as a WebP file of at most `MAX_BYTES`, in about the best quality that fits.

    Args:
        pixels: (H, W, 3), sRGB. The thumbnail is never larger.

    Raises:
        ImageError: `out_of_memory`.

    Example:
        >>> import numpy as np
        >>> image = Image.open(io.BytesIO(encode_thumbnail(np.zeros((500, 1000, 3), np.uint8))))
        >>> image.format, image.size
        ('WEBP', (640, 320))
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, MAX_SHORTER_SIDE / min(width, height), MAX_LONGER_SIDE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    try:
        image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        first, *others = _QUALITIES
        data = _webp(image, first)
        likely = [quality for quality in others if len(data) * _QUALITIES[quality] <= MAX_BYTES] or others[-1:]
        for quality in likely:
            if len(data) <= MAX_BYTES:
                break
            data = _webp(image, quality)
        while len(data) > MAX_BYTES:  # nothing but noise
            image = image.reduce(2)
            data = _webp(image, others[-1])
    except (MemoryError, OSError) as error:  # libwebp raises the second if it gets no memory
        raise ImageError("out_of_memory", f"no thumbnail of {width} x {height} pixels can be encoded") from error
    return data


def _webp(image: Image.Image, quality: int) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=quality, method=2)
    return sink.getvalue()
