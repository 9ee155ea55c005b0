"""What earlier runs did: told by their indices as by their parts, and never by an index of other parts."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from flows import history, layout, manifest, protocol
from flows.cost import CORE, Throughput
from flows.job import DreamJob
from flows.layout import part_uri, run_folder
from flows.manifest import Row, to_parquet
from flows.plan import make_plan
from flows.scan import plan_settings, scan
from flows.storage import Storage
from flows.work import dream_key
from tests.support.kills import put_photographs
from tests.support.rows import DONE, FAILED


class Reader(Storage):
    """A storage that notes what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def read(self, uri: str) -> bytes | None:
        self.opened.append(uri)
        return super().read(uri)


def rows(run: str, shard: int) -> list[Row]:
    """A dream and a failure of photographs that no other shard has."""
    return [
        replace(row, run_id=run, shard=shard, source_uri=f"s3://photos/{run}/{shard}-{row.status}.png")
        for row in (DONE, FAILED)
    ]


@pytest.fixture
def told(storage: Storage, destination: str) -> list[Row]:
    """Rows of four runs of three shards: of two there is an index, of one never was, and of one it is torn."""
    for run in ("r1", "r2", "r3", "r4"):
        for shard in range(3):
            storage.write(part_uri(destination, run, shard), to_parquet(rows(run, shard)), manifest.CONTENT_TYPE)
        if run != "r3":
            history.write_index(history.build_index(destination, run, storage), run_folder(destination, run), storage)
    storage.write(f"{run_folder(destination, 'r4')}index.parquet", b"PAR1", manifest.CONTENT_TYPE)
    return [row for run in ("r1", "r2", "r3", "r4") for shard in range(3) for row in rows(run, shard)]


def keys(found: list[Row]) -> list[int]:
    return sorted(dream_key(row.source_uri, row.source_etag, row.settings_id) for row in found)


def check(destination: str, expected: list[Row], opened: list[str]) -> None:
    """What was done before is `expected`, and of the parts only those of the runs in `opened` are read for it."""
    reader = Reader()
    done = history.finished_dreams(destination, reader)
    assert done.keys.tolist() == keys(expected)
    assert done.failed.tolist() == keys([row for row in expected if row.status != "done"])
    parts = {layout.run_id_of_part(uri) for uri in reader.opened if "/manifest/" in uri}
    assert sorted(parts) == opened


def test_finished_runs_are_known_without_their_parts(destination: str, told: list[Row]) -> None:
    check(destination, told, ["r3", "r4"])


def test_a_run_that_was_given_up_is_known_without_its_parts(storage: Storage, source: str, destination: str) -> None:
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


def lose(storage: Storage, part: str) -> list[Row]:
    storage.delete(part)
    return []


def exchange(storage: Storage, part: str) -> list[Row]:
    storage.write(part, to_parquet([FAILED]), manifest.CONTENT_TYPE)
    return [FAILED]


@pytest.mark.parametrize("change", [lose, exchange])
def test_an_index_of_other_parts_counts_for_nothing(
    change: Callable[[Storage, str], list[Row]], storage: Storage, destination: str, told: list[Row]
) -> None:
    instead = change(storage, part_uri(destination, "r2", 1))
    left = [row for row in told if (row.run_id, row.shard) != ("r2", 1)]
    check(destination, left + instead, ["r2", "r3", "r4"])


@pytest.mark.usefixtures("told")
def test_the_parts_of_a_photograph_are_known(storage: Storage, destination: str) -> None:
    every = [part_uri(destination, run, shard) for run in ("r3", "r4") for shard in range(3)]
    sought = ["s3://photos/r1/2-done.png", "s3://photos/r2/0-failed.png", "s3://photos/r2/0-done.png"]
    found = history.parts_with(sought, destination, storage)
    assert sorted(found) == sorted([part_uri(destination, "r1", 2), part_uri(destination, "r2", 0), *every])


def test_nothing_was_done_where_nothing_is(storage: Storage, destination: str) -> None:
    done = history.finished_dreams(destination, storage)
    assert (len(done.keys), len(done.failed), history.parts_with(["s3://a/b.png"], destination, storage)) == (0, 0, [])
