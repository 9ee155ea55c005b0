"""Convert colors to sRGB, by the ICC profile of a file or by its EXIF data."""

import io
import struct
from functools import cache

from PIL import ExifTags, Image, ImageCms

__all__ = ["over_white", "profile_of", "to_srgb"]

_SRGB, _ADOBE_RGB = 1, 2  # values of the EXIF tag ColorSpace; 2 is not in the standard, but cameras write it


def profile_of(image: Image.Image) -> bytes | None:
    """Return the ICC profile of a loaded image; without one, that of Adobe RGB if the EXIF data name this space.

    By the standard DCF 2.0, a camera marks Adobe RGB by the ColorSpace "uncalibrated" and the InteroperabilityIndex
    "R03".
    """
    profile: bytes | None = image.info.get("icc_profile")
    if profile or image.mode not in ("RGB", "RGBA"):
        return profile
    try:
        exif = image.getexif()
        space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        index = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
    except Exception:  # malformed EXIF data do not make an image unreadable
        return None
    dcf_adobe = space != _SRGB and isinstance(index, str) and index.rstrip("\0 ") == "R03"
    return _adobe_rgb() if dcf_adobe or space == _ADOBE_RGB else None


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert L, RGB, CMYK or LAB to RGB, and RGBA to RGBA, by the ICC profile.

    Without a usable profile, gray and RGB values are taken as sRGB. A gray profile also applies to RGB and RGBA whose
    pixels are all gray.
    """
    if image.mode == "LAB":
        return _from_lab(image)
    unmanaged = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    if not profile:
        return unmanaged
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space == "GRAY" and image.mode in ("RGB", "RGBA"):
            return _from_gray(image, profile)
        colors = unmanaged if image.mode == "L" and space == "RGB" else image
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(colors, source, srgb, outputMode=unmanaged.mode) or unmanaged
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return unmanaged


def over_white(image: Image.Image) -> Image.Image:
    """Composite RGBA over white. RGB is returned unchanged."""
    if image.mode == "RGB":
        return image
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image)
    return background.convert("RGB")


def _from_gray(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert RGB or RGBA with equal color channels by a gray profile. Other colors are returned unchanged."""
    gray, *others = image.split()
    if any(channel.tobytes() != gray.tobytes() for channel in others[:2]):
        return image
    result = to_srgb(gray, profile)
    if image.mode == "RGBA":
        result.putalpha(others[2])
    return result


def _from_lab(image: Image.Image) -> Image.Image:
    """Convert CIELAB (D50) to RGB. Little CMS is eight levels wrong if it may optimize the conversion."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB", flags=ImageCms.Flags.NOOPTIMIZE)
    result = ImageCms.applyTransform(image, transform)
    return result if result is not None else image.convert("RGB")


@cache
def _adobe_rgb() -> bytes:
    """Return a minimal ICC profile of Adobe RGB (1998): gamma 563/256, primaries adapted to D50."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    gamma = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, 563)  # in units of 1/256
    contents = {
        b"wtpt": xyz(0.95045, 1.0, 1.08905),  # D65
        b"rXYZ": xyz(0.60974, 0.31111, 0.01947),
        b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": xyz(0.14919, 0.06322, 0.74457),
        b"rTRC": gamma,
        b"gTRC": gamma,
        b"bTRC": gamma,
    }
    table, body = struct.pack(">I", len(contents)), b""
    start = 128 + 4 + 12 * len(contents)
    for name, content in contents.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    d50 = struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    header = struct.pack(">I4xI4s4s4s12x4s", start + len(body), 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return header.ljust(68, b"\0") + d50 + bytes(48) + table + body
