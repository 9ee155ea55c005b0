"""One shard, dreamt in this process with a real S3 server. A second attempt continues what the first one left."""

import hashlib
import io
from dataclasses import replace

import pytest
from PIL import Image

from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.images import decode, encode
from flows.contact_sheets.sheets import draw_sheets
from flows.destination import run_record
from flows.jobs.job import DreamJob
from flows.jobs.work import Shard
from flows.local.stack import Stack
from flows.planning.scan import scan
from flows.running import protocol
from flows.running import shard as shards
from flows.running.shard import dream_shard
from flows.s3 import layout
from flows.s3.storage import RetryPolicy, Storage
from tests.support.faults import Fault, Proxy
from tests.support.shards import plan_run, put_photograph, rows_of
from tests.support.tiny import pixels


def test_a_second_attempt_takes_the_dreams_of_the_first(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    run, shard = plan_run(storage, source, destination, ["blocks.0", "blocks.1"])
    assert dream_shard(run, shard, storage) == {"done": 2}
    first = rows_of(storage, run)
    versions = {found.uri: found for found in storage.list(f"{destination}images/")}
    storage.delete(
        layout.part_uri(destination, run.run_id, 0)
    )  # as if the process was killed just before it wrote the part

    assert dream_shard(run, shard, storage) == {"done": 2}
    assert rows_of(storage, run) == first, "the same rows, measured seconds and time of creation included"
    assert {found.uri: found for found in storage.list(f"{destination}images/")} == versions


def test_a_second_attempt_dreams_only_what_is_missing(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    run, shard = plan_run(storage, source, destination, ["blocks.0", "blocks.1"])
    dream_shard(run, shard, storage)
    first = {row["result_uri"]: row for row in rows_of(storage, run)}
    lost, kept = sorted(str(uri) for uri in first)
    storage.delete(layout.part_uri(destination, run.run_id, 0))
    storage.delete(lost)

    dream_shard(run, shard, storage)
    again = {row["result_uri"]: row for row in rows_of(storage, run)}
    assert again[kept] == first[kept]
    assert again[lost]["created_at"] != first[lost]["created_at"]
    assert storage.find(lost) is not None


def test_each_dream_gets_a_thumbnail_unless_another_attempt_wrote_the_dream(
    storage: Storage, source: str, destination: str
) -> None:
    put_photograph(storage, source + "cat.png")
    run, shard = plan_run(storage, source, destination, ["blocks.0", "blocks.1"])
    dream_shard(run, shard, storage)
    thumbs = {layout.thumb_uri(destination, str(row["result_uri"])) for row in rows_of(storage, run)}
    assert {found.uri for found in storage.list(f"{destination}thumbs/")} == thumbs
    (lost, other) = thumbs
    with Image.open(io.BytesIO(storage.read(other) or b"")) as image:
        assert (image.format, image.size, image.info.get("exif")) == ("WEBP", (56, 40), None)
    storage.delete(lost)  # as if the process was killed just before it wrote the thumbnail
    storage.delete(layout.part_uri(destination, run.run_id, 0))
    assert dream_shard(run, shard, storage) == {"done": 2}
    assert {found.uri for found in storage.list(f"{destination}thumbs/")} == {other}


def test_credentials_that_may_not_write_thumbnails_do_without(
    stack: Stack, storage: Storage, proxy: Proxy, source: str, destination: str, caplog: pytest.LogCaptureFixture
) -> None:
    put_photograph(storage, source + "cat.png")
    run, shard = plan_run(storage, source, destination, ["blocks.0", "blocks.1"])
    refused = f"{destination}thumbs/"
    proxy.choose = lambda call: Fault.UNKNOWN if call.method == "PUT" and call.uri.startswith(refused) else None
    assert dream_shard(run, shard, Storage(environment=proxy.environment(stack.environment()))) == {"done": 2}
    assert {row["status"] for row in rows_of(storage, run)} == {"done"}
    assert not list(storage.list(refused))
    assert "no thumbnails are written: s3://" in caplog.text


def test_a_store_that_is_lost_before_a_thumbnail_stops_the_shard_and_loses_nothing(
    stack: Stack, storage: Storage, proxy: Proxy, source: str, destination: str
) -> None:
    put_photograph(storage, source + "cat.png")
    run, shard = plan_run(storage, source, destination, ["blocks.0"])
    thumbs = f"{destination}thumbs/"
    proxy.choose = lambda call: Fault.SLOW_DOWN if call.method == "PUT" and call.uri.startswith(thumbs) else None
    with pytest.raises(Unavailable):
        dream_shard(run, shard, Storage(RetryPolicy(0, 5), proxy.environment(stack.environment())))
    (dream,) = dreams_in(storage, destination)
    assert dream_shard(run, shard, storage) == {"done": 1}
    assert [row["result_uri"] for row in rows_of(storage, run)] == [dream]


def test_the_cache_of_a_gpu_is_released_after_a_shard_of_many_sizes(
    storage: Storage, source: str, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    monkeypatch.setattr(shards, "release_gpu_cache", released.append)
    monkeypatch.setattr(shards, "MANY_SIZES", 1)
    put_photograph(storage, source + "cat.png")
    run, shard = plan_run(storage, source, destination, ["blocks.0"])
    dream_shard(run, shard, storage)
    assert not released
    put_photograph(storage, source + "dog.png", height=48)
    put_photograph(storage, source + "fox.png", height=56)
    run, shard = plan_run(storage, source, destination, ["blocks.0"])
    dream_shard(run.model_copy(update={"run_id": "other"}), shard, storage)
    assert released == ["cpu"]


def give_old_label(storage: Storage, uri: str) -> str:
    """Move a dream to the name that Dreamgrid 0.1 gave it, and return its address."""
    old = uri.replace("blocks.0_1", "blocks.0%3A1")
    assert old != uri
    storage.write(old, storage.read(uri) or b"", "image/png")
    storage.delete(uri)
    return old


def test_dreams_that_an_older_version_left_are_taken_over_under_their_names(
    storage: Storage, source: str, destination: str
) -> None:
    for name in ("cat.png", "cat.png/cat.png"):  # the second has the same content, in a folder inside the first's
        put_photograph(storage, source + name)
    run, shard = plan_run(storage, source, destination, ["blocks.0:1", "blocks.1"])
    dream_shard(run, shard, storage)
    storage.delete(layout.part_uri(destination, run.run_id, 0))
    old, new = {}, {}
    for uri in dreams_in(storage, destination):
        if "blocks.0" in uri and uri.startswith(f"{destination}images/cat.png/blocks"):
            old[uri] = give_old_label(storage, uri)
        elif "blocks.0" in uri:
            storage.delete(uri)
            new[uri] = uri
    assert (len(old), len(new)) == (1, 1)
    (old_name,) = old.values()

    assert dream_shard(run, shard, storage) == {"done": 4}
    rows = rows_of(storage, run)
    assert {str(row["result_uri"]) for row in rows} == set(dreams_in(storage, destination))
    assert old_name in {row["result_uri"] for row in rows}
    assert set(new) <= {row["result_uri"] for row in rows}, "an equal photograph in a deeper folder has its own dream"
    assert {row["result_id"] for row in rows} == {layout.result_id_of(str(row["result_uri"])) for row in rows}
    assert len(rows) == 4


def dreams_in(storage: Storage, destination: str) -> list[str]:
    return sorted(found.uri for found in storage.list(f"{destination}images/"))


def test_batches_of_one_size_give_the_same_dreams_as_single_photographs(
    storage: Storage, source: str, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, height in enumerate((40, 48, 40, 48, 40)):
        put_photograph(storage, f"{source}{number}.png", number, height)
    storage.write(source + "broken.png", b"no picture", "image/png")
    dreamt = {}
    for batch in ("", "1"):
        monkeypatch.setenv("DREAMGRID_BATCH", batch)
        run, shard = plan_run(storage, source, f"{destination}{batch}/", ["blocks.0", "blocks.1"])
        assert dream_shard(run, shard, storage) == {"done": 10, "failed": 2}
        rows = [row for row in rows_of(storage, run) if row["status"] == "done"]
        assert sorted(str(row["batch"]) for row in rows) == ["1"] * 10 if batch else ["4"] * 4 + ["6"] * 6
        dreamt[batch] = {
            (row["source_uri"], row["settings_id"]): decode(storage.read(str(row["result_uri"])) or b"").pixels.tolist()
            for row in rows
        }
    assert dreamt[""] == dreamt["1"]


def test_the_first_part_of_a_shard_wins(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    run, shard = plan_run(storage, source, destination, ["blocks.0"])
    dream_shard(run, shard, storage)
    part = storage.read(layout.part_uri(destination, run.run_id, 0))
    dream_shard(run, shard, storage)
    assert storage.read(layout.part_uri(destination, run.run_id, 0)) == part


def test_a_failed_photograph_affects_only_its_own_rows(storage: Storage, source: str, destination: str) -> None:
    for number, name in enumerate(("changed.png", "deleted.png", "good.png")):
        put_photograph(storage, source + name, number)
    storage.write(source + "empty.png", b"", "image/png")
    run, shard = plan_run(storage, source, destination, ["blocks.0", "blocks.1"])
    put_photograph(storage, source + "changed.png", seed=9)
    storage.delete(source + "deleted.png")

    assert dream_shard(run, shard, storage) == {"done": 2, "failed": 2, "skipped": 4}
    found = {(str(r["source_uri"]).removeprefix(source), r["status"], r["error_kind"]) for r in rows_of(storage, run)}
    assert found == {
        ("good.png", "done", None),
        ("empty.png", "failed", "not_an_image"),
        ("changed.png", "skipped", "source_changed"),
        ("deleted.png", "skipped", "source_missing"),
    }


def test_the_row_of_a_dream_has_the_digest_of_its_file(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    run, shard = plan_run(storage, source, destination, ["blocks.0"])
    dream_shard(run, shard, storage)
    (row,) = rows_of(storage, run)
    data = storage.read(str(row["result_uri"])) or b""
    assert row["result_sha256"] == hashlib.sha256(data).hexdigest()
    assert (row["width"], row["height"]) == (56, 40)


@pytest.mark.parametrize("other", [encode(pixels(), "png", 95, {"somebody": "else"}), b"no picture", b""])
def test_a_foreign_object_in_the_place_of_a_dream_is_reported(
    storage: Storage, source: str, destination: str, other: bytes
) -> None:
    put_photograph(storage, source + "cat.png")
    run, shard = plan_run(storage, source, destination, ["blocks.0"])
    dream_shard(run, shard, storage)
    (row,) = rows_of(storage, run)
    storage.delete(layout.part_uri(destination, run.run_id, 0))
    storage.write(str(row["result_uri"]), other, "image/png")
    with pytest.raises(InvalidInput, match="exists but is not the dream that belongs there: move it away") as error:
        dream_shard(run, shard, storage)
    assert str(row["result_uri"]) in str(error.value)


def test_a_file_over_the_memory_limit_is_not_read(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    run, shard = plan_run(storage, source, destination, ["blocks.0"])
    (work,) = shard.works
    storage.delete(source + "cat.png")
    assert dream_shard(run, Shard(0, (replace(work, source=replace(work.source, size=2**31)),)), storage) == {
        "failed": 1
    }
    (row,) = rows_of(storage, run)
    assert (row["error_kind"], row["error"]) == (
        "too_large",
        f"the file has {2**31} bytes; at most {2**30} bytes are read",
    )


def test_dreams_in_a_destination_below_the_source_are_no_photographs(storage: Storage, source: str) -> None:
    put_photograph(storage, source + "cat.png")
    put_photograph(storage, source + "dreams2/dog.png", seed=1)
    run, shard = plan_run(storage, source, source + "dreams/", ["blocks.0"])
    assert dream_shard(run, shard, storage) == {"done": 2}
    names = [found.name for found in scan(run.job, storage).sources]
    assert sorted(names) == ["cat.png", "dreams2/dog.png"]


@pytest.mark.parametrize("part", ["in/", "in/cat.png"])
def test_a_source_may_be_below_its_destination(storage: Storage, destination: str, part: str) -> None:
    put_photograph(storage, f"{destination}in/cat.png")
    run, shard = plan_run(storage, destination + part, destination, ["blocks.0"])
    assert dream_shard(run, shard, storage) == {"done": 1}
    assert [found.uri for found in scan(run.job, storage).sources] == [f"{destination}in/cat.png"]


def test_a_source_is_a_folder_and_not_a_prefix_of_names(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "in/cat.png")
    put_photograph(storage, source + "in2/dog.png", seed=1)
    job = DreamJob.model_validate({"source": source + "in", "destination": destination})
    assert [found.uri for found in scan(job, storage).sources] == [source + "in/cat.png"]


def test_a_source_may_be_a_single_photograph(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    put_photograph(storage, source + "cat.png.png", seed=1)
    job = DreamJob.model_validate({"source": source + "cat.png", "destination": destination})
    (found,) = scan(job, storage).sources
    assert (found.uri, found.name) == (source + "cat.png", "cat.png")


def test_a_destination_is_held_by_one_job_at_a_time(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    run, _ = plan_run(storage, source, destination, ["blocks.0"])
    other, _ = plan_run(storage, source, destination, ["blocks.1"])
    first, _ = protocol.claim(run.job, run.settings, storage)
    assert protocol.claim(run.job, run.settings, storage)[0].run_id == first.run_id, "the same job goes on with its run"
    ways_out = f"may be working now: wait .*`dreamgrid run --resume {destination}` continues it. --abandon only gives"
    with pytest.raises(InvalidInput, match=f"held by the unfinished run {first.run_id} of another job.*{ways_out}"):
        protocol.claim(other.job, other.settings, storage)
    assert DreamJob.model_validate(run_record.active_job(destination, storage)) == run.job
    protocol.release(destination, first.run_id, storage)
    with pytest.raises(InvalidInput, match="has no unfinished run to resume"):
        run_record.active_job(destination, storage)
    second, _ = protocol.claim(other.job, other.settings, storage)
    assert second.run_id != first.run_id
    protocol.release(destination, first.run_id, storage)
    assert run_record.active_run_id(other.job, storage) == second.run_id, "a run removes no mark but its own"
    protocol.abandon(destination, storage)
    assert run_record.active_run_id(other.job, storage) is None


def test_a_dream_too_large_for_its_format_is_a_failed_row(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "cat.png")
    sink = io.BytesIO()
    Image.fromarray(pixels(4, 17000)).save(sink, "PNG")
    storage.write(source + "panorama.png", sink.getvalue(), "image/png")
    run, shard = plan_run(storage, source, destination, ["blocks.0"], output={"format": "webp"})
    assert dream_shard(run, shard, storage) == {"done": 1, "failed": 1}
    (failed,) = (row for row in rows_of(storage, run) if row["status"] == "failed")
    assert (failed["error_kind"], failed["result_uri"]) == ("too_large", None)
    assert "16383" in str(failed["error"])


def test_sheets_show_only_dreams_of_unchanged_photographs(storage: Storage, source: str, destination: str) -> None:
    for number, name in enumerate(("cat.png", "changed.png", "deleted.png")):
        put_photograph(storage, source + name, number)
    run, shard = plan_run(storage, source, destination, ["blocks.0", "blocks.1"])
    dream_shard(run, shard, storage)
    storage.write(source + "changed.png", b"no picture any more", "image/png")
    storage.delete(source + "deleted.png")
    warnings: list[str] = []
    photographs = [(work.source.uri, work.source.etag) for work in shard.works]
    (sheet,) = draw_sheets(destination, storage, photographs, warnings.append)
    assert (sheet.name, sheet.uri) == ("cat.png", f"{destination}sheets/cat.png.jpg")
    assert storage.read(sheet.uri) == sheet.jpeg
    assert decode(sheet.jpeg).width > 2 * 120
    assert [text.partition(":")[0] for text in warnings] == ["no contact sheet of s3"] * 2
    assert list(draw_sheets(destination, storage, [], warnings.append)) == []
