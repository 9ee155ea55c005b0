"""Prunes survive kill -9, suspension and concurrent processes: no other row is lost or loses its object."""

import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from flows.destination import manifest
from flows.destination.history import finished_dreams
from flows.destination.pruned import read_mark
from flows.jobs.job import DreamJob
from flows.jobs.work import dream_keys
from flows.local.stack import Stack
from flows.planning.scan import plan_settings
from flows.results.verify import verify
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.flows.test_kills import all_killed, in_lanes
from tests.support.copies import read_destination, write_destination
from tests.support.kills import (
    REFUSED,
    Attempt,
    Identity,
    events_of_each_kind,
    folder_of,
    put_photographs,
    suspended,
    wait,
)

SOURCE, ORIGINAL = "s3://photos/prune kills/", "s3://dreams/prune kills/"
LAYERS = ("blocks.0", "blocks.1")
_verifying = threading.Lock()
"""Lock around `verify`, so that few decoder processes run at a time."""

Begin = Callable[..., Attempt]


@pytest.fixture(scope="module")
def objects(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """A destination with a run of four dreams in one part, and a run of two dreams in another part."""
    storage = Storage(environment=stack.environment())
    for bucket in ("s3://photos", "s3://dreams"):
        storage.create_bucket(bucket)
    attempt = Attempt(stack.environment(), job(ORIGINAL), tmp_path_factory.mktemp("made") / "made", processes=0)
    for photographs in (2, 3):
        put_photographs(storage, SOURCE, photographs)
        attempt.run_here(storage)
    for name in ("001.png", "002.png"):
        storage.write(layout.sheet_uri(ORIGINAL, name, 1), b"a sheet", "image/jpeg")
    return read_destination(storage, ORIGINAL)


def job(destination: str) -> DreamJob:
    grid = {"layers": list(LAYERS), "octaves": [1], "steps": [1]}
    return DreamJob.model_validate({"source": SOURCE, "destination": destination, "grid": grid})


@pytest.fixture
def begin(stack: Stack, objects: Mapping[str, bytes], storage: Storage, destination: str, tmp_path: Path) -> Begin:
    """Return a function that copies the destination and returns an attempt at pruning the copy."""

    def attempt(folder: object, event: int | str | None = None, number: int = signal.SIGKILL) -> Attempt:
        copy = f"{destination}{folder_of(folder)}/"
        write_destination(storage, objects, ORIGINAL, copy)
        unwanted = next(
            each.settings_id for each in plan_settings(job(copy)) if each.settings.layers[0].layer == LAYERS[1]
        )
        where = f"source_uri like '%/002.png' or settings_id = '{unwanted}'"
        return Attempt(stack.environment(), job(copy), tmp_path / "made", event, number, prune=where)

    return attempt


@dataclass(frozen=True)
class Watcher:
    """Knows which rows of a copy go and which stay."""

    storage: Storage
    destination: str
    going: frozenset[Identity]
    staying: Mapping[Identity, str]
    """The objects of these rows."""

    @classmethod
    def of(cls, attempt: Attempt, storage: Storage) -> "Watcher":
        """Return the watcher of a prune that has not begun."""
        rows = _rows(storage, attempt.job.destination)
        _, unwanted = (each.settings_id for each in plan_settings(attempt.job))
        going = frozenset(row for row in rows if row[0].endswith("/002.png") or row[2] == unwanted)
        assert (len(going), len(rows)) == (4, 6)
        return cls(storage, attempt.job.destination, going, {row: rows[row] for row in rows.keys() - going})

    def look(self) -> None:
        """Check the rows, and that only selected ones lack their object, which `verify` names with the command."""
        rows = _rows(self.storage, self.destination)
        assert self.staying.keys() <= rows.keys() <= self.staying.keys() | self.going
        objects = {info.uri for info in self.storage.list(layout.images_folder(self.destination))}
        assert objects >= set(self.staying.values())
        missing = {uri for uri in rows.values() if uri not in objects}
        if not missing and rows.keys() & self.going:
            return  # nothing to name; `verify` takes long
        with _verifying:
            report = verify(self.storage, self.destination, lambda _done, _all: None)
        assert report.counts == ({"missing": len(missing)} if missing else {})
        for problem in report.problems:
            assert problem.uri in missing
            assert f"run `{read_mark(self.destination, self.storage)}`" in problem.what

    def check_finished(self) -> None:
        """Check that all selected rows are gone with what belongs to them, and stay gone."""
        self.look()
        assert _rows(self.storage, self.destination) == self.staying
        objects = {info.uri for info in self.storage.list(layout.images_folder(self.destination))}
        assert objects == set(self.staying.values())
        (sheet,) = self.storage.list(layout.sheets_folder(self.destination))
        assert sheet.uri.endswith("/001.png.jpg")
        assert read_mark(self.destination, self.storage) is None
        finished = finished_dreams(self.destination, self.storage)
        assert finished(dream_keys(*zip(*self.going, *self.staying, strict=True))).all()


def _rows(storage: Storage, destination: str) -> dict[Identity, str]:
    """Return the object of each row, and check that no dream has two rows."""
    columns = [*manifest.IDENTITY, "result_uri"]
    rows = [tuple(row.values()) for row in manifest.read(storage, destination, columns).to_pylist()]
    found = {(uri, etag, settings_id): result for uri, etag, settings_id, result in rows}
    assert len(found) == len(rows), "a dream has two rows"
    return found


def kill(begin: Begin, storage: Storage, event: int | str) -> bool:
    """Kill a prune at an event, check, prune again, check. Return whether it finished before the event."""
    attempt = begin(event, event)
    watcher = Watcher.of(attempt, storage)
    code = attempt.run()
    assert code in (0, -signal.SIGKILL)
    watcher.look()
    if code:
        assert replace(attempt, event=None).run() == 0
    watcher.check_finished()
    return code == 0


def test_a_prune_killed_before_or_after_each_kind_of_write_is_finished_by_the_next(
    begin: Begin, storage: Storage
) -> None:
    events = events_of_each_kind(begin("all"))
    assert len(events) > 10
    assert all_killed(lambda event: kill(begin, storage, event), events)


@pytest.mark.soak
def test_a_prune_killed_before_or_after_any_s3_call_is_finished_by_the_next(begin: Begin, storage: Storage) -> None:
    assert in_lanes(lambda event: kill(begin, storage, event)) > 50


def race(begin: Begin, storage: Storage, races: int) -> None:
    for number in range(races):
        attempt = begin(number)
        watcher = Watcher.of(attempt, storage)
        two = [attempt.start() for _ in range(2)]
        assert [wait(each) for each in two] == [0, 0]
        watcher.check_finished()


def test_two_equal_prunes_at_the_same_time(begin: Begin, storage: Storage) -> None:
    race(begin, storage, 3)


@pytest.mark.soak
def test_two_equal_prunes_at_the_same_time_in_50_races(begin: Begin, storage: Storage) -> None:
    race(begin, storage, 50)


def race_with_a_run(begin: Begin, storage: Storage, races: int) -> None:
    """Another job dreams at blocks.2 in the destination while it is pruned, and begins at various moments."""
    for number in range(races):
        pruning = begin(number)
        watcher = Watcher.of(pruning, storage)
        grid = pruning.job.grid.model_copy(update={"layers": (*LAYERS, "blocks.2")})
        run = replace(pruning, job=DreamJob.model_validate({**pruning.job.model_dump(), "grid": grid}), prune=None)
        first, second = (pruning, run) if number % 2 else (run, pruning)
        started = [first.start()]
        started.append(second.start())
        assert [wait(each) for each in started] == [0, 0]
        rows = _rows(storage, watcher.destination)
        assert len(rows) == 2 + 3
        assert rows.keys() >= watcher.staying.keys()
        assert not rows.keys() & watcher.going
        objects = {info.uri for info in storage.list(layout.images_folder(watcher.destination))}
        assert objects == set(rows.values())
        assert run.run() == 0
        assert _rows(storage, watcher.destination) == rows


def test_a_prune_and_a_run_at_the_same_time(begin: Begin, storage: Storage) -> None:
    race_with_a_run(begin, storage, 2)


@pytest.mark.soak
def test_a_prune_and_a_run_at_the_same_time_in_30_races(begin: Begin, storage: Storage) -> None:
    race_with_a_run(begin, storage, 30)


def suspend(begin: Begin, storage: Storage, event: int) -> bool:
    """A suspended prune wakes up after the same prune was finished by another process."""
    attempt = begin(event, event, signal.SIGSTOP)
    watcher = Watcher.of(attempt, storage)
    with suspended(attempt) as wake:
        assert replace(attempt, event=None).run() == 0
        watcher.check_finished()
        assert wake is None or wake() in (0, REFUSED)
    # It may have woken up before it wrote its mark.
    assert replace(attempt, event=None).run() == 0
    watcher.check_finished()
    return wake is None


def test_a_suspended_prune_that_wakes_up_corrupts_nothing(begin: Begin, storage: Storage) -> None:
    for event in range(13, 60, 12):
        suspend(begin, storage, event)


@pytest.mark.soak
def test_a_prune_suspended_at_any_s3_call_corrupts_nothing(begin: Begin, storage: Storage) -> None:
    assert in_lanes(lambda event: suspend(begin, storage, event)) > 50
