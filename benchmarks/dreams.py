"""What a step costs in small and large pictures, and what the files cost that dreams become."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

from benchmarks.subjects import BUNDLED_SUBJECT, LARGE, SMALL, Size, megapixels, network_for, pictures, pixels
from benchmarks.timing import Row, Spent, now, race
from dreamcore.ascent import Sample, ascend
from dreamcore.batch import DreamRequest, dream_photograph
from dreamcore.images import Format, Photograph, encode
from dreamcore.memory import choose_tile
from dreamcore.network import Network
from dreamcore.settings import DreamSettings
from flows.machine import batch_size

MEMORY = 2 * 2**30
STEPS = 2
SIZES = (0.1, 0.3, 1.0, 3.0, 6.0, 12.0)
"""Megapixels."""
FILES: dict[str, tuple[Format, int]] = {
    "PNG": ("png", 100),
    "WebP lossless": ("webp", 100),
    "WebP 95": ("webp", 95),
    "JPEG 95": ("jpg", 95),
}


def measure_sizes(*, quick: bool) -> list[Row]:
    """The section `flat`: a step of whole dreams, with its jitter and pyramid, a megapixel.

    As many dreams are made at once as a worker makes. Steps are timed from one to the next inside an ascent of one
    octave, so that the looks at the picture before and after, which are few beside ten steps, do not count.
    """
    network = network_for(BUNDLED_SUBJECT)
    sizes = {f"{millions:g} megapixels": _size(millions) for millions in (SIZES[:3] if quick else SIZES)}
    tiles = {name: choose_tile(network, {BUNDLED_SUBJECT.layer}, size, MEMORY) for name, size in sizes.items()}
    contenders = {name: _ascent(network, size, tiles[name]) for name, size in sizes.items()}
    found = race(contenders, 2 if quick else 3, warm=False)
    costs = {name: found.wall(name) for name in sizes}
    usual = median(costs.values())
    rows = []
    for name, cost in costs.items():
        figures = {"ms_a_megapixel_step": cost * 1000, "deviation": cost / usual - 1}
        row = found.row(f"{BUNDLED_SUBJECT.model} {name}", name, figures)
        together = f"{_together(sizes[name])} at once"
        rows.append(replace(row, contender=f"tiles of {tiles[name]}" if tiles[name] else together))
    return rows


def _size(millions: float) -> Size:
    """Height and width of a picture of 3 to 2."""
    height = round(math.sqrt(millions * 1e6 / 1.5))
    return height, round(height * 1.5)


def _together(size: Size) -> int:
    return batch_size("cpu", math.prod(size))


def _ascent(network: Network, size: Size, tile: int) -> Callable[[], Spent]:
    """What a step of a dream spends a megapixel; the first one, in which oneDNN makes its kernels, does not count."""
    samples = [Sample(picture, DreamSettings(steps=STEPS, octaves=1)) for picture in pictures(size, _together(size))]

    def run() -> Spent:
        ends: list[Spent] = []
        ascend(network, samples, tile, lambda _done, _steps: ends.append(now()))
        parts = (len(ends) - 1) * len(samples) * megapixels(size)
        return Spent((ends[-1].wall - ends[0].wall) / parts, (ends[-1].cpu - ends[0].cpu) / parts)

    return run


def measure_files(*, quick: bool) -> list[Row]:
    """The section `files`: what each format takes for a dream."""
    height, width = size = SMALL if quick else LARGE
    order = DreamRequest(Photograph(pixels(size), width, height), DreamSettings())
    dreamt = dream_photograph(network_for(BUNDLED_SUBJECT), order)
    description = dreamt.metadata()
    encoders = {
        name: partial(encode, dreamt.pixels, format, quality, description) for name, (format, quality) in FILES.items()
    }
    found = race(encoders, 3 if quick else 15)
    return [
        found.row(
            f"dream {width}x{height}",
            name,
            {
                "seconds_a_megapixel": found.wall(name) / megapixels(size),
                "bytes_per_pixel": len(encoder()) / height / width,
            },
        )
        for name, encoder in encoders.items()
    ]
