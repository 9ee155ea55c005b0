"""A compaction survives kill -9, suspension, runs and retries at any moment: no row is lost or found twice."""

import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from flows.destination import manifest
from flows.destination.history import has_valid_index
from flows.destination.parts import list_all_parts
from flows.jobs.job import DreamJob
from flows.local.stack import Stack
from flows.results.compact import compact
from flows.running import protocol
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.flows.test_kills import all_killed
from tests.support.compaction import Identity, dreamgrid_rows, foreign_rows, identity, write_run
from tests.support.kills import (
    REFUSED,
    Attempt,
    Compaction,
    Observer,
    PartsObserver,
    events_of_each_kind,
    folder_of,
    is_running,
    put_photographs,
    suspended,
    wait,
)

SHARDS, ROWS_PER_PART = 5, 6
"""Two groups of two shards, and one shard that stays alone."""
QUERY = """
    SELECT source_uri, source_etag, settings_id FROM read_parquet('{folder}/**/*.parquet', filename = true)
    QUALIFY row_number() OVER (PARTITION BY source_uri, source_etag, settings_id ORDER BY filename DESC) = 1
"""
"""The query of docs/manifest.md that finds each row once also during a compaction."""

Begin = Callable[..., Compaction]


@pytest.fixture
def begin(stack: Stack, destination: str, source: str, tmp_path: Path) -> Begin:
    """Return a function that makes an attempt at merging the parts in a folder of this test's destination."""

    def attempt(folder: object, event: int | str | None = None, number: int = signal.SIGKILL) -> Compaction:
        grid = {"layers": ["blocks.0", "blocks.1"], "octaves": [1], "steps": [1]}
        place = f"{destination}{folder_of(folder)}/"
        job = DreamJob.model_validate({"source": source, "destination": place, "grid": grid})
        made = tmp_path / "made"
        return Compaction(stack.environment(), job, made, event, number, rows_per_part=ROWS_PER_PART)

    return attempt


def finished_run(begin: Begin, storage: Storage, folder: object) -> tuple[str, Counter[Identity]]:
    """Write a finished run. Return its destination and its rows, each counted once."""
    destination = begin(folder).job.destination
    return destination, Counter(identity(row) for row in write_run(storage, destination, "r1", SHARDS))


def check_in_between(storage: Storage, destination: str, rows: Counter[Identity], folder: Path) -> None:
    """Check what readers find while a compaction is stopped."""
    assert dreamgrid_rows(storage, destination) == rows
    found = foreign_rows(storage, destination)
    assert found.keys() == rows.keys(), "a row is missing"
    assert sum((found - rows).values()) in (0, ROWS_PER_PART), "only the rows of one group may be found twice"
    copy = folder / destination.strip("/").rpartition("/")[2]
    for info in storage.list(layout.manifest_folder(destination)):
        path = copy / info.uri.removeprefix(destination)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(storage.read(info.uri) or b"")
    with duckdb.connect() as database:  # each thread needs its own
        assert Counter(database.execute(QUERY.format(folder=copy)).fetchall()) == rows


def check_merged(storage: Storage, destination: str, rows: Counter[Identity]) -> None:
    """Check what is left by a finished compaction."""
    assert dreamgrid_rows(storage, destination) == foreign_rows(storage, destination) == rows
    assert len(list_all_parts(storage, destination)) == 3
    assert storage.find(layout.compaction_uri(destination)) is None
    assert has_valid_index(destination, "r1", storage)


def kill(begin: Begin, storage: Storage, event: int | str, folder: Path) -> bool:
    """Kill a compaction at an event, check, compact again, check. Return whether it finished before the event."""
    destination, rows = finished_run(begin, storage, event)
    code = begin(event, event).run()
    assert code in (0, -signal.SIGKILL)
    check_in_between(storage, destination, rows, folder)
    report = compact(storage, destination, rows_per_part=ROWS_PER_PART)
    assert report.left_alone == []
    check_merged(storage, destination, rows)
    return code == 0


def test_a_compaction_killed_before_or_after_each_kind_of_write_loses_nothing(
    begin: Begin, storage: Storage, tmp_path: Path
) -> None:
    finished_run(begin, storage, "all")
    events = events_of_each_kind(begin("all"))
    assert len(events) > 8
    assert all_killed(lambda event: kill(begin, storage, event, tmp_path), events)


@pytest.mark.soak
def test_a_compaction_killed_before_or_after_any_s3_call_loses_nothing(
    begin: Begin, storage: Storage, tmp_path: Path
) -> None:
    kills = next(number for number in range(200) if kill(begin, storage, number + 1, tmp_path))
    assert kills > 40


def race(begin: Begin, storage: Storage, races: int) -> None:
    for number in range(races):
        destination, rows = finished_run(begin, storage, number)
        two = [begin(number).start() for _ in range(2)]
        while any(map(is_running, two)):
            assert dreamgrid_rows(storage, destination) == rows
            assert foreign_rows(storage, destination).keys() == rows.keys()
        assert [wait(each) for each in two] == [0, 0]
        compact(storage, destination, rows_per_part=ROWS_PER_PART)  # one may have removed the mark while one worked
        check_merged(storage, destination, rows)


def test_two_concurrent_compactions_merge_each_row_once(begin: Begin, storage: Storage) -> None:
    race(begin, storage, 2)


@pytest.mark.soak
def test_two_concurrent_compactions_merge_each_row_once_in_50_races(begin: Begin, storage: Storage) -> None:
    race(begin, storage, 50)


def suspend(begin: Begin, storage: Storage, event: int) -> bool:
    """Another compaction finishes while one is suspended. Return whether it had finished before the event."""
    destination, rows = finished_run(begin, storage, event)
    with suspended(begin(event, event, signal.SIGSTOP)) as wake:
        compact(storage, destination, rows_per_part=ROWS_PER_PART)
        check_merged(storage, destination, rows)
        assert wake is None or wake() == 0
    check_merged(storage, destination, rows)
    return wake is None


def test_a_suspended_compaction_that_wakes_up_corrupts_nothing(begin: Begin, storage: Storage) -> None:
    for event in range(1, 60, 15):
        suspend(begin, storage, event)


@pytest.mark.soak
def test_a_compaction_suspended_at_any_s3_call_corrupts_nothing(begin: Begin, storage: Storage) -> None:
    assert next(event for event in range(1, 200) if suspend(begin, storage, event)) > 40


# --- with real runs


def run(compaction: Compaction, event: int | None = None, number: int = signal.SIGKILL) -> Attempt:
    """Return an attempt at the job of a compaction, with two photographs in four shards."""
    return Attempt(compaction.environment, compaction.job, compaction.made, event, number, processes=1)


def retry(compaction: Compaction, event: int | None = None, number: int = signal.SIGKILL) -> Attempt:
    """Return an attempt at the failed dreams of a destination."""
    attempt = run(compaction, event, number)
    return replace(attempt, job=attempt.job.model_copy(update={"retry_failed": True}))


def failed_run(begin: Begin, storage: Storage, folder: object) -> PartsObserver:
    """Finish a run with two dreams of each photograph, one in each shard. Every dream at blocks.1 fails."""
    assert replace(run(begin(folder)), fails_at="blocks.1").run() == 0
    observer = PartsObserver(storage, begin(folder).job.destination)
    assert len(list_all_parts(storage, observer.destination)) == len(observer.identities)
    return observer


def merging(begin: Begin, folder: object) -> Compaction:
    """Return a compaction that puts the parts of two shards into one."""
    return replace(begin(folder), rows_per_part=2)


def test_a_retry_replaces_a_merged_part(begin: Begin, storage: Storage, source: str) -> None:
    """Also if the compaction was killed and finished, and if the retry was killed."""
    put_photographs(storage, source, 2)
    for event in (31,):
        observer = failed_run(begin, storage, event)
        shards = {key: row["shard"] for key, row in observer.rows().items()}
        assert replace(merging(begin, event), event=event).run() == -signal.SIGKILL
        assert retry(begin(event)).run() == REFUSED, "first the compaction must be finished"
        assert merging(begin, event).run() == 0
        assert len(list_all_parts(storage, observer.destination)) == 2
        if retry(begin(event), event).run() == -signal.SIGKILL:
            observer.look()
            assert retry(begin(event)).run() == 0
        observer.check_retried()
        assert {key: row["shard"] for key, row in observer.rows().items()} == shards, "a new row keeps its shard"
        run_ids = {part.run_id for part in list_all_parts(storage, observer.destination)}
        assert all(has_valid_index(observer.destination, run_id, storage) for run_id in run_ids)
        assert merging(begin, event).run() == 0
        observer.check_retried()


def test_a_retry_and_a_compaction_at_the_same_time_exclude_each_other(
    begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 1)
    for number in range(2):
        observer = failed_run(begin, storage, number)
        both = [retry(begin(number)), merging(begin, number)]
        started = [attempt.start() for attempt in both]
        codes = [wait(each) for each in started]
        assert set(codes) <= {0, REFUSED}
        for attempt, code in zip(both, codes, strict=True):
            assert code == 0 or attempt.run() == 0
        observer.check_retried()
        assert storage.find(layout.compaction_uri(observer.destination)) is None


def test_a_run_and_a_compaction_at_the_same_time_write_each_row_once(
    begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 2)
    before = failed_run(begin, storage, "both")
    put_photographs(storage, source, 3)
    started = [run(begin("both")).start(), merging(begin, "both").start()]
    while any(map(is_running, started)):
        assert set(dreamgrid_rows(storage, before.destination).values()) == {1}
    assert [wait(each) for each in started] == [0, 0]
    rows = before.rows()
    assert len(rows) == 6
    assert before.identities < set(rows)


def suspended_until_merged(begin: Begin, storage: Storage, event: int) -> bool:
    """Another process finishes the run of a suspended process, and its parts are merged before it wakes up."""
    attempt = run(begin(event))
    destination = attempt.job.destination
    observer = Observer(storage, destination)
    with suspended(replace(attempt, event=event, signal=signal.SIGSTOP)) as wake:
        assert attempt.run() == 0
        compact(storage, destination, rows_per_part=2)
        rows = foreign_rows(storage, destination)
        assert set(rows.values()) == {1}
        assert len(list_all_parts(storage, destination)) == 2
        assert wake is None or wake() in (0, REFUSED)
    assert foreign_rows(storage, destination) == rows, "the part that it wrote is removed"
    assert len(list_all_parts(storage, destination)) == 2
    observer.check_finished(attempt.job)
    return wake is None


def test_a_run_that_wakes_up_after_its_parts_were_merged_corrupts_nothing(
    begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 2)
    for event in range(15, 60, 15):
        suspended_until_merged(begin, storage, event)


@pytest.mark.soak
def test_a_run_suspended_at_any_s3_call_until_its_parts_are_merged_corrupts_nothing(
    begin: Begin, storage: Storage, source: str
) -> None:
    put_photographs(storage, source, 2)
    assert next(event for event in range(1, 200) if suspended_until_merged(begin, storage, event)) > 40


def test_a_retry_that_wakes_up_after_parts_were_merged_loses_no_row(
    begin: Begin, storage: Storage, source: str
) -> None:
    """It was abandoned before. What it replaces then is reported, and the next retry makes the same dreams done."""
    put_photographs(storage, source, 1)
    for event in (35, 55):
        observer = failed_run(begin, storage, event)
        with suspended(retry(begin(event), event, signal.SIGSTOP)) as wake:
            protocol.abandon(observer.destination, storage)
            assert merging(begin, event).run() == 0
            observer.look()
            assert wake is None or wake() in (0, REFUSED)
        assert set(dreamgrid_rows(storage, observer.destination)) == observer.identities
        assert retry(begin(event)).run() == 0
        statuses = manifest.read(storage, observer.destination, ["status"])["status"].to_pylist()
        assert statuses == ["done"] * len(observer.identities)
