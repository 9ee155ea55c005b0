"""The rate of a run whose dreams arrive in bursts, and the table of its machines."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.jobs.work import ShardResult
from flows.machine.pace import ShardCounts
from flows.running.rates import MAX_ROWS, NodeRates, RunPace

START = datetime(2026, 11, 28, 2, tzinfo=UTC)


class Cluster:
    """Worker processes that finish shards one after another, by a clock of its own."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.dreams = 0
        self.rates = NodeRates(lambda: self.seconds, lambda: START + timedelta(seconds=self.seconds - 1000))

    def finish(self, worker: int, seconds: float, done: int = 0, new: int | None = None, **others: int) -> None:
        """Finish a shard of one worker. There are two workers on each machine."""
        rows = {"done": done, **others}
        new = sum(rows.values()) if new is None else new
        self.dreams += sum(rows.values())
        self.rates.add(ShardResult(self.dreams, "run", rows, {}, new, f"node-{worker // 2}", worker, seconds))

    def run(self, durations: list[list[float]], dreams: int, step: float = 1) -> list[tuple[float, float]]:
        """Let each worker finish shards of these durations. Return time and rate after every step and every shard."""
        ends = sorted(
            (self.seconds + sum(shards[: number + 1]), worker, shards[number])
            for worker, shards in enumerate(durations)
            for number in range(len(shards))
        )
        found, begin = [], self.seconds
        while ends:
            end, worker, duration = ends[0]
            self.seconds = min(end, self.seconds + step)
            if self.seconds == end:
                ends.pop(0)
                self.finish(worker, duration, dreams)
            found.append((self.seconds - begin, self.rates.rate() or 0.0))
        return found


def test_the_rate_of_workers_that_end_their_shards_together_is_steady() -> None:
    """Eight workers finish 40 dreams each within a second of every minute."""
    found = Cluster().run([[60 + 0.1 * worker] * 8 for worker in range(8)], 40)
    assert all(rate == pytest.approx(8 * 40 / 60, rel=0.05) for seconds, rate in found if seconds > 61)


@pytest.mark.parametrize(("reports", "rate"), [(False, 8 * 40 / 60), (True, 7 * 40 / 0.7)])
def test_the_rate_of_a_run_is_that_of_the_count_only_if_workers_report_within_shards(
    reports: bool, rate: float
) -> None:
    """Eight workers finish their first shards within a second. Here, no report arrives before the end of a shard."""
    cluster, counts = Cluster(), ShardCounts()
    counts.is_used = reports
    pace = RunPace(counts, lambda: cluster.seconds)
    pace.update(0, 10_000)
    for worker in range(8):
        cluster.seconds = 1060 + 0.1 * worker
        pace.nodes.add(ShardResult(worker, "run", {"done": 40}, {}, 40, "node", worker, 60 + 0.1 * worker))
        snapshot = pace.update(40 * (worker + 1), 10_000)
    counts.close()
    assert snapshot.rate == pytest.approx(rate, rel=0.01)
    assert snapshot.finished == 320
    assert reports or snapshot.pace.startswith("5.3 a second, about 30 min left")


@given(st.integers(1, 12), st.floats(0.2, 900), st.integers(0, 2**32))
def test_the_rate_is_near_the_true_one_after_the_first_shard_of_each_worker(
    workers: int, mean: float, seed: int
) -> None:
    draw = random.Random(seed)
    durations = [[mean * draw.uniform(0.7, 1.3) for _ in range(6)] for _ in range(workers)]
    shortest = min(sum(shards) for shards in durations)
    first = max(shards[0] for shards in durations)
    for seconds, rate in Cluster().run(durations, 10, mean / 8):
        if first < seconds < shortest:  # all workers have a shard
            assert rate == pytest.approx(10 * workers / mean, rel=0.45)


def test_a_lost_worker_does_not_count_for_long() -> None:
    cluster = Cluster()
    found = cluster.run([[60.0] * 20, [60.0] * 5], 30)
    after = [rate for seconds, rate in found if seconds > 5 * 60 + 3 * 60 + 1]
    assert found[4 * 60][1] == pytest.approx(1.0)
    assert after
    assert after == pytest.approx([0.5] * len(after), rel=0.01)


def test_a_worker_with_short_shards_may_be_silent_for_some_seconds() -> None:
    cluster = Cluster()
    for _ in range(50):
        cluster.seconds += 0.2
        cluster.finish(0, 0.2, 1)
    cluster.seconds += 5
    assert cluster.rates.rate() == pytest.approx(50 / 14.8)


def test_shards_that_were_finished_before_have_no_rate() -> None:
    cluster = Cluster()
    assert cluster.rates.rate() is None
    for _ in range(3):
        cluster.seconds += 0.1
        cluster.finish(0, 0.1, 1000, new=0)
    assert cluster.rates.rate() == 0


def test_the_table_has_a_row_for_each_machine() -> None:
    cluster = Cluster()
    for worker in (2, 0, 1):
        cluster.seconds += 10
        cluster.finish(worker, 60, 40, failed=3, skipped=1)
    assert cluster.rates.rows() == [
        {"node": "node-0", "shards": 2, "dreams": 80, "failed": 6, "skipped": 2, "dreams a minute": 88.0,
         "last shard": "2026-11-28 02:00:30 UTC"},
        {"node": "node-1", "shards": 1, "dreams": 40, "failed": 3, "skipped": 1, "dreams a minute": 44.0,
         "last shard": "2026-11-28 02:00:10 UTC"},
    ]  # fmt: skip


def test_the_table_has_a_limited_number_of_rows() -> None:
    """The machines whose last shard is longest ago share a row. The counts still add up."""
    cluster = Cluster()
    for worker in range(0, 2 * MAX_ROWS + 10, 2):
        cluster.seconds += 1
        cluster.finish(worker, 30, 2)
    rows = cluster.rates.rows()
    assert len(rows) == MAX_ROWS + 1
    assert rows[-1]["node"] == "5 others"
    assert rows[-1]["last shard"] == "2026-11-28 02:00:05 UTC"
    assert sum(row["dreams"] for row in rows) == cluster.dreams
    assert [row["node"] for row in rows[:-1]] == sorted(f"node-{number}" for number in range(5, MAX_ROWS + 5))
