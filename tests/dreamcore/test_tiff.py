"""Every form of TIFF is decoded as tifffile decodes it, or refused as unsupported.

`reference` maps tifffile's samples to sRGB. It is the written-down meaning of each form.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from dreamcore.errors import ImageError
from dreamcore.images import Array, decode

CASES = Path(__file__).parents[1] / "fixtures" / "cases"
WIDTH, HEIGHT = 21, 13
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
COLORS = {"miniswhite": 1, "minisblack": 1, "rgb": 3, "palette": 1, "separated": 4, "ycbcr": 3, "cielab": 3}
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2  # the kinds of extra samples
COMPRESSIONS: tuple[tuple[str | None, int | None], ...] = (
    (None, None),
    ("lzw", None),
    ("lzw", 2),
    ("adobe_deflate", 2),
    ("deflate", 3),
    ("packbits", None),
    ("zstd", None),
    ("jpeg", None),
)
TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8")  # numpy's names: kind and bytes


def unit(samples: NDArray[Any], bits: int) -> Any:
    """Map samples to 0 .. 1: unsigned integers up to 16 bits by their depth, all others by their range."""
    values = samples.astype(np.float64)
    if samples.dtype.kind == "u" and bits <= 16:
        return values / (2**bits - 1)
    low, high = values.min(), values.max()
    if low >= 0 and high <= 65535:
        low, high = 0.0, next(white for white in (1.0, 255.0, 65535.0) if high <= white)
    return (values - low) / ((high - low) or 1.0)


def srgb_of_lab(lab: NDArray[Any]) -> Any:
    """Convert 8-bit CIELAB (D50; a and b have a sign) to sRGB, 0 .. 1."""
    lightness = lab[..., 0] * (100 / 255)
    a, b = lab[..., 1].astype(np.int8).astype(float), lab[..., 2].astype(np.int8).astype(float)
    y = (lightness + 16) / 116
    t = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    xyz = np.where(t > 6 / 29, t**3, 3 * (6 / 29) ** 2 * (t - 4 / 29)) * [0.9642, 1, 0.8249]
    matrix = [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
    linear = np.clip(xyz @ np.linalg.inv(np.array(matrix)).T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def reference(data: bytes) -> Any:
    """Return the pixels (H, W, 3) that a file means, 0 .. 255, over white."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        samples = page.asarray()
    samples = samples.reshape(HEIGHT, WIDTH, -1) if page.planarconfig == 1 else np.moveaxis(samples, 0, -1)
    photometric = int(page.photometric)
    if photometric == PALETTE:
        return np.moveaxis(page.colormap[:, samples[..., 0].astype(int)], 0, -1) / 257
    values = unit(samples, page.bitspersample)
    count = {RGB: 3, YCBCR: 3, LAB: 3, CMYK: 4}.get(photometric, 1)
    color, extra = values[..., :count], values[..., count:]
    if photometric == WHITE_IS_ZERO:
        color = 1 - color
    elif photometric == CMYK:
        color = (1 - color[..., :3]) * (1 - color[..., 3:])
    elif photometric == LAB:
        color = srgb_of_lab(samples)
    elif photometric == YCBCR and page.compression != 7:  # tifffile converts YCbCr of JPEG itself
        y, blue, red = color[..., 0], color[..., 1] - 128 / 255, color[..., 2] - 128 / 255
        color = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)
    kinds = [int(kind) for kind in page.extrasamples]
    if kinds and kinds[0] != UNSPECIFIED:
        alpha = extra[..., :1]
        color = color * (alpha if kinds[0] == UNASSOCIATED else 1) + 1 - alpha
    return np.broadcast_to(255 * np.clip(color, 0, 1), (HEIGHT, WIDTH, 3))


def samples_of(kind: str, count: int, associated: bool) -> NDArray[Any]:
    """Return random samples (H, W, count) over the whole range of a type. Associated colors are at most alpha."""
    rng, dtype = np.random.default_rng(count), np.dtype(kind)
    if dtype.kind == "f":
        values = rng.random((HEIGHT, WIDTH, count)).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        values = rng.integers(limits.min, limits.max, (HEIGHT, WIDTH, count), dtype=dtype, endpoint=True)
    return np.minimum(values, values[..., -1:]) if associated else values


def files(photometric: str, kind: str) -> Iterator[tuple[tuple[object, ...], bytes]]:
    """Yield a name and the bytes of every form that tifffile writes."""
    extras = ((), (UNSPECIFIED,), (ASSOCIATED,), (UNASSOCIATED,), (UNASSOCIATED, UNSPECIFIED))
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    forms = itertools.product(extras, ("contig", "separate"), enumerate(COMPRESSIONS), orders)
    for extra, planar, (number, (compression, predictor)), order in forms:
        count = COLORS[photometric] + len(extra)
        if (planar == "separate" and count == 1) or (extra and photometric == "palette"):
            continue
        tiled = (order == ">") == (number % 2 == 0)
        samples = samples_of(kind, count, extra == (ASSOCIATED,))
        options: dict[str, Any] = {"photometric": photometric, "compression": compression, "predictor": predictor}
        if count > 1:
            options |= {"planarconfig": planar, "extrasamples": extra or None}
        if photometric == "palette":
            options["colormap"] = np.random.default_rng(0).integers(0, 65536, (3, 256), dtype=np.uint16)
        options |= {"tile": (16, 16)} if tiled else {"rowsperstrip": 5}
        array = samples[..., 0] if count == 1 else np.moveaxis(samples, -1, 0) if planar == "separate" else samples
        file = io.BytesIO()
        try:
            with tifffile.TiffWriter(file, byteorder=order) as writer:
                writer.write(np.ascontiguousarray(array), metadata=None, **options)
        except Exception:
            continue  # this form does not exist
        yield (kind, extra, planar, order, tiled, compression, predictor), file.getvalue()


def compare(name: object, data: bytes, failures: list[str], atol: float = 1) -> bool:
    """Compare a file with `reference`, and return whether it was decoded. An unsupported file is no failure."""
    try:
        pixels = decode(data).pixels
    except ImageError as error:
        if error.kind != "unsupported":
            failures.append(f"{name}: {error.kind}: {error}")
        return False
    worst = np.abs(pixels - reference(data)).max()
    if worst > atol:
        failures.append(f"{name}: {worst:.1f} levels off")
    return True


# Which forms are decoded, by numpy's name of the samples, the extra samples and the planes. Others are unsupported.
DECODED: dict[str, set[tuple[object, ...]]] = {
    "minisblack": {
        *((kind, (), "contig") for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "f4")),
        *(("u1", (extra,), "contig") for extra in (UNSPECIFIED, ASSOCIATED, UNASSOCIATED)),
    },
    "miniswhite": {(kind, (), "contig") for kind in ("u1", "u2", "f4")},
    "rgb": {
        *((kind, (), planar) for kind in ("u1", "u2") for planar in ("contig", "separate")),
        *((kind, (extra,), "contig") for kind in ("u1", "u2") for extra in (UNSPECIFIED, ASSOCIATED, UNASSOCIATED)),
        *(("u1", (extra,), "separate") for extra in (UNSPECIFIED, ASSOCIATED, UNASSOCIATED)),
        ("u1", (UNASSOCIATED, UNSPECIFIED), "contig"),
    },
    "palette": {("u1", (), "contig")},
    "separated": {
        ("u1", (), "contig"),
        ("u1", (), "separate"),
        ("u1", (UNSPECIFIED,), "contig"),
        ("u2", (), "contig"),
    },
    "ycbcr": {("u1", (), "contig")},
    "cielab": {("u1", (), "contig")},
}


@pytest.mark.parametrize("photometric", COLORS)
def test_every_form_agrees_with_tifffile_or_is_unsupported(photometric: str) -> None:
    failures: list[str] = []
    decoded = set()
    for kind in TYPES if photometric in ("minisblack", "miniswhite", "rgb") else ("u1", "u2", "f4"):
        if photometric == "palette" and kind != "u1":
            continue
        for name, data in files(photometric, kind):
            if compare(name, data, failures, atol=6 if "jpeg" in name else 1.001):
                decoded.add(name[:3])
    assert not failures
    assert decoded == DECODED[photometric]


def tiff(strip: bytes, tags: Mapping[int, tuple[int, ...]], order: str = "<") -> bytes:
    """Return a hand-made TIFF with one strip, for forms that tifffile does not write."""
    tags = {256: (WIDTH,), 257: (HEIGHT,), 273: (8,), 277: (1,), 278: (HEIGHT,), 279: (len(strip),), **tags}
    body = b"II*\0" if order == "<" else b"MM\0*"
    strip += bytes(len(strip) % 2)
    directory, extra = b"", b""
    after = 8 + len(strip) + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        long = tag in (273, 279)
        content = struct.pack(f"{order}{len(values)}{'L' if long else 'H'}", *values)
        if len(content) > 4:
            content, extra = struct.pack(f"{order}L", after + len(extra)), extra + content
        directory += struct.pack(f"{order}HHL", tag, 4 if long else 3, len(values)) + content.ljust(4, b"\0")
    return (
        body
        + struct.pack(f"{order}L", 8 + len(strip))
        + strip
        + struct.pack(f"{order}H", len(tags))
        + directory
        + bytes(4)
        + extra
    )


def packed(values: NDArray[np.integer], bits: int) -> bytes:
    """Pack samples (H, W) of less than 8 bits, or 12, into rows of whole bytes."""
    positions = (values[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(positions.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


PACKERS: dict[int, Callable[[bytes], Any]] = {
    1: bytes,
    5: imagecodecs.lzw_encode,
    8: zlib.compress,
    32773: imagecodecs.packbits_encode,
}


def test_samples_of_less_than_a_byte_agree_with_tifffile() -> None:
    failures: list[str] = []
    for photometric, bits, (compression, encode), order in itertools.product(
        (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE), (1, 2, 4, 12), PACKERS.items(), "<>"
    ):
        if photometric == PALETTE and bits == 12:
            continue
        rng = np.random.default_rng(bits)
        strip = packed(rng.integers(0, 1 << bits, (HEIGHT, WIDTH)), bits)
        tags: dict[int, tuple[int, ...]] = {258: (bits,), 259: (compression,), 262: (photometric,)}
        if photometric == PALETTE:
            tags[320] = tuple(rng.integers(0, 65536, 3 << bits).tolist())
        done = compare((photometric, bits, compression, order), tiff(encode(strip), tags, order), failures)
        assert done or bits == 12
        if order == "<" and bits < 8 and compression == 1:  # bits from the lowest to the highest
            reversed_bits = bytes(int(f"{byte:08b}"[::-1], 2) for byte in strip)
            assert compare((photometric, bits, "fill order"), tiff(reversed_bits, tags | {266: (2,)}), failures)
    assert not failures


@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE])
@pytest.mark.parametrize("bits", [8, 16])
def test_bytes_with_reversed_bits(photometric: int, bits: int) -> None:
    count = 3 if photometric == RGB else 1
    values = np.random.default_rng(0).integers(0, 1 << bits, (HEIGHT, WIDTH, count)).astype(f"<u{bits // 8}")
    tags = {258: (bits,) * count, 259: (1,), 262: (photometric,), 277: (count,)}
    if photometric == PALETTE:
        tags[320] = tuple(np.random.default_rng(1).integers(0, 65536, 3 << bits).tolist())
    reversed_bits = bytes(int(f"{byte:08b}"[::-1], 2) for byte in values.tobytes())
    plain = decode_or_none(tiff(values.tobytes(), tags))
    pixels = decode_or_none(tiff(reversed_bits, tags | {266: (2,)}))
    if pixels is not None:
        np.testing.assert_array_equal(pixels, plain)


def test_a_palette_of_8_bit_colors() -> None:
    """Some old programs write colors of 0 to 255 where the standard says 0 to 65535."""
    values = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    colors = np.random.default_rng(1).integers(0, 256, (3, 256))
    tags = {258: (8,), 259: (1,), 262: (PALETTE,), 320: tuple(colors.ravel().tolist())}
    np.testing.assert_array_equal(decode(tiff(values.tobytes(), tags)).pixels, np.moveaxis(colors[:, values], 0, -1))


def decode_or_none(data: bytes) -> Array | None:
    """Return the pixels, or None if the form is unsupported."""
    try:
        return decode(data).pixels
    except ImageError as error:
        if error.kind != "unsupported":
            raise
        return None


def unsupported(strip: bytes, tags: Mapping[int, tuple[int, ...]]) -> str:
    with pytest.raises(ImageError) as caught:
        decode(tiff(strip, tags))
    assert caught.value.kind == "unsupported"
    return str(caught.value)


def test_forms_that_would_be_wrong_are_unsupported() -> None:
    size = WIDTH * HEIGHT
    rgb = {258: (8, 8, 8), 277: (3,), 262: (RGB,)}
    assert "subsampling" in unsupported(bytes(3 * size), rgb | {259: (1,), 262: (YCBCR,), 530: (2, 2)})
    assert "ink set" in unsupported(bytes(4 * size), {258: (8,) * 4, 277: (4,), 259: (1,), 262: (CMYK,), 332: (2,)})
    assert "predictor 2" in unsupported(zlib.compress(bytes(size)), {258: (4,), 259: (8,), 262: (1,), 317: (2,)})
    assert "predictor 3" in unsupported(zlib.compress(bytes(size)), {258: (8,), 259: (8,), 262: (1,), 317: (3,)})
    for bits, sample_format in ((64, 1), (16, 3), (64, 3), (64, 5), (8, 4), (24, 1)):
        tags = {258: (bits,), 259: (1,), 262: (BLACK_IS_ZERO,), 339: (sample_format,)}
        unsupported(bytes(8 * size), tags)


def test_gray_of_32_bits_keeps_small_differences() -> None:
    values = np.full((HEIGHT, WIDTH), 4_000_000_000, np.uint32)
    values[0] = 4_000_000_001
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack")
    pixels = decode(file.getvalue()).pixels
    assert (pixels[0] == 255).all()
    assert (pixels[1:] == 0).all()


def test_sixteen_bits_with_alpha_can_be_shrunk() -> None:
    values = np.full((HEIGHT, WIDTH, 4), 65535, np.uint16)
    values[..., 1] = 0
    values[..., 3] = 32768
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="rgb", extrasamples=(UNASSOCIATED,))
    for max_pixels in (None, 50):
        pixels = decode(file.getvalue(), max_pixels=max_pixels).pixels
        np.testing.assert_allclose(pixels, np.broadcast_to([255, 127, 255], pixels.shape), atol=1)


def case(name: str) -> tuple[Array, NDArray[Any]]:
    data = (CASES / name).read_bytes()
    return decode(data).pixels, tifffile.imread(io.BytesIO(data))


def test_planes_of_16_bits() -> None:
    pixels, samples = case("rgb16-planar.tif")
    np.testing.assert_allclose(pixels, np.moveaxis(samples, 0, -1) / 257, atol=1)


def test_white_is_zero_in_16_bits() -> None:
    pixels, samples = case("gray16-white.tif")
    np.testing.assert_allclose(pixels[..., 0], 255 - samples / 257, atol=1)


def test_integers_with_a_sign_are_never_wrapped() -> None:
    pixels, samples = case("gray8s.tif")
    low, high = int(samples.min()), int(samples.max())
    assert low < 0
    np.testing.assert_allclose(pixels[..., 0], (samples - float(low)) * 255 / (high - low), atol=1)


def test_associated_alpha_of_gray() -> None:
    pixels, samples = case("gray-assocalpha.tif")
    np.testing.assert_allclose(pixels[..., 0], samples[..., 0] + 255.0 - samples[..., 1], atol=1)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("index", [b"R03\0", b"R98\0"])
def test_adobe_rgb_that_only_the_exif_data_name(compression: int, index: bytes) -> None:
    pixels = np.full((HEIGHT, WIDTH, 3), (200, 100, 50), np.uint8)
    strip = PACKERS[compression](pixels.tobytes())
    strip += bytes(len(strip) % 2)
    start = 8 + len(strip)  # two directories follow the pixels: ColorSpace and a pointer, then InteroperabilityIndex
    strip += struct.pack("<HHHLHHHHLLL", 2, 0xA001, 3, 1, 65535, 0, 0xA005, 4, 1, start + 30, 0)
    strip += struct.pack("<HHHL4sL", 1, 1, 2, 4, index, 0)
    data = tiff(strip, {258: (8,) * 3, 259: (compression,), 262: (RGB,), 277: (3,), 34665: (start,)})
    assert (int(decode(data).pixels[0, 0, 0]) > 220) == (index == b"R03\0")


# --- several images in a file


def pages(*images: tuple[Array, dict[str, Any]], **options: Any) -> bytes:
    """Return a TIFF with several images, each with its options for tifffile."""
    result = io.BytesIO()
    with tifffile.TiffWriter(result, **options) as writer:
        for image, image_options in images:
            writer.write(image, **image_options)
    return result.getvalue()


SMALL, LARGE = np.full((4, 6, 3), 90, np.uint8), np.full((HEIGHT, WIDTH, 3), 200, np.uint8)


def failure(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("below", [0, 1, 12])
@pytest.mark.parametrize("photometric", ["cfa", "linear_raw"])
def test_a_sensor_image_anywhere_in_a_tiff_makes_it_a_raw_file(big: bool, below: int, photometric: str) -> None:
    """The sensor image is the last one in the chain, or the last of `below` images below the first one."""
    between = [(SMALL, {"photometric": "rgb"})] * (below - 1 if below else 2)
    raw = (LARGE if photometric == "linear_raw" else LARGE[..., 0], {"photometric": photometric})
    data = pages((SMALL, {"photometric": "rgb", "subifds": below}), *between, raw, bigtiff=big)
    error = failure(data)
    assert (error.kind, str(error)[:9]) == ("unsupported", "RAW (TIFF")


@pytest.mark.parametrize("below", [0, 1])
def test_a_tiff_that_begins_with_its_thumbnail_is_refused(below: int) -> None:
    data = pages((SMALL, {"photometric": "rgb", "subfiletype": 1, "subifds": below}), (LARGE, {"photometric": "rgb"}))
    error = failure(data)
    assert error.kind == "unsupported"
    assert "thumbnail" in str(error)


def test_a_first_image_is_decoded_although_smaller_ones_follow() -> None:
    full, small = (LARGE, {"photometric": "rgb"}), (SMALL, {"photometric": "rgb", "subfiletype": 1})
    assert decode(pages(full, small)).pixels.shape == LARGE.shape
    assert decode(pages(small, small)).pixels.shape == SMALL.shape  # no full image


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "form"),
    [
        ((8, 8, 3), "f4", {"photometric": "rgb"}, "32-bit float RGB"),
        ((8, 8, 3), "u4", {"photometric": "rgb"}, "32-bit RGB"),
        ((8, 8, 3), "u2", {"photometric": "rgb", "bitspersample": 12}, "12-bit RGB"),
        ((8, 8, 2), "u2", {"photometric": "minisblack", "extrasamples": ["unassalpha"]}, "16-bit gray with alpha"),
        ((8, 8, 3), "u2", {"photometric": "cielab"}, "16-bit CIELAB"),
        ((8, 8), "f8", {"photometric": "minisblack"}, "64-bit float gray"),
        ((8, 8), "c8", {"photometric": "minisblack"}, "64-bit complex gray"),
    ],
)
def test_a_form_that_is_not_decoded_is_named(
    shape: tuple[int, ...], dtype: str, options: dict[str, Any], form: str
) -> None:
    error = failure(pages((np.ones(shape, dtype), options)))
    assert (error.kind, str(error)) == ("unsupported", f"TIFF: not supported: {form}")


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_uncompressed_tiff_without_its_last_strip_is_damaged(
    tile: tuple[int, int] | None, planar: str, order: Literal["<", ">"]
) -> None:
    image = np.full((3, 40, 24) if planar == "separate" else (40, 24, 3), 200, np.uint8)
    data = pages(
        (image, {"photometric": "rgb", "planarconfig": planar, "tile": tile, "rowsperstrip": 16}), byteorder=order
    )
    assert (decode(data).pixels == 200).all()
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        places = [
            page.tags[name].offset
            for name in (("TileOffsets", "TileByteCounts") if tile else ("StripOffsets", "StripByteCounts"))
        ]
    changed = bytearray(data)
    for place in places:
        (count,) = struct.unpack_from(order + "I", data, place + 4)
        struct.pack_into(order + "I", changed, place + 4, count - 1)
    error = failure(bytes(changed))
    assert error.kind == "damaged"
    assert ("tiles" if tile else "strips") in str(error)
