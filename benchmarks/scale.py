"""Section `scale`: the process that coordinates a run, for up to ten million photographs in a store without a network.

    python -m benchmarks.scale plan 1000000
    python -m benchmarks.scale nightly 1000000

Each prints one JSON object. A store made of numbers takes the place of S3, so the time of real requests is missing:
the requests are counted instead.
"""

import hashlib
import io
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

import flows.dream_collection  # noqa: F401 - loads Prefect, as in a real run
from benchmarks.residence import STATUS, resident
from benchmarks.timing import Row, now, since
from flows.destination import history
from flows.destination.run_record import Run
from flows.destination.sharing import remaining_shards
from flows.jobs.cost import ONE_CORE
from flows.jobs.job import DreamJob
from flows.jobs.plan import make_plan
from flows.jobs.work import Shard
from flows.machine.prefetch import bounded_as_completed
from flows.planning.scan import plan_settings, scan
from flows.running.executors import MIN_SUBMITTED
from flows.running.protocol import freeze, run_job
from flows.s3 import layout
from flows.s3.storage import ObjectInfo, Page, Storage

if TYPE_CHECKING:
    from _typeshed.importlib import MetaPathFinderProtocol

__all__ = ["SyntheticStore", "measure_scale", "plan", "run_nightly", "write_index"]

JOB = DreamJob.model_validate({"source": "s3://photos/incoming/", "destination": "s3://dreams/all/"})
FOLDERS = 1000
"""Folders of the source, all in one folder."""
PAGE = 1000
"""Objects in a page of a listing, as in S3."""
ROWS_PER_PART = 10_000
OLD_RUN = "20260101T000000Z-000000"
SIZES = (10_000, 100_000, 1_000_000)
LARGEST = 10_000_000
QUICK_SIZES = (1000, 10_000)


def photograph(number: int) -> ObjectInfo:
    """Return one photograph of the source."""
    etag = hashlib.md5(b"%d" % number, usedforsecurity=False).hexdigest()
    uri = f"{JOB.source}2026/{number % FOLDERS:04d}/IMG_{number:08d}.jpg"
    return ObjectInfo(uri, etag, 2_000_000 + number)


@lru_cache
def settings_id() -> str:
    """Return the identity of the one point of the grid."""
    return plan_settings(JOB)[0].settings_id


def part(number: int) -> ObjectInfo:
    """Return one part of the manifest of the earlier run."""
    return ObjectInfo(layout.part_uri(JOB.destination, OLD_RUN, number), "e", 0)


class SyntheticStore:
    """A store with photographs, and the manifest of an earlier run. It keeps what is written and counts the requests.

    Args:
        count: number of photographs, and of rows in the manifest.
        finished: whether the rows are of these photographs, and not of others.
        index: a file with the index of the run that wrote the rows.
    """

    def __init__(self, count: int, *, finished: bool = False, index: Path | None = None) -> None:
        self._count, self._finished, self._index = count, finished, index
        self._written: dict[str, bytes] = {}
        self.requests = Counter[str]()

    def list_page(self, prefix: str, *, token: str | None = None, by_folder: bool = False) -> Page:
        """Return one page of the source, of one of its folders, or of the manifest."""
        self.requests["list"] += 1
        if by_folder:
            inner = f"{JOB.source}2026/"
            return Page([], [f"{inner}{n:04d}/" for n in range(FOLDERS)] if prefix == inner else [inner])
        start = int(token or 0)
        numbers, make = self._listing(prefix)
        page = [make(number) for number in numbers[start : start + PAGE]]
        return Page(page, token=str(start + PAGE) if start + PAGE < len(numbers) else None)

    def _listing(self, prefix: str) -> tuple[range, Callable[[int], ObjectInfo]]:
        """Return the numbers of the objects below a prefix, and the function that describes one."""
        if prefix in (layout.manifest_folder(JOB.destination), layout.manifest_folder(JOB.destination, OLD_RUN)):
            return range(-(-self._count // ROWS_PER_PART)), part
        if prefix == JOB.source:
            return range(self._count), photograph
        if not prefix.startswith(JOB.addresses):
            return range(0), photograph
        folder = prefix.removeprefix(f"{JOB.source}2026/").rstrip("/")
        return range(int(folder), self._count, FOLDERS), photograph

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield everything below a prefix."""
        page = self.list_page(prefix)
        yield from page.objects
        while page.token:
            page = self.list_page(prefix, token=page.token)
            yield from page.objects

    def find(self, uri: str) -> ObjectInfo | None:
        """Return an object that was written."""
        self.requests["get"] += 1
        return ObjectInfo(uri, "e", len(self._written[uri])) if uri in self._written else None

    def read(self, uri: str) -> bytes | None:
        """Return what was written, the index, or a part of the manifest."""
        self.requests["get"] += 1
        if uri in self._written:
            return self._written[uri]
        if uri == layout.index_uri(JOB.destination, OLD_RUN):
            return self._index.read_bytes() if self._index else None
        if "/manifest/" in uri:
            return self._part(layout.shards_of_part(uri)[0])
        return None

    def _part(self, number: int) -> bytes:
        """Return a part of the manifest."""
        numbers = range(number * ROWS_PER_PART, min((number + 1) * ROWS_PER_PART, self._count))
        if self._finished:
            objects = [photograph(number) for number in numbers]
        else:
            objects = [ObjectInfo(f"{JOB.source}2025/IMG_{number:08d}.jpg", "e", 0) for number in numbers]
        rows = {
            "shard": [number] * len(objects),
            "source_uri": [each.uri for each in objects],
            "source_etag": [each.etag for each in objects],
            "settings_id": [settings_id()] * len(objects),
            "status": ["done"] * len(objects),
        }
        sink = io.BytesIO()
        pq.write_table(pa.table(rows), sink)
        return sink.getvalue()

    def write_if_absent(self, uri: str, data: bytes, content_type: str) -> bool:  # noqa: ARG002
        """Keep the first object at an address."""
        self.requests["put"] += 1
        return self._written.setdefault(uri, data) == data

    def delete_if_unchanged(self, uri: str, data: bytes) -> None:
        """Remove an object that was written."""
        self.requests["delete"] += 1
        if self._written.get(uri) == data:
            del self._written[uri]


def write_index(count: int, file: Path) -> None:
    """Write the index of a run that has dreamt every photograph of the source."""
    store = SyntheticStore(count, finished=True)
    storage, uri = cast("Storage", store), layout.index_uri(JOB.destination, OLD_RUN)
    history.write_index(history.build_index(JOB.destination, OLD_RUN, storage), JOB.destination, OLD_RUN, storage)
    file.write_bytes(store.read(uri) or b"")


def plan(count: int) -> dict[str, Any]:
    """Find the photographs, read the manifest, freeze the plan and submit its shards. Return time, memory, requests."""
    store = SyntheticStore(count)
    storage, settings, start = cast("Storage", store), plan_settings(JOB), now()
    found = scan(JOB, storage)
    finished = history.finished_dreams(JOB.destination, storage)
    found = found.with_warnings(finished)
    run = Run(run_id="run", job=JOB, settings=settings)
    frozen = freeze(run, make_plan(found.sources, settings, finished, ONE_CORE), storage)
    spent, requests = since(start), dict(store.requests)
    if frozen.dreams != count:
        raise RuntimeError(f"{frozen.dreams} dreams were planned for {count} photographs")

    def submit(shard: Shard) -> "Future[Shard]":
        """Return a finished task that keeps its shard alive."""
        future: Future[Shard] = Future()
        future.set_result(shard)
        return future

    futures = bounded_as_completed(submit, remaining_shards(run, frozen, storage, None), MIN_SUBMITTED)
    submitted = sum(future.result().dreams for future in futures)
    if submitted != count:
        raise RuntimeError(f"{submitted} dreams were submitted for {count} photographs")
    figures = {"shards": len(frozen), "plan_mib": len(frozen.parquet) / 2**20}
    return {"wall": spent.wall, "cpu": spent.cpu, "mib_peak": resident("VmHWM"), **figures, **requests}


def run_nightly(count: int, index: Path) -> dict[str, Any]:
    """Run a job whose photographs all have their dreams, without Prefect's server. Return time, memory, requests."""
    store = SyntheticStore(count, index=index)
    storage, settings, start = cast("Storage", store), plan_settings(JOB), now()
    finished = run_job(
        JOB,
        settings,
        storage,
        _refuse,
        find_sources=lambda job: scan(job, storage),
        throughput=ONE_CORE,
    )
    spent = since(start)
    if finished.report.state != "nothing to do" or finished.report.photographs != count:
        raise RuntimeError(f"unexpected report: {finished.report}")
    return {"wall": spent.wall, "cpu": spent.cpu, "mib_peak": resident("VmHWM"), **store.requests}


def _refuse(run: Run, shards: Iterator[Shard]) -> Generator[Mapping[str, int], None, None]:
    """Refuse to dream: the plan of a night with nothing new is empty."""
    raise RuntimeError(f"the run {run.run_id} has {sum(1 for _ in shards)} shards")


def measure_scale(*, quick: bool, soak: bool) -> list[Row]:
    """Measure the section `scale`, each size in a process of its own."""
    if not STATUS.exists():
        return [Row("", "", note=f"not measured: this system has no {STATUS}")]
    sizes = QUICK_SIZES if quick else (*SIZES, LARGEST) if soak else SIZES
    rows = []
    for size in sizes:
        for name, contender in (("plan", "find and plan"), ("nightly", "a night with nothing new")):
            found = measure(name, size)
            figures = {"mib_peak": found["mib_peak"], "lists": found["list"], "gets": found["get"]}
            rows.append(
                Row(f"{size:,} photographs", contender, found["wall"] * 1000, None, found["cpu"] * 1000, figures)
            )
    return rows


def measure(name: str, count: int) -> Mapping[str, float]:
    """Run one measurement in a new process, because the peak of memory counts from the start of the process."""
    command = [sys.executable, "-m", "benchmarks.scale", name, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the command is constant
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: Mapping[str, float] = json.loads(done.stdout)
    return found


class WithoutPandas:
    """Hides pandas from pyarrow, which would load it for no purpose: 45 MiB. Dreamgrid does not depend on pandas."""

    def find_spec(self, name: str, *_: object) -> None:
        """Refuse to import pandas."""
        if name == "pandas":
            raise ImportError(name)


def main(name: str, count: int) -> None:
    """Measure in this process; the index of a night is written by another one."""
    sys.meta_path.insert(0, cast("MetaPathFinderProtocol", WithoutPandas()))
    if name == "plan":
        print(json.dumps(plan(count)))
        return
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index.parquet"
        code = f"from pathlib import Path; from benchmarks.scale import *; write_index({count}, Path({str(index)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - the code is constant
        print(json.dumps(run_nightly(count, index)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
