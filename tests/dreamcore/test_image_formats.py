"""Formats and variants beyond the common ones: what is read, what an error names, and what metadata cost."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

from dreamcore import image_formats
from dreamcore.errors import ImageError
from dreamcore.image_formats import EXTRAS, FORMATS, load_plugins
from dreamcore.image_metadata import strip_jpeg, strip_png
from dreamcore.image_signatures import format_of, jxl_size, raw_format
from dreamcore.image_variants import unsupported_variant
from dreamcore.images import Array, decode, read_metadata
from tests.support.pictures import DISPLAY_P3, photo, rgb_profile, saved

CASES = Path(__file__).parents[1] / "fixtures" / "cases"
PIXELS = photo(64, 48)
IMAGE = Image.fromarray(PIXELS)
load_plugins()


def failure(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value


def assert_close(found: Array, expected: Array, error: float = 4) -> None:
    assert found.shape == expected.shape
    assert np.mean(np.abs(found.astype(int) - expected)) < error


def exif_with(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


# --- AVIF, HEIC and JPEG XL

NEW = {"AVIF": "AVIF", "HEIC": "HEIF", "JPEG XL": "JXL"}
"""Pillow's names, by ours."""


@pytest.mark.parametrize("name", NEW)
def test_new_formats_are_decoded_and_named(name: str) -> None:
    data = saved(IMAGE, NEW[name], quality=95)
    assert format_of(data) == name
    assert_close(decode(data).pixels, PIXELS)
    assert failure(data[: len(data) // 2]).kind == "damaged"
    assert str(failure(data[: len(data) // 2])).startswith(f"{name}: ")


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_new_formats_are_upright(name: str, orientation: int) -> None:
    """The orientation is in the EXIF data and in the format's own header. It is applied once."""
    exif = exif_with(orientation)
    data = saved(IMAGE, NEW[name], exif=exif, quality=95)
    # In a JPEG XL, the format's own header counts. Its plugin does not write this, so these pixels are upright.
    expected = PIXELS if name == "JPEG XL" else decode(saved(IMAGE, "PNG", exif=exif)).pixels
    photograph = decode(data)
    assert_close(photograph.pixels, expected)
    assert (photograph.height, photograph.width) == expected.shape[:2]


@pytest.mark.parametrize("name", ["rotated.jxl", "rotated-jpeg.jxl"])
def test_a_jpeg_xl_of_another_encoder_is_upright(name: str) -> None:
    """Both were made by cjxl from a JPEG with EXIF orientation 6: from its pixels, and by recompressing it."""
    photograph = decode((CASES / name).read_bytes())
    assert_close(photograph.pixels, decode(saved(IMAGE, "PNG", exif=exif_with(6))).pixels)
    assert (photograph.width, photograph.height) == (48, 64)


@pytest.mark.parametrize("name", NEW)
def test_transparent_pixels_of_new_formats_are_white(name: str) -> None:
    assert decode(saved(Image.new("RGBA", (64, 48), (255, 0, 0, 0)), NEW[name])).pixels.min() > 250


def test_color_profiles_of_new_formats_are_applied() -> None:
    """The JPEG XL was made by cjxl, because Pillow's plugin writes no profile."""
    profile = rgb_profile(DISPLAY_P3)
    expected = decode(saved(IMAGE, "PNG", icc_profile=profile)).pixels
    assert np.abs(expected.astype(int) - PIXELS).mean() > 8
    for name in ("AVIF", "HEIC"):
        assert_close(decode(saved(IMAGE, NEW[name], icc_profile=profile, quality=95)).pixels, expected)
    assert_close(decode((CASES / "display-p3.jxl").read_bytes()).pixels, expected)


@pytest.mark.parametrize("name", ["AVIF", "HEIC"])
def test_the_first_of_several_images_is_taken(name: str) -> None:
    data = saved(IMAGE, NEW[name], save_all=True, append_images=[Image.new("RGB", (64, 48))], quality=95)
    assert_close(decode(data).pixels, PIXELS)


@pytest.mark.parametrize("name", EXTRAS)
def test_an_image_that_needs_an_extra_names_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(IMAGE, NEW[name])
    monkeypatch.setattr(image_formats, "_load_extras", lambda: {})
    error = failure(data)
    assert error.kind == "unsupported"
    assert str(error).startswith(f"{name} needs a package: pip install 'dreamgrid[{EXTRAS[name].name}]'")


@pytest.mark.parametrize("name", EXTRAS)
def test_formats_of_extras_are_not_opened_to_read_the_metadata_of_dreams(name: str) -> None:
    """A plugin for JPEG XL decodes all pixels to open a file, and this happens outside the sandbox."""
    with pytest.raises(ImageError) as caught:
        read_metadata(saved(IMAGE, NEW[name]))
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize("size", [(1, 1), (8, 256), (300, 200), (4000, 3), (64, 64), (192, 108)])
def test_the_size_of_a_jpeg_xl_is_read_from_its_header(size: tuple[int, int]) -> None:
    data = saved(Image.new("RGB", size), "JXL")
    assert jxl_size(data) == size
    boxes = struct.pack(">I4sI", 12, b"JXL ", 0x0D0A870A) + struct.pack(">I4s", 8 + len(data), b"jxlc") + data
    assert jxl_size(boxes) == size
    if size == (4000, 3):
        with pytest.raises(ImageError, match="4000 x 3 pixels are over the limit of 10000") as caught:
            decode(boxes, max_source_pixels=10_000)
        assert caught.value.kind == "too_large"


@pytest.mark.parametrize(
    ("brands", "name"),
    [
        (b"avif....mif1", "AVIF"),
        (b"mif1....avifmiaf", "AVIF"),
        (b"mif1....mif1heic", "HEIC"),
        (b"msf1....hevc", "HEIC"),
        (b"heix....", "HEIC"),
        (b"mif1....miaf", "HEIF"),
        (b"miaf....mif1avif", "AVIF"),
        (b"mif3avif", "AVIF"),
        (b"mif3heic", "HEIC"),
        (b"mif2....jpegheic", "HEIC"),
        (b"avci....mif1", "HEIF (H.264)"),
        (b"mif1....j2ki", "HEIF (JPEG 2000)"),
        (b"vvic....mif1", "HEIF (H.266)"),
        (b"isom....mp42", None),
        (b"qt  ....", None),
    ],
)
def test_files_of_the_iso_format_are_named_by_their_brands(brands: bytes, name: str | None) -> None:
    assert format_of(struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(20)) == name


@pytest.mark.parametrize("name", ["AVIF", "HEIC"])
@pytest.mark.parametrize("brand", [b"miaf", b"mif1", b"mif2", b"mif3", b"heif"])
def test_a_general_major_brand_does_not_matter(name: str, brand: bytes) -> None:
    data = saved(IMAGE, NEW[name], quality=95)
    assert_close(decode(data[:8] + brand + data[12:]).pixels, PIXELS)
    assert failure((data[:8] + brand + data[12:])[: len(data) // 2]).kind == "damaged"


def test_an_avif_with_a_short_header_is_unsupported() -> None:
    error = failure(b"\0\0\0\x10ftypmif3avif\0\0\0\x40mini" + bytes(56))
    assert (error.kind, str(error)) == ("unsupported", "AVIF with a short header is not supported")


# --- variants that are not decoded


def jpeg_with_frame(marker: int, bits: int = 8, height: int = 48) -> bytes:
    """Return a JPEG with a changed frame header."""
    data = bytearray(saved(IMAGE, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    data[at + 5 : at + 7] = height.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ((CASES / "jpeg12.jpg").read_bytes(), "12-bit JPEG"),
        (jpeg_with_frame(0xC1, bits=12), "12-bit JPEG"),
        (jpeg_with_frame(0xC3, bits=16), "16-bit lossless JPEG"),
        (jpeg_with_frame(0xC5), "hierarchical JPEG"),
        (jpeg_with_frame(0xC7), "hierarchical lossless JPEG"),
        (jpeg_with_frame(0xCB), "lossless JPEG with arithmetic coding"),
        (jpeg_with_frame(0xF7), "JPEG-LS"),
        (jpeg_with_frame(0xC0, height=0), "JPEG that states its height after the pixels"),
        ((CASES / "rgb-webp.tif").read_bytes(), "TIFF with compression 50001 (WebP)"),
    ],
)
def test_variants_that_are_not_decoded_are_named(data: bytes, reason: str) -> None:
    error = failure(data)
    assert (error.kind, str(error)) == ("unsupported", f"{reason} is not supported")


def test_damaged_files_of_supported_variants_stay_damaged() -> None:
    for format in FORMATS:
        data = saved(IMAGE, format)
        assert unsupported_variant(data, format) is None
        assert failure(data[: len(data) // 2]).kind == "damaged"
    for compression in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits", "zstd"):
        data = saved(IMAGE, "TIFF", compression=compression)
        assert unsupported_variant(data, "TIFF") is None


def tiff(entries: dict[int, tuple[int, int, int]], order: str = "<", body: bytes = b"") -> bytes:
    """Return a TIFF whose directory has the entries: type, count and value of each tag."""
    directory = struct.pack(order + "H", len(entries))
    for tag, (kind, count, value) in sorted(entries.items()):
        directory += struct.pack(order + "HHI", tag, kind, count)
        directory += struct.pack(order + ("H2x" if kind == 3 and count == 1 else "I"), value)
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return header + directory + struct.pack(order + "I", 0) + body


GRAY = {256: (3, 1, 8), 257: (3, 1, 8), 258: (3, 1, 8), 262: (3, 1, 1), 273: (4, 1, 8), 278: (3, 1, 8), 279: (4, 1, 64)}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("compression", "name"),
    [(6, "old-style JPEG"), (34712, "JPEG 2000"), (34887, "LERC"), (50002, "JPEG XL"), (34661, "JBIG"), (12345, None)],
)
def test_a_compression_of_tiff_is_named_with_its_number(order: str, compression: int, name: str | None) -> None:
    error = failure(tiff({**GRAY, 259: (3, 1, compression)}, order))
    assert error.kind == "unsupported"
    assert str(error) == f"TIFF with compression {compression}{f' ({name})' if name else ''} is not supported"


def test_a_big_endian_bigtiff_is_named() -> None:
    data = b"MM\0+" + struct.pack(">HHQ", 8, 0, 16) + struct.pack(">Q", 0) + bytes(100)
    assert str(failure(data)) == "big-endian BigTIFF is not supported"
    assert failure(data).kind == "unsupported"


NAMED = {
    "RAW (CR2)": b"II*\0\x10\0\0\0CR\x02\0" + bytes(60),
    "RAW (IIQ)": b"II*\0\x10\0\0\0IIII\x0cwaR" + bytes(60),
    "RAW (CR3)": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    "RAW (RAF)": b"FUJIFILMCCD-RAW 0201FF383501X-T3",
    "RAW (ORF)": b"IIRO\x08\0\0\0" + bytes(60),
    "RAW (RW2)": b"IIU\0\x18\0\0\0" + bytes(60),
    "RAW (X3F)": b"FOVb" + bytes(60),
    "RAW (DNG)": tiff({**GRAY, 50706: (1, 4, 0x00000401)}, body=bytes(64)),
    "RAW (NEF)": tiff(
        {**GRAY, 254: (4, 1, 1), 271: (2, 18, 300), 330: (4, 1, 340)},
        body=bytes(300 - 8 - 2 - 12 * 10 - 4) + b"NIKON CORPORATION\0" + bytes(22) + tiff({262: (3, 1, 32803)})[8:],
    ),
    "PSD": b"8BPS\0\1" + bytes(40),
    "SVG": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="x">',
    "SVG in UTF-16": b'<svg xmlns="x">'.decode().encode("utf-16"),
    "SVG in gzip": gzip.compress(b'<?xml version="1.0"?><svg xmlns="x">' + bytes(range(256)) * 99),
    "SGI": b"\x01\xda\1\1\0\3\0\x10\0\x10\0\3" + bytes(500),
    "DPX": b"SDPX" + bytes(2000),
    "XPM": b"/* XPM */\nstatic char *x[] = {",
    "HEIF (H.264)": b"\0\0\0\x18ftypavci\0\0\0\0mif1avci" + bytes(40),
    "PDF": b"%PDF-1.7\n",
    "OpenEXR": b"\x76\x2f\x31\x01" + bytes(40),
    "JPEG XR": b"II\xbc\x01" + bytes(40),
    "JPEG 2000": b"\xff\x4f\xff\x51" + bytes(40),
}


@pytest.mark.parametrize("name", NAMED)
def test_formats_that_are_not_read_are_named(name: str) -> None:
    error = failure(NAMED[name])
    assert error.kind == "unsupported"
    assert str(error).startswith(f"{name.partition(' in ')[0]} is not supported")


@pytest.mark.parametrize("start", [b"IIII", b"MMMM", b"IIIIxwaR", b"MMMMRaw.", b"CR\x02\0"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_first_pixels_do_not_make_a_tiff_a_raw_file(start: bytes, order: str) -> None:
    """libtiff writes the pixels of an uncompressed TIFF directly after the header."""
    gray = start.ljust(64, start[:1])
    directory = tiff(GRAY, order)[8:]
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(gray)) + gray + directory
    np.testing.assert_array_equal(decode(data).pixels[..., 0].tobytes(), gray)


def test_any_bytes_have_a_format_or_none() -> None:
    random = np.random.default_rng(1)
    samples = [*NAMED.values(), *(saved(IMAGE, name) for name in (*FORMATS, "HEIF", "JXL")), bytes(100), b""]
    for sample in samples:
        for _ in range(60):
            data = bytearray(sample[: random.integers(len(sample) + 1)])
            for place in random.integers(min(len(data), 400), size=4) if data else ():
                data[place] = random.integers(256)
            name = format_of(bytes(data))
            raw_format(bytes(data))
            jxl_size(bytes(data))
            unsupported_variant(bytes(data), name or "TIFF")
            unsupported_variant(bytes(data), "JPEG")
            strip_png(bytes(data))
            strip_jpeg(bytes(data))


# --- metadata


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_chunk(name: bytes, body: bytes, where: bytes) -> bytes:
    """Return the photograph as a PNG with another chunk before the first chunk `where`."""
    data = saved(IMAGE, "PNG")
    at = data.index(where) - 4
    return data[:at] + chunk(name, body) + data[at:]


MEGABYTES = bytes(range(256)) * 20_000
CHUNKS = {
    "plain text": (b"tEXt", b"workflow\0" + MEGABYTES),
    "compressed text": (b"zTXt", b"workflow\0\0" + zlib.compress(MEGABYTES)),
    "international text": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(MEGABYTES)),
    "malformed text": (b"zTXt", b"workflow\0\7nonsense"),
    "malformed density": (b"pHYs", b"\0\0"),
    "malformed time": (b"tIME", b""),
    "private": (b"prVt", MEGABYTES),
    "malformed profile": (b"iCCP", b"x\0\1nonsense"),
    "a profile that is not one": (b"iCCP", b"x\0\0" + zlib.compress(MEGABYTES)),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("where", [b"IDAT", b"IEND"])
def test_metadata_of_a_png_cost_no_pixels(name: str, where: bytes) -> None:
    data = with_chunk(*CHUNKS[name], where)
    np.testing.assert_array_equal(decode(data).pixels, PIXELS)


@pytest.mark.parametrize("where", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(
    "name", [b"gAMA", b"sRGB", b"cHRM", b"cICP", b"pHYs", b"sBIT", b"bKGD", b"acTL", b"fcTL", b"fdAT", b"eXIf"]
)
def test_malformed_chunks_of_a_png_cost_no_pixels(name: bytes, where: bytes) -> None:
    for body in (b"", b"\0", b"\xff" * 3, b"\xff" * 50):
        data = with_chunk(name, body, where)
        np.testing.assert_array_equal(decode(data).pixels, PIXELS)
        at = data.index(name) + 4 + len(body)
        wrong_checksum = data[:at] + bytes(byte ^ 255 for byte in data[at : at + 4]) + data[at + 4 :]
        np.testing.assert_array_equal(decode(wrong_checksum).pixels, PIXELS)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
def test_a_critical_chunk_with_a_wrong_checksum_is_damaged(name: bytes) -> None:
    data = bytearray(saved(IMAGE.quantize(8), "PNG"))
    at = data.index(name)
    data[at + 4 + int.from_bytes(data[at - 4 : at], "big")] ^= 255
    assert failure(bytes(data)).kind == "damaged"


def test_a_png_with_megabytes_of_text_is_decoded() -> None:
    assert decode((CASES / "comfy.png").read_bytes()).pixels.shape == (48, 64, 3)


def test_many_texts_of_a_png_cost_no_pixels() -> None:
    info = PngImagePlugin.PngInfo()
    for number in range(80):
        info.add_text(f"key {number}", "x" * 1_000_000)
    np.testing.assert_array_equal(decode(saved(IMAGE, "PNG", pnginfo=info)).pixels, PIXELS)


def test_a_png_without_metadata_is_not_copied_and_a_damaged_one_stays_damaged() -> None:
    data = saved(IMAGE, "PNG")
    assert strip_png(data) == (data, None)
    assert strip_png(data)[0] is data
    broken = with_chunk(*CHUNKS["plain text"], b"IDAT")
    assert failure(broken[:-2000]).kind == "damaged"


def large_profile() -> bytes:
    """Return a profile of Display P3 that is padded to three megabytes."""
    profile = rgb_profile(DISPLAY_P3) + bytes(np.random.default_rng(1).integers(256, size=3_000_000, dtype=np.uint8))
    return struct.pack(">I", len(profile)) + profile[4:]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_color_profile_of_megabytes_is_applied(format: str) -> None:
    options = {"WEBP": {"lossless": True}}.get(format, {"quality": 95})
    small, large = (
        decode(saved(IMAGE, format, icc_profile=profile, **options)).pixels
        for profile in (rgb_profile(DISPLAY_P3), large_profile())
    )
    assert not np.array_equal(small, PIXELS)
    np.testing.assert_array_equal(large, small)


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    extra = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    data = saved(IMAGE, "JPEG")
    return data[:2] + extra + data[2:]


@pytest.mark.parametrize(
    "segments",
    [
        [(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000))] * 100,
        [(0xED, b"Photoshop 3.0\0" + bytes(60_000))] * 50,
        [(0xED, b"Photoshop 3.0\x008BIM\0\1")],
        [(0xE0, b"JFIF")],
        [(0xE0, b"JFIF\0")],
        [(0xE2, b"MPF\0nonsense")],
        [(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff")],
        [(0xE2, b"ICC_PROFILE\0")],
        [(0xE1, b"Exif\0\0nonsense")],
        [(0xEE, b"Adobe")],
        [(0xFE, bytes(65_000))] * 50,
    ],
    ids=lambda segments: f"{segments[0][0]:x}-{segments[0][1][:12]!r}-{len(segments)}",
)
def test_metadata_of_a_jpeg_cost_no_pixels(segments: list[tuple[int, bytes]]) -> None:
    np.testing.assert_array_equal(decode(jpeg_with(*segments)).pixels, decode(saved(IMAGE, "JPEG")).pixels)


@pytest.mark.parametrize("format", ["WEBP", "TIFF", "AVIF"])
def test_large_xmp_and_exif_cost_no_pixels(format: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = bytes(3_000_000)
    options: dict[str, object] = {"exif": exif, "quality": 95}
    if format != "TIFF":
        options["xmp"] = MEGABYTES
    assert_close(decode(saved(IMAGE, format, **options)).pixels, PIXELS)


def test_pillow_never_loads_truncated_images() -> None:
    """With this option of Pillow, a damaged file would give gray pixels."""
    decode(saved(IMAGE, "PNG"))
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_an_animated_png_shows_its_first_frame() -> None:
    data = saved(IMAGE, "PNG", save_all=True, append_images=[Image.new("RGB", (64, 48))])
    np.testing.assert_array_equal(decode(data).pixels, PIXELS)
