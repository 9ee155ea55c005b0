"""BMP files of every kind are decoded correctly. A small reference decoder gives the expected pixels."""

import itertools
import struct
from contextlib import suppress

import numpy as np
import pytest
from numpy.typing import NDArray

from dreamcore.errors import ImageError
from dreamcore.images import Array, decode
from tests.support.pictures import DISPLAY_P3, rgb_profile

WIDTH, HEIGHT = 13, 7
RGB, RLE8, RLE4, BITFIELDS, ALPHA_BITFIELDS = 0, 1, 2, 3, 6
Masks = tuple[int, int, int, int]
STANDARD: dict[int, Masks] = {16: (0x7C00, 0x3E0, 0x1F, 0), 24: (0xFF0000, 0xFF00, 0xFF, 0)}
STANDARD[32] = STANDARD[24]


def bmp(
    pixels: bytes,
    bits: int,
    *,
    header: int = 40,
    compression: int = RGB,
    masks: Masks | None = None,
    palette: Array | None = None,
    top_down: bool = False,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    profile: bytes = b"",
) -> bytes:
    """Return a BMP file. `masks` and `palette` (N, 3) are written where this header has them."""
    width, height = size
    if header == 12:
        body = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        body = struct.pack(
            "<IiiHHIIiiII", 40, width, -height if top_down else height, 1, bits, compression, 0, 0, 0, 0, 0
        )
        body = struct.pack("<I", header) + body[4:]
        if palette is not None:
            body = body[:32] + struct.pack("<I", len(palette)) + body[36:]
        if masks and (header >= 52 or compression in (BITFIELDS, ALPHA_BITFIELDS)):
            count = 4 if header >= 56 or compression == ALPHA_BITFIELDS else 3
            body += struct.pack(f"<{count}I", *masks[:count])
        body = body.ljust(header, b"\0")
    if profile:
        offset = len(body) + len(pixels)
        body = body[:56] + b"DEBM" + body[60:112] + struct.pack("<III", offset, len(profile), 0)
    if palette is not None:
        body += b"".join(bytes(color[::-1]) + (b"" if header == 12 else b"\0") for color in palette)
    start = 14 + len(body)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + body + pixels + profile


def rows(values: NDArray[np.integer], bits: int, top_down: bool = False) -> bytes:
    """Pack pixel values (H, W) into rows that begin at multiples of four bytes, by default from the bottom."""
    result = b""
    for row in values if top_down else values[::-1]:
        number = 0
        if bits < 8:
            for value in row:
                number = number << bits | int(value)
            used = (len(row) * bits + 7) // 8
            packed = (number << (used * 8 - len(row) * bits)).to_bytes(used, "big")
        else:
            packed = b"".join(int(value).to_bytes(bits // 8, "little") for value in row)
        result += packed + bytes(-len(packed) % 4)
    return result


def reference(values: NDArray[np.integer], masks: Masks) -> NDArray[np.float64]:
    """Decode pixel values (H, W) by masks, over white."""
    channels = []
    masks = masks if any(masks) else STANDARD[32]
    for mask in masks:
        shift = (mask & -mask).bit_length() - 1 if mask else 0
        white = mask >> shift
        channels.append(((values & mask) >> shift) / white if white else np.zeros(values.shape))
    color, alpha = np.stack(channels[:3], axis=2), channels[3][..., None] if masks[3] else 1
    return 255 * (color * alpha + 1 - alpha)


def check(name: object, data: bytes, expected: NDArray[np.generic], failures: list[str], atol: float = 1) -> None:
    try:
        pixels = decode(data).pixels
    except ImageError as error:
        failures.append(f"{name}: {error.kind}: {error}")
        return
    worst = float(np.abs(pixels - expected.astype(float)).max())
    if worst > atol:
        failures.append(f"{name}: {worst:.1f} levels off")


def random_values(bits: int) -> NDArray[np.int64]:
    return np.random.default_rng(bits).integers(0, 1 << bits, (HEIGHT, WIDTH))


def random_palette(count: int) -> Array:
    return np.random.default_rng(count).integers(0, 256, (count, 3), dtype=np.uint8)


@pytest.mark.parametrize("header", [12, 40, 52, 56, 64, 108, 124])
def test_palette_images(header: int) -> None:
    failures: list[str] = []
    for bits, top_down in itertools.product((1, 2, 4, 8), (False, True)):
        if header == 12 and top_down:
            continue
        values = random_values(bits)
        gray = np.repeat(np.linspace(0, 255, 1 << bits).astype(np.uint8)[:, None], 3, axis=1)
        for name, palette in (("random", random_palette(1 << bits)), ("gray", gray), ("negative", gray[::-1])):
            data = bmp(rows(values, bits, top_down), bits, header=header, palette=palette, top_down=top_down)
            check((bits, top_down, name), data, palette[values], failures, atol=0)
    assert not failures


def test_a_palette_with_fewer_colors_than_the_depth_allows() -> None:
    failures: list[str] = []
    for bits, count in ((4, 2), (4, 5), (8, 2), (8, 3), (8, 200)):
        values = random_values(bits) % count
        gray = np.repeat(np.linspace(0, 255, count).astype(np.uint8)[:, None], 3, axis=1)
        for name, palette in (("random", random_palette(count)), ("gray", gray), ("dark", gray // 255)):
            check((bits, count, name), bmp(rows(values, bits), bits, palette=palette), palette[values], failures, 0)
    assert not failures


def test_colors_without_masks() -> None:
    failures: list[str] = []
    for bits, header, top_down in itertools.product((16, 24, 32), (12, 40, 56, 108, 124), (False, True)):
        if header == 12 and (top_down or bits != 24):
            continue
        values = random_values(bits)
        data = bmp(rows(values, bits, top_down), bits, header=header, top_down=top_down)
        check((bits, header, top_down), data, reference(values, STANDARD[bits]), failures)
    assert not failures


MASKS: dict[str, tuple[int, Masks]] = {
    "555": (16, (0x7C00, 0x3E0, 0x1F, 0)),
    "565": (16, (0xF800, 0x7E0, 0x1F, 0)),
    "444": (16, (0xF00, 0xF0, 0xF, 0)),
    "565 swapped": (16, (0x1F, 0x7E0, 0xF800, 0)),
    "1-9-2": (16, (0x8000, 0x7FC0, 0x3, 0)),
    "1555": (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
    "4444": (16, (0xF00, 0xF0, 0xF, 0xF000)),
    "5551": (16, (0xF800, 0x7C0, 0x3E, 0x1)),
    "888": (24, (0xFF0000, 0xFF00, 0xFF, 0)),
    "BGRX": (32, (0xFF0000, 0xFF00, 0xFF, 0)),
    "RGBX": (32, (0xFF, 0xFF00, 0xFF0000, 0)),
    "XBGR": (32, (0xFF000000, 0xFF0000, 0xFF00, 0)),
    "10-10-10": (32, (0x3FF00000, 0xFFC00, 0x3FF, 0)),
    "7-1-8-7": (32, (0xFE000000, 0x1000000, 0xFF0000, 0)),
    "none": (32, (0, 0, 0, 0)),
    "no blue": (32, (0xFF0000, 0xFF00, 0, 0)),
    "BGRA": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "RGBA": (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
    "ABGR": (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
    "2-10-10-10": (32, (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000)),
}


def test_colors_by_masks() -> None:
    failures: list[str] = []
    for name, (bits, masks) in MASKS.items():
        values = random_values(bits)
        for header, compression, top_down in itertools.product(
            (40, 52, 56, 108, 124), (BITFIELDS, ALPHA_BITFIELDS), (False, True)
        ):
            data = bmp(
                rows(values, bits, top_down),
                bits,
                header=header,
                compression=compression,
                masks=masks,
                top_down=top_down,
            )
            with_alpha = header >= 56 or compression == ALPHA_BITFIELDS
            expected = reference(values, masks if with_alpha else (*masks[:3], 0))
            check((name, header, compression, top_down), data, expected, failures)
    assert not failures


def test_an_alpha_mask_counts_without_bit_fields() -> None:
    failures: list[str] = []
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    values = random_values(32)
    for header in (40, 56, 108, 124):  # a header of 40 bytes has no alpha mask, so its fourth byte has no meaning
        data = bmp(rows(values, 32), 32, header=header, masks=masks)
        check(header, data, reference(values, masks if header >= 56 else (*masks[:3], 0)), failures)
    assert not failures


def test_an_alpha_channel_that_is_zero_everywhere_is_ignored() -> None:
    values = random_values(24)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    pixels = decode(bmp(rows(values, 32), 32, header=124, compression=BITFIELDS, masks=masks)).pixels
    np.testing.assert_allclose(pixels, reference(values, STANDARD[24]), atol=0.01)


RLE8_RUNS = bytes([5, 1, 0, 3, 2, 3, 4, 0, 0, 0]) + bytes([0, 0]) + bytes([0, 2, 3, 2, 4, 5, 0, 0, 13, 6, 0, 1])
RLE4_RUNS = (
    bytes([5, 0x12, 0, 5, 0x34, 0x56, 0x70, 0, 0, 0]) + bytes([0, 0]) + bytes([0, 2, 3, 2, 4, 0x50, 0, 0, 13, 0x60])
)
RLE4_RUNS += bytes([0, 1])


@pytest.mark.parametrize(("compression", "bits", "runs"), [(RLE8, 8, RLE8_RUNS), (RLE4, 4, RLE4_RUNS)])
def test_run_lengths(compression: int, bits: int, runs: bytes) -> None:
    """The file has runs, literal colors, an empty row, a jump, and no last row."""
    values = np.zeros((HEIGHT, WIDTH), int)  # from the bottom
    if compression == RLE8:
        values[0, :8] = [1, 1, 1, 1, 1, 2, 3, 4]
        values[4, 3:7] = 5
        values[5] = 6
    else:
        values[0, :10] = [1, 2, 1, 2, 1, 3, 4, 5, 6, 7]
        values[4, 3:7] = [5, 0, 5, 0]
        values[5] = [6, 0] * 6 + [6]
    palette = random_palette(1 << bits)
    data = bmp(runs, bits, compression=compression, palette=palette)
    np.testing.assert_array_equal(decode(data).pixels, palette[values[::-1]])


def test_a_run_that_is_longer_than_its_row_is_cut() -> None:
    palette = random_palette(256)
    data = bmp(bytes([255, 1, 0, 0] * HEIGHT + [0, 1]), 8, compression=RLE8, palette=palette)
    assert (decode(data).pixels == palette[1]).all()


def test_the_profile_of_a_v5_header_is_applied() -> None:
    pixels = np.full((HEIGHT, WIDTH), 0xC86432)
    plain, managed = (
        decode(bmp(rows(pixels, 24), 24, header=124, profile=profile)).pixels
        for profile in (b"", rgb_profile(DISPLAY_P3))
    )
    assert tuple(plain[0, 0]) == (200, 100, 50)
    assert int(managed[0, 0, 0]) > 210


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"compression": 4}, "JPEG"),
        ({"compression": 5}, "PNG"),
        ({"compression": 11}, "CMYK"),
        ({"compression": RLE8}, "compression 1"),
        ({"header": 64, "compression": 4}, "OS/2"),
        ({"compression": BITFIELDS, "masks": (0xF0F0, 0xFF, 0, 0)}, "mask"),
    ],
)
def test_other_kinds_are_unsupported(options: dict[str, object], match: str) -> None:
    with pytest.raises(ImageError, match=match) as caught:
        decode(bmp(bytes(4 * WIDTH * HEIGHT), 32, **options))  # type: ignore[arg-type]
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize("kind", ["indexed", "plain", "masks", "runs"])
def test_truncated_files_are_damaged(kind: str) -> None:
    whole = {
        "indexed": bmp(rows(random_values(8), 8), 8, palette=random_palette(256)),
        "plain": bmp(rows(random_values(24), 24), 24),
        "masks": bmp(rows(random_values(16), 16), 16, compression=BITFIELDS, masks=MASKS["444"][1]),
        "runs": bmp(RLE8_RUNS, 8, compression=RLE8, palette=random_palette(256)),
    }[kind]
    decode(whole)
    for length in (20, 53, len(whole) - 5):
        with pytest.raises(ImageError) as caught:
            decode(whole[:length])
        assert caught.value.kind == "damaged"


def test_a_size_over_the_limit_is_refused_before_decoding() -> None:
    with pytest.raises(ImageError) as caught:
        decode(bmp(b"", 24, size=(20_000, 20_000)))
    assert caught.value.kind == "too_large"


def test_random_headers_raise_only_image_errors() -> None:
    rng = np.random.default_rng(0)
    whole = bmp(rows(random_values(16), 16), 16, header=124, compression=BITFIELDS, masks=MASKS["4444"][1])
    for _ in range(2000):
        broken = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            broken[rng.integers(2, 80)] = rng.integers(256)
        with suppress(ImageError):
            decode(bytes(broken), max_source_pixels=100_000)
