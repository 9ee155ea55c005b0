"""The index of a run gives the same keys as its parts, and is ignored if the parts have changed."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from flows.destination import history, manifest
from flows.destination.manifest import Row, to_parquet
from flows.jobs.cost import CORE, Throughput
from flows.jobs.job import DreamJob
from flows.jobs.plan import make_plan
from flows.jobs.work import dream_key
from flows.planning.scan import plan_settings, scan
from flows.running import protocol
from flows.s3 import layout
from flows.s3.layout import part_uri, run_folder
from flows.s3.storage import Storage
from tests.support.kills import put_photographs
from tests.support.rows import DONE, FAILED


class Reader(Storage):
    """A storage that records which objects are read."""

    def __init__(self) -> None:
        super().__init__()
        self.uris: list[str] = []

    def read(self, uri: str) -> bytes | None:
        self.uris.append(uri)
        return super().read(uri)


def rows(run: str, shard: int) -> list[Row]:
    """Return a finished dream and a failure, of photographs that no other shard has."""
    return [
        replace(row, run_id=run, shard=shard, source_uri=f"s3://photos/{run}/{shard}-{row.status}.png")
        for row in (DONE, FAILED)
    ]


@pytest.fixture
def written(storage: Storage, destination: str) -> list[Row]:
    """Rows of four runs of three shards. r1 and r2 have an index, r3 has none, and that of r4 is damaged."""
    for run in ("r1", "r2", "r3", "r4"):
        for shard in range(3):
            storage.write(part_uri(destination, run, shard), to_parquet(rows(run, shard)), manifest.CONTENT_TYPE)
        if run != "r3":
            history.write_index(history.build_index(destination, run, storage), destination, run, storage)
    storage.write(f"{run_folder(destination, 'r4')}index.parquet", b"PAR1", manifest.CONTENT_TYPE)
    return [row for run in ("r1", "r2", "r3", "r4") for shard in range(3) for row in rows(run, shard)]


def keys(found: list[Row]) -> list[int]:
    return sorted(dream_key(row.source_uri, row.source_etag, row.settings_id) for row in found)


def check(destination: str, expected: list[Row], read_in_full: list[str]) -> None:
    """Assert that the finished dreams are those of `expected`, and that only parts of these runs were read."""
    reader = Reader()
    done = history.finished_dreams(destination, reader)
    assert done.keys.tolist() == keys(expected)
    assert done.failed.tolist() == keys([row for row in expected if row.status != "done"])
    parts = {layout.run_id_of_part(uri) for uri in reader.uris if "/manifest/" in uri}
    assert sorted(parts) == read_in_full


def test_parts_of_runs_with_an_index_are_not_read(destination: str, written: list[Row]) -> None:
    check(destination, written, ["r3", "r4"])


def test_parts_of_an_abandoned_run_are_not_read(storage: Storage, source: str, destination: str) -> None:
    put_photographs(storage, source, 3)
    job = DreamJob.model_validate({"source": source, "destination": destination})
    run, _ = protocol.claim(job, plan_settings(job), storage)
    everything = make_plan(scan(job, storage).sources, run.settings, lambda _key: False, Throughput(4, CORE))
    (shard, *others) = protocol.freeze(run, everything, storage)
    assert others
    done = rows(run.run_id, shard.number)
    storage.write(part_uri(destination, run.run_id, shard.number), to_parquet(done), manifest.CONTENT_TYPE)
    protocol.abandon(destination, storage)
    check(destination, done, [])


def delete_part(storage: Storage, part: str) -> list[Row]:
    storage.delete(part)
    return []


def replace_part(storage: Storage, part: str) -> list[Row]:
    storage.write(part, to_parquet([FAILED]), manifest.CONTENT_TYPE)
    return [FAILED]


@pytest.mark.parametrize("change", [delete_part, replace_part])
def test_an_index_of_other_parts_is_ignored(
    change: Callable[[Storage, str], list[Row]], storage: Storage, destination: str, written: list[Row]
) -> None:
    added = change(storage, part_uri(destination, "r2", 1))
    left = [row for row in written if (row.run_id, row.shard) != ("r2", 1)]
    check(destination, left + added, ["r2", "r3", "r4"])


@pytest.mark.usefixtures("written")
def test_parts_with_returns_indexed_parts_of_the_photographs_and_all_others(storage: Storage, destination: str) -> None:
    not_indexed = [part_uri(destination, run, shard) for run in ("r3", "r4") for shard in range(3)]
    sought = ["s3://photos/r1/2-done.png", "s3://photos/r2/0-failed.png", "s3://photos/r2/0-done.png"]
    found = history.parts_with(sought, destination, storage)
    assert sorted(found) == sorted([part_uri(destination, "r1", 2), part_uri(destination, "r2", 0), *not_indexed])


def test_an_empty_destination_has_no_finished_dreams(storage: Storage, destination: str) -> None:
    done = history.finished_dreams(destination, storage)
    assert (len(done.keys), len(done.failed), history.parts_with(["s3://a/b.png"], destination, storage)) == (0, 0, [])
