"""Section `machine`: one single-threaded process per core, against one process with many threads."""

from collections.abc import Callable
from statistics import median

from benchmarks.contenders import (
    ENGINE,
    PUBLISHED,
    SMALL,
    SUBJECTS,
    Size,
    Subject,
    case_name,
    contender,
    images,
    megapixels,
)
from benchmarks.processes import ProcessGroup, become_worker
from benchmarks.timing import Race, Row, Spent, now, race, since
from flows.machine.machine import core_count

ONE, TWO = "engine, 1 process", "engine, 2 processes"

Turn = tuple[int, float, float]
"""Number of steps of one process in one turn, and its wall and CPU seconds."""


def prepare_steps(name: str, subject: Subject, size: Size) -> Callable[[float], Turn]:
    """Return a function that takes steps for a number of seconds. Processes of the engine are configured as workers."""
    if name == ENGINE:
        become_worker()
    step, image = contender(name, subject), images(size)
    for _ in range(3):
        step(image)

    def take(seconds: float) -> Turn:
        start, steps = now(), 0
        while True:
            step(image)
            steps += 1
            spent = since(start)
            if spent.wall >= seconds:
                return steps, spent.wall, spent.cpu

    return take


def measure_machine(*, quick: bool) -> list[Row]:
    """Measure the section `machine`: the throughput of all cores."""
    seconds, rounds = (0.5, 2) if quick else (2.0, 5)
    rows = []
    processes = core_count()
    for subject in SUBJECTS[:1] if quick else SUBJECTS:
        arguments = subject, SMALL
        with (
            ProcessGroup(prepare_steps, (PUBLISHED, *arguments), threads=None) as published,
            ProcessGroup(prepare_steps, (ENGINE, *arguments), processes) as engines,
        ):
            baseline = f"{PUBLISHED}, {published.threads} thread{'s' if published.threads > 1 else ''}"
            groups = {baseline: (published, 1), ONE: (engines, 1)}
            if processes > 1:
                groups[TWO] = (engines, 2)
            if processes > 2:
                groups[f"engine, {processes} processes"] = (engines, processes)
            turns = {name: _turn(group, count, seconds) for name, (group, count) in groups.items()}
            found = race(turns, rounds, warm=False)
        case, last = case_name(subject, SMALL), list(groups)[-1]
        rows += [_row(found, case, name, baseline, last=name == last) for name in groups]
    return rows


def _turn(group: ProcessGroup, processes: int, seconds: float) -> Callable[[], Spent]:
    """Return a function that measures the time per megapixel-step: wall time, and CPU time of all processes."""

    def turn() -> Spent:
        turns: list[Turn] = group.ask(*[seconds] * processes)
        wall = 1 / sum(steps / wall for steps, wall, _ in turns)
        cpu = sum(cpu for _, _, cpu in turns) / sum(steps for steps, _, _ in turns)
        return Spent(wall / megapixels(SMALL), cpu / megapixels(SMALL))

    return turn


def _row(found: Race, case: str, name: str, baseline: str, *, last: bool) -> Row:
    figures = {"megapixel_steps": median(1 / spent.wall for spent in found.rounds[name])}
    if last:
        figures["machine_times_published"] = found.speedup(name, baseline)
    if name == TWO:
        figures["two_times_one"] = found.speedup(name, ONE)
    return found.row(case, name, figures)
