"""Estimates of the time that dreams take. Plans are cut by them, and `dreamgrid plan` shows them. Pure functions."""

from dataclasses import dataclass
from functools import lru_cache

from flows.work import PlannedSettings, Source

__all__ = ["CORE", "GPU", "ONE_CORE", "Throughput", "estimate_pixels", "estimate_seconds"]

CORE = 25e9
"""Multiply-adds per second of one CPU core. Measured on a core of 2024."""
GPU = 2e12
"""Multiply-adds per second of one GPU. A guess from data sheets."""

_BITS_PER_PIXEL = {"jpg": 2.5, "jpeg": 2.5, "jpe": 2.5, "webp": 2.0, "png": 12.0, "gif": 6.0}
_BITS_PER_PIXEL_UNCOMPRESSED = 24.0
_PASSES_PER_STEP = 2.0
"""A step costs about two forward passes: the forward pass itself, and the gradient with respect to the image."""
_OVERHEAD_SECONDS = 0.1
"""Time to read, decode, encode and write, whatever the settings are."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """The approximate speed of the machine that dreams."""

    processes: int
    """Number of worker processes."""
    speed: float
    """Multiply-adds per second of one process."""


ONE_CORE = Throughput(1, CORE)
"""The throughput of a single CPU core."""


def estimate_pixels(source: Source, max_pixels: int) -> int:
    """Return about how many pixels will be dreamt, at most `max_pixels`.

    The estimate uses the size of the file, because a scan does not open photographs.
    """
    bits = _BITS_PER_PIXEL.get(source.name.rpartition(".")[2].lower(), _BITS_PER_PIXEL_UNCOMPRESSED)
    return max(1, min(max_pixels, round(source.size * 8 / bits)))


def estimate_seconds(source: Source, planned: PlannedSettings, speed: float = CORE) -> float:
    """Return about how many seconds one dream takes.

    Args:
        source: the photograph.
        planned: the settings.
        speed: multiply-adds per second of the process that dreams.
    """
    settings = planned.settings
    octaves = _relative_pixels(settings.octaves, settings.octaves_above, settings.octave_scale)
    passes = octaves * settings.steps * _PASSES_PER_STEP
    multiply_adds = estimate_pixels(source, settings.max_pixels) * passes * planned.cost
    return _OVERHEAD_SECONDS + multiply_adds / speed


@lru_cache
def _relative_pixels(octaves: int, above: int, scale: float) -> float:
    """Return the pixels of all octaves together, as a multiple of the pixels of the image."""
    return sum(scale ** (2 * (above - level)) for level in range(octaves))
