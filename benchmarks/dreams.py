"""Section `flat`: steps of small and large images. Section `files`: the cost of the image formats."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

from benchmarks.contenders import BUNDLED_SUBJECT, LARGE, SMALL, Size, images, megapixels, network_for, pixels
from benchmarks.timing import Row, Spent, now, race
from dreamcore.ascent import Sample, ascend
from dreamcore.batch import DreamRequest, dream_photograph
from dreamcore.images import Format, Photograph, encode
from dreamcore.memory import choose_tile
from dreamcore.network import Network
from dreamcore.settings import DreamSettings
from flows.machine.machine import batch_size

MAX_MEMORY = 2 * 2**30
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
    """Measure the section `flat`: the time of a step of a whole dream, with jitter and octaves, per megapixel.

    The batch size is that of a worker. Steps are timed inside an ascent of one octave, so the observations before and
    after the ascent, which are cheap beside ten steps, do not count.
    """
    network = network_for(BUNDLED_SUBJECT)
    sizes = {f"{millions:g} megapixels": _size(millions) for millions in (SIZES[:3] if quick else SIZES)}
    tiles = {name: choose_tile(network, {BUNDLED_SUBJECT.layer}, size, MAX_MEMORY) for name, size in sizes.items()}
    contenders = {name: _ascent(network, size, tiles[name]) for name, size in sizes.items()}
    found = race(contenders, 2 if quick else 3, warm=False)
    costs = {name: found.wall(name) for name in sizes}
    typical = median(costs.values())
    rows = []
    for name, cost in costs.items():
        figures = {"ms_per_megapixel_step": cost * 1000, "deviation": cost / typical - 1}
        row = found.row(f"{BUNDLED_SUBJECT.model} {name}", name, figures)
        batch = f"batch size {_batch_size(sizes[name])}"
        rows.append(replace(row, contender=f"tiles of {tiles[name]}" if tiles[name] else batch))
    return rows


def _size(millions: float) -> Size:
    """Return height and width of an image of 3:2."""
    height = round(math.sqrt(millions * 1e6 / 1.5))
    return height, round(height * 1.5)


def _batch_size(size: Size) -> int:
    return batch_size("cpu", math.prod(size))


def _ascent(network: Network, size: Size, tile: int) -> Callable[[], Spent]:
    """Return a function that measures a step per megapixel, without the first step, in which oneDNN warms up."""
    samples = [Sample(image, DreamSettings(steps=STEPS, octaves=1)) for image in images(size, _batch_size(size))]

    def run() -> Spent:
        ends: list[Spent] = []
        ascend(network, samples, tile, lambda _step, _steps: ends.append(now()))
        parts = (len(ends) - 1) * len(samples) * megapixels(size)
        return Spent((ends[-1].wall - ends[0].wall) / parts, (ends[-1].cpu - ends[0].cpu) / parts)

    return run


def measure_files(*, quick: bool) -> list[Row]:
    """Measure the section `files`: time and bytes of a dream in each format."""
    height, width = size = SMALL if quick else LARGE
    request = DreamRequest(Photograph(pixels(size), width, height), DreamSettings())
    dream = dream_photograph(network_for(BUNDLED_SUBJECT), request)
    metadata = dream.metadata()
    encoders = {
        name: partial(encode, dream.pixels, format, quality, metadata) for name, (format, quality) in FILES.items()
    }
    found = race(encoders, 3 if quick else 15)
    return [
        found.row(
            f"dream {width}x{height}",
            name,
            {
                "seconds_per_megapixel": found.wall(name) / megapixels(size),
                "bytes_per_pixel": len(encoder()) / height / width,
            },
        )
        for name, encoder in encoders.items()
    ]
