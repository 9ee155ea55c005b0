"""`retry_failed`: failed dreams of earlier runs are tried again, and their rows are replaced in place."""

import io
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamcore.batch import dream_photographs
from dreamcore.errors import DreamgridError, InvalidInput
from flows.destination import history, manifest, run_record
from flows.destination.parts import list_parts, part_uris
from flows.destination.run_record import Run
from flows.jobs.cost import CORE, Throughput
from flows.jobs.job import DreamJob
from flows.jobs.plan import Plan
from flows.jobs.work import Shard
from flows.planning.estimate import estimate
from flows.planning.scan import plan_settings, scan
from flows.results.verify import verify
from flows.running import protocol
from flows.running.protocol import FinishedRun
from flows.running.shard import DreamFunction, dream_shard
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.support import collections
from tests.support.collections import executor
from tests.support.shards import out_of_memory_at, put_photograph

pytestmark = pytest.mark.usefixtures("one_thread")


class Collection(collections.Collection):
    """A collection and its runs in this process."""

    def run(self, job: DreamJob | None = None, dream: DreamFunction = dream_photographs, **fields: Any) -> FinishedRun:
        job = job or self.job(**fields)
        return self.run_job(job, executor(self.storage, dream))

    def rows(self) -> list[dict[str, Any]]:
        rows = [dict(row) for row in manifest.read(self.storage, self.destination).to_pylist()]
        identities = {(row["source_uri"], row["source_etag"], row["settings_id"]) for row in rows}
        assert len(identities) == len(rows), "a dream has two rows"
        return rows

    def problems(self) -> dict[Any, int]:
        return dict(verify(self.storage, self.destination, lambda _done, _all: None).counts)


@pytest.fixture
def collection(storage: Storage, source: str, destination: str) -> Collection:
    """Four photographs and a file that is no image, dreamt at two layers. All dreams at blocks.1 ran out of memory."""
    for number in range(4):
        put_photograph(storage, f"{source}{number}.png", number)
    storage.write(f"{source}page.png", b"<html>no photograph</html>", "image/png")
    made = Collection(storage, source, destination)
    report = made.run(dream=out_of_memory_at("blocks.1")).report
    assert (report.done, report.failed) == (4, 6)
    assert report.failures == {"out_of_memory": 4, "not_an_image": 2}
    return made


def outcomes(rows: list[dict[str, Any]]) -> dict[str, int]:
    found = [str(row["error_kind"] or row["status"]) for row in rows]
    return {kind: found.count(kind) for kind in sorted(set(found))}


def test_failed_dreams_are_tried_again_in_their_own_rows(collection: Collection) -> None:
    before = {row["settings_id"] + row["source_uri"]: row for row in collection.rows()}
    retried = collection.run(retry_failed=True)
    report = retried.report
    assert (report.planned, report.done, report.failed, report.skipped) == (6, 4, 2, 0)
    assert report.failures == {"not_an_image": 2}
    assert report.photographs == 5
    after = {row["settings_id"] + row["source_uri"]: row for row in collection.rows()}
    assert after.keys() == before.keys()
    for key, row in after.items():
        for name in ("run_id", "job_id", "shard"):
            assert row[name] == before[key][name], "the row stays in the part of its run"
        if before[key]["status"] == "done":
            assert row == before[key], "a dream that was made does not change"
        else:
            assert row["created_at"] > before[key]["created_at"]
    assert outcomes(collection.rows()) == {"done": 8, "not_an_image": 2}
    assert collection.problems() == {}
    assert run_record.read_mark(collection.destination, collection.storage) is None
    assert collection.run().report.failed_earlier == 2


def test_only_the_named_kinds_are_tried_again(collection: Collection) -> None:
    report = collection.run(retry_failed=["out_of_memory", "too_small"]).report
    assert (report.planned, report.done) == (4, 4)
    again = collection.run(retry_failed="out_of_memory").report
    assert (again.state, again.run_id) == ("nothing to do", None)
    assert again.summary == f"nothing to do: no dream in {collection.destination} failed with out_of_memory"


def test_dreams_of_every_job_and_run_are_tried_again(collection: Collection) -> None:
    put_photograph(collection.storage, f"{collection.source}new.png", 9)
    collection.run(collection.job("blocks.1", "blocks.2"), out_of_memory_at("blocks.2"))
    assert len({row["run_id"] for row in collection.rows()}) == 2
    report = collection.run(collection.job("blocks.3", retry_failed=True)).report
    assert (report.planned, report.done, report.failed) == (12, 9, 3)
    assert outcomes(collection.rows()) == {"done": 14, "not_an_image": 3}
    assert collection.problems() == {}


def test_a_retry_dreams_no_new_photograph(collection: Collection) -> None:
    put_photograph(collection.storage, f"{collection.source}new.png", 9)
    assert collection.run(retry_failed=True).report.planned == 6
    assert collection.run().report.planned == 2


def test_a_photograph_that_has_gone_or_changed_gets_a_fresh_error(collection: Collection) -> None:
    collection.storage.delete(f"{collection.source}0.png")
    put_photograph(collection.storage, f"{collection.source}1.png", 8)
    report = collection.run(retry_failed=["out_of_memory"]).report
    assert (report.done, report.failed, report.skipped) == (2, 0, 2)
    assert report.summary == "2 done, 2 skipped: 1 source_missing, 1 source_changed"
    assert outcomes(collection.rows()) == {"done": 6, "not_an_image": 2, "source_changed": 1, "source_missing": 1}
    assert collection.run(retry_failed=True).report.planned == 2, "skipped rows are tried again only by their kind"
    assert collection.run(retry_failed=["source_missing"]).report.planned == 1


def test_the_index_is_refreshed(collection: Collection) -> None:
    collection.run(retry_failed=True)
    run_id = collection.rows()[0]["run_id"]
    parts = list_parts(collection.storage, collection.destination, run_id)
    index = pq.read_table(io.BytesIO(collection.storage.read(layout.index_uri(collection.destination, run_id)) or b""))
    assert manifest.value_counts(index["status"]) == {"done": 8, "failed": 2}
    assert history._parse_index(
        collection.storage.read(layout.index_uri(collection.destination, run_id)), parts
    ) is not None  # fmt: skip


def test_an_unfinished_retry_is_another_job(collection: Collection) -> None:
    job = collection.job(retry_failed=True)
    run, _ = protocol.claim(job, plan_settings(job), collection.storage)
    with pytest.raises(InvalidInput, match=f"held by the unfinished run {run.run_id} which tries failed dreams again"):
        collection.run()
    assert DreamJob.model_validate(run_record.active_job(collection.destination, collection.storage)) == job
    assert collection.run(retry_failed=["out_of_memory"]).report.planned == 4, "the kinds may change before the plan"
    normal = collection.job("blocks.4")
    claimed, _ = protocol.claim(normal, plan_settings(normal), collection.storage)
    with pytest.raises(InvalidInput, match=f"held by the unfinished run {claimed.run_id} of this job, which is not a"):
        collection.run(collection.job("blocks.4", retry_failed=True))


def test_the_plan_of_a_retry_can_be_abandoned(collection: Collection) -> None:
    job = collection.job(retry_failed=True)

    def stop(_run: Run, _shards: Iterator[Shard]) -> Generator[Mapping[str, int], None, None]:
        raise KeyboardInterrupt
        yield {}

    with pytest.raises(KeyboardInterrupt):
        protocol.run_job(
            job, plan_settings(job), collection.storage, stop,
            find_sources=lambda each: scan(each, collection.storage), throughput=Throughput(1, CORE),
        )  # fmt: skip
    parts = part_uris(collection.storage, collection.destination)
    found = estimate(job)
    assert (found["planned"], found["refused"]) == (6, None)
    protocol.abandon(collection.destination, collection.storage)
    assert part_uris(collection.storage, collection.destination) == parts
    assert collection.run().report.failed_earlier == 6


def test_a_part_that_disappears_stops_a_retry(collection: Collection) -> None:
    def delete(run: Run, shards: Iterator[Shard]) -> Generator[Mapping[str, int], None, None]:
        for number, shard in enumerate(shards):
            if number == 0 and shard.replaces:
                uri = layout.part_uri(run.destination, shard.replaces.run_id, shard.number)
                collection.storage.delete(uri)
            yield dream_shard(run, shard, collection.storage)

    job = collection.job(retry_failed=True)
    with pytest.raises(DreamgridError, match="parts of its manifest were removed"):
        protocol.run_job(
            job, plan_settings(job), collection.storage, delete,
            find_sources=lambda each: scan(each, collection.storage), throughput=Throughput(1, CORE),
        )  # fmt: skip


def test_dreams_of_an_unreadable_record_are_left_alone(collection: Collection) -> None:
    run_id = collection.rows()[0]["run_id"]
    uri = layout.job_uri(collection.destination, run_id)
    record = collection.storage.read(uri) or b""
    collection.storage.write(uri, record.replace(b'"octaves"', b'"former_name_of_octaves"'), "application/json")
    report = collection.run(retry_failed=True).report
    assert (report.state, report.not_retried) == ("nothing to do", 6)
    assert "except 6 that this version of Dreamgrid" in report.why_nothing
    assert outcomes(collection.rows())["out_of_memory"] == 4


def test_columns_of_other_versions_survive_a_replacement(collection: Collection) -> None:
    run_id = collection.rows()[0]["run_id"]
    for uri in part_uris(collection.storage, collection.destination, run_id):
        table = pq.read_table(io.BytesIO(collection.storage.read(uri) or b""))
        later = table.append_column("later", pa.array(["x"] * len(table))).drop_columns(["stage_scores", "result_id"])
        sink = io.BytesIO()
        pq.write_table(later, sink)
        collection.storage.write(uri, sink.getvalue(), manifest.CONTENT_TYPE)
    collection.run(retry_failed=True)
    uris = part_uris(collection.storage, collection.destination, run_id)
    rows = [row for uri in uris for row in pq.read_table(io.BytesIO(collection.storage.read(uri) or b"")).to_pylist()]
    assert {row["later"] for row in rows if row["layers"][0]["name"] == "blocks.0" and row["status"] == "done"} == {"x"}
    assert {row["later"] for row in rows if row["layers"][0]["name"] == "blocks.1"} == {None}
    assert outcomes(collection.rows()) == {"done": 8, "not_an_image": 2}
    assert all(row["result_id"] in row["result_uri"] for row in rows if row["status"] == "done")


def test_the_frozen_plan_of_a_retry_is_read_as_it_was_written(collection: Collection) -> None:
    plan = collection.run(retry_failed=True).plan
    assert (plan.is_retry, plan.dreams, len(plan)) == (True, 6, len(list(plan)))
    assert len(list(plan.sources())) == 5
    assert all(shard.replaces for shard in Plan(plan.parquet))
