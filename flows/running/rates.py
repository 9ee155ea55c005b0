"""How fast the machines of a run finish dreams.

The workers of other machines report nothing within a shard. Their dreams arrive in bursts: all dreams of a shard, when
the shard ends. Therefore the rate of such a run is the sum of the rates of its workers, and the rate of a worker is
measured over whole shards. Only durations come from other machines, so their clocks may differ.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

from flows.jobs.work import ShardResult
from flows.machine.pace import Meter, Pace, ShardCounts, Snapshot

__all__ = ["MAX_ROWS", "NodeRates", "RunPace"]

MAX_ROWS = 100
"""Machines with a row of their own in the table. The others share one row."""

_LOST_AFTER_SHARDS, _LOST_AFTER_SECONDS = 3, 30.0
"""A worker that is silent for longer than this many mean shards, and than this time, does not count any more."""


@dataclass
class _Node:
    """What one machine has done."""

    last: datetime
    """The end of its last shard."""
    shards: int = 0
    dreams: Counter[str] = field(default_factory=Counter)
    """The rows of its shards by status."""
    workers: dict[int, Meter] = field(default_factory=dict)
    """The new dreams of its worker processes."""

    def rate(self, now: float) -> float:
        """Return the new dreams in a second, and forget workers that are silent for too long."""
        self.workers = {worker: meter for worker, meter in self.workers.items() if not _is_lost(meter, now)}
        return sum(meter.rate(now) or 0.0 for meter in self.workers.values())


class NodeRates:
    """What each machine of a run has done since this process started or continued the run.

    Args:
        clock: returns seconds.
        wall_clock: returns the date and time that the table shows.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._clock, self._wall_clock = clock, wall_clock
        self._nodes: dict[str, _Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, result: ShardResult) -> None:
        """Count a shard that has just ended."""
        now, last = self._clock(), self._wall_clock()
        node = self._nodes.setdefault(result.node, _Node(last))
        node.last = last
        node.shards += 1
        node.dreams.update(result.rows)
        if (meter := node.workers.get(result.worker)) is None:
            meter = node.workers[result.worker] = Meter()
            meter.add(now - result.seconds, 0)
        meter.add(now, meter.count + result.new)

    def rate(self) -> float | None:
        """Return the new dreams of all machines in a second; None before the first shard."""
        now = self._clock()
        return sum(node.rate(now) for node in self._nodes.values()) if self._nodes else None

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: a row for each machine by name.

        If there are many machines, those whose last shard is longest ago share one row.
        """
        now = self._clock()
        latest = sorted(self._nodes.items(), key=lambda item: item[1].last, reverse=True)
        rows = [_row(name, [node], now) for name, node in sorted(latest[:MAX_ROWS], key=itemgetter(0))]
        others = [node for _, node in latest[MAX_ROWS:]]
        return [*rows, _row(f"{len(others)} others", others, now)] if others else rows


class RunPace:
    """Computes the progress of a run from finished shards and from the reports within shards.

    Args:
        counts: what the worker processes of this machine report within a shard.
        clock: returns seconds.
    """

    def __init__(self, counts: ShardCounts, clock: Callable[[], float] = time.monotonic) -> None:
        self._counts, self._pace = counts, Pace(clock)
        self.nodes = NodeRates(clock)
        """The finished shards by machine."""

    def update(self, finished: int, planned: int) -> Snapshot:
        """Return the progress when finished shards have `finished` rows.

        The rate is that of the count if the count grows within shards, otherwise that of the machines.
        """
        snapshot = self._pace.update(finished + self._counts.total(), planned)
        return snapshot if self._counts.is_used else replace(snapshot, rate=self.nodes.rate())


def _is_lost(meter: Meter, now: float) -> bool:
    return meter.silence(now) > max(_LOST_AFTER_SHARDS * meter.mean_interval, _LOST_AFTER_SECONDS)


def _row(name: str, nodes: Sequence[_Node], now: float) -> dict[str, Any]:
    dreams = sum((node.dreams for node in nodes), Counter[str]())
    return {
        "node": name,
        "shards": sum(node.shards for node in nodes),
        "dreams": dreams["done"],
        "failed": dreams["failed"],
        "skipped": dreams["skipped"],
        "dreams a minute": round(60 * sum(node.rate(now) for node in nodes), 1),
        "last shard": f"{max(node.last for node in nodes):%Y-%m-%d %H:%M:%S} UTC",
    }
