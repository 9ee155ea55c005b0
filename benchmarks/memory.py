"""Section `memory`: the memory of a step, and whether the memory of a process grows over many dreams."""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from benchmarks.contenders import (
    BUNDLED_SUBJECT,
    CLEAN,
    ENGINE,
    LARGE,
    PLAIN,
    PUBLISHED,
    SUBJECTS,
    Size,
    Subject,
    case_name,
    contender,
    images,
    network_for,
    pixels,
)
from benchmarks.processes import ProcessGroup, become_worker
from benchmarks.residence import STATUS, resident
from benchmarks.timing import Row
from dreamcore.batch import DreamRequest, dream_photograph
from dreamcore.images import Photograph
from dreamcore.settings import DreamSettings
from flows.machine.worker_process import trim_heap

FEW, HALF, MANY = 200, 1000, 2000
"""Numbers of dreams after which the memory is read."""
SIDES = 64, 192
"""Range of the random sides of these dreams in pixels. oneDNN caches kernels for every size."""


def prepare_step(name: str, subject: Subject, size: Size) -> Callable[[object], tuple[float, float]]:
    """Return a function that takes one step and returns the MiB before it and the peak MiB until its end."""
    if name == ENGINE:
        become_worker()
    step, image = contender(name, subject), images(size)

    def take(_request: object) -> tuple[float, float]:
        before = resident("VmRSS")
        step(image)
        return before, resident("VmHWM")

    return take


def sizes() -> Iterator[Size]:
    """Yield random small sizes without end, the same in every run. Few of them occur twice."""
    random = np.random.default_rng(0)
    while True:
        height, width = random.integers(*SIDES, size=2, endpoint=True).tolist()
        yield height, width


def prepare_soak() -> Callable[[int], float]:
    """Return a function that makes more small dreams and returns the MiB after them, trimmed as after a shard."""
    become_worker()
    network, settings, endless = network_for(BUNDLED_SUBJECT), DreamSettings(steps=1, octaves=1), sizes()

    def soak(count: int) -> float:
        for height, width in islice(endless, count):
            dream_photograph(network, DreamRequest(Photograph(pixels((height, width)), width, height), settings))
        trim_heap()
        return resident("VmRSS")

    return soak


def measure_memory(*, quick: bool, soak: bool) -> list[Row]:
    """Measure the section `memory`, which needs /proc."""
    if not STATUS.exists():
        return [Row("", "", note=f"not measured: this system has no {STATUS}")]
    rows = []
    for subject in SUBJECTS[:1] if quick else SUBJECTS:
        for name in (PLAIN, ENGINE) if quick else (PUBLISHED, CLEAN, PLAIN, ENGINE):
            with ProcessGroup(prepare_step, (name, subject, LARGE)) as group:
                ((before, peak),) = group.ask(None)
            rows.append(Row(case_name(subject, LARGE), name, figures={"mib_before": before, "mib_peak": peak}))
    if soak:
        with ProcessGroup(prepare_soak, ()) as group:
            (early,), (middle,), (late,) = (group.ask(count) for count in (FEW, HALF - FEW, MANY - HALF))
        figures = {"mib_early": early, "mib_middle": middle, "mib_late": late, "growth": late / early - 1}
        rows.append(Row(f"{MANY} dreams, random sizes", ENGINE, figures=figures))
    return rows
