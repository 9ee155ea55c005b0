"""`dreamgrid manifest verify`: what is wrong in a destination is found and named, and nothing else is."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamcore.images import decode, encode, read_metadata
from flows import layout, manifest, protocol
from flows.history import contains
from flows.manifest import Row
from flows.plan import Plan, make_plan
from flows.run_record import Run
from flows.scan import plan_settings, scan
from flows.shard import dream_shard
from flows.storage import Storage
from flows.verify import VerifyReport, verify
from tests.conftest import Command
from tests.support.shards import plan_run, put_photograph

LAYERS = ["blocks.0", "blocks.1"]


def dreamt(storage: Storage, source: str, destination: str, *, finished: bool = True) -> tuple[Run, Plan]:
    """A run over two photographs and one that is none; unfinished, its last shard is not dreamt."""
    put_photograph(storage, source + "cat.png")
    put_photograph(storage, source + "dog.png", seed=1)
    storage.write(source + "web page.jpg", b"<html>", "image/jpeg")
    job = plan_run(storage, source, destination, LAYERS)[0].job
    run, _ = protocol.claim(job, plan_settings(job), storage)
    plan = protocol.freeze(run, make_plan(scan(job, storage).sources, run.settings, lambda _key: False), storage)
    for shard in list(plan)[: None if finished else -3]:
        dream_shard(run, shard, storage)
    if finished:
        protocol.finish(run, plan, 1.0, storage)
        protocol.release(destination, run.run_id, storage)
    return run, plan


def look(storage: Storage, destination: str) -> VerifyReport:
    return verify(storage, destination, lambda _done, _all: None)


def rows(storage: Storage, destination: str, status: str = "done") -> list[Row]:
    found = manifest.read(storage, destination).to_pylist()
    return [Row(**row) for row in found if row["status"] == status]


def put_part(storage: Storage, destination: str, of: list[Row], run_id: str = "other") -> str:
    uri = layout.part_uri(destination, run_id, 77)
    storage.write(uri, manifest.to_parquet(of), "application/vnd.apache.parquet")
    return uri


def test_a_destination_where_all_is_well(storage: Storage, source: str, destination: str) -> None:
    dreamt(storage, source, destination)
    storage.write(f"{destination}images/", b"", "application/x-directory")  # somebody's folder
    assert look(storage, destination) == VerifyReport(rows=6, objects=4, unfinished=None, counts={}, problems=[])
    assert look(storage, destination + "elsewhere/").rows == 0


def test_what_became_of_an_object_is_told(storage: Storage, source: str, destination: str) -> None:
    """Gone, cut off, of other bytes, no picture at all, and a whole picture that is another dream."""
    dreamt(storage, source, destination)
    first, second, third, fourth = sorted(rows(storage, destination), key=lambda row: str(row.result_uri))
    data = {row.result_uri: storage.read(str(row.result_uri)) or b"" for row in (first, second, third, fourth)}
    storage.delete(str(first.result_uri))
    storage.write(str(second.result_uri), data[second.result_uri][:-1], "image/png")
    whole = data[third.result_uri]
    storage.write(str(third.result_uri), whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:], "image/png")
    found = look(storage, destination)
    told = {trouble.uri: (trouble.kind, trouble.what) for trouble in found.problems}
    assert told == {
        first.result_uri: ("missing", f"the row of {first.source_uri} says done; it is not there"),
        second.result_uri: ("changed", f"{len(data[second.result_uri]) - 1} bytes; the row says {second.result_bytes}"),
        third.result_uri: ("changed", told[str(third.result_uri)][1]),
    }
    assert str(third.result_sha256) in told[str(third.result_uri)][1]
    assert found.counts == {"missing": 1, "changed": 2}


@pytest.mark.parametrize("what", ["settings_id", "settings", "source_etag", "size", "nothing"])
def test_a_picture_tells_of_the_dream_of_its_row(storage: Storage, source: str, destination: str, what: str) -> None:
    run, _ = dreamt(storage, source, destination)
    row = rows(storage, destination)[0]
    data = storage.read(str(row.result_uri)) or b""
    pixels, inside = decode(data).pixels, read_metadata(data) or {}
    if what == "settings":
        inside["settings"] = {**json.loads(row.settings), "steps": 99}
    elif what == "size":
        pixels = pixels[:-1]
    elif what != "nothing":
        inside[what] = "0" * 16
    new = encode(pixels, "png", 95, {} if what == "nothing" else inside)
    storage.write(str(row.result_uri), new, "image/png")
    told = replace(row, result_bytes=len(new), result_sha256=hashlib.sha256(new).hexdigest())
    of_its_part = [each for each in rows(storage, destination) if each.shard == row.shard and each != row]
    storage.delete(layout.part_uri(destination, run.run_id, row.shard))
    put_part(storage, destination, [told, *of_its_part])
    (trouble,) = look(storage, destination).problems
    assert (trouble.kind, trouble.uri) == ("other_dream", row.result_uri)
    expected = {"size": "height", "nothing": "source_etag, settings_id, settings"}.get(what, what)
    assert trouble.what == f"the picture and its row tell of another {expected}"


def test_a_file_that_is_no_picture_is_damaged_even_if_its_row_says_so(
    storage: Storage, source: str, destination: str
) -> None:
    dreamt(storage, source, destination)
    row = rows(storage, destination)[0]
    storage.write(f"{destination}images/x.png", b"text", "image/png")
    odd = replace(
        row,
        settings_id="f" * 16,
        result_uri=f"{destination}images/x.png",
        result_bytes=4,
        result_sha256=hashlib.sha256(b"text").hexdigest(),
    )
    put_part(storage, destination, [odd])
    (trouble,) = look(storage, destination).problems
    assert (trouble.kind, trouble.uri) == ("damaged", odd.result_uri)


def test_a_dream_with_two_rows_is_named_with_both_parts(storage: Storage, source: str, destination: str) -> None:
    run, _ = dreamt(storage, source, destination)
    row = rows(storage, destination)[1]
    second = put_part(storage, destination, [row])
    (trouble,) = look(storage, destination).problems
    assert (trouble.kind, trouble.uri) == ("duplicate", row.source_uri)
    for named in (second, layout.part_uri(destination, run.run_id, row.shard), row.settings_id):
        assert named in trouble.what


def test_a_part_that_is_lost_or_torn_is_found_with_all_that_it_told(
    storage: Storage, source: str, destination: str
) -> None:
    run, plan = dreamt(storage, source, destination)
    lost, torn = [shard for shard in plan if "web page" not in shard.works[0].source.name][:2]
    storage.delete(layout.part_uri(destination, run.run_id, lost.number))
    uri = layout.part_uri(destination, run.run_id, torn.number)
    storage.write(uri, (storage.read(uri) or b"")[:-9], "application/vnd.apache.parquet")
    found = look(storage, destination)
    dreams = lost.dreams + torn.dreams
    assert found.counts == {"damaged": 1, "lost": dreams, "orphan": dreams}
    assert found.problems[0].uri == uri


def test_finished_runs_of_any_version_are_looked_at(storage: Storage, source: str, destination: str) -> None:
    run, plan = dreamt(storage, source, destination)
    lost = next(shard for shard in plan if "web page" not in shard.works[0].source.name)
    storage.delete(layout.part_uri(destination, run.run_id, lost.number))
    record = json.loads(storage.read(f"{run.folder}job.json") or b"")
    record["settings"][0]["settings"]["of_another_version"] = 1
    storage.write(f"{run.folder}job.json", json.dumps(record).encode(), "application/json")
    counts = {"lost": lost.dreams, "orphan": lost.dreams}
    assert look(storage, destination).counts == counts

    for name, harmed in (("plan.parquet", b"no plan"), ("job.json", b"{}"), ("job.json", b"")):
        storage.write(run.folder + name, harmed, "application/octet-stream")
        found = look(storage, destination)
        assert found.counts == {"damaged": 1, "orphan": lost.dreams}
        assert found.problems[0].uri == run.folder
        assert "cannot be read" in found.problems[0].what


@given(st.sets(st.integers(0, 2**64 - 1)), st.integers(0, 2**64 - 1))
def test_a_key_is_found_among_many_without_looking_at_each(numbers: set[int], other: int) -> None:
    keys = np.array(sorted(numbers), np.uint64)
    for key in numbers | {other, 0, 2**64 - 1}:
        assert contains(keys, key) == (key in numbers)


def test_orphans_are_told_from_the_pictures_of_an_unfinished_run(
    storage: Storage, source: str, destination: str
) -> None:
    run, plan = dreamt(storage, source, destination, finished=False)
    last = list(plan)[-3]
    dream_shard(run, last, storage)
    storage.delete(layout.part_uri(destination, run.run_id, last.number))  # killed just before its part was put
    orphan = f"{destination}images/cat.png/stray.png"
    storage.write(orphan, encode(decode(storage.read(source + "cat.png") or b"").pixels, "png", 95, {}), "image/png")
    found = look(storage, destination)
    assert (found.unfinished, [(each.kind, each.uri) for each in found.problems]) == (run.run_id, [("orphan", orphan)])

    protocol.abandon(destination, storage)  # given up: nobody will name them any more
    found = look(storage, destination)
    assert (found.unfinished, found.counts) == (None, {"orphan": 1 + last.dreams})


def test_the_command_says_what_is_wrong_and_exits_with_1(
    storage: Storage, source: str, destination: str, dreamgrid: Command
) -> None:
    dreamt(storage, source, destination)
    fine = dreamgrid("manifest", "verify", destination)
    assert (fine.returncode, fine.stdout) == (0, "6 rows, 4 objects: no problems.\n"), fine.stderr
    orphan = f"{destination}images/[red]stray\x1b[31m.png"
    storage.write(orphan, b"", "image/png")
    told = dreamgrid("manifest", "verify", destination, COLUMNS="300")
    assert told.returncode == 1
    assert orphan.replace("\x1b", " ") in told.stdout
    assert told.stdout.endswith("6 rows, 5 objects: 1 orphan.\n")
    assert "verifying" in told.stderr
    as_json = dreamgrid("manifest", "verify", destination, "--json")
    assert as_json.returncode == 1
    found = json.loads(as_json.stdout)
    assert (found["counts"], found["problems"][0]["uri"]) == ({"orphan": 1}, orphan)
    assert dreamgrid("manifest", destination).stdout.startswith("6 rows of 3 photographs in 1 runs")
    assert dreamgrid("manifest", "verify", "dreams/x").returncode == 2
