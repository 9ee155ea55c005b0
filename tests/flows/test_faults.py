"""S3 misbehaves, and the world changes: a real store behind a proxy that harms what it is told to harm."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dreamcore.errors import ImageError, InvalidInput, Unavailable
from dreamcore.images import decode
from flows import layout, manifest
from flows.local.stack import Stack
from flows.machine import BATCH
from flows.shard import dream_shard
from flows.storage import RetryPolicy, Storage
from tests.conftest import Command
from tests.support.faults import Call, Choice, Fault, Proxy, after, first, some
from tests.support.shards import plan_run, put_photograph, rows_of

DATA = os.urandom(50_000)
OUTLIVED = [fault for fault in Fault if fault not in (Fault.ROTTEN, Fault.SILENT, Fault.GONE, Fault.UNKNOWN)]
"""Faults after which the same request does better."""

Begin = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def proxy(stack: Stack) -> Iterator[Proxy]:
    """A proxy before the stack's store."""
    with Proxy(stack.s3_url) as running:
        yield running


@pytest.fixture
def harmed(stack: Stack, proxy: Proxy) -> Storage:
    """The stack's S3 through the proxy, with some retry, also where a machine stalls: no fault here is silence."""
    return Storage(RetryPolicy(10, 10), proxy.environment(stack.environment()))


@pytest.mark.parametrize("fault", OUTLIVED, ids=lambda fault: fault.name)
def test_a_fault_is_outlived(fault: Fault, storage: Storage, harmed: Storage, proxy: Proxy, source: str) -> None:
    proxy.choose = first(fault, "PUT", source)
    harmed.write(source + "written", DATA, "image/png")
    assert storage.read(source + "written") == DATA
    proxy.choose = first(fault, "PUT", source)
    assert harmed.write_if_absent(source + "new", DATA, "image/png")
    assert storage.read(source + "new") == DATA
    proxy.choose = first(fault, "GET", source)
    assert harmed.read(source + "written") == DATA
    proxy.choose = first(fault, "GET", source)
    listed = list(harmed.list(source))
    assert [found.uri for found in listed] == [source + "new", source + "written"]
    assert proxy.count(fault) == 4
    proxy.choose = first(fault, "HEAD", source)
    assert harmed.find(listed[0].uri) == listed[0]
    proxy.choose = first(fault, "DELETE", source)
    harmed.delete(listed[0].uri)
    assert storage.find(listed[0].uri) is None


def test_silence_is_outlived(stack: Stack, proxy: Proxy, source: str) -> None:
    storage = Storage(RetryPolicy(10, 1), proxy.environment(stack.environment()))
    proxy.choose = first(Fault.SILENT, "PUT", source)
    assert storage.write_if_absent(source + "x", DATA, "image/png")
    proxy.choose = first(Fault.SILENT, "GET", source)
    assert [found.uri for found in storage.list(source)] == [source + "x"]


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.CUT], ids=lambda fault: fault.name)
def test_a_conditional_put_whose_answer_was_lost_is_found_to_be_our_own(
    fault: Fault, storage: Storage, harmed: Storage, proxy: Proxy, source: str
) -> None:
    proxy.choose = first(fault, "PUT", source)
    assert harmed.write_if_absent(source + "x", DATA, "image/png")
    assert [call.method for call, _ in proxy.calls] == ["PUT", "PUT", "GET"]

    storage.write(source + "y", b"another's", "image/png")
    proxy.choose = first(fault, "PUT", source)
    assert not harmed.write_if_absent(source + "y", DATA, "image/png")
    assert storage.read(source + "y") == b"another's"


@pytest.mark.parametrize("fault", [Fault.FLIPPED, Fault.TRUNCATED], ids=lambda fault: fault.name)
@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_a_harmed_read_is_read_again(
    fault: Fault, checksums: str, stack: Stack, harmed: Storage, proxy: Proxy, source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By the checksum that a store keeps, and by the ETag alone where whoever put the object gave none."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", checksums)
    Storage(environment=stack.environment()).write(source + "cat.png", DATA, "image/png")
    (found,) = harmed.list(source)
    proxy.choose = first(fault, "GET", source, times=2)
    assert harmed.read(found.uri) == DATA
    assert proxy.count(fault) == 2
    proxy.choose = first(fault, "GET", source, times=2)
    assert harmed.read_version(found.uri, found.etag) == DATA


def test_bytes_that_rotted_in_the_store_are_told_and_never_used(
    storage: Storage, harmed: Storage, proxy: Proxy, source: str
) -> None:
    storage.write(source + "cat.png", DATA, "image/png")
    (found,) = storage.list(source)
    proxy.choose = lambda _call: Fault.ROTTEN
    with pytest.raises(ImageError, match="damaged in the store") as damaged:
        harmed.read_version(found.uri, found.etag)
    assert damaged.value.kind == "damaged"
    with pytest.raises(Unavailable, match="damaged in the store"):
        harmed.read(found.uri)


def test_a_photograph_that_is_replaced_while_it_is_read_again_is_another(
    storage: Storage, harmed: Storage, proxy: Proxy, source: str
) -> None:
    storage.write(source + "cat.png", DATA, "image/png")
    (found,) = storage.list(source)

    def replaced(call: Call) -> Fault:
        storage.write(source + "cat.png", DATA[::-1], "image/png")
        return Fault.TRUNCATED

    proxy.choose = replaced
    with pytest.raises(ImageError, match="replaced") as changed:
        harmed.read_version(found.uri, found.etag)
    assert changed.value.kind == "source_changed"


def test_a_store_that_refuses_conditional_writes_starts_nothing(
    stack: Stack, proxy: Proxy, source: str, destination: str, dreamgrid: Command
) -> None:
    proxy.choose = lambda call: Fault.UNKNOWN if call.method == "PUT" else None
    there = proxy.environment(stack.environment())
    done = dreamgrid("run", "--source", source, "--destination", destination, **there)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "does not know what is asked of it (NotImplemented by the proxy): a run needs a store" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.RESET, Fault.SILENT, Fault.FLIPPED], ids=lambda f: f.name)
def test_patience_has_an_end(fault: Fault, stack: Stack, storage: Storage, proxy: Proxy, source: str) -> None:
    storage.write(source + "x", DATA, "image/png")
    impatient = Storage(RetryPolicy(3, 0.2), proxy.environment(stack.environment()))
    proxy.choose = lambda _call: fault
    started = time.monotonic()
    with pytest.raises(Unavailable):
        impatient.read(source + "x")
    assert 1 < time.monotonic() - started < 30
    assert proxy.count() > 1


def test_many_threads_keep_their_connections(
    harmed: Storage, proxy: Proxy, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As many as read and write for a GPU, twice over."""
    threads = 4 * BATCH
    proxy.choose = lambda _call: Fault.LATE  # so that all of them ask at once
    with ThreadPoolExecutor(threads) as asking:
        assert set(asking.map(harmed.find, [source + "x"] * threads)) == {None}
    assert "pool is full" not in caplog.text


def test_half_of_all_answers_being_slow_down_loses_nothing(harmed: Storage, proxy: Proxy, source: str) -> None:
    proxy.choose = some(seed=1, slow_down=0.5)
    for number in range(12):
        assert harmed.write_if_absent(f"{source}{number}", DATA, "image/png")
    assert len(list(harmed.list(source))) == 12
    assert proxy.count(Fault.SLOW_DOWN) > 6
    assert proxy.count() < 3 * 13


def test_each_object_is_listed_once_however_its_page_came(
    storage: Storage, harmed: Storage, proxy: Proxy, source: str
) -> None:
    uris = [f"{source}{number:04}" for number in range(1005)]  # a page holds 1,000
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda uri: storage.write(uri, b"x", "text/plain"), uris))
    proxy.choose = some(seed=4, slow_down=0.4, truncated=0.4)
    assert sorted(found.uri for found in harmed.list(source)) == uris
    assert proxy.count(Fault.SLOW_DOWN, Fault.TRUNCATED) > 1


def test_renewed_credentials_are_heard(
    stack: Stack, storage: Storage, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(source + "x", DATA, "image/png")
    file = tmp_path / "credentials"
    text = f"[default]\naws_access_key_id = {{}}\naws_secret_access_key = {stack.secret_key}\n"
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    file.write_text(text.format("EXPIRED"))
    renewed = Storage()
    with pytest.raises(InvalidInput, match="refuses access"):
        renewed.read(source + "x")
    file.write_text(text.format(stack.access_key))
    assert renewed.read(source + "x") == DATA


def pictures_of(storage: Storage, rows: list[dict[str, object]]) -> dict[object, bytes]:
    """The pixels of each dream, by the photograph it was made of."""
    return {row["source_uri"]: decode(storage.read(str(row["result_uri"])) or b"").pixels.tobytes() for row in rows}


def test_what_was_harmed_on_its_way_is_never_dreamt(
    storage: Storage, harmed: Storage, proxy: Proxy, source: str, destination: str
) -> None:
    for number in range(4):
        put_photograph(storage, f"{source}{number}.png", number)
    run, shard = plan_run(storage, source, destination + "clean/", ["blocks.0"])
    dream_shard(run, shard, storage)
    clean = pictures_of(storage, rows_of(storage, run))

    run, shard = plan_run(storage, source, destination + "harmed/", ["blocks.0"])
    proxy.choose = some(seed=3, flipped=0.25, truncated=0.25, spoilt=0.25)
    assert dream_shard(run, shard, harmed) == {"done": 4}
    assert proxy.count(Fault.FLIPPED, Fault.TRUNCATED, Fault.SPOILT) > 8
    assert pictures_of(storage, rows_of(storage, run)) == clean


def test_a_photograph_that_rotted_is_a_failed_row(
    storage: Storage, harmed: Storage, proxy: Proxy, source: str, destination: str
) -> None:
    put_photograph(storage, source + "good.png")
    put_photograph(storage, source + "rotten.png", 1)
    run, shard = plan_run(storage, source, destination, ["blocks.0"])
    proxy.choose = lambda call: Fault.ROTTEN if call.uri == source + "rotten.png" else None
    assert dream_shard(run, shard, harmed) == {"done": 1, "failed": 1}
    assert {row["error_kind"] for row in rows_of(storage, run)} == {None, "damaged"}


@pytest.fixture
def begin(storage: Storage, stack: Stack, proxy: Proxy, source: str, destination: str, dreamgrid: Command) -> Begin:
    """Begin, or go on with, a run over some photographs, while the proxy harms its calls."""

    def run(choose: Choice, photographs: int, **variables: str) -> subprocess.CompletedProcess[str]:
        if not proxy.calls:
            for number in range(photographs):
                put_photograph(storage, f"{source}{number:03}.png", number)
        job = ["--source", source, "--destination", destination]
        grid = ["--layers", "blocks.0", "--octaves", "1", "--steps", "1"]
        proxy.choose = choose
        variables |= {"DREAMGRID_WORKERS": "1"} | proxy.environment(stack.environment())
        return dreamgrid("run", *job, *grid, "--json", timeout=900, **variables)

    return run


def check_rows(storage: Storage, destination: str, photographs: int) -> None:
    """Every photograph is one row, done, whose picture is the one it names."""
    rows = manifest.read(storage, destination).to_pylist()
    assert len({row["source_uri"] for row in rows}) == len(rows) == photographs
    for row in rows:
        assert row["status"] == "done"
        assert row["result_sha256"] == hashlib.sha256(storage.read(row["result_uri"]) or b"").hexdigest()


def test_a_run_that_loses_the_store_and_its_credentials_is_resumed_and_completes(
    begin: Begin, storage: Storage, proxy: Proxy, destination: str
) -> None:
    reset, began = after(Fault.RESET, 2, "PUT", f"{destination}images/"), list[float]()

    def away(call: Call) -> Fault | None:
        if fault := reset(call):
            began.append(time.monotonic())
        return fault

    outage = begin(away, 6, DREAMGRID_PATIENCE="3")
    assert outage.returncode == 3, outage.stderr
    assert "does not answer" in outage.stderr
    assert time.monotonic() - began[0] < 60
    assert len(list(storage.list(f"{destination}images/"))) == 2

    expired = begin(after(Fault.EXPIRED, 1, "PUT", f"{destination}images/"), 6)
    assert expired.returncode == 3, expired.stderr
    assert "refuses access (ExpiredToken" in expired.stderr
    assert len(list(storage.list(f"{destination}images/"))) == 3

    before = proxy.count(), proxy.count(Fault.SLOW_DOWN)
    slow = begin(some(seed=2, slow_down=0.2), 6)
    assert slow.returncode == 0, slow.stderr
    assert json.loads(slow.stdout)["done"] == 6
    received, refused = proxy.count() - before[0], proxy.count(Fault.SLOW_DOWN) - before[1]
    assert refused > 5
    assert received <= 3 * (received - refused), "what was let through is what a run needs"
    check_rows(storage, destination, 6)


def test_sheets_that_cannot_be_put_there_hold_no_run_back(
    begin: Begin, storage: Storage, proxy: Proxy, destination: str
) -> None:
    ran = begin(after(Fault.EXPIRED, 0, "PUT", f"{destination}sheets/"), 2)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert (report["done"], report["sheets"]) == (2, None)
    assert proxy.count(Fault.EXPIRED) > 0
    assert storage.find(layout.active_uri(destination)) is None


@pytest.mark.soak
def test_a_minute_of_every_other_answer_being_slow_down_is_outlived(
    begin: Begin, proxy: Proxy, storage: Storage, destination: str
) -> None:
    started = time.monotonic()
    half = some(seed=5, slow_down=0.5)
    ran = begin(lambda call: half(call) if time.monotonic() - started < 60 else None, 150)
    assert ran.returncode == 0, ran.stderr
    assert time.monotonic() - started > 60, "it ran through the whole minute"
    assert proxy.count(Fault.SLOW_DOWN) > 100
    check_rows(storage, destination, 150)


@pytest.mark.soak
def test_a_store_that_falls_silent_ends_a_run_in_bounded_time(begin: Begin, storage: Storage, destination: str) -> None:
    started = time.monotonic()
    silent = begin(after(Fault.SILENT, 2, "PUT", f"{destination}images/"), 20, DREAMGRID_PATIENCE="10")
    assert silent.returncode == 3, silent.stderr
    assert time.monotonic() - started < 30 + 3 * 2 * (10 + 10)
    assert begin(lambda _call: None, 20).returncode == 0
    check_rows(storage, destination, 20)
