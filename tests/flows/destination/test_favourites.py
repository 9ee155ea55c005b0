"""Marks of dreams: the newest counts, all readers agree, and no acknowledged mark is lost, whatever is killed."""

import io
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamcore.errors import InvalidInput, Unavailable
from flows.destination import favourites
from flows.destination.favourites import Mark, Marks, damaged_marks, merge_marks, read_marks
from flows.local.stack import Stack
from flows.results.verify import verify
from flows.s3 import layout
from flows.s3.storage import ObjectInfo, RetryPolicy, Storage
from tests.support.faults import Fault, Proxy

IDS = [f"{number:016x}" for number in range(4)]
_numbers = count()


def objects(storage: Storage, destination: str) -> list[str]:
    return sorted(info.uri for info in storage.list(layout.favourites_folder(destination)))


def rows_in(storage: Storage, destination: str) -> list[dict[str, object]]:
    found = (storage.read(uri) or b"" for uri in objects(storage, destination))
    return [dict(row) for data in found for row in pq.read_table(io.BytesIO(data)).to_pylist()]


def write(storage: Storage, destination: str, rows: list[tuple[str, int, int]]) -> str:
    """Write an object with marks, as another process does: (result_id, time, mark)."""
    uri = layout.marks_uri(destination, f"20261128T120000Z-{next(_numbers):016x}")
    favourites._write_object(storage, uri, [(name, favourites._Stamped(at, mark)) for name, at, mark in rows])
    return uri


def test_marks_are_added_read_changed_and_removed(storage: Storage, destination: str) -> None:
    here, there = Marks(destination, storage), Marks(destination, storage)
    assert here.read() == {}
    here.add([Mark(IDS[0], 4, "s3://photos/a.jpg", "ab" * 8), Mark(IDS[1], -1), Mark(IDS[2], 5)])
    before = there.read()
    assert before == {IDS[0]: 4, IDS[1]: -1, IDS[2]: 5}
    there.add([Mark(IDS[0], 0), Mark(IDS[1], 2)])
    assert here.read() == there.read() == read_marks(destination, storage) == {IDS[1]: 2, IDS[2]: 5}
    assert before == {IDS[0]: 4, IDS[1]: -1, IDS[2]: 5}, "a mapping that was returned does not change"
    first = next(row for row in rows_in(storage, destination) if row["mark"] == 4)
    assert (first["result_id"], first["source_uri"], first["settings_id"]) == (IDS[0], "s3://photos/a.jpg", "ab" * 8)
    assert abs(datetime.now(UTC) - first["time"]) < timedelta(minutes=10)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("result_id", "mark"), [("12", 3), ("g" * 16, 3), (IDS[0] + "0", 3), (IDS[0], 6), (IDS[0], -2)]
)
def test_a_wrong_mark_is_refused(result_id: str, mark: int) -> None:
    with pytest.raises(InvalidInput):
        Mark(result_id, mark)


def test_only_new_objects_are_read(stack: Stack, storage: Storage, proxy: Proxy, destination: str) -> None:
    write(storage, destination, [(IDS[0], 1, 3)])
    reader = Marks(destination, Storage(environment=proxy.environment(stack.environment())))
    assert reader.read() == {IDS[0]: 3}
    new = write(storage, destination, [(IDS[1], 1, 4)])
    proxy.calls.clear()
    assert reader.read() == {IDS[0]: 3, IDS[1]: 4}
    assert [call.uri for call, _ in proxy.calls if call.uri.endswith(".parquet")] == [new]


marks = st.tuples(st.sampled_from(IDS), st.integers(0, 5), st.integers(-1, 5))


class InMemory(Storage):
    """Objects in a dictionary, for many examples in a second."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter([ObjectInfo(uri, "", 0) for uri in self.objects if uri.startswith(prefix)])

    def read(self, uri: str) -> bytes | None:
        return self.objects.get(uri)

    def write_if_absent(self, uri: str, data: bytes, content_type: str) -> bool:
        return self.objects.setdefault(uri, data) == data

    def delete_many(self, uris: Iterable[str]) -> None:
        for uri in uris:
            self.objects.pop(uri, None)


@settings(max_examples=30)
@given(
    written=st.lists(st.lists(marks, max_size=4), max_size=6),
    merges=st.sets(st.integers(0, 6)),
    killed=st.sets(st.integers(0, 6)),
    shuffled=st.randoms(use_true_random=False),
)
def test_the_newest_mark_counts_in_any_order_and_after_any_merges(
    written: list[list[tuple[str, int, int]]], merges: set[int], killed: set[int], shuffled: random.Random
) -> None:
    expected: dict[str, tuple[int, int]] = {}
    for name, at, mark in (row for rows in written for row in rows):
        expected[name] = max(expected.get(name, (at, mark)), (at, mark))
    storage, destination = InMemory(), "s3://b/d/"
    early = Marks(destination, storage)
    order = list(enumerate(written))
    shuffled.shuffle(order)
    for number, rows in order:
        write(storage, destination, rows)
        before = dict(storage.objects)
        if number in merges:
            merge_marks(destination, storage)
            assert len(storage.objects) == 1
            if number in killed:  # the merge was killed before it deleted anything
                storage.objects |= before
        if number % 2:
            early.read()
    right = {name: mark for name, (_, mark) in expected.items() if mark}
    assert early.read() == read_marks(destination, storage) == right
    merge_marks(destination, storage)
    assert early.read() == read_marks(destination, storage) == right


def test_a_merge_keeps_the_newest_row_of_each_dream_with_its_columns(storage: Storage, destination: str) -> None:
    one = Marks(destination, storage)
    one.add([Mark(IDS[0], 1, "s3://photos/a.jpg", "ab" * 8), Mark(IDS[1], 2)])
    one.add([Mark(IDS[0], 0, "s3://photos/a.jpg", "ab" * 8)])
    newest = {
        row["result_id"]: row for row in rows_in(storage, destination) if (row["result_id"], row["mark"]) != (IDS[0], 1)
    }
    storage.write(f"{layout.favourites_folder(destination)}README.txt", b"mine", "text/plain")
    assert merge_marks(destination, storage) == 2
    readme, merged = objects(storage, destination)
    assert readme.endswith("README.txt")
    storage.delete(readme)
    assert {row["result_id"]: row for row in rows_in(storage, destination)} == newest, "the mark 0 stays, too"
    assert merge_marks(destination, storage) == 0
    one.add([Mark(IDS[2], 3)])
    merge_marks(destination, storage)
    (again,) = objects(storage, destination)
    assert again > merged, "the objects of a merge come before it in every listing"


def test_objects_that_are_merged_while_they_are_read_are_found_in_the_next_listing(
    storage: Storage, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(IDS):
        write(storage, destination, [(name, 1, number + 1)])
    other = Storage()
    read_object = storage.read

    def read(uri: str) -> bytes | None:
        monkeypatch.undo()
        merge_marks(destination, other)
        return read_object(uri)

    monkeypatch.setattr(storage, "read", read)
    assert read_marks(destination, storage) == {name: number + 1 for number, name in enumerate(IDS)}


def test_marks_added_within_a_moment_are_one_object(storage: Storage, destination: str) -> None:
    shared = Marks(destination, storage)
    start = threading.Barrier(20)

    def add(number: int) -> None:
        start.wait()
        shared.add([Mark(f"{number:016x}", 3)])

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(add, range(20)))
    assert len(read_marks(destination, storage)) == 20
    assert len(objects(storage, destination)) <= 3


def test_a_mark_is_newer_than_the_known_one_of_a_fast_clock(storage: Storage, destination: str) -> None:
    tomorrow = time.time_ns() // 1000 + 24 * 3600 * 10**6
    write(storage, destination, [(IDS[0], tomorrow, 5)])
    here = Marks(destination, storage)
    here.read()
    here.add([Mark(IDS[0], 2), Mark(IDS[0], 1), Mark(IDS[1], 1)])
    assert read_marks(destination, storage) == {IDS[0]: 1, IDS[1]: 1}
    assert sum(row["time"] > datetime.now(UTC) for row in rows_in(storage, destination)) == 3, "others keep their time"  # type: ignore[operator]


def test_the_last_mark_of_a_group_counts_and_a_wrong_one_stops_no_later_ones(
    storage: Storage, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(favourites, "GROUP_SECONDS", 0.5)
    here = Marks(destination, storage)
    with pytest.raises(InvalidInput):
        here.add(Mark(IDS[0], number) for number in (1, 9))
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(here.add, [Mark(IDS[0], 5)])
        while here._group is None:
            time.sleep(0.001)
        here.add([Mark(IDS[0], 2)])
        first.result()
    assert here.read() == {IDS[0]: 2}
    assert len(objects(storage, destination)) == 1


def test_a_mark_that_is_not_written_is_not_acknowledged(
    stack: Stack, storage: Storage, proxy: Proxy, destination: str
) -> None:
    proxy.choose = lambda call: Fault.SLOW_DOWN if call.method == "PUT" else None
    failing = Marks(destination, Storage(RetryPolicy(0, 5), proxy.environment(stack.environment())))

    def add(number: int) -> str:
        try:
            failing.add([Mark(IDS[number], 3)])
        except Unavailable:
            return "refused"
        return "added"

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(add, range(4))) == ["refused"] * 4
    assert failing.read() == {}
    proxy.choose = lambda _call: None
    assert add(0) == "added"
    assert failing.read() == read_marks(destination, storage) == {IDS[0]: 3}


def test_many_objects_are_merged_while_marks_are_added(
    storage: Storage, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(favourites, "GROUP_SECONDS", 0)
    monkeypatch.setattr(favourites, "MAX_OBJECTS", 3)
    here = Marks(destination, storage)
    for number in range(10):
        here.add([Mark(f"{number:016x}", 1 + number % 5)])
        assert len(objects(storage, destination)) <= 3 + 1
    assert here.read() == {f"{number:016x}": 1 + number % 5 for number in range(10)}


def test_marks_are_kept_where_they_may_not_be_merged(
    stack: Stack, storage: Storage, proxy: Proxy, destination: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(favourites, "MAX_OBJECTS", 1)
    proxy.choose = lambda call: Fault.KEYS_DENIED if call.method == "POST" else None
    here = Marks(destination, Storage(environment=proxy.environment(stack.environment())))
    for number in range(4):
        here.add([Mark(IDS[number], 3)])
    assert caplog.text.count("marks were not merged") == 1
    assert read_marks(destination, storage) == dict.fromkeys(IDS, 3)


def test_a_damaged_object_is_named(storage: Storage, destination: str) -> None:
    uri = write(storage, destination, [(IDS[0], 1, 3)])
    assert list(damaged_marks(destination, storage)) == []
    for data in (b"PAR1", _parquet({"result_id": IDS}), b""):
        storage.write(uri, data, "")
        for attempt in (read_marks, merge_marks):
            with pytest.raises(InvalidInput, match=f"{uri} cannot be read"):
                attempt(destination, storage)
        assert [found for found, _ in damaged_marks(destination, storage)] == [uri]
    report = verify(storage, destination, lambda _done, _all: None)
    assert [(problem.kind, problem.uri) for problem in report.problems] == [("damaged", uri)]


def _parquet(columns: Mapping[str, list[str]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), sink)
    return sink.getvalue()


def test_duckdb_reads_the_marks_as_documented(storage: Storage, destination: str, tmp_path: Path) -> None:
    here = Marks(destination, storage)
    here.add([Mark(IDS[0], 2), Mark(IDS[1], 5)])
    here.add([Mark(IDS[0], 4)])
    for uri in objects(storage, destination):
        (tmp_path / uri.rpartition("/")[2]).write_bytes(storage.read(uri) or b"")
    query = """
        SELECT result_id, mark FROM read_parquet(?)
        QUALIFY row_number() OVER (PARTITION BY result_id ORDER BY time DESC, mark DESC) = 1 ORDER BY result_id
    """
    assert duckdb.execute(query, [f"{tmp_path}/*.parquet"]).fetchall() == [(IDS[0], 4), (IDS[1], 5)]


# --- killed writers


def _write_forever(environment: Mapping[str, str], destination: str, first: int, acknowledged: Connection) -> None:
    """Add marks of one dream after the other, and say which are acknowledged."""
    favourites.GROUP_SECONDS, favourites.MAX_OBJECTS = 0.005, 8
    marks = Marks(destination, Storage(environment=environment))
    for number in count(first):
        marks.add([Mark(f"{number:016x}", 1 + number % 5)])
        acknowledged.send(number)


@pytest.mark.soak
def test_no_acknowledged_mark_of_two_writers_is_lost_at_any_kill(
    stack: Stack, storage: Storage, destination: str
) -> None:
    """Each writer is killed at a random moment and started again, until both have added 250 marks."""
    processes, chance = multiprocessing.get_context("spawn"), random.Random(1)
    kept: list[set[int]] = [set(), set()]

    def keep_writing(writer: int) -> None:
        kills = 0
        while len(kept[writer]) < 250:
            ours, theirs = processes.Pipe(duplex=False)
            begin = writer * 10**6 + max((number % 10**6 for number in kept[writer]), default=-1) + 1
            process = processes.Process(target=_write_forever, args=(stack.environment(), destination, begin, theirs))
            process.start()
            theirs.close()
            marks_before_kill = chance.randint(1, 60)
            with suppress(EOFError):
                while True:
                    kept[writer].add(ours.recv())
                    marks_before_kill -= 1
                    if not marks_before_kill:
                        time.sleep(chance.random() / 20)
                        os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            assert process.exitcode == -signal.SIGKILL
            kills += 1
        assert kills > 3

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(keep_writing, range(2)))
    found = read_marks(destination, storage)
    for number in kept[0] | kept[1]:
        assert found[f"{number:016x}"] == 1 + number % 5
    assert len(kept[0] | kept[1]) >= 500
    assert len(objects(storage, destination)) < 8 + 8
    merge_marks(destination, storage)
    assert read_marks(destination, storage) == found
