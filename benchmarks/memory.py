"""What a step takes of the machine's memory, and whether a process that goes on and on takes more and more."""

import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.crew import Crew, become_worker
from benchmarks.subjects import (
    BUNDLED_SUBJECT,
    CLEAN,
    ENGINE,
    LARGE,
    PLAIN,
    PUBLISHED,
    SUBJECTS,
    Size,
    Subject,
    contender,
    network_for,
    pictures,
    pixels,
    spelt,
)
from benchmarks.timing import Row
from dreamcore.batch import DreamRequest, dream_photograph
from dreamcore.images import Photograph
from dreamcore.settings import DreamSettings
from flows.worker_process import trim_heap

STATUS = Path("/proc/self/status")
FEW, HALF, MANY = 200, 1000, 2000
SIDES = 64, 192
"""Of the pictures of the many dreams, at random: oneDNN keeps kernels for every size that it has met."""


def resident(word: str) -> float:
    """MiB that this process has resident (`VmRSS`), or had at most (`VmHWM`)."""
    found = re.search(rf"^{word}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found, f"{STATUS} has no {word}"
    return int(found[1]) / 1024


def prepare_step(name: str, subject: Subject, size: Size) -> Callable[[object], tuple[float, float]]:
    """In a process of its own: MiB before a step, and at most until its end."""
    if name == ENGINE:
        become_worker()
    step, picture = contender(name, subject), pictures(size)

    def take(_question: object) -> tuple[float, float]:
        before = resident("VmRSS")
        step(picture)
        return before, resident("VmHWM")

    return take


def sizes() -> Iterator[Size]:
    """Endless small sizes, hardly one of them twice; the same ones in every run."""
    random = np.random.default_rng(0)
    while True:
        height, width = random.integers(*SIDES, size=2, endpoint=True).tolist()
        yield height, width


def prepare_soak() -> Callable[[int], float]:
    """In a process of its own: MiB after so many more small dreams, as after a shard."""
    become_worker()
    network, settings, endless = network_for(BUNDLED_SUBJECT), DreamSettings(steps=1, octaves=1), sizes()

    def soak(count: int) -> float:
        for height, width in islice(endless, count):
            dream_photograph(network, DreamRequest(Photograph(pixels((height, width)), width, height), settings))
        trim_heap()
        return resident("VmRSS")

    return soak


def measure_memory(*, quick: bool, soak: bool) -> list[Row]:
    """The section `memory`; it needs /proc."""
    if not STATUS.exists():
        return [Row("", "", note=f"not measured: this system has no {STATUS}")]
    rows = []
    for subject in SUBJECTS[:1] if quick else SUBJECTS:
        for name in (PLAIN, ENGINE) if quick else (PUBLISHED, CLEAN, PLAIN, ENGINE):
            with Crew(prepare_step, (name, subject, LARGE)) as crew:
                ((before, most),) = crew.ask(None)
            rows.append(Row(spelt(subject, LARGE), name, figures={"mib_before": before, "mib_at_most": most}))
    if soak:
        with Crew(prepare_soak, ()) as crew:
            (early,), (middle,), (late,) = (crew.ask(count) for count in (FEW, HALF - FEW, MANY - HALF))
        figures = {"mib_early": early, "mib_middle": middle, "mib_late": late, "growth": late / early - 1}
        rows.append(Row(f"{MANY} dreams, random sizes", ENGINE, figures=figures))
    return rows
