"""Runs and retries survive kill -9, suspension and concurrent runs at any moment: no row is lost or duplicated."""

import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from flows.destination import run_record
from flows.jobs.job import DreamJob
from flows.local.stack import Stack
from flows.machine.machine import dreams_behind
from flows.running import protocol
from flows.s3.storage import Storage
from tests.support.kills import (
    BATCH,
    REFUSED,
    Attempt,
    Observer,
    PartsObserver,
    events_of_each_kind,
    folder_of,
    is_running,
    put_photographs,
    suspended,
    wait,
)

LAYERS = ("blocks.0", "blocks.1")
LANES = 2
"""Concurrent processes of these tests."""
IN_FLIGHT = BATCH + dreams_behind("cpu")
"""Dreams that a worker may lose: the batch in the ascent, and those being encoded or uploaded."""

Begin = Callable[..., Attempt]


@pytest.fixture
def begin(stack: Stack, source: str, destination: str, tmp_path: Path) -> Begin:
    """Return a function that makes an attempt at dreaming this test's photographs into a folder of its destination."""

    def attempt(
        folder: object,
        layers: tuple[str, ...] = ("blocks.0",),
        event: int | str | None = None,
        number: int = signal.SIGKILL,
    ) -> Attempt:
        grid = {"layers": list(layers), "octaves": [1], "steps": [1]}
        place = f"{destination}{folder_of(folder)}/"
        job = DreamJob.model_validate({"source": source, "destination": place, "grid": grid})
        return Attempt(stack.environment(), job, tmp_path / "made", event, number)

    return attempt


def in_lanes(until_finished: Callable[[int], bool]) -> int:
    """Try event 1, 2, 3 ... until an attempt finishes before its event. Return the number of events tried."""

    def lane(first: int) -> int:
        return next(tried for tried, number in enumerate(count(first, LANES)) if until_finished(number))

    with ThreadPoolExecutor(LANES) as lanes:
        return sum(lanes.map(lane, range(1, LANES + 1)))


def all_killed(kill: Callable[[str], bool], events: Sequence[str]) -> bool:
    """Kill a process of its own at each event. Return whether none finished before its event."""
    with ThreadPoolExecutor(LANES) as lanes:
        return not any(list(lanes.map(kill, events)))


def kill_a_run(begin: Begin, storage: Storage, event: int | str) -> bool:
    """Kill a fresh run at an event, check, run it again, check. Return whether it finished before the event."""
    observer = Observer(storage, begin(event).job.destination)
    code = begin(event, LAYERS, event).run()
    observer.look()
    assert code in (0, -signal.SIGKILL)
    if code:
        assert begin(event, LAYERS).run() == 0
    observer.check_finished(begin(event, LAYERS).job)
    return code == 0


def test_a_run_killed_before_or_after_each_kind_of_s3_call_loses_nothing(
    begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 1)
    events = events_of_each_kind(begin("all", LAYERS), reads=True)
    assert len(events) > 30
    assert all_killed(lambda event: kill_a_run(begin, storage, event), events)


@pytest.mark.soak
@pytest.mark.parametrize(("photographs", "kills"), [(1, 40), (8, 120)])
def test_a_run_killed_before_or_after_any_s3_call_loses_nothing(
    begin: Begin, storage: Storage, source: str, photographs: int, kills: int
) -> None:
    put_photographs(storage, source, photographs)
    assert in_lanes(lambda event: kill_a_run(begin, storage, event)) > kills


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
    assert kill_at_random(begin, storage, 6, tmp_path / "made") < 6 * 0.05 * 100, "at most 5 % of a run for each kill"


@pytest.mark.soak
def test_runs_killed_at_random_times_lose_nothing_in_300_kills(
    begin: Begin, storage: Storage, source: str, tmp_path: Path
) -> None:
    put_photographs(storage, source, 50)
    assert kill_at_random(begin, storage, 300, tmp_path / "made") < 300 * 0.05 * 100


def race(begin: Begin, storage: Storage, races: int, processes: int = 2) -> None:
    for number in range(races):
        observer = Observer(storage, begin(number).job.destination)
        started = [begin(number).start() for _ in range(processes)]
        assert {wait(each) for each in started} == {0}
        observer.check_finished(begin(number).job)


def test_two_concurrent_runs_of_a_job_write_each_row_once(begin: Begin, storage: Storage, source: str) -> None:
    put_photographs(storage, source, 2)
    race(begin, storage, 5)


def test_three_concurrent_runs_of_a_job_share_the_shards(
    begin: Begin, storage: Storage, source: str, tmp_path: Path
) -> None:
    put_photographs(storage, source, 96)
    race(begin, storage, 1, processes=3)
    made = (tmp_path / "made").stat().st_size
    assert 96 <= made < 120, "three runs that do not share would make 288"


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
    for event in range(1, 50, 12):
        suspend(begin, storage, event)


@pytest.mark.soak
@pytest.mark.parametrize("suspend", SUSPENSIONS)
def test_a_run_suspended_at_any_s3_call_corrupts_nothing(
    suspend: Callable[[Begin, Storage, int], bool], begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 2)
    assert in_lanes(lambda event: suspend(begin, storage, event)) > 40


# --- failed dreams that are tried again

_network = threading.Lock()
"""Lock around runs in this process: a network dreams in one thread at a time."""


def failed_run(begin: Begin, storage: Storage, folder: object, processes: int = 0) -> PartsObserver:
    """Finish a run in which every dream at blocks.1 fails. With 0 processes, all its rows are in one part."""
    attempt = replace(begin(folder, LAYERS), fails_at="blocks.1", processes=processes)
    with _network:
        attempt.run_here(storage)
    return PartsObserver(storage, attempt.job.destination)


def retry(begin: Begin, folder: object, *when: Any) -> Attempt:
    """Return an attempt at the failed dreams of a folder."""
    attempt = begin(folder, LAYERS, *when)
    return replace(attempt, job=attempt.job.model_copy(update={"retry_failed": True}))


def kill_a_retry(begin: Begin, storage: Storage, event: int | str, processes: int) -> bool:
    """Kill a retry at an event, check, run it again, check. Return whether it finished before the event."""
    observer = failed_run(begin, storage, event, processes)
    code = retry(begin, event, event).run()
    observer.look()
    assert code in (0, -signal.SIGKILL)
    if code:
        assert retry(begin, event).run() == 0
    observer.check_retried()
    return code == 0


def test_a_retry_killed_before_or_after_each_kind_of_write_loses_nothing(
    begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 1)
    failed_run(begin, storage, "all")
    events = events_of_each_kind(retry(begin, "all"))
    assert len(events) > 20
    assert all_killed(lambda event: kill_a_retry(begin, storage, event, 0), events)


@pytest.mark.soak
def test_a_longer_retry_killed_before_or_after_any_s3_call_loses_nothing(
    begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 3)
    assert in_lanes(lambda event: kill_a_retry(begin, storage, event, 1)) > 80


def race_retries(begin: Begin, storage: Storage, races: int) -> None:
    for number in range(races):
        observer = failed_run(begin, storage, number, processes=1)
        two = [retry(begin, number).start() for _ in range(2)]
        while any(map(is_running, two)):
            observer.look()
        assert [wait(each) for each in two] == [0, 0]
        observer.check_retried()


def test_two_concurrent_retries_replace_each_row_once(begin: Begin, storage: Storage, source: str) -> None:
    put_photographs(storage, source, 3)
    race_retries(begin, storage, 2)


@pytest.mark.soak
def test_two_concurrent_retries_replace_each_row_once_in_50_races(begin: Begin, storage: Storage, source: str) -> None:
    put_photographs(storage, source, 3)
    race_retries(begin, storage, 50)


def test_a_retry_and_a_run_at_the_same_time_write_each_row_once(begin: Begin, storage: Storage, source: str) -> None:
    put_photographs(storage, source, 1)
    observers = [failed_run(begin, storage, number) for number in range(2)]
    put_photographs(storage, source, 2)
    for number, observer in enumerate(observers):
        both = [retry(begin, number), begin(number, LAYERS)]
        started = [attempt.start() for attempt in both]
        codes = [wait(each) for each in started]
        assert set(codes) in ({0}, {0, REFUSED}), "one of them may find the destination held"
        for attempt, code in zip(both, codes, strict=True):
            assert code == 0 or attempt.run() == 0
        rows = observer.rows()
        assert len(rows) == 4
        assert {row["status"] for row in rows.values()} == {"done"}


def suspend_a_retry(begin: Begin, storage: Storage, event: int) -> bool:
    """A suspended retry is abandoned, and another one tries the same dreams again before it wakes up."""
    observer = failed_run(begin, storage, event)
    with suspended(retry(begin, event, event, signal.SIGSTOP)) as wake:
        protocol.abandon(observer.destination, storage)
        assert retry(begin, event).run() == 0
        observer.check_retried()
        assert wake is None or wake() in (0, REFUSED)
    observer.check_retried()
    return wake is None


def test_a_suspended_retry_that_wakes_up_corrupts_nothing(begin: Begin, storage: Storage, source: str) -> None:
    put_photographs(storage, source, 1)
    for event in range(15, 75, 20):
        suspend_a_retry(begin, storage, event)


@pytest.mark.soak
def test_a_retry_suspended_at_any_s3_call_corrupts_nothing(begin: Begin, storage: Storage, source: str) -> None:
    put_photographs(storage, source, 1)
    assert in_lanes(lambda event: suspend_a_retry(begin, storage, event)) > 40
