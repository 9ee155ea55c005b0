"""`dreamgrid manifest compact`: parts become fewer, rows stay as they are."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamcore.errors import InvalidInput, Unavailable
from flows.destination import history, manifest, run_record
from flows.destination.parts import list_all_parts, list_parts, part_uris
from flows.jobs.cost import CORE, Throughput
from flows.jobs.job import DreamJob
from flows.jobs.plan import make_plan
from flows.planning.scan import plan_settings, scan
from flows.results import compact_mark
from flows.results.compact import SHARDS_PER_PART, CompactReport, compact, groups
from flows.running import protocol
from flows.running.shard import dream_shard
from flows.s3 import layout
from flows.s3.storage import ObjectInfo, Storage
from tests.support.command import Command
from tests.support.compaction import dreamgrid_rows, foreign_rows, identity, plan_of, rows_of, write_run
from tests.support.rows import DONE

ROWS_PER_PART = 9
"""Three shards of the runs here."""


def merge(storage: Storage, destination: str) -> CompactReport:
    return compact(storage, destination, rows_per_part=ROWS_PER_PART)


def names(storage: Storage, destination: str, run_id: str = "r1") -> list[str]:
    """Return the file names of all parts of a run."""
    return [part.uri.rpartition("/")[2] for part in list_all_parts(storage, destination, run_id)]


def rows(storage: Storage, destination: str) -> list[dict[str, Any]]:
    return sorted(manifest.read(storage, destination).to_pylist(), key=lambda row: str(row["source_uri"]))


@given(st.lists(st.integers(0, 12), max_size=60))
def test_groups_are_as_large_as_possible(rows_by_shard: list[int]) -> None:
    found = list(groups(rows_by_shard, 10))
    sizes = [sum(rows_by_shard[shard] for shard in shards) for shards in found]
    assert all(len(shards) > 1 for shards in found)
    assert all(size <= 10 for size in sizes)
    numbers = [shard for shards in found for shard in shards]
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(range(len(rows_by_shard)))
    for shards, size in zip(found, sizes, strict=True):
        assert shards.stop == len(rows_by_shard) or size + rows_by_shard[shards.stop] > 10
    alone = [shard for shard in range(len(rows_by_shard)) if shard not in numbers]
    assert all(rows_by_shard[one] + rows_by_shard[two] > 10 for one, two in pairwise(alone) if two == one + 1)


def test_a_group_has_no_more_parts_than_one_request_deletes() -> None:
    assert list(groups([1] * 2500)) == [range(1000), range(1000, 2000), range(2000, 2500)]
    assert SHARDS_PER_PART == 1000


def test_parts_of_a_finished_run_are_merged(storage: Storage, destination: str) -> None:
    write_run(storage, destination, "r1", 10)
    before = rows(storage, destination)
    report = merge(storage, destination)
    expected = ["shards-000000-000002", "shards-000003-000005", "shards-000006-000008", "shard-000009"]
    assert names(storage, destination) == [f"{name}.parquet" for name in expected]
    assert rows(storage, destination) == before
    assert set(foreign_rows(storage, destination).values()) == {1}
    (run,) = report.runs
    assert (run.run_id, run.parts_before, run.parts_after) == ("r1", 10, 4)
    assert run.bytes_after < run.bytes_before
    assert report.left_alone == []
    assert history.has_valid_index(destination, "r1", storage)
    assert storage.find(layout.compaction_uri(destination)) is None
    assert merge(storage, destination).runs == []


def test_a_merged_part_names_what_it_replaces(storage: Storage, destination: str) -> None:
    write_run(storage, destination, "r1", 2)
    replaced = {part.uri.rpartition("/")[2]: part.etag for part in list_parts(storage, destination)}
    merge(storage, destination)
    (uri,) = part_uris(storage, destination)
    schema = pq.read_schema(io.BytesIO(storage.read(uri) or b""))
    assert json.loads(schema.metadata[manifest.MERGED]) == replaced
    assert schema.metadata[b"dreamgrid.schema_version"] == manifest.SCHEMA_VERSION.encode()


def test_an_unfinished_run_and_a_run_of_one_part_stay(storage: Storage, destination: str) -> None:
    write_run(storage, destination, "r1", 6)
    write_run(storage, destination, "r2", 1)
    storage.delete(layout.success_uri(destination, "r1"))
    assert merge(storage, destination).runs == []
    assert (len(names(storage, destination)), len(names(storage, destination, "r2"))) == (6, 1)


def test_the_index_gives_the_same_answers(storage: Storage, destination: str) -> None:
    write_run(storage, destination, "r1", 7)
    before = history.finished_dreams(destination, storage)
    merge(storage, destination)
    after = history.finished_dreams(destination, storage)
    for name in ("keys", "failed", "sources"):
        assert getattr(after, name).tolist() == getattr(before, name).tolist()
    found = history.parts_with([rows_of("r1", 4, 1)[0].source_uri], destination, storage)
    assert found == [layout.part_uri(destination, "r1", 3, 5)]
    ((run_id, parts),) = history.parts_with_failures(destination, storage)
    assert (run_id, [list(part.shards) for part in parts]) == ("r1", [[0, 1, 2], [3, 4, 5], [6]])


def write_part(storage: Storage, uri: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write(uri, sink.getvalue(), manifest.CONTENT_TYPE)


def test_columns_of_other_versions_are_kept(storage: Storage, destination: str) -> None:
    written = write_run(storage, destination, "r1", 3)
    uris = part_uris(storage, destination)
    first, second, _ = (pq.read_table(io.BytesIO(storage.read(uri) or b"")) for uri in uris)
    write_part(storage, uris[0], first.append_column("later", pa.array(["x"] * len(first))))
    write_part(storage, uris[1], second.drop_columns(["result_id", "stage_scores"]))
    merge(storage, destination)
    (uri,) = part_uris(storage, destination)
    table = pq.read_table(io.BytesIO(storage.read(uri) or b""))
    assert table.schema.names == [*manifest.SCHEMA.names, "later"]
    assert table["later"].to_pylist() == ["x"] * 3 + [None] * 6
    assert table["result_id"].to_pylist() == [row.result_id for row in written]
    assert table["stage_scores"].to_pylist()[3:6] == [None] * 3


def spoil(storage: Storage, uri: str) -> None:
    storage.write(uri, b"PAR1", manifest.CONTENT_TYPE)


def add_rows_of_another_shard(storage: Storage, uri: str) -> None:
    storage.write(uri, manifest.to_parquet([*rows_of("r1", 4, 3), DONE]), manifest.CONTENT_TYPE)


def change_the_type_of_an_unknown_column(storage: Storage, uri: str) -> None:
    for number, each in enumerate((uri, layout.part_uri(uri.partition("manifest/")[0], "r1", 3))):
        table = pq.read_table(io.BytesIO(storage.read(each) or b""))
        write_part(storage, each, table.append_column("later", pa.array([("x", 1)[number]] * len(table))))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (Storage.delete, "is missing, so the parts of the shards 3 to 5 were not merged"),
        (spoil, "cannot be merged"),
        (add_rows_of_another_shard, "it has rows of another shard"),
        (change_the_type_of_an_unknown_column, "cannot be merged"),
    ],
)
def test_a_group_with_a_bad_part_is_left_alone(
    damage: Callable[[Storage, str], None],
    why: str,
    storage: Storage,
    destination: str,
    dreamgrid_inprocess: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flows.results.compact.compact.__defaults__", (lambda _done, _all: None, ROWS_PER_PART))
    write_run(storage, destination, "r1", 9)
    damage(storage, layout.part_uri(destination, "r1", 4))
    done = dreamgrid_inprocess("manifest", "compact", destination, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    (left,) = {each["why"] for each in report["left_alone"]} - {
        each["why"] for each in report["left_alone"] if each["why"].startswith("a part of this run")
    }
    assert why in left
    assert {"shards-000000-000002.parquet", "shards-000006-000008.parquet"} < set(names(storage, destination))
    assert not {"shards-000003-000005.parquet"} & set(names(storage, destination))
    assert storage.find(layout.compaction_uri(destination)) is None


@pytest.mark.parametrize("plan", [b"PAR1", None])
def test_a_run_without_a_readable_plan_is_left_alone(plan: bytes | None, storage: Storage, destination: str) -> None:
    write_run(storage, destination, "r1", 3)
    uri = layout.plan_uri(destination, "r1")
    storage.delete(uri)
    if plan:
        storage.write(uri, plan, manifest.CONTENT_TYPE)
    report = merge(storage, destination)
    assert [each.uri for each in report.left_alone] == [layout.run_folder(destination, "r1")]
    assert len(names(storage, destination)) == 3


def test_a_part_that_was_written_again_is_reported(storage: Storage, destination: str) -> None:
    """As by a process that was frozen and killed before it could remove its part."""
    written = write_run(storage, destination, "r1", 3)
    merge(storage, destination)
    uri = layout.part_uri(destination, "r1", 1)
    again = [replace(row, seconds=9.0) for row in rows_of("r1", 1, 3)]
    storage.write(uri, manifest.to_parquet(again), manifest.CONTENT_TYPE)
    assert dreamgrid_rows(storage, destination) == dict.fromkeys(map(identity, written), 1)
    assert 9.0 not in manifest.read(storage, destination, ["seconds"])["seconds"].to_pylist()
    report = merge(storage, destination)
    assert [each.uri for each in report.left_alone] == [uri]
    assert "delete it" in report.left_alone[0].why
    assert storage.find(uri), "it is not deleted"
    storage.delete(uri)
    assert merge(storage, destination).left_alone == []


def test_a_reader_that_listed_before_finds_each_row_once(storage: Storage, destination: str) -> None:
    written = write_run(storage, destination, "r1", 7)
    listed = part_uris(storage, destination)
    merge(storage, destination)
    columns = ["source_uri", "shard"]
    tables = list(manifest.read_parts(storage, listed, columns))
    assert [table.schema.names for table in tables] == [columns] * 7
    assert [table["source_uri"].to_pylist() for table in tables] == [
        [row.source_uri for row in written if row.shard == shard] for shard in range(7)
    ]
    storage.delete(layout.part_uri(destination, "r1", 6))
    assert len(manifest.read_rows(storage, listed, columns)) == 18, "a part that nobody merged has no rows"


class SlowLister(Storage):
    """A storage that calls a function in the middle of each listing of the manifest.

    Args:
        is_sorted: whether objects are listed in the order of their keys.
        after: number of objects that are listed before the call.
        then: the function.
    """

    def __init__(self, is_sorted: bool, after: int, then: Callable[[], object]) -> None:
        super().__init__()
        self.is_sorted, self.after, self.then = is_sorted, after, then

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects one by one; each is found at the moment when it is yielded."""
        known = sorted({info.uri for info in super().list(prefix)} | self.future(prefix), reverse=not self.is_sorted)
        for number, uri in enumerate(known):
            if (info := self.find(uri)) is not None:
                yield info
            if number + 1 == self.after and "/manifest/" in prefix:
                self.then()

    def future(self, prefix: str) -> set[str]:
        """Return the addresses that `then` may create."""
        destination = prefix.partition("manifest/")[0]
        return {layout.part_uri(destination, "r1", first, first + 2) for first in (0, 3)}


@pytest.mark.parametrize(("is_sorted", "after"), [(True, 1), (True, 5), (False, 5)])
def test_parts_that_are_merged_while_they_are_listed_are_listed_once(
    is_sorted: bool, after: int, storage: Storage, destination: str
) -> None:
    written = write_run(storage, destination, "r1", 6)
    slow = SlowLister(is_sorted, after, lambda: merge(storage, destination))
    assert dreamgrid_rows(slow, destination) == dict.fromkeys(map(identity, written), 1)
    assert len(names(storage, destination)) == 2, "the parts were merged"


def test_covered_parts_of_a_killed_compaction_are_not_read(storage: Storage, destination: str) -> None:
    written = write_run(storage, destination, "r1", 6)
    parts = {info.uri: storage.read(info.uri) or b"" for info in list_parts(storage, destination)}
    merge(storage, destination)
    for uri, data in parts.items():
        storage.write(uri, data, manifest.CONTENT_TYPE)
    assert dreamgrid_rows(storage, destination) == dict.fromkeys(map(identity, written), 1)
    assert history.has_valid_index(destination, "r1", storage)
    report = merge(storage, destination)
    assert (report.runs[0].parts_before, report.runs[0].parts_after) == (8, 2)
    assert len(names(storage, destination)) == 2


def test_a_stopped_compaction_leaves_its_mark_and_is_finished(storage: Storage, destination: str) -> None:
    written = write_run(storage, destination, "r1", 6)

    def stop(done: int, _all: int) -> None:
        if done:
            raise Unavailable("the store is gone")

    with pytest.raises(Unavailable):
        compact(storage, destination, stop, ROWS_PER_PART)
    assert storage.find(layout.compaction_uri(destination))
    assert not history.has_valid_index(destination, "r1", storage)
    assert dreamgrid_rows(storage, destination) == dict.fromkeys(map(identity, written), 1)
    merge(storage, destination)
    assert storage.find(layout.compaction_uri(destination)) is None
    assert history.has_valid_index(destination, "r1", storage)


def test_the_index_of_a_compaction_killed_before_it_was_written_is_written(storage: Storage, destination: str) -> None:
    write_run(storage, destination, "r1", 3)
    index = storage.read(layout.index_uri(destination, "r1")) or b""
    mark, _ = compact_mark.claim(destination, storage)
    merge(storage, destination)
    storage.write(layout.index_uri(destination, "r1"), index, manifest.CONTENT_TYPE)
    assert storage.write_if_absent(layout.compaction_uri(destination), mark, "application/json")
    assert merge(storage, destination).runs == []
    assert history.has_valid_index(destination, "r1", storage)


def test_the_mark_of_another_compaction_stays(storage: Storage, destination: str) -> None:
    first, resumes = compact_mark.claim(destination, storage)
    second, resumes_second = compact_mark.claim(destination, storage)
    assert (resumes, resumes_second) == (False, True)
    compact_mark.release(destination, first, storage)
    assert storage.read(layout.compaction_uri(destination)) == second
    compact_mark.release(destination, second, storage)
    assert storage.find(layout.compaction_uri(destination)) is None


def job_for(source: str, destination: str, **fields: Any) -> DreamJob:
    grid = {"layers": ["blocks.0"], "octaves": [1], "steps": [1]}
    return DreamJob.model_validate({"source": source, "destination": destination, "grid": grid, **fields})


def test_a_compaction_refuses_while_a_retry_is_unfinished(
    storage: Storage, source: str, destination: str, dreamgrid_inprocess: Command
) -> None:
    write_run(storage, destination, "r1", 3)
    job = job_for(source, destination, retry_failed=True)
    run, _ = protocol.claim(job, plan_settings(job), storage)
    refused = dreamgrid_inprocess("manifest", "compact", destination)
    assert refused.returncode == 2
    assert f"held by the unfinished run {run.run_id}, which tries failed dreams again" in refused.stderr
    assert (len(names(storage, destination)), storage.find(layout.compaction_uri(destination))) == (3, None)


def test_a_retry_refuses_during_a_compaction_and_an_ordinary_run_does_not(
    storage: Storage, source: str, destination: str
) -> None:
    write_run(storage, destination, "r1", 3)
    mark, _ = compact_mark.claim(destination, storage)
    job = job_for(source, destination, retry_failed=True)
    with pytest.raises(InvalidInput, match=f"finish it with `dreamgrid manifest compact {destination}`"):
        run_record.resumable_run(job, plan_settings(job), storage)
    run, _ = protocol.claim(job, plan_settings(job), storage)
    with pytest.raises(InvalidInput, match=r"parts of the manifest of .* are being merged"):
        protocol.give_up_during_compaction(run, storage)
    assert run_record.read_mark(destination, storage) is None, "the destination is free"
    with pytest.raises(Unavailable, match="another process ended the run"):  # such as a frozen attempt at this retry
        protocol.freeze(run, plan_of(rows_of("r1", 0, 1)), storage)
    ordinary = job_for(source, destination)
    assert run_record.resumable_run(ordinary, plan_settings(ordinary), storage) is None
    compact_mark.release(destination, mark, storage)
    assert run_record.resumable_run(job, plan_settings(job), storage) is None


def test_a_retry_with_a_plan_goes_on(storage: Storage, source: str, destination: str) -> None:
    """Another attempt at it came before the compaction, which then sees the retry and gives up."""
    job = job_for(source, destination, retry_failed=True)
    run, _ = protocol.claim(job, plan_settings(job), storage)
    frozen = protocol.freeze(run, plan_of(rows_of("r1", 0, 1)), storage)
    storage.write(layout.compaction_uri(destination), b'{"id": "x", "state": "checking"}', "application/json")
    assert protocol.give_up_during_compaction(run, storage) == frozen
    assert run_record.read_mark(destination, storage)
    with pytest.raises(InvalidInput):
        merge(storage, destination)
    assert storage.find(layout.compaction_uri(destination)) is None


def test_a_process_that_writes_a_merged_part_again_removes_it(storage: Storage, source: str, destination: str) -> None:
    storage.write(f"{source}page.png", b"<html>no photograph</html>", "image/png")  # a row without a dream
    storage.write(f"{source}text.png", b"no photograph either", "image/png")
    job = job_for(source, destination)
    run, _ = protocol.claim(job, plan_settings(job), storage)
    everything = make_plan(scan(job, storage).sources, run.settings, lambda _key: False, Throughput(2, CORE))
    plan = protocol.freeze(run, everything, storage)
    for shard in plan:
        assert dream_shard(run, shard, storage) == {"failed": 1}
    protocol.finish(run, plan, 1.0, storage)
    merge(storage, destination)
    before = list_all_parts(storage, destination)
    assert len(before) == 1
    for shard in plan:
        assert dream_shard(run, shard, storage) == {"failed": 1}
    assert list_all_parts(storage, destination) == before


def test_the_command_shows_what_was_merged(storage: Storage, destination: str, dreamgrid_inprocess: Command) -> None:
    write_run(storage, destination, "r1", 6)
    write_run(storage, destination, "r2", 2)
    shown = dreamgrid_inprocess("manifest", "compact", destination)
    assert shown.returncode == 0, shown.stderr
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert lines[0] == ["run", "parts", "before", "after", "MB", "before", "after"]
    assert [line[:3] for line in lines[1:3]] == [["r1", "6", "1"], ["r2", "2", "1"]]
    assert shown.stdout.splitlines()[-1] == "8 parts of 2 runs became 2."
    again = dreamgrid_inprocess("manifest", "compact", destination)
    assert (again.returncode, again.stdout) == (0, f"nothing to compact in {destination}\n")
    report = json.loads(dreamgrid_inprocess("manifest", "compact", destination, "--json").stdout)
    assert report == {"destination": destination, "runs": [], "left_alone": []}
