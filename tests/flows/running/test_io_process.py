"""The process that reads and writes for a worker process with a GPU. Here the network runs on the CPU beside it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from dreamcore.errors import Unavailable
from flows.destination.run_record import Run
from flows.jobs.job import DreamJob
from flows.jobs.work import Shard
from flows.local.stack import Stack
from flows.planning.scan import plan_settings
from flows.running import shard as shards
from flows.running.io_process import _current as io_processes
from flows.running.io_process import files_for
from flows.running.shard import dream_shard
from flows.running.shard_files import Files, ShardFiles
from flows.s3.retry_policy import RetryPolicy
from flows.s3.storage import Storage
from tests.support.decoding import running, wait_until
from tests.support.faults import Fault, Proxy
from tests.support.shards import plan_run, put_photograph, rows_of

MEASURED = {"seconds", "created_at", "result_sha256", "result_bytes", "result_uri", "job_id"}
"""Columns that differ between equal dreams of two jobs. The file contains the time of creation."""


@pytest.fixture(autouse=True)
def beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let shards of this process read and write as beside a GPU."""
    monkeypatch.setattr(shards, "files_for", lambda _device, *rest: files_for("cuda:0", *rest))


@pytest.fixture
def planned(storage: Storage, source: str, destination: str) -> tuple[Run, Shard]:
    """A run with two settings and two photographs. One photograph is damaged."""
    put_photograph(storage, source + "cat.png")
    storage.write(source + "damaged.png", storage.read(source + "cat.png")[:200], "image/png")  # type: ignore[index]
    return plan_run(storage, source, destination, ["blocks.0", "blocks.1"])


def io_process() -> multiprocessing.process.BaseProcess:
    (found,) = (each for each in multiprocessing.active_children() if each.name.startswith("_Process"))
    return found


def test_the_rows_are_those_of_reading_and_writing_in_threads(
    storage: Storage, destination: str, planned: tuple[Run, Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, shard = planned
    assert dream_shard(run, shard, storage) == {"done": 2, "failed": 2}
    monkeypatch.setattr(shards, "files_for", lambda _device, *rest: files_for("cpu", *rest))
    job = run.job.model_copy(update={"destination": f"{destination}threads/"})
    other = run.model_copy(update={"job": job})
    assert dream_shard(other, shard, storage) == {"done": 2, "failed": 2}

    def comparable(each: Run) -> list[dict[str, object]]:
        rows = ({name: row[name] for name in row.keys() - MEASURED} for row in rows_of(storage, each))
        return sorted(rows, key=lambda row: (str(row["source_uri"]), str(row["settings_id"])))

    for of_process, of_threads in zip(comparable(run), comparable(other), strict=True):
        assert {name for name in of_process if of_process[name] != of_threads[name]} == set()


def test_no_thread_of_the_worker_process_reads_decodes_or_writes_files(
    storage: Storage, planned: tuple[Run, Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("load", "deliver"):
        monkeypatch.setattr(ShardFiles, method, partial(pytest.fail, f"{method} in this process"))
    assert dream_shard(*planned, storage) == {"done": 2, "failed": 2}
    libraries = Path(f"/proc/{io_process().pid}/maps")
    if libraries.exists():
        assert "libtorch" not in libraries.read_text(), "the process has no use for PyTorch"


def test_the_process_stays_for_the_next_shard_and_a_killed_one_is_replaced(
    storage: Storage, planned: tuple[Run, Shard]
) -> None:
    run, shard = planned
    files = files_for("cuda:0", run, storage)
    first = io_process()
    files_for("cuda:0", run, storage)
    assert io_process() is first
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(Unavailable, match=r"has ended \(exit code -9\), perhaps for lack of memory"):
        files.load(shard.works[0])
    assert dream_shard(run, shard, storage) == {"done": 2, "failed": 2}
    assert io_process() is not first


def test_a_process_that_is_killed_during_a_shard_loses_nothing(
    stack: Stack, storage: Storage, proxy: Proxy, planned: tuple[Run, Shard], destination: str
) -> None:
    def kill_at_the_second_dream(call: object) -> Fault | None:
        uri, method = call.uri, call.method  # type: ignore[attr-defined]
        if method == "PUT" and uri.startswith(f"{destination}images/"):
            written.append(uri)
            if len(set(written)) == 2:
                io_process().kill()
        return None

    written: list[str] = []
    run, shard = planned
    proxy.choose = kill_at_the_second_dream
    with pytest.raises(Unavailable, match="has ended"):
        dream_shard(run, shard, Storage(environment=proxy.environment(stack.environment())))
    assert dream_shard(run, shard, storage) == {"done": 2, "failed": 2}


def test_every_thread_that_waits_for_a_killed_process_gets_the_same_error(planned: tuple[Run, Shard]) -> None:
    def load(files: Files) -> str:
        with pytest.raises(Unavailable) as error:
            files.load(shard.works[0])
        return str(error.value)

    run, shard = planned
    unreachable = dict.fromkeys(("AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "x")
    storage = Storage(RetryPolicy(30, 5), {**unreachable, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    for _ in range(4):
        files = files_for("cuda:0", run, storage)
        with ThreadPoolExecutor(32) as threads:
            errors = [threads.submit(load, files) for _ in range(32)]
            time.sleep(0.3)
            io_process().kill()
        assert all("has ended" in error.result() for error in errors)


def test_a_lost_store_stops_the_shard(stack: Stack, proxy: Proxy, planned: tuple[Run, Shard], destination: str) -> None:
    proxy.choose = lambda call: Fault.SLOW_DOWN if call.method == "PUT" and "/images/" in call.uri else None
    with pytest.raises(Unavailable, match=r"s3://|SlowDown|slow"):
        dream_shard(*planned, Storage(RetryPolicy(0, 5), proxy.environment(stack.environment())))


WORKER = """
from tests.flows.running.test_io_process import start_and_wait
if __name__ == "__main__":
    start_and_wait()
"""


def start_and_wait() -> None:
    """Start the process as a worker process does, print its id and the folder of its socket, and wait for the end."""
    job = DreamJob.model_validate({"source": "noise:64x64", "destination": "s3://bucket/x/"})
    files_for("cuda:0", Run(run_id="run", job=job, settings=plan_settings(job)), Storage())
    print(io_process().pid, Path(str(io_processes[0].address)).parent, flush=True)
    sys.stdin.read()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "AWS_DEFAULT_REGION": "us-east-1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdin=pipe, stdout=pipe, text=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("is_killed", [True, False])
def test_the_process_ends_with_its_worker_and_leaves_no_socket(worker: subprocess.Popen[str], is_killed: bool) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    pid, folder = worker.stdout.readline().split()
    assert Path(folder).stat().st_mode & 0o777 == 0o700, "nobody else may connect"
    if is_killed:
        worker.kill()
    else:
        worker.stdin.close()
    wait_until(lambda: not running(int(pid)))
    assert not Path(folder).exists()
    assert worker.wait() == (-signal.SIGKILL if is_killed else 0)
