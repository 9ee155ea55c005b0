"""Large collections in bounded memory: planning a million photographs, and dreaming thousands in one process."""

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from benchmarks.scale import FOLDERS, measure
from flows.jobs.job import DreamJob
from flows.jobs.plan import MAX_SHARDS, make_plan
from flows.planning.scan import plan_settings, scan
from flows.s3.storage import Storage
from tests.support.tiny import pixels

pytestmark = pytest.mark.slow

MORE_REQUESTS = FOLDERS + 100
"""Pages of a listing that are not full: the last one of each folder, and those of the manifest and of the division."""

# The programs print MiB: the peak memory, or the resident memory after each shard. Each runs in a new process, because
# the peak (VmHWM) counts from the start of the process.

MEMORY = """
def memory(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
"""

PRUNE_MANY = (
    MEMORY
    + """
import io, sys
from dataclasses import asdict
import pyarrow as pa, pyarrow.parquet as pq
from flows.destination import manifest
from flows.results.prune import preview, prune
from flows.destination.selection import select
from flows.s3.storage import ObjectInfo
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
        self.deleted.append(sum("/images/" in uri and "/probe-" not in uri for uri in uris))
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
from flows.jobs.work import Shard
from flows.running.shard import dream_shard
from flows.s3.storage import Storage
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
    ("photographs", "max_memory"),
    [(100_000, 360), *(pytest.param(*case, marks=pytest.mark.soak) for case in ((10**6, 500), (10**7, 2048)))],
)
def test_scanning_planning_and_submitting_need_bounded_memory(photographs: int, max_memory: int) -> None:
    found = measure("plan", photographs)
    assert found["mib_peak"] < max_memory
    assert found["shards"] <= MAX_SHARDS
    assert found["list"] <= photographs / 1000 + MORE_REQUESTS


@pytest.mark.parametrize(
    ("photographs", "max_memory"), [(100_000, 240), pytest.param(10**6, 300, marks=pytest.mark.soak)]
)
def test_a_night_with_nothing_new_needs_bounded_memory_and_requests(photographs: int, max_memory: int) -> None:
    found = measure("nightly", photographs)
    assert found["mib_peak"] < max_memory
    assert found["list"] <= photographs / 1000 + MORE_REQUESTS
    assert found["get"] + found["put"] + found["delete"] <= 10, "none of them depends on the number of photographs"


@pytest.mark.soak
def test_a_hundred_thousand_objects_are_listed_and_planned(storage: Storage, source: str) -> None:
    names = [f"{n % 7}/{n % 300:03d}/{n:06d}.jpg" for n in range(100_000)]
    with ThreadPoolExecutor(16) as writers:
        list(writers.map(lambda name: storage.write(source + name, b"x", "image/jpeg"), names))
    job = DreamJob.model_validate({"source": source, "destination": "s3://dreams/unused/"})
    counts: list[int] = []
    found = scan(job, storage, counts.append)
    assert [each.name for each in found.sources] == sorted(names)
    assert sorted(info.uri for info in storage.list(source)) == [source + name for name in sorted(names)]
    assert counts[-1] == len(names)
    assert make_plan(found.sources, plan_settings(job), lambda _keys: False).dreams == len(names)


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
