"""Thumbnails: small files, never larger than the image."""

import io

import numpy as np
import pytest
from PIL import Image

from dreamcore.images import Array
from dreamcore.thumbnail import MAX_BYTES, encode_thumbnail
from tests.support.tiny import pixels


def noise(height: int, width: int, levels: int = 256) -> Array:
    values = np.random.default_rng(0).integers(0, levels, (height, width, 3))
    return (values * (255 // (levels - 1))).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1200, 900), (427, 320)),
        ((900, 1200), (320, 427)),
        ((2000, 1000), (640, 320)),
        ((4000, 100), (640, 16)),
        ((3000, 2), (640, 1)),
        ((300, 400), (300, 400)),
        ((1, 1), (1, 1)),
    ],
)
def test_both_sides_are_limited_and_no_image_is_enlarged(size: tuple[int, int], expected: tuple[int, int]) -> None:
    width, height = size
    data = encode_thumbnail(np.zeros((height, width, 3), np.uint8))
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("WEBP", "RGB", expected)


@pytest.mark.parametrize("image", [noise(320, 640), noise(320, 640, levels=2), noise(700, 900)])
def test_the_file_is_small_whatever_the_image(image: Array) -> None:
    assert len(encode_thumbnail(image)) <= MAX_BYTES


def test_the_thumbnail_looks_like_the_image() -> None:
    smooth = np.asarray(Image.fromarray(pixels(6, 8)).resize((640, 480), Image.Resampling.BICUBIC))
    expected = np.asarray(Image.fromarray(smooth).resize((427, 320), Image.Resampling.LANCZOS), np.float32)
    with Image.open(io.BytesIO(encode_thumbnail(smooth))) as image:
        assert np.abs(np.asarray(image, np.float32) - expected).mean() < 6
