"""A whole machine: as many single-threaded processes as cores, against one process of many threads."""

from collections.abc import Callable
from statistics import median

from benchmarks.crew import Crew, become_worker
from benchmarks.subjects import (
    ENGINE,
    PUBLISHED,
    SMALL,
    SUBJECTS,
    Size,
    Subject,
    contender,
    megapixels,
    pictures,
    spelt,
)
from benchmarks.timing import Race, Row, Spent, now, race, since
from flows.machine import core_count

ONE, TWO = "1 process of the engine", "2 processes of the engine"

Turn = tuple[int, float, float]
"""Steps done by one process in one turn, and its wall and CPU seconds."""


def prepare_steps(name: str, subject: Subject, size: Size) -> Callable[[float], Turn]:
    """In a process of a crew: take steps for so many seconds as asked; the engine's processes are workers."""
    if name == ENGINE:
        become_worker()
    step, picture = contender(name, subject), pictures(size)
    for _ in range(3):
        step(picture)

    def take(seconds: float) -> Turn:
        start, steps = now(), 0
        while True:
            step(picture)
            steps += 1
            spent = since(start)
            if spent.wall >= seconds:
                return steps, spent.wall, spent.cpu

    return take


def measure_machine(*, quick: bool) -> list[Row]:
    """The section `machine`: what all cores dream together."""
    seconds, rounds = (0.5, 2) if quick else (2.0, 5)
    rows = []
    processes = core_count()
    for subject in SUBJECTS[:1] if quick else SUBJECTS:
        arguments = subject, SMALL
        with (
            Crew(prepare_steps, (PUBLISHED, *arguments), threads=None) as published,
            Crew(prepare_steps, (ENGINE, *arguments), processes) as engines,
        ):
            threads = f"{published.threads} thread{'s' if published.threads > 1 else ''}"
            ports = f"{PUBLISHED}, 1 process of {threads}"
            crews = {ports: (published, 1), ONE: (engines, 1)}
            if processes > 1:
                crews[TWO] = (engines, 2)
            if processes > 2:
                crews[f"{processes} processes of the engine"] = (engines, processes)
            found = race(
                {name: _turn(crew, count, seconds) for name, (crew, count) in crews.items()}, rounds, warm=False
            )
        rows += [_row(found, spelt(subject, SMALL), name, ports, last=name == list(crews)[-1]) for name in crews]
    return rows


def _turn(crew: Crew, processes: int, seconds: float) -> Callable[[], Spent]:
    """What a megapixel-step takes when so many processes work: of the wall clock, and of all processors together."""

    def turn() -> Spent:
        turns: list[Turn] = crew.ask(*[seconds] * processes)
        wall = 1 / sum(steps / wall for steps, wall, _ in turns)
        cpu = sum(cpu for _, _, cpu in turns) / sum(steps for steps, _, _ in turns)
        return Spent(wall / megapixels(SMALL), cpu / megapixels(SMALL))

    return turn


def _row(found: Race, case: str, name: str, ports: str, *, last: bool) -> Row:
    figures = {"megapixel_steps": median(1 / spent.wall for spent in found.rounds[name])}
    if last:
        figures["machine_times_published"] = found.times(name, ports)
    if name == TWO:
        figures["two_times_one"] = found.times(name, ONE)
    return found.row(case, name, figures)
