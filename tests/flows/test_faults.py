"""Infrastructure failures: a real store behind a proxy that injects faults."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dreamcore.errors import ImageError, InvalidInput, Unavailable
from dreamcore.images import decode
from dreamcore.sizes import BATCH
from flows.destination import manifest, run_record
from flows.destination.run_record import Run
from flows.destination.run_report import Report
from flows.jobs.cost import ONE_CORE
from flows.jobs.job import DreamJob
from flows.jobs.work import Shard
from flows.local.stack import Stack
from flows.planning.scan import plan_settings, scan
from flows.running import protocol
from flows.running.shard import dream_shard
from flows.s3 import layout
from flows.s3.storage import RetryPolicy, Storage
from tests.support.command import Command
from tests.support.faults import Call, Choice, Fault, Proxy, after, first, some
from tests.support.shards import plan_run, put_photograph, rows_of

DATA = os.urandom(50_000)
DELETIONS = (Fault.KEYS_DENIED, Fault.KEYS_BUSY)
TRANSIENT = [
    fault for fault in Fault if fault not in (Fault.CORRUPT, Fault.HANG, Fault.GONE, Fault.UNKNOWN, *DELETIONS)
]
"""Faults after which a retry succeeds."""

RunJob = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def faulty(stack: Stack, proxy: Proxy) -> Storage:
    """The stack's S3 through the proxy. The timeout is long, because no fault that uses this storage hangs."""
    return Storage(RetryPolicy(10, 10), proxy.environment(stack.environment()))


@pytest.mark.parametrize("fault", TRANSIENT, ids=lambda fault: fault.name)
def test_a_transient_fault_is_retried(
    fault: Fault, storage: Storage, faulty: Storage, proxy: Proxy, source: str
) -> None:
    proxy.choose = first(fault, "PUT", source)
    faulty.write(source + "written", DATA, "image/png")
    assert storage.read(source + "written") == DATA
    proxy.choose = first(fault, "PUT", source)
    assert faulty.write_if_absent(source + "new", DATA, "image/png")
    assert storage.read(source + "new") == DATA
    proxy.choose = first(fault, "GET", source)
    assert faulty.read(source + "written") == DATA
    proxy.choose = first(fault, "GET", source)
    listed = list(faulty.list(source))
    assert [found.uri for found in listed] == [source + "new", source + "written"]
    assert proxy.count(fault) == 4
    proxy.choose = first(fault, "HEAD", source)
    assert faulty.find(listed[0].uri) == listed[0]
    proxy.choose = first(fault, "DELETE", source)
    faulty.delete(listed[0].uri)
    assert storage.find(listed[0].uri) is None


@pytest.mark.parametrize("fault", [*TRANSIENT, Fault.KEYS_BUSY], ids=lambda fault: fault.name)
def test_deleting_many_objects_is_retried(
    fault: Fault, storage: Storage, faulty: Storage, proxy: Proxy, source: str
) -> None:
    storage.write(source + "x", DATA, "image/png")
    proxy.choose = first(fault, "POST", "s3://photos")
    faulty.delete_many([source + "x", source + "missing"])
    assert list(storage.list(source)) == []
    assert proxy.count(fault) == 1


def test_objects_that_may_not_be_deleted_are_named(faulty: Storage, proxy: Proxy, source: str) -> None:
    proxy.choose = first(Fault.KEYS_DENIED, "POST", "s3://photos")
    with pytest.raises(InvalidInput, match=rf"refuses access \(AccessDenied no for {source}a&b.png\)"):
        faulty.delete_many([source + "a&b.png", source + "c.png"])
    assert proxy.count() == 1


def test_a_store_that_cannot_delete_many_objects_deletes_one_by_one(
    storage: Storage, faulty: Storage, proxy: Proxy, source: str
) -> None:
    for name in ("one", "two"):
        storage.write(source + name, DATA, "image/png")
    proxy.choose = first(Fault.UNKNOWN, "POST", "s3://photos")
    for name in ("one", "two"):
        faulty.delete_many([source + name])
    assert list(storage.list(source)) == []
    assert [call.method for call, _ in proxy.calls] == ["POST", "DELETE", "DELETE"]


def test_a_request_that_hangs_is_retried(stack: Stack, proxy: Proxy, source: str) -> None:
    storage = Storage(RetryPolicy(10, 1), proxy.environment(stack.environment()))
    proxy.choose = first(Fault.HANG, "PUT", source)
    assert storage.write_if_absent(source + "x", DATA, "image/png")
    proxy.choose = first(Fault.HANG, "GET", source)
    assert [found.uri for found in storage.list(source)] == [source + "x"]


@pytest.mark.parametrize("fault", [Fault.RESPONSE_LOST, Fault.RESET_AFTER], ids=lambda fault: fault.name)
def test_a_conditional_write_with_a_lost_response_finds_its_own_object(
    fault: Fault, storage: Storage, faulty: Storage, proxy: Proxy, source: str
) -> None:
    proxy.choose = first(fault, "PUT", source)
    assert faulty.write_if_absent(source + "x", DATA, "image/png")
    assert [call.method for call, _ in proxy.calls] == ["PUT", "PUT", "GET"]

    storage.write(source + "y", b"of another writer", "image/png")
    proxy.choose = first(fault, "PUT", source)
    assert not faulty.write_if_absent(source + "y", DATA, "image/png")
    assert storage.read(source + "y") == b"of another writer"


@pytest.mark.parametrize("fault", [Fault.FLIPPED, Fault.TRUNCATED], ids=lambda fault: fault.name)
@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_a_corrupted_download_is_repeated(
    fault: Fault, checksums: str, stack: Stack, faulty: Storage, proxy: Proxy, source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Corruption is found by the checksum of the store, or by the ETag if the writer sent no checksum."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", checksums)
    Storage(environment=stack.environment()).write(source + "cat.png", DATA, "image/png")
    (found,) = faulty.list(source)
    proxy.choose = first(fault, "GET", source, times=2)
    assert faulty.read(found.uri) == DATA
    assert proxy.count(fault) == 2
    proxy.choose = first(fault, "GET", source, times=2)
    assert faulty.read_version(found.uri, found.etag) == DATA


def test_an_object_that_is_damaged_in_the_store_is_never_used(
    storage: Storage, faulty: Storage, proxy: Proxy, source: str
) -> None:
    storage.write(source + "cat.png", DATA, "image/png")
    (found,) = storage.list(source)
    proxy.choose = lambda _call: Fault.CORRUPT
    with pytest.raises(ImageError, match="damaged in the store") as damaged:
        faulty.read_version(found.uri, found.etag)
    assert damaged.value.kind == "damaged"
    with pytest.raises(Unavailable, match="damaged in the store"):
        faulty.read(found.uri)


def test_a_photograph_that_is_replaced_during_a_retry_is_changed(
    storage: Storage, faulty: Storage, proxy: Proxy, source: str
) -> None:
    storage.write(source + "cat.png", DATA, "image/png")
    (found,) = storage.list(source)

    def replaced(call: Call) -> Fault:
        storage.write(source + "cat.png", DATA[::-1], "image/png")
        return Fault.TRUNCATED

    proxy.choose = replaced
    with pytest.raises(ImageError, match="replaced") as changed:
        faulty.read_version(found.uri, found.etag)
    assert changed.value.kind == "source_changed"


def test_a_store_without_conditional_writes_is_refused_before_a_run(
    stack: Stack, proxy: Proxy, source: str, destination: str, dreamgrid: Command
) -> None:
    proxy.choose = lambda call: Fault.UNKNOWN if call.method == "PUT" else None
    environment = proxy.environment(stack.environment())
    done = dreamgrid("run", "--source", source, "--destination", destination, **environment)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "does not implement this request (NotImplemented by the proxy): a run needs a store" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.RESET, Fault.HANG, Fault.FLIPPED], ids=lambda f: f.name)
def test_retries_end_after_the_retry_time(
    fault: Fault, stack: Stack, storage: Storage, proxy: Proxy, source: str
) -> None:
    storage.write(source + "x", DATA, "image/png")
    client = Storage(RetryPolicy(3, 0.2), proxy.environment(stack.environment()))
    proxy.choose = lambda _call: fault
    started = time.monotonic()
    with pytest.raises(Unavailable):
        client.read(source + "x")
    assert 1 < time.monotonic() - started < 30
    assert proxy.count() > 1


def test_many_threads_reuse_their_connections(
    faulty: Storage, proxy: Proxy, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice as many threads as read and write for a GPU."""
    threads = 4 * BATCH
    proxy.choose = lambda _call: Fault.DELAYED  # so that all requests are in flight at the same time
    with ThreadPoolExecutor(threads) as pool:
        assert set(pool.map(faulty.find, [source + "x"] * threads)) == {None}
    assert "pool is full" not in caplog.text


def test_nothing_is_lost_if_half_of_all_responses_are_slow_down(faulty: Storage, proxy: Proxy, source: str) -> None:
    proxy.choose = some(seed=1, slow_down=0.5)
    for number in range(12):
        assert faulty.write_if_absent(f"{source}{number}", DATA, "image/png")
    assert len(list(faulty.list(source))) == 12
    assert proxy.count(Fault.SLOW_DOWN) > 6
    assert proxy.count() < 3 * 13


def test_each_object_is_listed_once_despite_faults(
    storage: Storage, faulty: Storage, proxy: Proxy, source: str
) -> None:
    uris = [f"{source}{number:04}" for number in range(1005)]  # a page holds 1,000
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda uri: storage.write(uri, b"x", "text/plain"), uris))
    proxy.choose = some(seed=4, slow_down=0.4, truncated=0.4)
    assert sorted(found.uri for found in faulty.list(source)) == uris
    assert proxy.count(Fault.SLOW_DOWN, Fault.TRUNCATED) > 1


def test_renewed_credentials_are_read_again(
    stack: Stack, storage: Storage, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(source + "x", DATA, "image/png")
    file = tmp_path / "credentials"
    text = f"[default]\naws_access_key_id = {{}}\naws_secret_access_key = {stack.secret_key}\n"
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    file.write_text(text.format("EXPIRED"))
    client = Storage()
    with pytest.raises(InvalidInput, match="refuses access"):
        client.read(source + "x")
    file.write_text(text.format(stack.access_key))
    assert client.read(source + "x") == DATA


def images_of(storage: Storage, rows: list[dict[str, object]]) -> dict[object, bytes]:
    """Return the pixels of each dream by the address of its photograph."""
    return {row["source_uri"]: decode(storage.read(str(row["result_uri"])) or b"").pixels.tobytes() for row in rows}


def test_corrupted_transfers_do_not_change_a_dream(
    storage: Storage, faulty: Storage, proxy: Proxy, source: str, destination: str
) -> None:
    for number in range(4):
        put_photograph(storage, f"{source}{number}.png", number)
    run, shard = plan_run(storage, source, destination + "clean/", ["blocks.0"])
    dream_shard(run, shard, storage)
    clean = images_of(storage, rows_of(storage, run))

    run, shard = plan_run(storage, source, destination + "faulty/", ["blocks.0"])
    proxy.choose = some(seed=3, flipped=0.25, truncated=0.25, corrupt_upload=0.25)
    assert dream_shard(run, shard, faulty) == {"done": 4}
    assert proxy.count(Fault.FLIPPED, Fault.TRUNCATED, Fault.CORRUPT_UPLOAD) > 8
    assert images_of(storage, rows_of(storage, run)) == clean


def test_a_photograph_that_is_damaged_in_the_store_is_a_failed_row(
    storage: Storage, faulty: Storage, proxy: Proxy, source: str, destination: str
) -> None:
    put_photograph(storage, source + "good.png")
    put_photograph(storage, source + "damaged.png", 1)
    run, shard = plan_run(storage, source, destination, ["blocks.0"])
    proxy.choose = lambda call: Fault.CORRUPT if call.uri == source + "damaged.png" else None
    assert dream_shard(run, shard, faulty) == {"done": 1, "failed": 1}
    assert {row["error_kind"] for row in rows_of(storage, run)} == {None, "damaged"}


@pytest.fixture
def run_job(storage: Storage, stack: Stack, proxy: Proxy, source: str, destination: str, dreamgrid: Command) -> RunJob:
    """Start or resume a run of the command over some photographs, while the proxy injects faults."""

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
    """Assert that every photograph has one finished row, and that its dream has the SHA-256 of the row."""
    rows = manifest.read(storage, destination).to_pylist()
    assert len({row["source_uri"] for row in rows}) == len(rows) == photographs
    for row in rows:
        assert row["status"] == "done"
        assert row["result_sha256"] == hashlib.sha256(storage.read(row["result_uri"]) or b"").hexdigest()


def resume_in_process(storage: Storage, source: str, destination: str) -> Report:
    """Resume the run that `run_job` started, without the command and Prefect, and return its report."""
    grid = {"layers": ["blocks.0"], "octaves": [1], "steps": [1]}
    job = DreamJob.model_validate({"source": source, "destination": destination, "grid": grid})

    def dream_here(run: Run, shards: Iterator[Shard]) -> Generator[Mapping[str, int], None, None]:
        yield from (dream_shard(run, shard, storage) for shard in shards)

    assert run_record.active_run_id(job, storage), "the run is unfinished"
    finished = protocol.run_job(
        job,
        plan_settings(job),
        storage,
        dream_here,
        find_sources=lambda job: scan(job, storage),
        throughput=ONE_CORE,
    )
    return finished.report


def test_a_run_that_loses_the_store_and_its_credentials_is_resumed_and_completes(
    run_job: RunJob, storage: Storage, faulty: Storage, proxy: Proxy, source: str, destination: str
) -> None:
    reset, failed_at = after(Fault.RESET, 2, "PUT", f"{destination}images/"), list[float]()

    def outage_of_the_store(call: Call) -> Fault | None:
        if fault := reset(call):
            failed_at.append(time.monotonic())
        return fault

    outage = run_job(outage_of_the_store, 6, DREAMGRID_RETRY_SECONDS="3")
    assert outage.returncode == 3, outage.stderr
    assert "does not answer" in outage.stderr
    assert time.monotonic() - failed_at[0] < 60
    assert len(list(storage.list(f"{destination}images/"))) == 2

    expired = run_job(after(Fault.EXPIRED, 1, "PUT", f"{destination}images/"), 6)
    assert expired.returncode == 3, expired.stderr
    assert "refuses access (ExpiredToken" in expired.stderr
    assert len(list(storage.list(f"{destination}images/"))) == 3

    before = proxy.count(), proxy.count(Fault.SLOW_DOWN)
    proxy.choose = some(seed=2, slow_down=0.2)
    assert resume_in_process(faulty, source, destination).done == 6
    received, refused = proxy.count() - before[0], proxy.count(Fault.SLOW_DOWN) - before[1]
    assert refused > 5
    assert received <= 3 * (received - refused), "retries are few compared with the calls that a run needs"
    check_rows(storage, destination, 6)


def test_a_run_completes_if_its_sheets_cannot_be_written(
    run_job: RunJob, storage: Storage, proxy: Proxy, destination: str
) -> None:
    ran = run_job(after(Fault.EXPIRED, 0, "PUT", f"{destination}sheets/"), 2)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert (report["done"], report["sheets"]) == (2, None)
    assert proxy.count(Fault.EXPIRED) > 0
    assert storage.find(layout.active_uri(destination)) is None


@pytest.mark.soak
def test_a_run_survives_a_minute_in_which_half_of_all_responses_are_slow_down(
    run_job: RunJob, proxy: Proxy, storage: Storage, destination: str
) -> None:
    started = time.monotonic()
    half = some(seed=5, slow_down=0.5)
    ran = run_job(lambda call: half(call) if time.monotonic() - started < 60 else None, 150)
    assert ran.returncode == 0, ran.stderr
    assert time.monotonic() - started > 60, "the run took longer than the minute of faults"
    assert proxy.count(Fault.SLOW_DOWN) > 100
    check_rows(storage, destination, 150)


@pytest.mark.soak
def test_a_run_with_a_store_that_hangs_stops_in_bounded_time(
    run_job: RunJob, storage: Storage, destination: str
) -> None:
    started = time.monotonic()
    hung = run_job(after(Fault.HANG, 2, "PUT", f"{destination}images/"), 20, DREAMGRID_RETRY_SECONDS="10")
    assert hung.returncode == 3, hung.stderr
    assert time.monotonic() - started < 30 + 3 * 2 * (10 + 10)
    assert run_job(lambda _call: None, 20).returncode == 0
    check_rows(storage, destination, 20)
