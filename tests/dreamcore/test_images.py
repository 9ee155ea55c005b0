"""Image files are decoded and encoded correctly. Each test draws its image, so the expected pixels are known."""

import io
import json
import resource
import struct
import timeit
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from dreamcore.errors import ImageError
from dreamcore.image_formats import EXTRAS
from dreamcore.images import (
    FORMATS,
    MAX_METADATA_BYTES,
    SUFFIXES,
    Array,
    Format,
    content_type,
    decode,
    encode,
    has_image_suffix,
    read_metadata,
    unread_format,
)
from tests.support.pictures import D50, DISPLAY_P3, GAMMA, LOSSLESS, curve, icc, photo, png, rgb_profile, saved, xyz

RESULT_FORMATS: tuple[Format, ...] = ("png", "webp", "jpg")


def filtered(samples: NDArray[Any]) -> bytes:
    """PNG scan lines (H, W * channels) of big-endian samples, each with filter 0."""
    return b"".join(b"\0" + row.tobytes() for row in samples)


def failure(data: bytes, **limits: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, **limits)
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def psnr(one: Array, other: Array) -> float:
    error = float(np.mean((one.astype(float) - other.astype(float)) ** 2))
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


# --- formats, orientation, transparency, modes


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_decoded(format: str) -> None:
    expected = photo(40, 30)
    result = decode(saved(Image.fromarray(expected), format, **LOSSLESS.get(format, {})))
    assert (result.width, result.height) == (40, 30)
    assert result.pixels.shape == (30, 40, 3)
    assert result.pixels.dtype == np.uint8
    if format in LOSSLESS:
        np.testing.assert_array_equal(result.pixels, expected)
    else:
        assert psnr(result.pixels, expected) > 25


UPRIGHT: dict[int, Callable[[Array], Array]] = {  # the transposition of each orientation, from the EXIF standard
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    stored = photo(48, 32)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = LOSSLESS.get(format, {"quality": 100, "subsampling": 0})
    result = decode(saved(Image.fromarray(stored), format, exif=exif, **options))
    expected = UPRIGHT[orientation](stored)
    assert (result.height, result.width) == expected.shape[:2]
    assert psnr(result.pixels, expected) > 40


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation_is_applied_to_a_shrunk_image(format: str, orientation: int) -> None:
    stored = photo(203, 97)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 95} if format == "JPEG" else {}
    result = decode(saved(Image.fromarray(stored), format, exif=exif, **options), max_pixels=1000)
    expected = UPRIGHT[orientation](stored)
    assert (result.height, result.width) == expected.shape[:2]
    height, width = result.pixels.shape[:2]
    small = np.asarray(Image.fromarray(expected).resize((width, height), Image.Resampling.LANCZOS))
    assert psnr(result.pixels, small) > 33


def test_invalid_orientation_and_malformed_exif_are_ignored() -> None:
    expected = photo(20, 10)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 9
    for raw in (
        exif.tobytes(),
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01",
    ):
        np.testing.assert_array_equal(decode(saved(Image.fromarray(expected), "PNG", exif=raw)).pixels, expected)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_are_composited_over_white(format: str) -> None:
    source = np.zeros((4, 6, 4), np.uint8)
    source[:, :2] = (255, 0, 0, 0)  # red, but fully transparent
    source[:, 2:4] = (200, 100, 0, 128)
    source[:, 4:] = (10, 20, 30, 255)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    pixels = decode(saved(Image.fromarray(source), format, **options)).pixels
    assert (pixels[:, :2] == 255).all()
    np.testing.assert_allclose(pixels[:, 2:4], np.broadcast_to([227, 177, 127], (4, 2, 3)), atol=1)
    assert (pixels[:, 4:] == (10, 20, 30)).all()


def test_colors_of_transparent_pixels_do_not_bleed_when_shrunk() -> None:
    source = np.full((64, 64, 4), 255, np.uint8)
    source[::2] = (255, 0, 0, 0)
    assert (decode(saved(Image.fromarray(source), "PNG"), max_pixels=100).pixels == 255).all()


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_palette_with_a_transparent_color(format: str) -> None:
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(indices).convert("L")
    image = Image.frombytes("P", (3, 2), indices.tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    colors = np.array([[255, 255, 255], [0, 255, 0], [0, 0, 255]], np.uint8)  # red is transparent
    np.testing.assert_array_equal(decode(saved(image, format, transparency=0)).pixels, colors[indices])


def test_a_palette_with_partial_transparency() -> None:
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    pixels = decode(saved(image, "PNG", transparency=bytes([0, 51, 255]))).pixels
    np.testing.assert_array_equal(pixels, [[[255, 255, 255], [204, 255, 204], [0, 0, 255]]])


def test_an_rgb_color_declared_transparent() -> None:
    source = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    pixels = decode(saved(Image.fromarray(source), "PNG", transparency=(1, 2, 3))).pixels
    np.testing.assert_array_equal(pixels, [[[255, 255, 255], [4, 5, 6]]])


def test_gray_and_one_bit_images() -> None:
    gray = photo(16, 12)[:, :, 0]
    three = np.repeat(gray[:, :, None], 3, axis=2)
    for format in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(decode(saved(Image.fromarray(gray), format)).pixels, three)
        bits = np.where(three > 100, 255, 0)
        np.testing.assert_array_equal(decode(saved(Image.fromarray(gray > 100), format)).pixels, bits)


def test_gray_images_with_alpha() -> None:
    image = Image.merge("LA", [Image.new("L", (2, 1), 100), Image.frombytes("L", (2, 1), bytes([0, 255]))])
    for format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(saved(image, format)).pixels, [[[255] * 3, [100] * 3]])


def test_cmyk_images() -> None:
    inks = np.zeros((16, 48, 4), np.uint8)
    inks[:, 16:32, 0] = 255  # cyan
    inks[:, 32:, 3] = 255  # black
    image = Image.frombytes("CMYK", (48, 16), inks.tobytes())
    jpeg = saved(image, "JPEG", quality=100)
    assert b"\xff\xee\x00\x0eAdobe" in jpeg  # this marker means that the inks are stored inverted
    for data in (jpeg, saved(image, "TIFF")):
        pixels = decode(data).pixels[:, [8, 24, 40]]
        np.testing.assert_allclose(pixels, np.broadcast_to([[255] * 3, [0, 255, 255], [0] * 3], (16, 3, 3)), atol=3)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled(format: str) -> None:
    values = np.arange(0, 65536, 13, dtype=np.uint16)[:5000].reshape(50, 100)
    pixels = decode(saved(Image.fromarray(values), format)).pixels
    expected = np.rint(values.astype(float) * 255 / 65535)
    np.testing.assert_array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))


def test_big_endian_sixteen_bit_gray_is_scaled() -> None:
    values = np.array([[0, 257, 65535, 32896]], np.uint16)
    image = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode(saved(image, "TIFF")).pixels[0, :, 0], [0, 1, 255, 128])


def test_sixteen_bit_gray_with_a_transparent_value() -> None:
    rows = filtered(np.array([[0, 300, 30000]], ">u2"))
    pixels = decode(png(3, 1, 16, 0, rows, (b"tRNS", struct.pack(">H", 300)))).pixels
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 255, 117])


def test_sixteen_bit_color_and_alpha() -> None:
    rgb = filtered(np.array([[0, 32768, 65535, 65535, 257, 0]], ">u2"))
    np.testing.assert_allclose(decode(png(2, 1, 16, 2, rgb)).pixels, [[[0, 128, 255], [255, 1, 0]]], atol=1)
    key = (b"tRNS", struct.pack(">HHH", 65535, 257, 0))
    np.testing.assert_allclose(decode(png(2, 1, 16, 2, rgb, key)).pixels, [[[0, 128, 255], [255] * 3]], atol=1)
    rgba = filtered(np.array([[65535, 0, 0, 0, 65535, 257, 0, 65535]], ">u2"))
    np.testing.assert_allclose(decode(png(2, 1, 16, 6, rgba)).pixels, [[[255] * 3, [255, 1, 0]]], atol=1)
    gray_alpha = filtered(np.array([[0, 0, 25700, 65535]], ">u2"))
    np.testing.assert_allclose(decode(png(2, 1, 16, 4, gray_alpha)).pixels, [[[255] * 3, [100] * 3]], atol=1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 32896, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),
        (np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),
        (np.array([[7_000_000, 7_000_000]], np.int32), [0, 0]),
        (np.array([[0.0, 0.2, 1.0]], np.float32), [0, 51, 255]),
        (np.array([[0.0, 40.0, 255.0]], np.float32), [0, 40, 255]),
        (np.array([[-0.2, 0.0, 0.2]], np.float32), [0, 128, 255]),
        (np.array([[-3e38, 0.0, 3e38]], np.float32), [0, 128, 255]),
        (np.array([[0.0, np.nan, 0.2, np.inf, -np.inf, 1.0]], np.float32), [0, 0, 51, 255, 0, 255]),
        (np.array([[np.nan, np.nan]], np.float32), [0, 0]),
    ],
)
def test_integer_and_float_images_are_stretched(values: NDArray[Any], expected: list[int]) -> None:
    pixels = decode(saved(Image.fromarray(values), "TIFF")).pixels
    assert (pixels == pixels[:, :, :1]).all()
    np.testing.assert_allclose(pixels[0, :, 0], expected, atol=0)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_only_the_first_frame_is_decoded(format: str) -> None:
    red, blue = (Image.new("RGB", (20, 10), color) for color in ("red", "blue"))
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(red, format, save_all=True, append_images=[blue], **options)
    with Image.open(io.BytesIO(data)) as check:
        assert getattr(check, "n_frames", 1) == 2
    assert (decode(data).pixels == (255, 0, 0)).all()


def test_only_the_first_image_of_an_mpo_file_is_decoded() -> None:
    red, blue = (Image.new("RGB", (64, 48), color) for color in ("red", "blue"))
    result = decode(saved(red, "MPO", save_all=True, append_images=[blue]), max_pixels=500)
    assert (result.width, result.height) == (64, 48)
    np.testing.assert_allclose(result.pixels, np.broadcast_to([255, 0, 0], result.pixels.shape), atol=2)


# --- color profiles

SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])  # to XYZ, D50
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])


def srgb_of(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def srgb_through(matrix: NDArray[np.float64], pixels: Array) -> NDArray[np.float64]:
    return srgb_of((pixels / 255) ** GAMMA @ matrix.T @ np.linalg.inv(SRGB).T)


COLORS = np.array(
    [[[200, 100, 50], [60, 160, 90], [20, 20, 20], [128, 128, 128], [90, 80, 200], [255, 255, 255]]], np.uint8
)


@pytest.mark.parametrize("matrix", [ADOBE_RGB, DISPLAY_P3])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_wide_gamut_profiles_are_converted_to_srgb(format: str, matrix: NDArray[np.float64]) -> None:
    expected = srgb_through(matrix, COLORS)
    assert np.abs(expected - COLORS).max() > 10  # the profile makes a visible difference
    data = saved(Image.fromarray(COLORS), format, icc_profile=rgb_profile(matrix), **LOSSLESS[format])
    np.testing.assert_allclose(decode(data).pixels, expected, atol=2)


def test_the_profile_of_an_image_with_alpha_is_applied() -> None:
    source = np.dstack([COLORS, np.full((1, 6, 1), 255, np.uint8)])
    source[0, 0, 3] = 0
    pixels = decode(saved(Image.fromarray(source), "PNG", icc_profile=rgb_profile(ADOBE_RGB))).pixels
    assert (pixels[0, 0] == 255).all()
    np.testing.assert_allclose(pixels[:, 1:], srgb_through(ADOBE_RGB, COLORS)[:, 1:], atol=2)


def test_the_profile_of_a_gray_image_is_applied() -> None:
    gray = np.array([[0, 30, 128, 255]], np.uint8)
    linear = icc(b"GRAY", {b"wtpt": xyz(D50), b"kTRC": curve(1.0)})
    pixels = decode(saved(Image.fromarray(gray), "PNG", icc_profile=linear)).pixels
    np.testing.assert_allclose(pixels, np.repeat(srgb_of(gray / 255)[:, :, None], 3, axis=2), atol=2)
    pixels = decode(saved(Image.fromarray(gray), "PNG", icc_profile=rgb_profile(ADOBE_RGB))).pixels
    np.testing.assert_allclose(pixels, srgb_through(ADOBE_RGB, np.repeat(gray[:, :, None], 3, axis=2)), atol=2)


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile",
        rgb_profile(ADOBE_RGB)[:200],
        rgb_profile(ADOBE_RGB).replace(b"curv", b"xxxx"),
        icc(b"CMYK", {}),
        icc(b"GRAY", {b"wtpt": xyz(D50), b"kTRC": curve(1.0)}),  # a gray profile in a color image
    ],
)
def test_an_unusable_profile_is_ignored(profile: bytes) -> None:
    pixels = decode(saved(Image.fromarray(COLORS), "PNG", icc_profile=profile)).pixels
    np.testing.assert_array_equal(pixels, COLORS)


# --- sizes


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20000, 10), (10, 20000), (1, 7), (33, 17)])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_extreme_sizes(width: int, height: int, format: str) -> None:
    data = saved(Image.new("RGB", (width, height), (50, 100, 150)), format)
    for max_pixels in (None, 1, 100, 1000):
        result = decode(data, max_pixels=max_pixels)
        assert (result.width, result.height) == (width, height)
        assert result.pixels.size <= 3 * (max_pixels or width * height)
        np.testing.assert_allclose(result.pixels, np.broadcast_to([50, 100, 150], result.pixels.shape), atol=2)


@settings(max_examples=150)
@given(width=st.integers(1, 300), height=st.integers(1, 300), max_pixels=st.integers(1, 100_000))
def test_a_shrunk_image_is_the_largest_within_the_limit(width: int, height: int, max_pixels: int) -> None:
    result = decode(saved(Image.new("L", (width, height)), "PNG", compress_level=1), max_pixels=max_pixels)
    new_height, new_width = result.pixels.shape[:2]
    assert (result.width, result.height) == (width, height)
    if width * height <= max_pixels:
        assert (new_width, new_height) == (width, height)
        return
    assert 1 <= new_width * new_height <= max_pixels
    assert (new_width + 1) * (new_height + 1) > max_pixels  # not smaller than necessary
    scale = (max_pixels / (width * height)) ** 0.5
    if min(width, height) * scale >= 1:
        assert abs(new_width - width * scale) <= 1
        assert abs(new_height - height * scale) <= 1


@pytest.mark.parametrize("max_pixels", [200_000, 40_000, 9_000])
def test_shrinking_a_jpeg_agrees_with_lanczos(max_pixels: int) -> None:
    source = Image.fromarray(photo(1001, 667))
    pixels = decode(saved(source, "JPEG", quality=95), max_pixels=max_pixels).pixels
    height, width = pixels.shape[:2]
    assert psnr(pixels, np.asarray(source.resize((width, height), Image.Resampling.LANCZOS))) > 38


@pytest.mark.parametrize("max_pixels", [10_000, 2_000, 100])
def test_shrinking_noise_agrees_with_lanczos(max_pixels: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    pixels = decode(saved(Image.fromarray(noise), "PNG"), max_pixels=max_pixels).pixels
    height, width = pixels.shape[:2]
    assert psnr(pixels, np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.LANCZOS))) > 33


def test_shrinking_a_jpeg_of_odd_size_shifts_nothing() -> None:
    ramp = np.repeat(np.tile(np.linspace(0, 255, 65), (65, 1))[:, :, None], 3, axis=2).astype(np.uint8)
    pixels = decode(saved(Image.fromarray(ramp), "JPEG", quality=100), max_pixels=64).pixels
    np.testing.assert_allclose(pixels[:, :, 0], np.tile((np.arange(8) + 0.5) * 255 / 8, (8, 1)), atol=4)


# --- rejected files


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html>403</html>",
        b"plain words",
        b"Python",
        b"BMW and other cars",
        bytes(1000),
        b"\xff" * 99,
    ],
)
def test_other_bytes_are_not_an_image(data: bytes) -> None:
    assert failure(data).kind == "not_an_image"
    with pytest.raises(ImageError):
        read_metadata(data)


def test_the_beginning_of_a_file_that_is_no_image_is_shown_in_plain_words() -> None:
    assert str(failure(b"<html>\n<head></head>")).endswith(r"not an image: it begins with '<html>\n<head></h'")
    assert str(failure(bytes(3))).endswith("not an image: it begins with the bytes 00 00 00")
    assert str(failure(b"")).endswith("not an image: the file is empty")


@pytest.mark.parametrize("format", ["ICO", "JPEG2000", "ICNS", "DDS", "PPM"])
def test_other_formats_are_unsupported(format: str) -> None:
    error = failure(saved(Image.new("RGB", (64, 64)), format))
    assert error.kind == "unsupported"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"8BPS\0\1" + bytes(40), "PSD"),
    ],
)
def test_the_error_names_formats_that_pillow_cannot_read(data: bytes, name: str) -> None:
    error = failure(data)
    assert error.kind == "unsupported"
    assert name in str(error)


def test_variants_that_pillow_cannot_read_are_unsupported() -> None:
    image = Image.new("RGB", (8, 8))
    tiff = saved(image, "TIFF").replace(struct.pack("<HHLL", 262, 3, 1, 2), struct.pack("<HHLL", 262, 3, 1, 9))
    assert failure(tiff).kind == "unsupported"
    bmp = bytearray(saved(image, "BMP"))
    bmp[30] = 5  # a compression that Pillow does not read
    assert failure(bytes(bmp)).kind == "unsupported"


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_image_is_damaged(format: str) -> None:
    data = saved(Image.fromarray(photo(64, 48)), format)
    error = failure(data[: len(data) // 2])
    assert error.kind == "damaged"
    assert format in str(error)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_a_truncated_header_is_damaged(format: str) -> None:
    assert failure(saved(Image.new("RGB", (64, 48)), format)[:12]).kind == "damaged"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("variant", ["plain", "rich"])
def test_corrupt_bytes_give_an_image_or_an_image_error(format: str, variant: str) -> None:
    options: dict[str, Any] = {}
    image = Image.fromarray(photo(40, 30))
    if variant == "rich":
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        exif[ExifTags.Base.Software] = "dreamgrid"
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b'ASCII\0\0\0{"a":1}'
        options = {"exif": exif, "icc_profile": rgb_profile(DISPLAY_P3)}
        options["compression"] = "tiff_lzw"  # only TIFF uses it
        options["progressive"] = True  # only JPEG uses it
        image = image.convert({"GIF": "P", "PNG": "P", "WEBP": "RGBA"}.get(format, "RGB"))
    data = saved(image, format, **options)
    rng = np.random.default_rng(1)
    for offset in np.linspace(0, len(data) - 1, 20).astype(int):
        check_reading(data[:offset])
    for _ in range(200):
        broken = bytearray(data)
        header = rng.random() < 0.5  # half of the changes hit the header
        broken[rng.integers(min(300, len(data)) if header else len(data))] ^= 1 << rng.integers(8)
        check_reading(bytes(broken))


def check_reading(data: bytes) -> None:
    """Both readers must succeed, or raise an ImageError with a printable message."""
    for read in (lambda data: decode(data, max_pixels=500, max_source_pixels=10_000_000), read_metadata):
        message = "fine"
        try:
            read(data)
        except ImageError as error:
            message = str(error)
        assert message.isprintable()
        assert message


def test_a_decompression_bomb_is_rejected_by_its_header() -> None:
    bomb = png(30000, 30000, 8, 2, bytes(1_000_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert min(timeit.repeat(lambda: failure(bomb), number=1, repeat=5)) < 0.1
    assert failure(bomb).kind == "too_large"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_the_pixel_limit_is_checked_in_the_header() -> None:
    error = failure(png(12000, 12000, 8, 2, b""))
    assert error.kind == "too_large"
    assert "12000 x 12000" in str(error)
    data = saved(Image.new("RGB", (20, 10)), "PNG")
    assert failure(data, max_source_pixels=199).kind == "too_large"
    assert failure(data, max_source_pixels=199, max_pixels=10).kind == "too_large"
    assert decode(data, max_source_pixels=200).width == 20


def test_pillow_warnings_are_suppressed() -> None:
    large = png(9500, 10000, 1, 0, b"")  # enough for Pillow to warn
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_metadata(large) is None
    assert caught == []


# --- dreams


@pytest.mark.parametrize(("format", "quality"), [("png", 90), ("webp", 100)])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (67, 41)])
def test_lossless_formats_keep_every_pixel(format: Format, quality: int, width: int, height: int) -> None:
    pixels = photo(width, height)
    np.testing.assert_array_equal(decode(encode(pixels, format, quality, {})).pixels, pixels)


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_quality_trades_fidelity_for_size(format: Format) -> None:
    pixels = photo(320, 240)
    fine, coarse = (encode(pixels, format, quality, {}) for quality in (95, 30))
    assert psnr(decode(fine).pixels, pixels) > 40
    assert len(coarse) < len(fine) / 2


def test_jpeg_keeps_colors_at_full_resolution() -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    stripes[:, 1::2] = (0, 0, 255)
    assert psnr(decode(encode(stripes, "jpg", 95, {})).pixels, stripes) > 30


@pytest.mark.parametrize("format", RESULT_FORMATS)
@pytest.mark.parametrize("quality", [1, 100])
def test_noise_with_long_metadata_can_be_encoded(format: Format, quality: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    assert decode(encode(noise, format, quality, {"a": "x" * 50_000})).pixels.shape == noise.shape


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60)
@given(metadata=st.dictionaries(st.text(), json_values, max_size=6))
def test_metadata_round_trip(metadata: dict[str, object]) -> None:
    for format in RESULT_FORMATS:
        assert read_metadata(encode(np.zeros((2, 3, 3), np.uint8), format, 90, metadata)) == metadata


@pytest.mark.parametrize("format", RESULT_FORMATS)
def test_long_metadata_in_many_scripts_survive(format: Format) -> None:
    metadata = {"ключ": "夢 🌌 rêve\n\0", "long": "x" * 30_000, "layers": [{"name": "blocks.4", "weight": 1.0}]}
    data = encode(photo(30, 20), format, 100, metadata)
    assert read_metadata(data) == metadata
    assert decode(data).pixels.shape == (20, 30, 3)


@pytest.mark.parametrize("format", RESULT_FORMATS)
def test_other_programs_can_read_the_metadata(format: Format) -> None:
    data = encode(photo(30, 20), format, 90, {"b": "é", "a": [1, 2.5]})
    with Image.open(io.BytesIO(data)) as image:
        assert image.get_format_mimetype() == content_type(format)
        exif = image.getexif()
    assert exif[ExifTags.Base.Software] == "dreamgrid"
    comment = exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment == b'ASCII\0\0\0{"a":[1,2.5],"b":"\\u00e9"}'


def test_equal_metadata_give_equal_bytes() -> None:
    pixels = photo(30, 20)
    for format in RESULT_FORMATS:
        assert encode(pixels, format, 90, {"a": 1, "b": 2}) == encode(pixels, format, 90, {"b": 2, "a": 1})


def test_invalid_metadata_and_oversized_images_are_rejected() -> None:
    pixels = photo(8, 8)
    for metadata in ({"score": float("nan")}, {"long": "x" * MAX_METADATA_BYTES}):
        with pytest.raises(ValueError, match=r"JSON|limit"):
            encode(pixels, "png", 90, metadata)
    with pytest.raises(TypeError):
        encode(pixels, "png", 90, {"object": object()})
    wide = np.zeros((2, 20000, 3), np.uint8)
    with pytest.raises(ImageError, match="16383") as caught:
        encode(wide, "webp", 90, {})
    assert caught.value.kind == "too_large"
    assert decode(encode(wide, "jpg", 90, {})).width == decode(encode(wide, "png", 90, {})).width == 20000


def exif_with(software: str | None, comment: bytes) -> Image.Exif:
    exif = Image.Exif()
    if software:
        exif[ExifTags.Base.Software] = software
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif


def test_hand_made_metadata_are_read() -> None:  # the counterpart of the rejected variants below
    data = saved(Image.new("RGB", (4, 4)), "PNG", exif=exif_with("dreamgrid", b'ASCII\0\0\0{"a":1}'))
    assert read_metadata(data) == {"a": 1}


@pytest.mark.parametrize(
    ("software", "comment"),
    [
        (None, b'ASCII\0\0\0{"a":1}'),
        ("another program", b'ASCII\0\0\0{"a":1}'),
        ("dreamgrid", b'{"a":1}'),
        ("dreamgrid", b"ASCII\0\0\0"),
        ("dreamgrid", b'ASCII\0\0\0{"a":'),
        ("dreamgrid", b"ASCII\0\0\0[1]"),
        ("dreamgrid", b"ASCII\0\0\0\xff\xfe{}"),
        ("dreamgrid", b'ASCII\0\0\0{"a":' + b"[" * 50_000),
        ("dreamgrid", b'ASCII\0\0\0{"a":' + b"9" * 50_000 + b"}"),
        ("dreamgrid", b'ASCII\0\0\0{"a":"' + b"x" * MAX_METADATA_BYTES + b'"}'),
    ],
)
def test_foreign_or_malformed_metadata_are_none(software: str | None, comment: bytes) -> None:
    image = Image.new("RGB", (4, 4))
    assert read_metadata(saved(image, "PNG", exif=exif_with(software, comment))) is None


@pytest.mark.parametrize("format", FORMATS)
def test_a_photograph_has_no_metadata(format: str) -> None:
    assert read_metadata(saved(Image.new("RGB", (4, 4)), format)) is None


@pytest.mark.parametrize("format", RESULT_FORMATS)
def test_no_source_metadata_reach_the_dream(format: Format) -> None:
    exif = exif_with("Secret camera", b"ASCII\0\0\0Secret words")
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (48.0, 51.0, 29.0), 3: "E", 4: (2.0, 17.0, 40.0)})
    source = saved(
        Image.fromarray(photo(30, 20)),
        "JPEG",
        exif=exif,
        comment=b"Secret comment",
        icc_profile=rgb_profile(DISPLAY_P3),
        xmp=b"<x:xmpmeta>Secret packet</x:xmpmeta>",
    )
    assert source.count(b"Secret") == 4
    dream = encode(decode(source).pixels, format, 90, {"source": "s3://photos/a.jpg"})
    assert b"Secret" not in dream
    with Image.open(io.BytesIO(dream)) as image:
        image.load()
        assert not {"icc_profile", "xmp", "comment", "XML:com.adobe.xmp"} & set(image.info)
        assert set(image.getexif()) <= {ExifTags.Base.Software, ExifTags.IFD.Exif}
        assert set(image.getexif().get_ifd(ExifTags.IFD.Exif)) == {ExifTags.Base.UserComment}
        assert image.getexif().get_ifd(ExifTags.IFD.GPSInfo) == {}
    assert json.dumps(read_metadata(dream)) == '{"source": "s3://photos/a.jpg"}'


# --- names


@pytest.mark.parametrize(
    "key",
    [
        *("a.jpg", "A.JPG", "x/y.JpEg", "a.b.tiff", "a.tif", "Ünï/code.webp", "a.jpe", "b.bmp", "c.gif", "d.png"),
        *("e.jfif", "F.PJPEG", "g.avif"),
    ],
)
def test_keys_with_image_suffixes_are_images(key: str) -> None:
    assert has_image_suffix(key)


@pytest.mark.parametrize("key", ["", "jpg", "a/jpg", "a.jpg/", "a.jpg.txt", "a.psd", "a.jpg ", "a.jpg/b", "a."])
def test_other_keys_are_not_images(key: str) -> None:
    assert not has_image_suffix(key)


def test_the_format_of_an_unread_suffix_is_named() -> None:
    assert [unread_format(key) for key in ("a.NEF", "b/c.psd")] == ["RAW (NEF)", "PSD"]
    assert {unread_format(key) for key in ("d.jpg", "e.txt", "jxl", "heic/f")} == {None}
    suffixes = {"HEIC": ("heic", "heif", "hif"), "JPEG XL": ("jxl",)}
    for name, extra in EXTRAS.items():
        for suffix in suffixes[name]:
            assert unread_format(f"a.{suffix}") == (None if extra.installed else name)


def test_formats_suffixes_and_media_types_agree() -> None:
    assert set(FORMATS) <= set(SUFFIXES.values()) <= {*FORMATS, *EXTRAS}
    assert [content_type(format) for format in RESULT_FORMATS] == ["image/png", "image/webp", "image/jpeg"]
