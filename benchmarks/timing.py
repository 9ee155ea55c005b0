"""Time contenders in alternating rounds, so that whatever slows the machine for a while slows all of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True)
class Spent:
    """Seconds of one turn."""

    wall: float
    cpu: float
    """Sum over all threads."""


def now() -> Spent:
    """Return both clocks of this process."""
    return Spent(time.perf_counter(), time.process_time())


def since(start: Spent) -> Spent:
    """Return the time since `start`, a result of `now`."""
    end = now()
    return Spent(end.wall - start.wall, end.cpu - start.cpu)


@dataclass(frozen=True)
class Row:
    """A row of the table and an entry of the JSON."""

    case: str
    """Network and size, or another description of the work."""
    contender: str
    wall_ms: float | None = None
    """Median of the rounds."""
    spread: float | None = None
    """Half the interquartile range of the wall time, as a share of its median."""
    cpu_ms: float | None = None
    """Median of the rounds."""
    figures: dict[str, float] = field(default_factory=dict)
    """Values derived from the times, by the names in `report.FIGURES`."""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return times and figures in one dictionary, without those that are missing."""
        times = {"wall_ms": self.wall_ms, "spread": self.spread, "cpu_ms": self.cpu_ms, "note": self.note or None}
        known = {name: value for name, value in times.items() if value is not None}
        return {"case": self.case, "contender": self.contender, **known, **self.figures}


@dataclass(frozen=True)
class Race:
    """The time of each contender in each round."""

    rounds: Mapping[str, Sequence[Spent]]

    def wall(self, name: str) -> float:
        """Return the median wall time of a contender in seconds."""
        return median(spent.wall for spent in self.rounds[name])

    def cpu(self, name: str) -> float:
        """Return the median CPU time of a contender in seconds."""
        return median(spent.cpu for spent in self.rounds[name])

    def spread(self, name: str) -> float:
        """Return half the interquartile range of the wall time of a contender, as a share of the median."""
        low, _, high = quantiles((spent.wall for spent in self.rounds[name]), n=4, method="inclusive")
        return (high - low) / 2 / self.wall(name)

    def speedup(self, one: str, other: str) -> float:
        """Return how many times as fast `one` is as `other`: the median of the ratios of each round."""
        pairs = zip(self.rounds[one], self.rounds[other], strict=True)
        return median(other.wall / one.wall for one, other in pairs)

    def row(self, case: str, name: str, figures: Mapping[str, float] | None = None, note: str = "") -> Row:
        """Return the row of a contender."""
        return Row(
            case, name, self.wall(name) * 1000, self.spread(name), self.cpu(name) * 1000, dict(figures or {}), note
        )


def race(contenders: Mapping[str, Callable[[], object]], rounds: int, *, warm: bool = True) -> Race:
    """Run every contender once per round, in an order that changes from round to round.

    Args:
        contenders: the functions to time. If a function returns `Spent`, that counts instead of the clocks of this
            process.
        rounds: number of rounds, at least 2.
        warm: run each contender once before the first round, without timing.
    """
    for contender in contenders.values() if warm else ():
        contender()
    spent: dict[str, list[Spent]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in order(list(contenders), number):
            start = now()
            result = contenders[name]()
            measured = since(start)
            spent[name].append(result if isinstance(result, Spent) else measured)
    return Race(spent)


def order(names: Sequence[str], number: int) -> list[str]:
    """Return the order of round `number`. Every name has every position equally often, with changing neighbors."""
    first = number % len(names)
    rotated = [*names[first:], *names[:first]]
    return rotated[::-1] if number // len(names) % 2 else rotated
