"""Estimates of the time that dreams take, for cutting shards and for `dreamgrid plan`. Pure functions."""

from dataclasses import dataclass
from functools import lru_cache

from flows.work import PlannedSettings, Source

_BITS_A_PIXEL = {"jpg": 2.5, "jpeg": 2.5, "jpe": 2.5, "webp": 2.0, "png": 12.0, "gif": 6.0}


_BITS_A_PIXEL_UNPACKED = 24.0


_STEP_PASSES = 2.0
"""A step runs forward and back to the picture: about two forward passes."""


_SECONDS_BESIDES = 0.1
"""To read, decode, encode and write, whatever is dreamt."""


CORE, GPU = 25e9, 2e12
"""Multiply-adds in a second: of one core of 2024, measured, and of a GPU, a guess from data sheets."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast a run is dreamt, roughly: the processes, and the multiply-adds that each of them makes in a second."""

    processes: int
    speed: float


ONE_CORE = Throughput(1, CORE)


def estimate_pixels(source: Source, max_pixels: int) -> int:
    """Pixels that will be dreamt, guessed from the file's size: a scan does not open photographs."""
    bits = _BITS_A_PIXEL.get(source.name.rpartition(".")[2].lower(), _BITS_A_PIXEL_UNPACKED)
    return max(1, min(max_pixels, round(source.size * 8 / bits)))


def estimate_seconds(source: Source, planned: PlannedSettings, speed: float = CORE) -> float:
    """Seconds of one dream on a process that makes `speed` multiply-adds in a second, roughly."""
    settings = planned.settings
    octaves = _octaves(settings.octaves, settings.octaves_above, settings.octave_scale)
    passes = octaves * settings.steps * _STEP_PASSES
    multiply_adds = estimate_pixels(source, settings.max_pixels) * passes * planned.cost
    return _SECONDS_BESIDES + multiply_adds / speed


@lru_cache
def _octaves(octaves: int, above: int, scale: float) -> float:
    """Pixels of all octaves together, in pictures."""
    return sum(scale ** (2 * (above - level)) for level in range(octaves))
