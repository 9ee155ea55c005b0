"""Large collections in bounded memory: planning a million photographs, and dreaming thousands in one process."""

import io
import os
import subprocess
import sys

import pytest
from PIL import Image

from flows.storage import Storage
from tests.support.tiny import pixels

pytestmark = pytest.mark.slow

# The programs print MiB: the peak memory, or the resident memory after each shard. Each runs in a new process, because
# the peak (VmHWM) counts from the start of the process.

MEMORY = """
def memory(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
"""

PLAN_MANY = (
    MEMORY
    + """
import hashlib, io, sys
from concurrent.futures import Future
import pyarrow as pa, pyarrow.parquet as pq
from flows.prefetch import bounded_as_completed
from flows.executors import MIN_SUBMITTED
from flows.job import DreamJob
from flows.plan import make_plan
from flows.protocol import freeze
from flows.run_record import Run
from flows.history import finished_dreams
from flows.scan import plan_settings, scan
from flows.sharing import remaining_shards
from flows.storage import ObjectInfo


COUNT = int(sys.argv[1])


class Lister:
    '''A store with COUNT photographs, and a manifest of COUNT other ones. It keeps what is written.'''
    def list(self, prefix):
        if prefix == job.source:
            for n in range(COUNT):
                etag = hashlib.md5(b"%d" % n).hexdigest()
                yield ObjectInfo(f"{prefix}2026/{n % 1000:04d}/IMG_{n:08d}.jpg", etag, 2_000_000 + n)
        elif prefix.endswith("/manifest/"):
            yield from (ObjectInfo(f"{prefix}run=old/shard-{n:06d}.parquet", "", 0) for n in range(COUNT // 10_000))
    def find(self, uri):
        return None
    def read(self, uri):
        if "/manifest/" not in uri:
            return self.__dict__.get(uri)
        part = int(uri[-14:-8]) * 10_000
        uris = [f"{job.source}2025/IMG_{n:08d}.jpg" for n in range(part, part + 10_000)]
        sink = io.BytesIO()
        same = {"shard": [part] * len(uris), "status": ["done"] * len(uris)}
        pq.write_table(pa.table({"source_uri": uris, "source_etag": uris, "settings_id": uris, **same}), sink)
        return sink.getvalue()
    def write(self, uri, data, content_type):
        self.__dict__[uri] = data
    def write_if_absent(self, uri, data, content_type):
        self.__dict__[uri] = data

job = DreamJob.model_validate({"source": "s3://photos/incoming/", "destination": "s3://dreams/all/"})
store, settings = Lister(), plan_settings(job)
found = scan(job, store)
plan = make_plan(found.sources, settings, finished_dreams(job.destination, store))
run = Run(run_id="run", job=job, settings=settings)
frozen = freeze(run, plan, store)
assert frozen.dreams == len(found.sources) == COUNT


def submit(shard):
    '''Return a finished task that keeps its shard alive.'''
    future = Future()
    future.set_result(shard)
    return future


completed = bounded_as_completed(submit, remaining_shards(run, frozen, store, None), MIN_SUBMITTED)
assert sum(future.result().dreams for future in completed) == COUNT
print(memory("VmHWM"))
"""
)

PRUNE_MANY = (
    MEMORY
    + """
import io, sys
from dataclasses import asdict
import pyarrow as pa, pyarrow.parquet as pq
from flows import manifest
from flows.prune import preview, prune
from flows.selection import select
from flows.storage import ObjectInfo
from tests.support.rows import DONE


COUNT, PART = int(sys.argv[1]), 1000
BASE = pa.Table.from_pylist([asdict(DONE)] * PART, schema=manifest.SCHEMA)


class Parts:
    '''A store with COUNT rows of two settings in parts of one run. It keeps what is written, and counts deletions.'''
    def __init__(self):
        self.written, self.deleted = {}, []
    def list(self, prefix):
        if prefix.endswith("/manifest/") or "/run=" in prefix:
            folder = prefix if "/run=" in prefix else f"{prefix}run=old/"
            for number in range(COUNT // PART):
                uri = f"{folder}shard-{number:06d}.parquet"
                yield ObjectInfo(uri, "new" if uri in self.written else "old", 0)
    def find(self, uri):
        return None
    def read(self, uri):
        if uri in self.written or "/manifest/" not in uri:
            return self.written.get(uri)
        first = int(uri[-14:-8]) * PART
        numbers = range(first, first + PART)
        columns = {
            "source_uri": [f"s3://photos/{number // 2:08d}.jpg" for number in numbers],
            "settings_id": ["0" * 16 if number % 2 else "1" * 16 for number in numbers],
            "result_uri": [f"s3://dreams/all/images/{number // 2:08d}.jpg/{number % 2}.png" for number in numbers],
        }
        table = BASE
        for name, values in columns.items():
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
        sink = io.BytesIO()
        pq.write_table(table.cast(manifest.SCHEMA), sink)
        return sink.getvalue()
    def write(self, uri, data, content_type):
        self.written[uri] = data
    def write_if_absent(self, uri, data, content_type):
        self.written[uri] = data
        return True
    def write_if_unchanged(self, uri, data, content_type, etag):
        assert etag == "old" and uri not in self.written
        self.written[uri] = data
        return True
    def delete_many(self, uris):
        self.deleted.append(sum("/probe-" not in uri for uri in uris))
    def delete_if_unchanged(self, uri, data):
        assert self.written.pop(uri) == data


store = Parts()
shown = preview(store, "s3://dreams/all/", select(settings="1111"))
assert shown.summary["rows"] == shown.summary["objects"] == COUNT // 2
prune(store, shown, lambda _done, _all: None)
assert sum(store.deleted) == COUNT // 2
assert preview(store, "s3://dreams/all/", select("steps > 0")).summary["rows"] == COUNT // 2
print(memory("VmHWM"))
"""
)

DREAM_MANY = (
    MEMORY
    + """
import sys
from flows.work import Shard
from flows.shard import dream_shard
from flows.storage import Storage
from tests.support.shards import plan_run

source, destination, each = sys.argv[1], sys.argv[2], int(sys.argv[3])
storage = Storage()
run, everything = plan_run(storage, source, destination, ["blocks.0"])
for first in range(0, len(everything.works), each):
    shard = Shard(first // each, everything.works[first : first + each])
    assert dream_shard(run, shard, storage) == {"done": each}
    print(memory("VmRSS"), flush=True)
"""
)


def measured(program: str, *arguments: object) -> list[float]:
    """Run a program in a new process, and return the numbers that it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in a worker process
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


@pytest.mark.parametrize(
    ("photographs", "max_memory"), [(100_000, 360), pytest.param(10**6, 500, marks=pytest.mark.soak)]
)
def test_scanning_planning_and_submitting_need_bounded_memory(photographs: int, max_memory: int) -> None:
    (peak,) = measured(PLAN_MANY, photographs)
    assert peak < max_memory, f"{peak:.0f} MiB"


@pytest.mark.parametrize("photographs", [120, pytest.param(5000, marks=pytest.mark.soak)])
def test_the_memory_of_a_worker_does_not_grow_with_photographs(
    storage: Storage, source: str, destination: str, photographs: int
) -> None:
    sink = io.BytesIO()
    Image.fromarray(pixels(32, 32)).save(sink, "PNG")
    for number in range(photographs):
        storage.write(f"{source}{number}.png", sink.getvalue(), "image/png")
    resident = measured(DREAM_MANY, source, destination, 10)
    warm, rest = max(resident[:4]), resident[4:]
    assert max(rest) < warm * 1.03, resident


@pytest.mark.soak
def test_a_prune_of_a_hundred_thousand_rows_takes_bounded_memory() -> None:
    (peak,) = measured(PRUNE_MANY, 200_000)  # 264 MiB at half as many
    assert peak < 350
