"""The progress of a run: rate, time left, the counts of worker processes, and how the command shows them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest
from rich.console import Console

from flows.machine import terminal
from flows.machine.pace import Pace, ShardCounts, Snapshot, shard_counter
from flows.machine.prefetch import bounded_as_completed
from tests.support.command import REPOSITORY


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_rate_and_the_time_left_are_those_of_new_dreams(clock: Clock) -> None:
    """A resumed run has 300 dreams already, and its workers start for ten seconds."""
    pace = Pace(clock)
    assert str(pace.update(300, 900)) == "300 of 900 dreams"
    clock.seconds += 10
    assert pace.update(302, 900).rate is None, "one count gives no rate"
    for finished in range(304, 324, 2):
        clock.seconds += 1
        snapshot = pace.update(finished, 900)
    assert snapshot.rate == pytest.approx(2.0)
    assert str(snapshot) == "322 of 900 dreams, 2.0 a second, about 5 min left"


def test_the_rate_goes_down_while_nothing_is_finished(clock: Clock) -> None:
    pace = Pace(clock)
    for number in range(5):
        clock.seconds += 1
        pace.update(number, 100)
    clock.seconds += 30
    assert (pace.update(4, 100).rate or 1) < 0.2


def test_the_rate_is_that_of_the_last_minutes(clock: Clock) -> None:
    pace, finished = Pace(clock), 0
    for each in [10] * 100 + [1] * 400:
        clock.seconds += 1
        finished += each
        snapshot = pace.update(finished, 10_000)
    assert snapshot.rate == pytest.approx(1.0, rel=0.05)


def test_the_count_never_goes_back_and_never_exceeds_the_plan(clock: Clock) -> None:
    pace = Pace(clock)
    counts = [pace.update(count, 10).finished for count in (0, 4, 3, 12, 10)]
    assert counts == [0, 4, 4, 10, 10]


@pytest.mark.parametrize(
    ("left", "rate", "text"),
    [
        (30, 1.0, "1.0 a second, about 30 s left"),
        (720, 2.0, "2.0 a second, about 6 min left"),
        (100, 0.05, "3.0 a minute, about 33 min left"),
        (36_000, 1.0, "1.0 a second, about 10.0 h left"),
        (0, 2.0, "2.0 a second"),
    ],
)
def test_the_pace_has_readable_units(left: int, rate: float, text: str) -> None:
    assert Snapshot(100, 100 + left, rate).pace == text


# --- within a shard


def test_a_worker_process_reports_the_dreams_of_its_shard() -> None:
    counts = ShardCounts()
    code = (
        "import sys, time\nfrom flows.machine import pace\npace._WRITE_SECONDS = 0\n"
        "with pace.shard_counter(sys.argv[1], '3') as count:\n"
        "    [count() for _ in range(5)]\n    print('reported', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(counts.folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        assert worker.stdout.readline() == "reported\n"
        with shard_counter(counts.folder, "4") as count:
            count()
            assert counts.total() == 6
        assert counts.total() == 5, "a finished shard counts as a whole"
        worker.kill()
        worker.communicate()
    assert counts.total() == 5, "the dreams of a killed worker are in S3"
    counts.close()
    assert not Path(str(counts.folder)).exists()


def test_progress_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    counts = ShardCounts()
    (Path(str(counts.folder)) / "7").write_text("")  # being written
    assert counts.total() == 0
    counts.close()
    assert counts.total() == 0
    with shard_counter(str(tmp_path / "missing"), "0") as count:
        count()
    with shard_counter(None, "0") as count:
        count()


def test_without_a_temporary_folder_only_finished_shards_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    counts = ShardCounts()
    assert (counts.folder, counts.total()) == (None, 0)
    counts.close()


def test_none_is_yielded_while_no_item_completes() -> None:
    future = Future[int]()
    completed = bounded_as_completed(lambda _: future, [1], 2, tick=0.01)
    assert list(islice(completed, 3)) == [None, None, None]
    future.set_result(5)
    assert [each.result() for each in completed if each] == [5]


# --- on standard error


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """Return a function that returns the lines on standard error."""
    monkeypatch.setattr(terminal, "screen", Console(stderr=True, markup=False, highlight=False, width=100))
    return lambda: capsys.readouterr().err.splitlines()  # type: ignore[return-value]


def test_a_pipe_gets_the_run_a_line_every_half_minute_and_one_at_the_end(
    clock: Clock, shown: Callable[[], list[str]]
) -> None:
    with terminal.run_progress(clock) as display:
        display.start("20261128T000000Z-abc", "s3://dreams/a/")
        for finished in range(0, 91):
            display.show(Snapshot(finished, 90, 1.0))
            clock.seconds += 1
    assert shown() == [
        "run 20261128T000000Z-abc -> s3://dreams/a/",
        "30 of 90 dreams, 1.0 a second, about 60 s left",
        "60 of 90 dreams, 1.0 a second, about 30 s left",
        "90 of 90 dreams, 1.0 a second",
    ]


def test_a_stopped_run_ends_with_its_progress(clock: Clock, shown: Callable[[], list[str]]) -> None:
    with suppress(KeyboardInterrupt), terminal.run_progress(clock) as display:
        display.start("r", "s3://dreams/a/")
        display.show(Snapshot(3, 90))
        raise KeyboardInterrupt
    assert shown() == ["run r -> s3://dreams/a/", "3 of 90 dreams"]


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_bar_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "screen", Console(stderr=True, force_terminal=True, width=100, color_system=None))
    with terminal.run_progress() as display:
        display.start("r", "s3://dreams/a/")
        display.show(Snapshot(45, 90, 1.5))
    shown = capsys.readouterr().err
    assert "run r -> s3://dreams/a/" in shown
    assert "45/90 1.5 a second, about 30 s left" in shown


@pytest.mark.parametrize("at_first", ["", "Loading the network ..."])
def test_a_terminal_shows_what_a_command_waits_for_before_its_first_step(
    at_first: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "screen", Console(stderr=True, force_terminal=True, width=100, color_system=None))
    with terminal.progress("dreaming", at_first) as show:
        show(3, 90)
    waiting, bar, _ = capsys.readouterr().err.partition("3/90")
    assert bar
    assert (at_first or "dreaming ...") in waiting
