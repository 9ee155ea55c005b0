"""Noise as the source of dreams: how it is written, and the picture that it stands for.

`noise:640x360` stands for noise of this size. Which noise it is depends on the size and on the seed of the settings.
Every command imports this module to read a job, so it imports numpy, Pillow and torch only where they are used.
"""

import re
from typing import TYPE_CHECKING

from dreamcore.errors import ImageError
from dreamcore.sizes import MAX_SOURCE_PIXELS

if TYPE_CHECKING:
    from dreamcore.images import Photograph
    from flows.jobs.work import Source

__all__ = ["NOISE", "check_noise", "noise_etag", "noise_photograph", "noise_size", "noise_source", "shown_noise"]

NOISE = "noise:"
"""The beginning of a source that is noise."""
MAX_SHOWN_PIXELS = 4_000_000
"""Pixels of noise that is made only to be shown, because anybody may have written the manifest that names it."""

_SIZE = re.compile(r"noise:(\d{1,9})x(\d{1,9})", re.ASCII)


def noise_size(uri: str) -> tuple[int, int] | None:
    """Return width and height in pixels of the noise that a source names; None for any other source.

    Example:
        >>> noise_size("noise:640x360"), noise_size("s3://photos/noise:640x360")
        ((640, 360), None)
    """
    found = _SIZE.fullmatch(uri)
    return (int(found[1]), int(found[2])) if found else None


def check_noise(uri: str) -> str:
    """Return a source that begins with `NOISE` in its canonical form.

    Raises:
        ValueError: it names no size, a side of 0, or too many pixels.

    Example:
        >>> check_noise("noise:0640x360")
        'noise:640x360'
    """
    size = noise_size(uri)
    if size is None:
        raise ValueError(f"{uri} is not a size of noise: write noise:WIDTHxHEIGHT, such as noise:512x512")
    width, height = size
    if not 0 < width * height <= MAX_SOURCE_PIXELS:
        raise ValueError(f"{uri} has {width * height:,} pixels: give at least 1 and at most {MAX_SOURCE_PIXELS:,}")
    return f"{NOISE}{width}x{height}"


def noise_etag(uri: str) -> str:
    """Return what stands for the ETag of noise: it is always the same for one size.

    Example:
        >>> noise_etag("noise:640x360")
        'noise-640x360'
    """
    return uri.replace(NOISE, "noise-")


def noise_source(uri: str) -> "Source":
    """Return noise as a source of a run."""
    from flows.jobs.work import Source

    return Source(uri, uri, noise_etag(uri), 0)


def noise_photograph(uri: str, seed: int) -> "Photograph":
    """Return the picture of noise, in place of a decoded photograph.

    Args:
        uri: the source, with a size.
        seed: the seed of the settings of the dream.

    Raises:
        InvalidInput: the noise has too many pixels, or the seed is out of range.
    """
    from dreamcore.images import from_pillow
    from dreamcore.noise import noise_image

    width, height = noise_size(uri) or (0, 0)
    return from_pillow(noise_image(width, height, seed))


def shown_noise(uri: str, seed: int) -> "Photograph":
    """Return the picture of noise for people to look at; see `noise_photograph`.

    Raises:
        ImageError: the noise has more than `MAX_SHOWN_PIXELS` pixels.
        InvalidInput: the seed is out of range.
    """
    width, height = noise_size(uri) or (0, 0)
    if width * height > MAX_SHOWN_PIXELS:
        raise ImageError("too_large", f"{uri} has more than {MAX_SHOWN_PIXELS:,} pixels and is not shown")
    return noise_photograph(uri, seed)
