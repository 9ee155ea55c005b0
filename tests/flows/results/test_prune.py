"""`dreamgrid prune`: what is selected goes with everything that belongs to it, and nothing else."""

import io
import itertools
import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.parquet as pq
import pytest

from dreamcore.errors import InvalidInput, Unavailable
from flows.destination import history, manifest
from flows.destination.favourites import Mark, Marks
from flows.destination.manifest import Row
from flows.destination.parts import list_parts
from flows.destination.pruned import pruned_dreams, read_mark, read_records, remove_mark, write_mark
from flows.destination.run_record import Run
from flows.destination.selection import select
from flows.jobs.work import Shard
from flows.local.stack import Stack
from flows.planning.scan import plan_settings
from flows.results import compact_mark
from flows.results.compact import compact
from flows.results.prune import Preview, preview, prune
from flows.results.verify import VerifyReport, verify
from flows.running import protocol
from flows.running.protocol import FinishedRun
from flows.running.shard import dream_shard
from flows.s3 import layout
from flows.s3.storage import RetryPolicy, Storage
from tests.support import collections
from tests.support.collections import executor
from tests.support.command import Command
from tests.support.copies import read_destination, write_destination
from tests.support.faults import Fault, Proxy, first
from tests.support.rows import DONE, FAILED
from tests.support.shards import put_photograph

pytestmark = pytest.mark.usefixtures("one_thread")


class Collection(collections.Collection):
    """A collection, and the runs and prunes of its destination in this process."""

    def run(self, *layers: str, **fields: Any) -> FinishedRun:
        return self.run_job(self.job(*layers, **fields), executor(self.storage))

    def preview(self, where: str | None = None, **arguments: Any) -> Preview:
        return preview(self.storage, self.destination, select(where, **arguments))

    def prune(self, where: str | None = None, **arguments: Any) -> str | None:
        return prune(self.storage, self.preview(where, **arguments), lambda _done, _all: None)

    def rows(self) -> list[dict[str, Any]]:
        return [dict(row) for row in manifest.read(self.storage, self.destination).to_pylist()]

    def objects(self, folder: str = "") -> dict[str, str]:
        """Return the ETag of each object below a folder of the destination."""
        return {info.uri: info.etag for info in self.storage.list(f"{self.destination}{folder}")}

    def verify(self) -> VerifyReport:
        return verify(self.storage, self.destination, lambda _done, _all: None)

    def settings_id(self, layer: str) -> str:
        (planned,) = plan_settings(self.job(layer))
        return planned.settings_id


@dataclass(frozen=True)
class Dreamt:
    """A source, and all objects of its finished destination."""

    source: str
    destination: str
    objects: Mapping[str, bytes]


@pytest.fixture(scope="module")
def dreamt(stack: Stack) -> Dreamt:
    """Two photographs and a file that is no image at two layers, and a second run with a third photograph."""
    storage = Storage(environment=stack.environment())
    for bucket in ("s3://photos", "s3://dreams"):
        storage.create_bucket(bucket)
    made = Collection(storage, "s3://photos/prune/", "s3://dreams/prune/")
    for number, name in enumerate(("one", "two")):
        put_photograph(storage, f"{made.source}{name}.png", number)
    storage.write(f"{made.source}page.png", b"<html>no photograph</html>", "image/png")
    made.run()
    put_photograph(storage, f"{made.source}three.png", 3)
    made.run()
    for name in ("one.png", "one.png%2D2", "one.png.png", "two.png", "three.png"):
        storage.write(f"{layout.sheets_folder(made.destination)}{name}.jpg", b"a sheet", "image/jpeg")
    return Dreamt(made.source, made.destination, read_destination(storage, made.destination))


@pytest.fixture
def collection(dreamt: Dreamt, storage: Storage, destination: str) -> Collection:
    """A copy of what was dreamt."""
    write_destination(storage, dreamt.objects, dreamt.destination, destination)
    return Collection(storage, dreamt.source, destination)


def check_rest(collection: Collection, gone: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """Check that exactly these rows and their objects are gone, and that no later run dreams them again."""
    kept = [row for row in before if row not in gone]
    assert sorted(collection.rows(), key=str) == sorted(kept, key=str)
    assert set(collection.objects("images/")) == {row["result_uri"] for row in kept if row["result_uri"]}
    thumbs = {layout.thumb_uri(collection.destination, str(row["result_uri"])) for row in kept if row["result_uri"]}
    assert set(collection.objects("thumbs/")) == thumbs
    report = collection.verify()
    assert (report.counts, report.rows, report.unfinished) == ({}, len(kept), None)
    assert read_mark(collection.destination, collection.storage) is None
    assert collection.run().report.state == "nothing to do"


def test_a_preview_counts_what_would_go_and_changes_nothing(collection: Collection) -> None:
    before, rows = collection.objects(), collection.rows()
    shown = collection.preview("source_uri not like '%three%'", settings=collection.settings_id("blocks.1")[:6])
    chosen = [row for row in rows if row["layers"][0]["name"] == "blocks.1" and "three" not in row["source_uri"]]
    size = sum(row["result_bytes"] or 0 for row in chosen)
    settings = {
        "settings_id": collection.settings_id("blocks.1"),
        "model": "efficientnet_lite0",
        "layers": "blocks.1",
        "octaves": 1,
        "steps": 1,
        "rows": 3,
        "bytes": size,
    }
    assert shown.summary == {
        "rows": 3,
        "statuses": {"done": 2, "failed": 1},
        "photographs": 3,
        "runs": 1,
        "objects": 2,
        "bytes": size,
        "sheets": 0,
        "kept_favourites": 0,
        "settings": [settings],
    }
    assert collection.objects() == before


def test_rows_objects_and_sheets_go_and_the_rest_stays(collection: Collection) -> None:
    before = collection.rows()
    record = collection.prune("source_uri like '%/one.png' or source_uri like '%/three.png'")
    gone = [row for row in before if row["source_uri"].endswith(("/one.png", "/three.png"))]
    assert len(gone) == 4
    sheets = {uri.rpartition("/")[2] for uri in collection.objects("sheets/")}
    assert sheets == {"one.png.png.jpg", "two.png.jpg"}, "photographs with other dreams keep their sheet"
    (written,) = collection.objects("_runs/pruned/")
    assert record == written
    check_rest(collection, gone, before)


def test_failed_rows_go(collection: Collection) -> None:
    before = collection.rows()
    collection.prune("status = 'failed'")
    gone = [row for row in before if row["status"] == "failed"]
    assert len(gone) == 2
    check_rest(collection, gone, before)


def test_several_prunes_add_up_and_an_emptied_part_stays(collection: Collection) -> None:
    before = collection.rows()
    parts = set(collection.objects("manifest/"))
    for layer in ("blocks.0", "blocks.1"):
        collection.prune(settings=collection.settings_id(layer))
    assert set(collection.objects("manifest/")) == parts
    assert len(pruned_dreams(collection.destination, collection.storage).keys) == len(before) == 8
    check_rest(collection, before, before)
    assert collection.objects("sheets/").keys() == {f"{layout.sheets_folder(collection.destination)}one.png.png.jpg"}


def test_a_later_run_needs_no_part_of_a_pruned_run(collection: Collection) -> None:
    collection.prune("source_uri like '%/one.png'")
    for parts, index in history._runs(collection.destination, collection.storage):
        assert index is not None, parts


def test_dreams_without_a_record_are_dreamt_again(collection: Collection) -> None:
    before = collection.rows()
    record = collection.prune("source_uri like '%/one.png'")
    assert record
    collection.storage.delete(record)
    assert collection.verify().counts == {"lost": 2}
    assert collection.run().report.done == 2
    assert {row["result_uri"] for row in collection.rows()} == {row["result_uri"] for row in before}
    assert collection.verify().counts == {}


def test_an_object_that_another_row_names_stays(collection: Collection) -> None:
    """Equal photographs of two sources with one name share a dream."""
    other = f"{collection.source.rstrip('/')} 2/"
    put_photograph(collection.storage, f"{other}one.png", 0)
    collection.run(source=other)
    before = collection.rows()
    assert len(before) == 10
    objects = set(collection.objects("images/"))
    collection.prune(f"source_uri like '{collection.source}%one.png'")
    assert set(collection.objects("images/")) == objects
    assert len(collection.rows()) == 8
    assert collection.verify().counts == {}
    collection.prune("source_uri like '%/one.png'")
    assert len(collection.objects("images/")) == len(objects) - 2
    assert collection.verify().counts == {}


def test_columns_of_a_later_version_stay(collection: Collection) -> None:
    (part, *_) = list_parts(collection.storage, collection.destination)
    table = pq.read_table(io.BytesIO(collection.storage.read(part.uri) or b""))
    table = table.append_column("later", [list(range(len(table)))])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    collection.storage.write(part.uri, sink.getvalue(), manifest.CONTENT_TYPE)
    chosen = [status == "done" for status in table["status"].to_pylist()]
    collection.prune("status = 'done'")
    left = pq.read_table(io.BytesIO(collection.storage.read(part.uri) or b""))
    assert left.schema.equals(table.schema, check_metadata=True)
    assert left["later"].to_pylist() == [number for number, goes in enumerate(chosen) if not goes]


def test_a_row_that_no_longer_matches_stays(collection: Collection) -> None:
    """As after a retry: the row of a failed dream is done when the prune reads its part again."""
    shown = collection.preview("status = 'failed'")
    (part, *_) = shown.parts
    rows = [
        Row(**row)
        for row in manifest.from_parquet(collection.storage.read(part.uri) or b"", manifest.SCHEMA.names).to_pylist()
    ]
    (good, *_) = [row for row in rows if row.status == "done"]
    done = [replace(good, source_uri=row.source_uri, source_etag=row.source_etag, settings_id=row.settings_id)
            if row.status == "failed" else row for row in rows]  # fmt: skip
    collection.storage.write(part.uri, manifest.to_parquet(done), manifest.CONTENT_TYPE)
    prune(collection.storage, shown, lambda _done, _all: None)
    assert len(collection.rows()) == 8 - (shown.summary["rows"] - len([row for row in rows if row.status == "failed"]))
    assert collection.objects("images/").keys() >= {str(good.result_uri)}


def test_rows_of_an_unfinished_run_stay(collection: Collection) -> None:
    def stop_after_one(run: Run, shards: Iterator[Shard]) -> Generator[Mapping[str, int], None, None]:
        yield dream_shard(run, next(shards), collection.storage)
        raise Unavailable("stopped")

    job = collection.job("blocks.0", "blocks.1", "blocks.2")
    with pytest.raises(Unavailable, match="stopped"):
        collection.run_job(job, stop_after_one)
    before = len(collection.rows())
    assert collection.preview(older_than="0d").summary["rows"] == 8
    collection.prune(older_than="0d")
    assert len(collection.rows()) == before - 8
    assert collection.run("blocks.0", "blocks.1", "blocks.2").report.state == "completed"
    assert collection.verify().counts == {}


def test_rows_of_an_abandoned_run_go(collection: Collection) -> None:
    protocol.claim(collection.job("blocks.2"), plan_settings(collection.job("blocks.2")), collection.storage)
    run, _ = protocol.claim(collection.job("blocks.2"), plan_settings(collection.job("blocks.2")), collection.storage)
    part = layout.part_uri(collection.destination, run.run_id, 0)
    collection.storage.write(part, manifest.to_parquet([replace(FAILED, run_id=run.run_id)]), manifest.CONTENT_TYPE)
    assert collection.preview("source_uri like '%käfer%'").summary["rows"] == 0
    protocol.abandon(collection.destination, collection.storage)
    collection.prune("source_uri like '%käfer%'")
    assert len(collection.rows()) == 8


def test_a_retry_that_holds_the_destination_is_named(collection: Collection) -> None:
    job = collection.job(retry_failed=True)
    run, _ = protocol.claim(job, plan_settings(job), collection.storage)
    shown = collection.objects()
    with pytest.raises(InvalidInput, match=f"held by the unfinished run {run.run_id}, which tries failed dreams again"):
        collection.preview("status = 'failed'")
    protocol.release(collection.destination, run.run_id, collection.storage)
    selected = collection.preview("status = 'failed'")
    run, _ = protocol.claim(job, plan_settings(job), collection.storage)
    with pytest.raises(InvalidInput, match="which tries failed dreams again"):
        prune(collection.storage, selected, lambda _done, _all: None)
    left = collection.objects().keys() - shown.keys()
    assert {uri for uri in left if "/pruned/" in uri or "prune.json" in uri} == set()


def test_a_retry_is_refused_while_a_prune_is_unfinished(collection: Collection) -> None:
    command = "dreamgrid prune X --older-than 1d --yes"
    write_mark(collection.destination, command, collection.storage)
    before = collection.objects("manifest/")
    with pytest.raises(InvalidInput, match=f"is unfinished: finish it with `{command}`, then try again"):
        collection.run(retry_failed=True)
    assert collection.objects("manifest/") == before
    assert collection.storage.find(layout.active_uri(collection.destination)) is None, "the destination is free"
    assert collection.run().report.state == "nothing to do"
    remove_mark(collection.destination, command, collection.storage)
    assert collection.run(retry_failed=True).report.failed == 2


def test_a_prune_and_a_compaction_exclude_each_other(collection: Collection) -> None:
    mark, _ = compact_mark.claim(collection.destination, collection.storage)
    with pytest.raises(InvalidInput, match="are being merged: wait for the compaction, or finish it"):
        collection.preview("status = 'failed'")
    compact_mark.release(collection.destination, mark, collection.storage)
    write_mark(collection.destination, "dreamgrid prune X --older-than 1d --yes", collection.storage)
    with pytest.raises(InvalidInput, match="is unfinished: finish it with `dreamgrid prune X"):
        compact_mark.claim(collection.destination, collection.storage)
    assert collection.storage.find(layout.compaction_uri(collection.destination)) is None


def test_merged_parts_are_pruned(collection: Collection) -> None:
    compact(collection.storage, collection.destination)
    before = collection.rows()
    collection.prune("status = 'done' and source_uri not like '%two%'")
    gone = [row for row in before if row["status"] == "done" and "two" not in row["source_uri"]]
    assert len(gone) == 4
    check_rest(collection, gone, before)


def test_another_unfinished_prune_is_named(collection: Collection) -> None:
    write_mark(collection.destination, "dreamgrid prune X --older-than 1d --yes", collection.storage)
    with pytest.raises(InvalidInput, match="finish it with `dreamgrid prune X --older-than 1d --yes`"):
        collection.preview("status = 'failed'")


@pytest.fixture
def faulty(stack: Stack, proxy: Proxy) -> Storage:
    """The stack's S3 through the proxy."""
    return Storage(RetryPolicy(1, 5), proxy.environment(stack.environment()))


def test_nothing_is_changed_if_dreams_may_not_be_deleted(collection: Collection, faulty: Storage, proxy: Proxy) -> None:
    before = collection.objects()
    proxy.choose = first(Fault.KEYS_DENIED, "POST", "s3://dreams")
    with pytest.raises(InvalidInput, match=r"refuses access \(AccessDenied no for .*images/probe-"):
        prune(faulty, collection.preview("status = 'done'"), lambda _done, _all: None)
    assert collection.objects() == before


@pytest.mark.parametrize(
    ("fault", "method", "calls", "kinds"),
    [(Fault.KEYS_DENIED, "POST", 3, set()), (Fault.SLOW_DOWN, "PUT", 3, {"missing"})],
    ids=["objects", "rows"],
)
def test_a_prune_that_is_stopped_is_finished_by_the_same_prune(
    collection: Collection, faulty: Storage, proxy: Proxy, fault: Fault, method: str, calls: int, kinds: set[str]
) -> None:
    before, number = collection.rows(), itertools.count()
    proxy.choose = lambda call: fault if call.method == method and next(number) >= calls else None
    with pytest.raises(Unavailable, match=r"The prune was stopped after it had begun .* run `dreamgrid prune .*--yes`"):
        prune(faulty, collection.preview("status = 'done'"), lambda _done, _all: None)
    problems = collection.verify().problems
    assert {problem.kind for problem in problems} == kinds
    for problem in problems:
        assert problem.what.startswith("a prune was stopped after it deleted the object")
        assert "run `dreamgrid prune" in problem.what
    with pytest.raises(InvalidInput, match=r"another prune .* is unfinished: finish it with `dreamgrid prune .*done"):
        collection.prune("status = 'failed'")
    collection.prune("status = 'done'")
    check_rest(collection, [row for row in before if row["status"] == "done"], before)


def test_a_damaged_record_is_named(collection: Collection) -> None:
    record = collection.prune("status = 'failed'")
    assert record
    collection.storage.write(record, b"PAR1", manifest.CONTENT_TYPE)
    with pytest.raises(InvalidInput, match=f"{record} cannot be read"):
        list(read_records(collection.destination, collection.storage))


def test_dreams_of_a_destination_without_a_manifest(storage: Storage, destination: str) -> None:
    shown = preview(storage, destination, select("status = 'done'"))
    assert (shown.summary["rows"], shown.parts) == (0, ())


# --- marks


def marked(collection: Collection, layer: str, *values: int) -> list[dict[str, Any]]:
    """Give the dreams of one layer these marks, in the order of their photographs, and return their rows."""
    rows = sorted(
        (row for row in collection.rows() if row["layers"][0]["name"] == layer and row["status"] == "done"),
        key=lambda row: str(row["source_uri"]),
    )
    marks = [Mark(str(row["result_id"]), value) for row, value in zip(rows, values, strict=True)]
    Marks(collection.destination, collection.storage).add(marks)
    return rows


def test_unrated_dreams_go_and_marked_dreams_and_failed_rows_stay(collection: Collection) -> None:
    one, three, _two = marked(collection, "blocks.0", 3, -1, 0)
    before = collection.rows()
    shown = collection.preview(unrated=True)
    assert (shown.summary["rows"], shown.summary["kept_favourites"]) == (4, 0)
    collection.prune(unrated=True)
    gone = [row for row in before if row["status"] == "done" and row not in (one, three)]
    check_rest(collection, gone, before)


def test_favourites_are_pruned_only_on_request(collection: Collection) -> None:
    *favourites, rejected = marked(collection, "blocks.0", 1, 5, -1)
    before = collection.rows()
    where = {"settings": collection.settings_id("blocks.0")}
    shown = collection.preview(**where)
    assert (shown.summary["rows"], shown.summary["kept_favourites"]) == (2, 2)
    collection.prune(**where)
    gone = [row for row in before if row["layers"] == rejected["layers"] and row not in favourites]
    check_rest(collection, gone, before)
    assert collection.preview("mark >= 4", with_favourites=True).summary["rows"] == 1
    collection.prune(with_favourites=True, **where)
    check_rest(collection, [*gone, *favourites], before)


def test_a_dream_that_is_rated_after_the_preview_stays(collection: Collection) -> None:
    shown = collection.preview("status = 'done'")
    rows = marked(collection, "blocks.1", 4, 2, 1)
    prune(collection.storage, shown, lambda _done, _all: None)
    assert sorted(collection.objects("images/")) == sorted(str(row["result_uri"]) for row in rows)
    assert collection.verify().counts == {}


# --- the command


@pytest.fixture
def written(storage: Storage, destination: str) -> str:
    """A destination with two rows in one part, written without a run."""
    rows = [replace(row, result_uri=row.result_uri and f"{destination}images/a.png/x.png") for row in (DONE, FAILED)]
    storage.write(f"{destination}images/a.png/x.png", b"x", "image/png")
    storage.write(layout.part_uri(destination, "r1", 3), manifest.to_parquet(rows), manifest.CONTENT_TYPE)
    return destination


def test_the_command_shows_and_deletes(dreamgrid_inprocess: Command, storage: Storage, written: str) -> None:
    shown = dreamgrid_inprocess("prune", written, "--where", "status = 'done'")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[0] == "1 rows of 1 photographs in 1 runs: 1 done"
    assert lines[1] == "1 dreams with 123 bytes, 0 contact sheets"
    assert "0123456789abcdef" in lines[3]
    assert (
        lines[-1]
        == f"Nothing was deleted. To delete: dreamgrid prune {written} --where 'status = '\"'\"'done'\"'\"'' --yes"
    )
    assert storage.find(f"{written}images/a.png/x.png")
    done = dreamgrid_inprocess("prune", written, "--where", "status = 'done'", "--yes")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("Deleted. Later runs leave these dreams out, see s3://")
    assert storage.find(f"{written}images/a.png/x.png") is None
    again = dreamgrid_inprocess("prune", written, "--where", "status = 'done'", "--yes")
    assert (again.returncode, again.stdout) == (0, "No rows of finished runs are selected.\n")


def test_the_command_says_how_many_favourites_stay(
    dreamgrid_inprocess: Command, storage: Storage, written: str
) -> None:
    Marks(written, storage).add([Mark(str(DONE.result_id), 5)])
    shown = dreamgrid_inprocess("prune", written, "--older-than", "1h", "--yes")
    assert shown.stdout.splitlines()[:2] == [
        "1 selected rows of dreams rated 1 to 5 stay; to delete them too, add --with-favourites",
        "1 rows of 1 photographs in 1 runs: 1 failed",
    ]
    assert storage.find(f"{written}images/a.png/x.png")
    flags = ("--where", "mark > 0", "--with-favourites")
    named = dreamgrid_inprocess("prune", written, *flags).stdout.splitlines()[-1]
    assert named.endswith(f"dreamgrid prune {written} --where 'mark > 0' --with-favourites --yes")
    assert dreamgrid_inprocess("prune", written, *flags, "--yes").returncode == 0
    assert storage.find(f"{written}images/a.png/x.png") is None


def test_the_command_prints_json(dreamgrid_inprocess: Command, storage: Storage, written: str) -> None:
    shown = json.loads(dreamgrid_inprocess("prune", written, "--older-than", "1h", "--json").stdout)
    assert (shown["rows"], shown["objects"], shown["deleted"], shown["record"]) == (2, 1, False, None)
    done = json.loads(dreamgrid_inprocess("prune", written, "--older-than", "1h", "--json", "--yes").stdout)
    assert (done["rows"], done["deleted"]) == (2, True)
    assert storage.find(done["record"])


def test_a_finished_prune_with_a_mark_is_ended(dreamgrid_inprocess: Command, storage: Storage, written: str) -> None:
    command = select("status = 'skipped'").command(written)
    write_mark(written, command, storage)
    done = dreamgrid_inprocess("prune", written, "--where", "status = 'skipped'", "--yes")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "The prune is finished.")
    assert read_mark(written, storage) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no dreams are selected: give --where, --older-than, --settings or --unrated"),
        (["--where", "state = 'done'"], "there is no column 'state'"),
        (["--older-than", "soon"], "--older-than soon is no age"),
    ],
)
def test_wrong_flags_are_named(dreamgrid_inprocess: Command, flags: list[str], message: str) -> None:
    done = dreamgrid_inprocess("prune", "s3://dreams/x/", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
