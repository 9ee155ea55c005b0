"""Estimates of the time that dreams take. Plans are cut by them, and `dreamgrid plan` shows them. Pure functions.

Times are first computed for a reference core. The speed of a machine is then a single number for each kind of step: how
many seconds of the reference core the machine computes in a second.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from dreamcore.settings import DreamSettings
from flows.jobs.noise_source import noise_size
from flows.jobs.work import PlannedSettings, Source

__all__ = [
    "CORE",
    "GPU",
    "ONE_CORE",
    "START_SECONDS",
    "Throughput",
    "bits_per_pixel",
    "decoding_seconds",
    "dreamt_pixels",
    "estimate_pixels",
    "estimate_seconds",
    "largest_pixels",
    "reference_seconds",
    "step_kind",
    "step_seconds",
]

CORE = 1.0
"""Speed of the reference core, on which the constants below were measured: one core of 2024 with AVX2."""
GPU = 80.0
"""Speed of a GPU. A guess from data sheets, used until a GPU is measured."""
START_SECONDS = 9.0
"""Seconds of the reference core until a worker process dreams: Python, Prefect, torch and the network are loaded."""

_BITS_PER_PIXEL = {"jpg": 2.5, "jpeg": 2.5, "jpe": 2.5, "webp": 2.0, "png": 12.0, "gif": 6.0}
_BITS_PER_PIXEL_UNCOMPRESSED = 24.0
_MIN_OCTAVE = 32  # equals `dreamcore.octaves.MIN_OCTAVE`, whose module imports torch
_ASPECT_RATIO = 1.4  # of a typical photograph

# Seconds of the reference core, fitted to steps of the bundled network at 64 to 1,024 pixels a side.
_PER_DREAM, _PER_PIXEL_OF_DREAM = 0.08, 0.5e-6  # observe before and after, encode, upload
_PER_STEP, _PER_PIXEL_OF_STEP = 0.010, 130e-9
_PER_MULTIPLY_ADD = 0.12e-9
_PER_DECODED_PIXEL = 30e-9


@dataclass(frozen=True, slots=True)
class Throughput:
    """The approximate speed of the machine that dreams."""

    processes: int
    """Number of worker processes."""
    speed: float
    """Speed of one process, relative to the reference core."""
    by_kind: Mapping[str, float] = field(default_factory=dict)
    """Speed of one process for steps of a kind (see `step_kind`), where it is known."""
    start_seconds: float = START_SECONDS
    """Seconds until a worker process dreams, if it has a core of its own."""

    def speed_of(self, planned: PlannedSettings) -> float:
        """Return the speed of one process for these settings."""
        return self.by_kind.get(step_kind(planned), self.speed)


ONE_CORE = Throughput(1, CORE)
"""The throughput of a single CPU core."""


def bits_per_pixel(source: Source) -> float:
    """Return how many bits of the file one pixel typically takes, by the suffix of the name."""
    return _BITS_PER_PIXEL.get(source.name.rpartition(".")[2].lower(), _BITS_PER_PIXEL_UNCOMPRESSED)


def estimate_pixels(source: Source, max_pixels: int) -> int:
    """Return about how many pixels will be dreamt, at most `max_pixels`.

    The estimate uses the size of the file, because a scan does not open photographs.
    """
    if size := noise_size(source.uri):
        return min(max_pixels, size[0] * size[1])
    return max(1, min(max_pixels, round(source.size * 8 / bits_per_pixel(source))))


def largest_pixels(settings: DreamSettings) -> int:
    """Return how many pixels a dream with these settings, or about how many a frame of its movie, has at most."""
    return round(settings.movie.width**2 / _ASPECT_RATIO) if settings.movie else settings.max_pixels


def dreamt_pixels(planned: PlannedSettings, pixels: int) -> int:
    """Return how many pixels the dream of a photograph of this many pixels has. Only enlarged dreams can have more."""
    settings = planned.settings
    return settings.max_pixels if settings.enlarge else min(pixels, largest_pixels(settings))


def estimate_seconds(source: Source, planned: PlannedSettings, speed: float = CORE) -> float:
    """Return about how many seconds one dream takes.

    Args:
        source: the photograph.
        planned: the settings.
        speed: speed of the process that dreams, relative to the reference core.
    """
    return reference_seconds(planned, estimate_pixels(source, largest_pixels(planned.settings))) / speed


def reference_seconds(planned: PlannedSettings, pixels: int, batch: int = 1) -> float:
    """Return about how many seconds the reference core takes for one dream, or for all frames of a movie.

    Args:
        planned: the settings.
        pixels: pixels of the dream, or of a frame.
        batch: number of dreams of this size that are computed together.
    """
    frames = planned.settings.movie.frames if planned.settings.movie else 1
    return frames * (_PER_DREAM + _PER_PIXEL_OF_DREAM * pixels) + step_seconds(planned, pixels, batch)


def step_seconds(planned: PlannedSettings, pixels: int, batch: int = 1) -> float:
    """Return about how many seconds the reference core takes for all steps; see `reference_seconds`."""
    settings = planned.settings
    octaves, relative = _octaves(settings.octaves, settings.octaves_above, settings.octave_scale, int(pixels**0.5))
    per_pixel = _PER_PIXEL_OF_STEP + _PER_MULTIPLY_ADD * planned.cost
    frames = settings.movie.frames_of_steps if settings.movie else 1
    return frames * settings.steps * (octaves * _PER_STEP / batch + relative * pixels * per_pixel)


def decoding_seconds(pixels: int) -> float:
    """Return about how many seconds the reference core takes to decode a photograph of this many pixels."""
    return _PER_DECODED_PIXEL * pixels


@lru_cache(maxsize=2**14)
def _octaves(octaves: int, above: int, scale: float, side: int) -> tuple[int, float]:
    """Return the number of octaves that are not too small, and their pixels as a multiple of the image's pixels.

    Args:
        octaves: the setting.
        above: how many of the octaves are larger than the image.
        scale: size ratio of neighbouring octaves.
        side: square root of the number of pixels of the image.
    """
    scales = [scale**level for level in range(above + 1 - octaves, above + 1)]
    short = side / _ASPECT_RATIO**0.5
    used = [each for each in scales if each == 1 or short * each >= _MIN_OCTAVE]
    return len(used), sum(each**2 for each in used)


@lru_cache(maxsize=2**12)
def step_kind(planned: PlannedSettings) -> str:
    """Return a name for steps that take about the same time per pixel, whatever the other settings are.

    The name ends with the cost of the deepest layer, after the last `|`.
    """
    settings = planned.settings
    extra = {
        "guide": settings.guide,
        "near": settings.stay_near,
        "fourier": settings.space == "fourier",
        "transforms": settings.transforms != "shift",
    }
    extras = "+".join(name for name, used in extra.items() if used)
    parts = (settings.model, planned.weights[:16], settings.gradient, settings.measure, settings.tile, extras)
    return "|".join(map(str, (*parts, planned.cost)))
