"""Contenders timed in turns: whatever slows the machine for a while slows all of them."""

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
    """Of all threads."""


def now() -> Spent:
    """Both clocks of this process."""
    return Spent(time.perf_counter(), time.process_time())


def since(start: Spent) -> Spent:
    """What was spent since `start`, which `now` gave."""
    end = now()
    return Spent(end.wall - start.wall, end.cpu - start.cpu)


@dataclass(frozen=True)
class Row:
    """A line of the table, and an entry of the JSON."""

    case: str
    """What was worked on."""
    contender: str
    wall_ms: float | None = None
    """Median of the rounds."""
    spread: float | None = None
    """Half the interquartile range of the wall time, as a part of its median."""
    cpu_ms: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    """What follows from the times, by the names in `report.FIGURES`."""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The row with its figures beside its times; what it does not have is left out."""
        times = {"wall_ms": self.wall_ms, "spread": self.spread, "cpu_ms": self.cpu_ms, "note": self.note or None}
        known = {name: value for name, value in times.items() if value is not None}
        return {"case": self.case, "contender": self.contender, **known, **self.figures}


@dataclass(frozen=True)
class Race:
    """What each contender spent in each round."""

    rounds: Mapping[str, Sequence[Spent]]

    def wall(self, name: str) -> float:
        """Median of the wall seconds of a contender."""
        return median(spent.wall for spent in self.rounds[name])

    def cpu(self, name: str) -> float:
        """Median of its CPU seconds."""
        return median(spent.cpu for spent in self.rounds[name])

    def spread(self, name: str) -> float:
        """Half the interquartile range of its wall seconds, as a part of their median."""
        low, _, high = quantiles((spent.wall for spent in self.rounds[name]), n=4, method="inclusive")
        return (high - low) / 2 / self.wall(name)

    def times(self, one: str, other: str) -> float:
        """How many times as fast as `other` `one` is: the median of the ratios of each round."""
        pairs = zip(self.rounds[one], self.rounds[other], strict=True)
        return median(theirs.wall / mine.wall for mine, theirs in pairs)

    def row(self, case: str, name: str, figures: Mapping[str, float] | None = None, note: str = "") -> Row:
        """A contender's row."""
        return Row(
            case, name, self.wall(name) * 1000, self.spread(name), self.cpu(name) * 1000, dict(figures or {}), note
        )


def race(contenders: Mapping[str, Callable[[], object]], rounds: int, *, warm: bool = True) -> Race:
    """Let every contender have one turn a round, in an order that changes from round to round.

    Args:
        contenders: what to do in a turn; where it answers `Spent`, that counts instead of the clocks of this process.
        rounds: how many; two at least.
        warm: whether each has a turn that does not count before the first round.
    """
    for contender in contenders.values() if warm else ():
        contender()
    spent: dict[str, list[Spent]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in order(list(contenders), number):
            start = now()
            answer = contenders[name]()
            measured = since(start)
            spent[name].append(answer if isinstance(answer, Spent) else measured)
    return Race(spent)


def order(names: Sequence[str], number: int) -> list[str]:
    """The names in the order of one round: each is first, and last, as often as any other, with changing neighbours."""
    first = number % len(names)
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if number // len(names) % 2 else turned
