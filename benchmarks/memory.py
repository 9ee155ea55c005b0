"""What a step takes of the machine's memory, and whether a process that goes on and on takes more and more."""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.crew import Crew
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
    network_of,
    pictures,
    pixels,
    spelt,
)
from benchmarks.timing import Row
from dreamcore.images import Photograph
from dreamcore.picture import Order, dream_photograph
from dreamcore.settings import DreamSettings
from flows.machine import keep_memory, max_memory

STATUS = Path("/proc/self/status")
FEW, MANY = 200, 2000


def resident(word: str) -> float:
    """MiB that this process has resident (`VmRSS`), or had at most (`VmHWM`)."""
    found = re.search(rf"^{word}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found, f"{STATUS} has no {word}"
    return int(found[1]) / 1024


def prepare_step(name: str, subject: Subject, size: Size) -> Callable[[object], tuple[float, float]]:
    """In a process of its own: MiB before a step, and at most until its end."""
    if name == ENGINE:
        keep_memory(max_memory("cpu"))
    step, picture = contender(name, subject), pictures(size)

    def take(_question: object) -> tuple[float, float]:
        before = resident("VmRSS")
        step(picture)
        return before, resident("VmHWM")

    return take


def prepare_soak() -> Callable[[int], float]:
    """In a process of its own: MiB after so many more small dreams."""
    keep_memory(max_memory("cpu"))
    network = network_of(BUNDLED_SUBJECT)
    settings = DreamSettings(steps=1, octaves=1)

    def soak(count: int) -> float:
        for seed in range(count):
            dream_photograph(network, Order(Photograph(pixels((64, 64), seed % 16), 64, 64), settings))
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
            (early,), (late,) = crew.ask(FEW), crew.ask(MANY - FEW)
        case, figures = f"{MANY} dreams of 64x64", {"mib_early": early, "mib_late": late, "growth": late / early - 1}
        rows.append(Row(case, ENGINE, figures=figures))
    return rows
