"""Runs survive kill -9, suspension and concurrent runs at any moment: no row is lost, duplicated or incomplete."""

import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from flows import protocol, run_record
from flows.job import DreamJob
from flows.local.stack import Stack
from flows.machine import prefetch_depth
from flows.storage import Storage
from tests.support.kills import BATCH, REFUSED, Attempt, Observer, is_running, put_photographs, suspended, wait

LANES = 2
"""Concurrent processes of these tests."""
IN_FLIGHT = BATCH + prefetch_depth("cpu")
"""Dreams that a worker may lose: the batch in the ascent, and those being encoded or uploaded."""

Begin = Callable[..., Attempt]


@pytest.fixture
def begin(stack: Stack, source: str, destination: str, tmp_path: Path) -> Begin:
    """Return a function that makes an attempt at dreaming this test's photographs into a folder of its destination."""

    def attempt(folder: object, layers: tuple[str, ...] = ("blocks.0",), *when: int) -> Attempt:
        grid = {"layers": list(layers), "octaves": [1], "steps": [1]}
        job = DreamJob.model_validate({"source": source, "destination": f"{destination}{folder}/", "grid": grid})
        return Attempt(stack.environment(), job, tmp_path / "made", *when)

    return attempt


def in_lanes(until_finished: Callable[[int], bool]) -> int:
    """Try event 1, 2, 3 ... until an attempt finishes before its event. Return the number of events tried."""

    def lane(first: int) -> int:
        return next(tried for tried, number in enumerate(count(first, LANES)) if until_finished(number))

    with ThreadPoolExecutor(LANES) as lanes:
        return sum(lanes.map(lane, range(1, LANES + 1)))


def kill_at_every_event(begin: Begin, storage: Storage, layers: tuple[str, ...]) -> int:
    """Start a fresh run for each event, kill it there, check, run it again, check. Return the number of kills."""

    def finishes(event: int) -> bool:
        observer = Observer(storage, begin(event).job.destination)
        code = begin(event, layers, event).run()
        observer.look()
        if code == -signal.SIGKILL:
            assert begin(event, layers).run() == 0
        else:
            assert code == 0
        observer.check_finished(begin(event, layers).job)
        return code == 0

    return in_lanes(finishes)


def test_a_run_killed_before_or_after_any_s3_call_loses_nothing(begin: Begin, storage: Storage, source: str) -> None:
    put_photographs(storage, source, 1)
    assert kill_at_every_event(begin, storage, ("blocks.0", "blocks.1")) > 40


@pytest.mark.soak
def test_a_longer_run_killed_before_or_after_any_s3_call_loses_nothing(
    begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 8)
    assert kill_at_every_event(begin, storage, ("blocks.0", "blocks.1")) > 120


def kill_at_random(begin: Begin, storage: Storage, kills: int, made: Path) -> int:
    """Kill runs of 100 dreams at random until they finish, observed all the time. Return the dreams computed twice."""
    chance, layers, killed, again, seen = random.Random(5), ("blocks.0", "blocks.1"), 0, 0, 0
    while killed < kills:
        observer = Observer(storage, begin(seen).job.destination)
        code: int | None = None
        while code != 0:
            attempt = begin(seen, layers).start()
            due = len(observer.dreams) + chance.randrange(12)
            while killed < kills and len(observer.dreams) < due and is_running(attempt):
                observer.look()
            if killed < kills:
                time.sleep(chance.uniform(0, 0.2))
                attempt.kill()
            code = wait(attempt)
            killed += code == -signal.SIGKILL
            observer.look()
            lost = made.stat().st_size - again - seen - len(observer.dreams) if made.exists() else 0
            assert lost <= (IN_FLIGHT if code else 0)
            again += lost
        observer.check_finished(begin(seen, layers).job)
        seen += len(observer.dreams)
    return again


def test_runs_killed_at_random_times_lose_nothing(begin: Begin, storage: Storage, source: str, tmp_path: Path) -> None:
    put_photographs(storage, source, 50)
    assert kill_at_random(begin, storage, 20, tmp_path / "made") < 20 * 0.05 * 100, "at most 5 % of a run for each kill"


@pytest.mark.soak
def test_runs_killed_at_random_times_lose_nothing_in_300_kills(
    begin: Begin, storage: Storage, source: str, tmp_path: Path
) -> None:
    put_photographs(storage, source, 50)
    assert kill_at_random(begin, storage, 300, tmp_path / "made") < 300 * 0.05 * 100


def race(begin: Begin, storage: Storage, races: int) -> None:
    for number in range(races):
        observer = Observer(storage, begin(number).job.destination)
        two = [begin(number).start() for _ in range(2)]
        assert [wait(each) for each in two] == [0, 0]
        observer.check_finished(begin(number).job)


def test_two_concurrent_runs_of_a_job_write_each_row_once(begin: Begin, storage: Storage, source: str) -> None:
    put_photographs(storage, source, 2)
    race(begin, storage, 10)


def test_two_concurrent_runs_of_a_job_share_the_shards(
    begin: Begin, storage: Storage, source: str, tmp_path: Path
) -> None:
    put_photographs(storage, source, 16)
    race(begin, storage, 1)
    made = (tmp_path / "made").stat().st_size  # 19 on average; 24 or more once in 100 runs
    assert 16 <= made < 28, "two runs in the same order would make 32"


@pytest.mark.soak
def test_two_concurrent_runs_of_a_job_write_each_row_once_in_50_races(
    begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 2)
    race(begin, storage, 50)


def suspended_until_the_next_run(begin: Begin, storage: Storage, event: int) -> bool:
    """Another process finishes the run of a suspended process, and another job starts before it wakes up."""
    observer = Observer(storage, begin(event).job.destination)
    with suspended(begin(event, ("blocks.0",), event, signal.SIGSTOP)) as wake:
        assert begin(event).run() == 0
        other = begin(event, ("blocks.0", "blocks.1"), 22)
        assert other.run() == -signal.SIGKILL
        assert (held := run_record.active_run_id(other.job, storage))
        assert wake is None or wake() in (0, REFUSED)
        assert run_record.active_run_id(other.job, storage) == held, "the mark of the other job stays"
    assert begin(event, ("blocks.0", "blocks.1")).run() == 0
    observer.check_finished(other.job)
    return wake is None


def suspended_until_abandoned(begin: Begin, storage: Storage, event: int) -> bool:
    """The run of a suspended process is abandoned, and another job dreams all of it before it wakes up."""
    observer = Observer(storage, begin(event).job.destination)
    with suspended(begin(event, ("blocks.0",), event, signal.SIGSTOP)) as wake:
        protocol.abandon(observer.destination, storage)
        other = begin(event, ("blocks.0", "blocks.1"))
        assert other.run() == 0
        observer.check_finished(other.job)
        assert wake is None or wake() in (0, REFUSED)
    observer.check_finished(other.job)
    return wake is None


SUSPENSIONS = (suspended_until_the_next_run, suspended_until_abandoned)


@pytest.mark.parametrize("suspend", SUSPENSIONS)
def test_a_suspended_run_that_wakes_up_corrupts_nothing(
    suspend: Callable[[Begin, Storage, int], bool], begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 2)
    for event in range(1, 50, 8):
        suspend(begin, storage, event)


@pytest.mark.soak
@pytest.mark.parametrize("suspend", SUSPENSIONS)
def test_a_run_suspended_at_any_s3_call_corrupts_nothing(
    suspend: Callable[[Begin, Storage, int], bool], begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 2)
    assert in_lanes(lambda event: suspend(begin, storage, event)) > 40
