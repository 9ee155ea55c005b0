"""Runs and prunes that are killed or suspended. Each attempt at a job is a separate process, forked from a warm one.

An attempt calls `flows.running.protocol.run_job`, the code that the Prefect flow calls, with an executor that dreams in
the process itself. It can send itself a signal at any of its S3 calls, just before the request or just after the
response, or the test sends one. An observer reads everything that is visible in a destination at any instant.
"""

import hashlib
import io
import itertools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow.parquet as pq
import torch
from PIL import Image

from dreamcore.batch import Dream, DreamRequest, Limits, dream_photographs
from dreamcore.errors import DreamgridError, ImageError
from dreamcore.images import Photograph, decode, read_metadata
from dreamcore.network import Network
from dreamcore.settings import DreamSettings
from flows.destination.run_record import Run
from flows.destination.selection import select
from flows.jobs.assets import network_for
from flows.jobs.cost import CORE, Throughput
from flows.jobs.job import DreamJob
from flows.jobs.work import Shard
from flows.machine.machine import max_memory
from flows.planning.scan import plan_settings, scan
from flows.results.compact import compact
from flows.results.prune import preview, prune
from flows.running.protocol import Executor, run_job
from flows.running.shard import dream_shard
from flows.s3 import layout
from flows.s3.storage import ObjectInfo, Storage
from tests.support.shards import out_of_memory_at
from tests.support.tiny import pixels

BATCH = 2
"""Batch size of an attempt; small, because its runs are small."""
REFUSED = 3
"""Exit code of an attempt that ended with a `DreamgridError`."""

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([__name__])

_exit_codes = threading.Lock()
"""Lock around exit codes. multiprocessing polls the exit codes of all children whenever it starts one or reads one. An
exit code can be read only once: if two threads read the same one, one of them gets 255."""


def _warm_up() -> None:
    """Load the network and dream once, so that forks need not repeat these slow steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # other threads do not survive a fork
    for layers in ("blocks.0", "blocks.1"):
        settings = DreamSettings.model_validate({"layers": layers, "octaves": 1, "steps": 1})
        request = DreamRequest(Photograph(pixels(32, 40), 40, 32), settings)
        dream_photographs(network_for(settings, "cpu"), [request], Limits(max_memory("cpu")))
    torch.set_num_threads(threads)


_warm_up()


@dataclass(frozen=True)
class Attempt:
    """One process that runs a job once."""

    environment: Mapping[str, str]
    """The variables of the S3 server."""
    job: DreamJob
    made: Path
    """A file that grows by one byte for each computed dream."""
    event: int | str | None = None
    """When the process sends itself the signal: a number from 1, or one of `events_of_each_kind`. Each S3 call is two
    events."""
    signal: int = signal.SIGKILL
    events: Path | None = None
    """A file to which the process adds the name of each event."""
    fails_at: str | None = None
    """A layer at which every dream fails."""
    processes: int = 4
    """The plan is cut for this many processes; 0 gives one shard."""
    prune: str | None = None
    """A condition. With it, the process does not run the job, but prunes these rows of its destination."""

    def start(self) -> ForkServerProcess:
        """Start the process and return it."""
        process = _forks.Process(target=_go, args=(self,))
        with _exit_codes:
            process.start()
        return process

    def run(self) -> int | None:
        """Run the process to its end and return the exit code: 0 after success."""
        return wait(self.start())

    def run_here(self, storage: Storage) -> None:
        """Run the product's own protocol in this process, with all shards in this process, or prune."""
        if self.prune:
            prune(storage, preview(storage, self.job.destination, select(self.prune)), lambda _done, _all: None)
            return
        run_job(
            self.job,
            plan_settings(self.job),
            storage,
            _counting_executor(self, storage),
            find_sources=lambda job: scan(job, storage),
            throughput=Throughput(self.processes, CORE),
        )


@dataclass(frozen=True)
class Compaction(Attempt):
    """One process that merges the parts of the job's destination."""

    rows_per_part: int = 0

    def run_here(self, storage: Storage) -> None:
        """Merge in this process."""
        compact(storage, self.job.destination, rows_per_part=self.rows_per_part)


def is_running(process: ForkServerProcess) -> bool:
    """Return whether an attempt is still running."""
    return not connection.wait([process.sentinel], 0)


def wait(process: ForkServerProcess) -> int | None:
    """Wait for an attempt and return its exit code."""
    connection.wait([process.sentinel], 120)
    with _exit_codes:
        return process.exitcode


@contextmanager
def suspended(attempt: Attempt) -> Iterator[Callable[[], int | None] | None]:
    """Yield a function that wakes a suspended (SIGSTOP) attempt and returns its exit code; None if it has ended."""
    process = attempt.start()

    def wake() -> int | None:
        os.kill(process.pid or 0, signal.SIGCONT)
        return wait(process)

    def is_suspended() -> bool:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended, or ends at this moment
            return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    try:
        while is_running(process) and not is_suspended():
            time.sleep(0.005)
        yield wake if is_suspended() else None
    finally:
        process.kill()
        wait(process)


def _go(attempt: Attempt) -> None:
    """Run the attempt in the forked process."""
    os.environ["DREAMGRID_BATCH"] = str(BATCH)
    torch.set_num_threads(1)
    storage = Storage(environment=attempt.environment)
    _watch_calls(storage, attempt)
    try:
        attempt.run_here(storage)
    except DreamgridError:
        sys.exit(REFUSED)


def _counting_executor(attempt: Attempt, storage: Storage) -> Executor:
    """Return an executor that appends a byte to `attempt.made` for each dream that it computes."""

    def dream(network: Network, requests: Sequence[DreamRequest], limits: Limits) -> list[Dream | ImageError]:
        with attempt.made.open("ab", buffering=0) as file:
            file.write(b"." * len(requests))
        return dream_photographs(network, requests, limits)

    function = out_of_memory_at(attempt.fails_at, dream) if attempt.fails_at else dream

    def execute(run: Run, shards: Iterator[Shard]) -> Generator[Mapping[str, int], None, None]:
        for shard in shards:
            yield dream_shard(run, shard, storage, function)

    return execute


def _watch_calls(storage: Storage, attempt: Attempt) -> None:
    numbers, times, call, one_by_one = itertools.count(1), Counter[str](), threading.local(), threading.Lock()

    def happened(kind: str) -> None:
        with one_by_one:
            times[kind] += 1
            name = f"{kind} #{times[kind]}"
            if attempt.events:
                with attempt.events.open("a") as file:
                    file.write(f"{name}\n")
            if attempt.event in (next(numbers), name):
                os.kill(os.getpid(), attempt.signal)

    def before(request: Any, **_: object) -> None:
        call.kind = _kind(request.method, request.url, attempt.job.destination)
        happened(f"before {call.kind}")

    def after(**_: object) -> None:
        happened(f"after {call.kind}")

    storage._client.meta.events.register("before-send.s3", before)
    storage._client.meta.events.register("response-received.s3", after)


def _kind(method: str, url: str, destination: str) -> str:
    """Return the method of a call and its key without numbers and ids, such as `PUT manifest/run=*/shard-*.parquet`."""
    address = urlsplit(url)
    listed = parse_qs(address.query).get("prefix")
    uri = f"s3:/{unquote(address.path).rstrip('/')}" + (f"/{listed[0]}" if listed else "")
    key = re.sub(r"[0-9a-f]{6,}|[0-9]+", "*", uri.removeprefix(destination))
    return f"{'LIST' if listed else method} {key}"


def events_of_each_kind(attempt: Attempt, *, reads: bool = False) -> list[str]:
    """Run an attempt to its end. Return events of each kind of write: before the first, before and after the last.

    A read changes nothing, so a kill at a read leaves the same objects as a kill after the write before it. With
    `reads`, there is nevertheless one event before the first read of each kind.
    """
    file = attempt.made.with_name("events")
    assert replace(attempt, events=file).run() == 0
    times = Counter(line.rpartition(" #")[0] for line in file.read_text().splitlines())
    chosen = []
    for kind, last in times.items():
        when, method, *_ = kind.split(" ")
        if method in ("PUT", "POST", "DELETE"):
            chosen += [f"{kind} #{number}" for number in sorted({1, last} if when == "before" else {last})]
        elif reads and when == "before":
            chosen.append(f"{kind} #1")
    return chosen


def folder_of(event: object) -> str:
    """Return the name of a folder for the attempt that is killed or suspended at an event."""
    return re.sub(r"\W+", "-", str(event))


def put_photographs(storage: Storage, source: str, count: int) -> None:
    """Write small photographs that are all different."""
    for number in range(count):
        sink = io.BytesIO()
        Image.fromarray(pixels(32, 40, number)).save(sink, "PNG")
        storage.write(f"{source}{number:03d}.png", sink.getvalue(), "image/png")


Identity = tuple[str, str, str]
"""Photograph, ETag and settings_id: the key of a row."""


def wanted(job: DreamJob, storage: Storage) -> set[Identity]:
    """Return the rows that a destination must have when the job is finished."""
    sources, settings = scan(job, storage).sources, plan_settings(job)
    return {(source.uri, source.etag, each.settings_id) for source in sources for each in settings}


class Observer:
    """Looks at a destination while it grows: every object is complete when it first appears, and never changes."""

    def __init__(self, storage: Storage, destination: str) -> None:
        self.storage, self.destination = storage, destination
        self.rows: dict[Identity, dict[str, Any]] = {}
        self.dreams: dict[str, tuple[int, str]] = {}
        """Size and SHA-256 by address."""
        self._etags: dict[str, str] = {}

    def look(self) -> None:
        """Read what is new since the last call. Every dream exists before its thumbnail and the part that names it."""
        thumbnails = list(self.storage.list(layout.thumbs_folder(self.destination)))
        parts = list(self.storage.list(f"{self.destination}manifest/"))
        for found in self._new(list(self.storage.list(f"{self.destination}images/"))):
            data = self.storage.read(found.uri) or b""
            assert decode(data)
            assert read_metadata(data), f"{found.uri} is not a complete dream"
            self.dreams[found.uri] = len(data), hashlib.sha256(data).hexdigest()
        thumbs = {layout.thumb_uri(self.destination, uri) for uri in self.dreams}
        for found in self._new(thumbnails):
            assert found.uri in thumbs
            assert decode(self.storage.read(found.uri) or b"").pixels.shape == (32, 40, 3)
        for found in self._new(parts):
            for row in pq.read_table(io.BytesIO(self.storage.read(found.uri) or b"")).to_pylist():
                self._look_at(row)

    def _new(self, listed: Iterable[ObjectInfo]) -> Iterable[ObjectInfo]:
        for found in listed:
            if found.uri not in self._etags:
                self._etags[found.uri] = found.etag
                yield found
            assert self._etags[found.uri] == found.etag, f"{found.uri} was overwritten"

    def _look_at(self, row: dict[str, Any]) -> None:
        identity = row["source_uri"], row["source_etag"], row["settings_id"]
        assert identity not in self.rows, f"{identity} has two rows"
        self.rows[identity] = row
        if row["status"] == "done":
            assert self.dreams[row["result_uri"]] == (row["result_bytes"], row["result_sha256"])

    def check_finished(self, *jobs: DreamJob) -> None:
        """Check that every dream has exactly one row, every object has a row, and the destination is released."""
        self.look()
        assert set(self.rows) == {identity for job in jobs for identity in wanted(job, self.storage)}
        assert set(self.dreams) == {row["result_uri"] for row in self.rows.values() if row["status"] == "done"}
        assert self.storage.find(layout.active_uri(self.destination)) is None
        assert not hints(self.storage, self.destination)


def hints(storage: Storage, destination: str) -> list[str]:
    """Return the addresses of the hints that the runs of a destination have left."""
    return [info.uri for info in storage.list(layout.runs_folder(destination)) if "/started/" in info.uri]


class PartsObserver:
    """Reads the whole manifest while parts are replaced: at every moment it has the same dreams, each once."""

    def __init__(self, storage: Storage, destination: str) -> None:
        self.storage, self.destination = storage, destination
        self.identities = set(self.rows())

    def rows(self) -> dict[Identity, dict[str, Any]]:
        """Return all rows by identity, and check that each finished dream has its object."""
        rows: dict[Identity, dict[str, Any]] = {}
        for found in self.storage.list(f"{self.destination}manifest/"):
            for row in pq.read_table(io.BytesIO(self.storage.read(found.uri) or b"")).to_pylist():
                identity = row["source_uri"], row["source_etag"], row["settings_id"]
                assert identity not in rows, f"{identity} has two rows"
                rows[identity] = row
                if row["status"] == "done":
                    data = self.storage.read(row["result_uri"]) or b""
                    assert (row["result_bytes"], row["result_sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        return rows

    def look(self) -> None:
        """Check that no row is lost or added."""
        assert set(self.rows()) == self.identities

    def check_retried(self) -> None:
        """Check that every dream is done, every object has a row, and the destination is released."""
        self.look()
        rows = self.rows().values()
        assert {row["status"] for row in rows} == {"done"}
        objects = {found.uri for found in self.storage.list(f"{self.destination}images/")}
        assert objects == {row["result_uri"] for row in rows}
        assert self.storage.find(layout.active_uri(self.destination)) is None
        assert not hints(self.storage, self.destination)
