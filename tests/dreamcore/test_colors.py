"""Colors are converted to sRGB: Adobe RGB that only the EXIF data name, and the empty screen around a GIF's frame."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from dreamcore.images import Array, decode, from_pillow
from tests.support.pictures import LOSSLESS, rgb_profile, saved

ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
COLORS = np.array([[[200, 100, 50], [60, 160, 90], [20, 20, 20], [128, 128, 128], [90, 80, 200]]], np.uint8)


def exif_of(color_space: int | None, index: str | None) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    if color_space is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ColorSpace] = color_space
    if index is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop] = {ExifTags.Interop.InteropIndex: index}
    return exif


def file_of(pixels: Array, format: str, exif: Image.Exif | bytes, **options: Any) -> bytes:
    large = pixels.repeat(16, axis=0).repeat(16, axis=1)  # whole blocks of a JPEG
    lossless = LOSSLESS.get(format, {"quality": 100, "subsampling": 0})
    return saved(Image.fromarray(large), format, exif=exif, **lossless, **options)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])  # test_tiff has the TIFF, which Pillow cannot write
@pytest.mark.parametrize(
    ("color_space", "index", "adobe"),
    [
        (65535, "R03", True),
        (None, "R03", True),
        (2, None, True),
        (2, "R03", True),
        (1, "R03", False),
        (1, "R98", False),
        (65535, "R98", False),
        (65535, None, False),
        (None, None, False),
    ],
)
def test_adobe_rgb_that_only_the_exif_data_name(
    format: str, color_space: int | None, index: str | None, adobe: bool
) -> None:
    data = file_of(COLORS, format, exif_of(color_space, index))
    if not adobe:
        assert np.abs(decode(data).pixels[8, 8::16].astype(int) - COLORS[0]).max() <= 2
        return
    profile = decode(file_of(COLORS, "PNG", b"", icc_profile=rgb_profile(ADOBE_RGB))).pixels[8, 8::16]
    assert np.abs(profile.astype(int) - COLORS[0]).max() > 10  # the profile makes a visible difference
    for pixels in (decode(data).pixels, from_pillow(Image.open(io.BytesIO(data))).pixels):
        np.testing.assert_allclose(pixels[8, 8::16].astype(int), profile, atol=2)


def test_an_embedded_profile_counts_more_than_the_exif_data() -> None:
    identity = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    data = file_of(COLORS, "PNG", exif_of(65535, "R03"), icc_profile=rgb_profile(identity))
    assert np.abs(decode(data).pixels[8, 8::16].astype(int) - COLORS[0]).max() <= 8


def test_gray_is_not_taken_for_adobe_rgb() -> None:
    data = saved(Image.new("L", (16, 16), 100), "JPEG", quality=100, exif=exif_of(65535, "R03"))
    assert (decode(data).pixels == 100).all()


def gray_profile() -> bytes:
    """Return an ICC profile of gray with a gamma of 1."""
    header = struct.pack(">I4xI4s4s4s12x4s", 188, 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp").ljust(68, b"\0")
    header += struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D) + bytes(48)
    table = struct.pack(">I", 2) + b"wtpt" + struct.pack(">II", 156, 20) + b"kTRC" + struct.pack(">II", 176, 12)
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    return header + table + white + b"curv\0\0\0\0" + struct.pack(">I", 0)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_a_gray_profile_is_applied_beside_alpha(format: str, mode: str) -> None:
    gray = Image.fromarray(np.arange(0, 256, 4, dtype=np.uint8).repeat(4).reshape(16, 16))
    image = gray.convert(mode)
    if mode.endswith("A"):
        alpha = Image.new("L", (16, 16), 255)
        alpha.paste(0, (0, 0, 16, 2))
        image.putalpha(alpha)
    expected = decode(saved(gray, "PNG", icc_profile=gray_profile())).pixels.copy()
    assert expected[8, 0, 0] > 180  # linear 128
    if mode.endswith("A"):
        expected[:2] = 255
    np.testing.assert_array_equal(decode(saved(image, format, icc_profile=gray_profile())).pixels, expected)


def test_a_gray_profile_is_applied_beside_a_transparent_gray_value() -> None:
    gray = Image.new("L", (8, 8), 128)
    gray.paste(7, (0, 0, 8, 2))
    pixels = decode(saved(gray, "PNG", icc_profile=gray_profile(), transparency=7)).pixels
    assert (pixels[:2] == 255).all()
    np.testing.assert_array_equal(pixels[2:], decode(saved(gray, "PNG", icc_profile=gray_profile())).pixels[2:])


def test_a_gray_profile_leaves_colors_unchanged() -> None:
    np.testing.assert_array_equal(
        decode(file_of(COLORS, "PNG", b"", icc_profile=gray_profile())).pixels[8, 8::16], COLORS[0]
    )


def gif(first: Image.Image, screen: tuple[int, int], at: tuple[int, int]) -> bytes:
    """Return a GIF whose first frame is smaller than its screen."""
    data = bytearray(saved(first, "GIF"))
    data[6:10] = struct.pack("<HH", *screen)
    start = data.index(b",", 13 + 3 * (2 << (data[10] & 7)))
    data[start + 1 : start + 5] = struct.pack("<HH", *at)
    return bytes(data)


@pytest.mark.parametrize("background", [(255, 0, 0), (0, 0, 0), (255, 255, 255)])
@pytest.mark.parametrize("transparent", [False, True])
def test_the_screen_around_a_gif_frame_is_white(background: tuple[int, int, int], transparent: bool) -> None:
    frame = Image.new("P", (6, 4), 1)
    frame.putpalette([*background, 0, 0, 255, 0, 255, 0])
    frame.putpixel((0, 0), 2)
    if transparent:
        frame.info["transparency"] = 2
    data = gif(frame, (20, 10), (5, 3))
    expected = np.full((10, 20, 3), 255, np.uint8)
    expected[3:7, 5:11] = (0, 0, 255)
    expected[3, 5] = (255, 255, 255) if transparent else (0, 255, 0)
    np.testing.assert_array_equal(decode(data).pixels, expected)
    np.testing.assert_array_equal(from_pillow(Image.open(io.BytesIO(data))).pixels, expected)


def test_a_gif_frame_without_a_palette_on_a_larger_screen() -> None:
    data = bytearray(gif(Image.new("L", (6, 4), 90), (20, 10), (5, 3)))
    pixels = decode(bytes(data)).pixels
    assert (pixels[3:7, 5:11] == 90).all()
    assert (pixels[:3] == 255).all()


def webp_frame(canvas: tuple[int, int], at: tuple[int, int], alpha: bool) -> bytes:
    """Return an animated WebP whose first frame is smaller than its canvas."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    def three(number: int) -> bytes:
        return struct.pack("<I", number)[:3]

    still = saved(Image.new("RGB", (6, 4), (0, 0, 255)), "WEBP", lossless=True)[12:]
    header = bytes([2 | (16 if alpha else 0), 0, 0, 0]) + three(canvas[0] - 1) + three(canvas[1] - 1)
    place = three(at[0] // 2) + three(at[1] // 2) + three(5) + three(3) + three(100) + b"\0"
    body = chunk(b"VP8X", header) + chunk(b"ANIM", bytes([0, 0, 255, 255, 0, 0])) + chunk(b"ANMF", place + still) * 2
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


@pytest.mark.parametrize("alpha", [False, True])
def test_the_canvas_around_a_webp_frame_is_white(alpha: bool) -> None:
    pixels = decode(webp_frame((20, 10), (4, 2), alpha)).pixels
    expected = np.full((10, 20, 3), 255, np.uint8)
    expected[2:6, 4:10] = (0, 0, 255)
    np.testing.assert_array_equal(pixels, expected)
