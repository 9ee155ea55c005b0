"""A destination written by Dreamgrid 0.1.0 is continued, verified and shown by the present code."""

import hashlib
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.destination import history
from flows.results.compact import compact
from flows.s3.storage import Storage
from tests.support.command import REPOSITORY, Command

FIXTURE = REPOSITORY / "tests" / "fixtures" / "destination-0.1"
SOURCE, DESTINATION = "s3://photos/old/", "s3://dreams/old/"
FIRST_JOB = (
    *("--source", SOURCE, "--destination", DESTINATION),
    *("--layers", "blocks.0", "--layers", "blocks.1=0.3+blocks.0", "--octaves", "1", "--steps", "1"),
    *("--look", "neon"),  # the default of then
)
DREAM = f"{DESTINATION}images/trip/100%25 red.png/blocks.0+blocks.1=0.3-1x1-4ab0a64b1e884317.png"


@pytest.fixture
def old(storage: Storage) -> dict[str, bytes]:
    """The objects of the old destination by address, uploaded together with their photographs."""
    for bucket in (SOURCE, DESTINATION):
        storage.create_bucket(bucket)
        for found in storage.list(bucket):
            storage.delete(found.uri)
    objects = {}
    for path in sorted(FIXTURE.glob("*/old/**/*")):
        if path.is_file():
            uri = f"s3://{path.relative_to(FIXTURE)}"
            objects[uri] = path.read_bytes()
            storage.write(uri, objects[uri], "application/octet-stream")
    for uri, etag in etags(storage, SOURCE) + etags(storage, DESTINATION):
        assert etag == hashlib.md5(objects[uri]).hexdigest(), f"the ETag of {uri} is not its MD5"
    return {uri: data for uri, data in objects.items() if uri.startswith(DESTINATION)}


def etags(storage: Storage, folder: str) -> list[tuple[str, str]]:
    return [(found.uri, found.etag) for found in storage.list(folder)]


def read(storage: Storage, uri: str) -> bytes:
    data = storage.read(uri)
    assert data is not None, f"{uri} is gone"
    return data


def rows(storage: Storage) -> Iterator[dict[str, Any]]:
    """The rows of all parts, read with pyarrow alone."""
    for part in storage.list(f"{DESTINATION}manifest/"):
        yield from pq.read_table(io.BytesIO(read(storage, part.uri))).to_pylist()


def identity(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["source_uri"], row["source_etag"], row["settings_id"]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_parts_of_an_old_run_are_merged(old: dict[str, bytes], storage: Storage) -> None:
    before = {identity(row): row for row in rows(storage)}
    (run,) = compact(storage, DESTINATION).runs
    assert (run.parts_before, run.parts_after) == (4, 1)
    after = list(rows(storage))
    assert len(after) == len(before)
    for row in after:
        assert row.items() >= before[identity(row)].items()
    changed = {uri for uri, data in old.items() if storage.read(uri) != data}
    assert {uri.rpartition("/")[2] for uri in changed} == {
        *(f"shard-{shard:06d}.parquet" for shard in range(4)),
        "index.parquet",
    }
    assert history.has_valid_index(DESTINATION, run.run_id, storage)


def test_the_present_code_continues_an_old_destination(
    old: dict[str, bytes], storage: Storage, dreamgrid: Command, dreamgrid_inprocess: Command
) -> None:
    def answer(*arguments: str) -> Any:
        done = (dreamgrid if arguments[0] == "run" else dreamgrid_inprocess)(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    # The destination as the killed run left it.
    unfinished = json.loads(old[f"{DESTINATION}_runs/active.json"])["run_id"]
    old_dreams = {uri: sha256(data) for uri, data in old.items() if uri.startswith(f"{DESTINATION}images/")}
    old_rows = {identity(row): row for row in rows(storage)}
    assert old_dreams.keys() - {row["result_uri"] for row in old_rows.values()}, "each dream has its part"
    summary = answer("manifest", DESTINATION)
    assert (summary["rows"], summary["runs"], summary["statuses"]) == (7, 2, {"done": 5, "failed": 2})
    assert answer("manifest", "verify", DESTINATION)["unfinished"] == unfinished

    # The unfinished run is continued. No old object changes.
    started = datetime.now(UTC)
    report = answer("run", "--resume", DESTINATION)
    assert (report["run_id"], report["state"]) == (unfinished, "completed")
    assert (report["planned"], report["done"], report["failed"]) == (6, 4, 2)
    for uri, data in old.items():
        if uri != f"{DESTINATION}_runs/active.json" and not uri.startswith(f"{DESTINATION}sheets/"):
            assert sha256(read(storage, uri)) == sha256(data), f"{uri} has changed"
    assert storage.read(f"{DESTINATION}_runs/active.json") is None

    # Each dream has exactly one row.
    all_rows = list(rows(storage))
    new_rows = {identity(row): row for row in all_rows}
    assert len(all_rows) == len(new_rows) == 12
    versions, settings = {each[:2] for each in new_rows}, {each[2] for each in new_rows}
    assert versions == set(etags(storage, SOURCE))
    assert (len(versions), len(settings)) == (3, 4)
    assert old_rows.items() <= new_rows.items()
    done = [row for row in all_rows if row["status"] == "done"]
    assert all(sha256(read(storage, row["result_uri"])) == row["result_sha256"] for row in done)
    taken_over = {row["result_uri"]: row["result_sha256"] for row in done if row["created_at"] < started}
    assert taken_over == old_dreams

    # The job of the first run has nothing to do. The commands that read a destination agree with the rows.
    assert answer("run", *FIRST_JOB)["state"] == "nothing to do"
    assert answer("manifest", "verify", DESTINATION)["rows"] == 12
    failures = answer("manifest", "failures", DESTINATION)
    assert {each["source_uri"] for each in failures} == {f"{SOURCE}broken.png"}
    assert sum(each["dreams"] for each in failures) == 4
    sheets = answer("sheet", DESTINATION)["sheets"]
    assert set(sheets) == {uri for uri in old if uri.startswith(f"{DESTINATION}sheets/")}
    assert all(read(storage, uri) != old[uri] for uri in sheets), "the new dreams are not on the sheets"

    # An old dream is reproduced.
    found = answer("redream", DREAM, "again.png")
    assert found["same_settings"] is True
    assert found["psnr_db"] is None or found["psnr_db"] > 40, "the pixels differ too much"
