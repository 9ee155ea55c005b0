"""kill -9, sleep and company at any moment: after a rerun nothing is lost or there twice, and nothing was ever half."""

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
from tests.support.kills import BATCH, REFUSED, Attempt, Observer, lives, put_photographs, sleeping, wait

LANES = 2
"""Processes of these tests at once."""
IN_FLIGHT = BATCH + prefetch_depth("cpu")
"""AscentResult that a worker has not delivered yet: the batch that it makes, and those on their way."""

Begin = Callable[..., Attempt]


@pytest.fixture
def begin(stack: Stack, source: str, destination: str, tmp_path: Path) -> Begin:
    """An attempt at dreaming this test's photographs into a folder of its destination."""

    def attempt(folder: object, layers: tuple[str, ...] = ("blocks.0",), *when: int) -> Attempt:
        grid = {"layers": list(layers), "octaves": [1], "steps": [1]}
        job = DreamJob.model_validate({"source": source, "destination": f"{destination}{folder}/", "grid": grid})
        return Attempt(stack.environment(), job, tmp_path / "made", *when)

    return attempt


def in_lanes(until_through: Callable[[int], bool]) -> int:
    """Try 1, 2, 3 ... until an attempt gets through before it is due; how many were."""

    def lane(first: int) -> int:
        return next(tried for tried, number in enumerate(count(first, LANES)) if until_through(number))

    with ThreadPoolExecutor(LANES) as lanes:
        return sum(lanes.map(lane, range(1, LANES + 1)))


def kill_at_every_event(begin: Begin, storage: Storage, layers: tuple[str, ...]) -> int:
    """A fresh run for each event: killed there, looked at, run again, looked at; the number of kills."""

    def gets_through(event: int) -> bool:
        observer = Observer(storage, begin(event).job.destination)
        code = begin(event, layers, event).run()
        observer.look()
        if code == -signal.SIGKILL:
            assert begin(event, layers).run() == 0
        else:
            assert code == 0
        observer.check_finished(begin(event, layers).job)
        return code == 0

    return in_lanes(gets_through)


def test_killed_before_and_after_every_call_of_a_run(begin: Begin, storage: Storage, source: str) -> None:
    put_photographs(storage, source, 1)
    assert kill_at_every_event(begin, storage, ("blocks.0", "blocks.1")) > 40


@pytest.mark.soak
def test_killed_before_and_after_every_call_of_a_longer_run(begin: Begin, storage: Storage, source: str) -> None:
    put_photographs(storage, source, 8)
    assert kill_at_every_event(begin, storage, ("blocks.0", "blocks.1")) > 120


def kill_at_random(begin: Begin, storage: Storage, kills: int, made: Path) -> int:
    """Runs of 100 dreams, killed again and again until they are through, watched all the time; dreams made again."""
    chance, layers, killed, again, seen = random.Random(5), ("blocks.0", "blocks.1"), 0, 0, 0
    while killed < kills:
        observer = Observer(storage, begin(seen).job.destination)
        code: int | None = None
        while code != 0:
            attempt = begin(seen, layers).start()
            due = len(observer.dreams) + chance.randrange(12)
            while killed < kills and len(observer.dreams) < due and lives(attempt):
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


def test_killed_at_random(begin: Begin, storage: Storage, source: str, tmp_path: Path) -> None:
    put_photographs(storage, source, 50)
    assert kill_at_random(begin, storage, 20, tmp_path / "made") < 20 * 0.05 * 100, "of a run, for each kill"


@pytest.mark.soak
def test_killed_at_random_three_hundred_times(begin: Begin, storage: Storage, source: str, tmp_path: Path) -> None:
    put_photographs(storage, source, 50)
    assert kill_at_random(begin, storage, 300, tmp_path / "made") < 300 * 0.05 * 100


def race(begin: Begin, storage: Storage, races: int) -> None:
    for number in range(races):
        observer = Observer(storage, begin(number).job.destination)
        two = [begin(number).start() for _ in range(2)]
        assert [wait(each) for each in two] == [0, 0]
        observer.check_finished(begin(number).job)


def test_two_at_once_share_the_work(begin: Begin, storage: Storage, source: str) -> None:
    put_photographs(storage, source, 2)
    race(begin, storage, 10)


def test_two_at_once_hardly_do_anything_twice(begin: Begin, storage: Storage, source: str, tmp_path: Path) -> None:
    put_photographs(storage, source, 16)
    race(begin, storage, 1)
    made = (tmp_path / "made").stat().st_size  # by chance about 19, and one time in 100 no fewer than 24
    assert 16 <= made < 28, "in the same order they would make 32"


@pytest.mark.soak
def test_two_at_once_share_the_work_fifty_times(begin: Begin, storage: Storage, source: str) -> None:
    put_photographs(storage, source, 2)
    race(begin, storage, 50)


def sleep_through_the_end(begin: Begin, storage: Storage, event: int) -> bool:
    """Its run is finished by another process, and another job's run has begun when it wakes."""
    observer = Observer(storage, begin(event).job.destination)
    with sleeping(begin(event, ("blocks.0",), event, signal.SIGSTOP)) as wake:
        assert begin(event).run() == 0
        other = begin(event, ("blocks.0", "blocks.1"), 22)
        assert other.run() == -signal.SIGKILL
        assert (held := run_record.active_run_id(other.job, storage))
        assert wake is None or wake() in (0, REFUSED)
        assert run_record.active_run_id(other.job, storage) == held, "it is the other job's still"
    assert begin(event, ("blocks.0", "blocks.1")).run() == 0
    observer.check_finished(other.job)
    return wake is None


def sleep_through_being_given_up(begin: Begin, storage: Storage, event: int) -> bool:
    """Its run is given up, and another job's run has dreamt all of it and more when it wakes."""
    observer = Observer(storage, begin(event).job.destination)
    with sleeping(begin(event, ("blocks.0",), event, signal.SIGSTOP)) as wake:
        protocol.abandon(observer.destination, storage)
        other = begin(event, ("blocks.0", "blocks.1"))
        assert other.run() == 0
        observer.check_finished(other.job)
        assert wake is None or wake() in (0, REFUSED)
    observer.check_finished(other.job)
    return wake is None


SLEEPS = (sleep_through_the_end, sleep_through_being_given_up)


@pytest.mark.parametrize("sleep", SLEEPS)
def test_a_sleeper_that_wakes_up_corrupts_nothing(
    sleep: Callable[[Begin, Storage, int], bool], begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 2)
    for event in range(1, 50, 8):
        sleep(begin, storage, event)


@pytest.mark.soak
@pytest.mark.parametrize("sleep", SLEEPS)
def test_a_sleeper_may_sleep_anywhere(
    sleep: Callable[[Begin, Storage, int], bool], begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 2)
    assert in_lanes(lambda event: sleep(begin, storage, event)) > 40
