"""`dreamgrid manifest verify`: every kind of damage to a destination is found and named, and nothing else is."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamcore.images import decode, encode, read_metadata
from flows.destination import manifest
from flows.destination.history import contains
from flows.destination.manifest import CONTENT_TYPE, Row
from flows.destination.run_record import Run
from flows.jobs.plan import Plan, make_plan
from flows.jobs.work import Shard
from flows.local.stack import Stack
from flows.planning.scan import plan_settings, scan
from flows.results.verify import Problem, VerifyReport, verify
from flows.running import protocol
from flows.running.shard import dream_shard
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.support.command import Command
from tests.support.shards import plan_run, put_photograph

LAYERS = ["blocks.0", "blocks.1"]


def start_run(storage: Storage, source: str, destination: str) -> tuple[Run, Plan]:
    """Plan a run over two photographs and one file that is not an image."""
    put_photograph(storage, source + "cat.png")
    put_photograph(storage, source + "dog.png", seed=1)
    storage.write(source + "web page.jpg", b"<html>", "image/jpeg")
    job = plan_run(storage, source, destination, LAYERS)[0].job
    run, _ = protocol.claim(job, plan_settings(job), storage)
    return run, protocol.freeze(run, make_plan(scan(job, storage).sources, run.settings, lambda _key: False), storage)


@dataclass(frozen=True)
class Finished:
    """A finished run and every object that it left."""

    run: Run
    plan: Plan
    objects: dict[str, bytes]

    def shards_of_images(self) -> list[Shard]:
        """The shards that have dreams."""
        return [shard for shard in self.plan if "web page" not in shard.works[0].source.name]


@pytest.fixture(scope="module")
def finished_once(stack: Stack) -> Finished:
    """A finished run, dreamt once for the tests of this module."""
    storage = Storage(environment=stack.environment())
    for bucket in ("s3://photos", "s3://dreams"):
        storage.create_bucket(bucket)
    run, plan = start_run(storage, "s3://photos/verify/", "s3://dreams/verify/")
    for shard in plan:
        dream_shard(run, shard, storage)
    protocol.finish(run, plan, 1.0, storage)
    protocol.release(run.destination, run.run_id, storage)
    return Finished(run, plan, {info.uri: storage.read(info.uri) or b"" for info in storage.list(run.destination)})


@pytest.fixture
def finished(finished_once: Finished, storage: Storage) -> Finished:
    """The finished run with its destination restored."""
    for info in storage.list(finished_once.run.destination):
        storage.delete(info.uri)
    for uri, data in finished_once.objects.items():
        storage.write(uri, data, "application/octet-stream")
    return finished_once


@pytest.fixture
def destination(finished: Finished) -> str:
    return finished.run.destination


def report_of(storage: Storage, destination: str) -> VerifyReport:
    return verify(storage, destination, lambda _done, _all: None)


def only_problem(storage: Storage, destination: str) -> Problem:
    (problem,) = report_of(storage, destination).problems
    return problem


def rows(storage: Storage, destination: str, status: str = "done") -> list[Row]:
    found = manifest.read(storage, destination).to_pylist()
    return [Row(**row) for row in found if row["status"] == status]


def write_part(storage: Storage, destination: str, of: list[Row], run_id: str = "other") -> str:
    uri = layout.part_uri(destination, run_id, 77)
    storage.write(uri, manifest.to_parquet(of), CONTENT_TYPE)
    return uri


def delete_part(storage: Storage, run: Run, shard: int) -> None:
    storage.delete(layout.part_uri(run.destination, run.run_id, shard))


def test_an_intact_destination_has_no_problems(storage: Storage, destination: str) -> None:
    storage.write(f"{destination}images/", b"", "application/x-directory")  # a folder, as some clients create it
    assert report_of(storage, destination) == VerifyReport(
        rows=6, objects=4, thumbnails=4, unfinished=None, counts={}, problems=[]
    )
    assert report_of(storage, destination + "elsewhere/").rows == 0


def test_missing_truncated_and_changed_objects_are_named(storage: Storage, destination: str) -> None:
    first, second, third, _ = sorted(rows(storage, destination), key=lambda row: str(row.result_uri))
    data = {row.result_uri: storage.read(str(row.result_uri)) or b"" for row in (second, third)}
    storage.delete(str(first.result_uri))
    storage.write(str(second.result_uri), data[second.result_uri][:-1], "image/png")
    whole = data[third.result_uri]
    changed = whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:]
    storage.write(str(third.result_uri), changed, "image/png")
    report = report_of(storage, destination)
    assert {problem.uri: (problem.kind, problem.what) for problem in report.problems} == {
        first.result_uri: ("missing", f"the row of {first.source_uri} is done, but the object does not exist"),
        second.result_uri: (
            "changed",
            f"the object has {len(data[second.result_uri]) - 1} bytes, but its row says {second.result_bytes}",
        ),
        third.result_uri: (
            "changed",
            f"the object has the SHA-256 {hashlib.sha256(changed).hexdigest()}, but its row says {third.result_sha256}",
        ),
    }
    assert report.counts == {"missing": 1, "changed": 2}


def test_an_object_that_the_store_does_not_return_is_named(storage: Storage, destination: str) -> None:
    """The object is encrypted with a key that the reader does not send. An archived object behaves in the same way."""
    row = rows(storage, destination)[0]
    bucket, key = layout.parse_uri(str(row.result_uri))
    secret: Any = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": os.urandom(32)}
    storage._client.put_object(Bucket=bucket, Key=key, Body=b"a dream", **secret)
    problem = only_problem(storage, destination)
    assert (problem.kind, problem.uri) == ("unreadable", row.result_uri)
    assert "InvalidArgument" in problem.what


def replace_image(storage: Storage, finished: Finished, row: Row, data: bytes) -> None:
    """Write another image in place of a dream, with its size and SHA-256 in the row."""
    destination = finished.run.destination
    same_part = [each for each in rows(storage, destination) if each.shard == row.shard and each != row]
    changed = replace(row, result_bytes=len(data), result_sha256=hashlib.sha256(data).hexdigest())
    storage.write(str(row.result_uri), data, "image/png")
    delete_part(storage, finished.run, row.shard)
    write_part(storage, destination, [changed, *same_part])


@pytest.mark.parametrize("field", ["settings_id", "settings", "source_etag", "size", "all"])
def test_an_image_with_the_metadata_of_another_dream_is_named(storage: Storage, finished: Finished, field: str) -> None:
    destination = finished.run.destination
    row = rows(storage, destination)[0]
    data = storage.read(str(row.result_uri)) or b""
    pixels, inside = decode(data).pixels, read_metadata(data) or {}
    if field == "settings":
        inside["settings"] = {**json.loads(row.settings), "steps": 99}
    elif field == "size":
        pixels = pixels[:-1]
    elif field == "all":
        inside = {}
    else:
        inside[field] = "0" * 16
    replace_image(storage, finished, row, encode(pixels, "png", 95, inside))
    problem = only_problem(storage, destination)
    assert (problem.kind, problem.uri) == ("other_dream", row.result_uri)
    expected = {"size": "height", "all": "source_etag, settings_id, settings"}.get(field, field)
    assert problem.what == f"the image and its row differ in {expected}"


def test_an_object_that_is_not_an_image_is_damaged(storage: Storage, destination: str) -> None:
    row = rows(storage, destination)[0]
    storage.write(f"{destination}images/x.png", b"text", "image/png")
    text = replace(
        row,
        settings_id="f" * 16,
        result_uri=f"{destination}images/x.png",
        result_bytes=4,
        result_sha256=hashlib.sha256(b"text").hexdigest(),
    )
    write_part(storage, destination, [text])
    problem = only_problem(storage, destination)
    assert (problem.kind, problem.uri) == ("damaged", text.result_uri)


def test_a_dream_with_two_rows_is_named_with_both_parts(storage: Storage, finished: Finished) -> None:
    run = finished.run
    row = rows(storage, run.destination)[1]
    second = write_part(storage, run.destination, [row])
    problem = only_problem(storage, run.destination)
    assert (problem.kind, problem.uri) == ("duplicate", row.source_uri)
    for text in (second, layout.part_uri(run.destination, run.run_id, row.shard), row.settings_id):
        assert text in problem.what


def test_the_dreams_of_a_lost_or_damaged_part_are_found(storage: Storage, finished: Finished) -> None:
    run = finished.run
    lost, damaged = finished.shards_of_images()[:2]
    delete_part(storage, run, lost.number)
    uri = layout.part_uri(run.destination, run.run_id, damaged.number)
    storage.write(uri, (storage.read(uri) or b"")[:-9], CONTENT_TYPE)
    report = report_of(storage, run.destination)
    dreams = lost.dreams + damaged.dreams
    assert report.counts == {"damaged": 1, "lost": dreams, "orphan": dreams}
    assert report.problems[0].uri == uri


def test_records_of_finished_runs_of_any_version_are_read(storage: Storage, finished: Finished) -> None:
    run, lost = finished.run, finished.shards_of_images()[0]
    delete_part(storage, run, lost.number)
    record = json.loads(storage.read(layout.job_uri(run.destination, run.run_id)) or b"")
    record["settings"][0]["settings"]["of_another_version"] = 1
    storage.write(layout.job_uri(run.destination, run.run_id), json.dumps(record).encode(), "application/json")
    assert report_of(storage, run.destination).counts == {"lost": lost.dreams, "orphan": lost.dreams}

    folder = layout.run_folder(run.destination, run.run_id)
    for name, damaged in (("plan.parquet", b"no plan"), ("job.json", b"{}"), ("job.json", b"")):
        storage.write(folder + name, damaged, "application/octet-stream")
        report = report_of(storage, run.destination)
        assert report.counts == {"damaged": 1, "orphan": lost.dreams}
        assert report.problems[0].uri == folder
        assert "cannot be read" in report.problems[0].what


@given(st.sets(st.integers(0, 2**64 - 1)), st.integers(0, 2**64 - 1))
def test_binary_search_finds_exactly_the_given_keys(numbers: set[int], other: int) -> None:
    keys = np.array(sorted(numbers), np.uint64)
    for key in numbers | {other, 0, 2**64 - 1}:
        assert contains(keys, key) == (key in numbers)


def kinds(problems: Iterable[Problem]) -> list[tuple[str, str]]:
    return [(problem.kind, problem.uri) for problem in problems]


def test_images_of_an_unfinished_run_are_not_orphans_whatever_their_label(
    storage: Storage, source: str, request: pytest.FixtureRequest
) -> None:
    destination = f"s3://dreams/{request.node.name}/"
    run, plan = start_run(storage, source, destination)
    *_, dreamt, _, _ = plan  # the other shards are not dreamt yet
    dream_shard(run, dreamt, storage)
    delete_part(storage, run, dreamt.number)  # as if the process was killed just before it wrote the part
    (dream, *_) = storage.list(f"{destination}images/")
    storage.write(dream.uri.replace("/blocks", "/old%3Alabel"), storage.read(dream.uri) or b"", "image/png")
    storage.delete(dream.uri)
    thumb = layout.thumb_uri(destination, dream.uri)
    storage.write(thumb.replace("/blocks", "/old%3Alabel"), storage.read(thumb) or b"", "image/webp")
    storage.delete(thumb)
    orphan = f"{destination}images/cat.png/stray.png"
    storage.write(orphan, encode(decode(storage.read(source + "cat.png") or b"").pixels, "png", 95, {}), "image/png")
    report = report_of(storage, destination)
    assert (report.unfinished, kinds(report.problems)) == (run.run_id, [("orphan", orphan)])
    assert report.thumbnails == dreamt.dreams

    protocol.abandon(destination, storage)  # then no run will write rows for them
    report = report_of(storage, destination)
    assert (report.unfinished, report.counts) == (None, {"orphan": 1 + dreamt.dreams})


def test_a_thumbnail_without_a_dream_is_an_orphan_and_a_dream_may_lack_one(storage: Storage, destination: str) -> None:
    first, *_ = rows(storage, destination)
    thumb = layout.thumb_uri(destination, str(first.result_uri))
    stray = f"{destination}thumbs/cat.png/blocks.0-1x1-0123456789abcdef.webp"
    storage.write(stray, storage.read(thumb) or b"", "image/webp")
    storage.delete(thumb)
    report = report_of(storage, destination)
    assert (kinds(report.problems), report.thumbnails) == ([("orphan", stray)], 4)


def test_the_command_prints_problems_and_exits_with_1(storage: Storage, destination: str, dreamgrid: Command) -> None:
    intact = dreamgrid("manifest", "verify", destination)
    assert (intact.returncode, intact.stdout) == (0, "6 rows, 4 objects: no problems.\n"), intact.stderr
    orphan = f"{destination}images/[red]stray\x1b[31m.png"
    storage.write(orphan, b"", "image/png")
    as_text = dreamgrid("manifest", "verify", destination, COLUMNS="300")
    assert as_text.returncode == 1
    assert orphan.replace("\x1b", " ") in as_text.stdout
    assert as_text.stdout.endswith("6 rows, 5 objects: 1 orphan.\n")
    assert "verifying" in as_text.stderr
    as_json = dreamgrid("manifest", "verify", destination, "--json")
    assert as_json.returncode == 1
    report = json.loads(as_json.stdout)
    assert (report["counts"], report["problems"][0]["uri"]) == ({"orphan": 1}, orphan)
    assert dreamgrid("manifest", destination).stdout.startswith("6 rows of 3 photographs in 1 runs")
    assert dreamgrid("manifest", "verify", "dreams/x").returncode == 2
