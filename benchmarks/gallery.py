"""Section `gallery`: the cache and the queries of the gallery over a million rows in an S3 server on this machine.

Each step runs in a process of its own, which takes the S3 server and the folder of the cache from the environment:

    python -m benchmarks.gallery fill
    python -m benchmarks.gallery pages 1000000
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.residence import STATUS, resident
from benchmarks.timing import Row, Spent, now, since
from dreamcore.settings import DreamSettings, result_id, settings_id
from flows.destination import manifest
from flows.gallery.cache import Cache
from flows.gallery.queries import Queries
from flows.gallery.records import Filters
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["measure_gallery"]

DESTINATION = "s3://dreams/gallery/"
RUN, NEXT_RUN = "20260101T000000Z-000000", "20260102T000000Z-000000"
SETTINGS = [
    DreamSettings(layers=layers, octaves=octaves, seed=seed)
    for layers in ("blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.3=0.5+blocks.4")
    for octaves in (4, 6)
    for seed in (0, 1)
]
"""The grid: each photograph has 20 dreams with five objectives."""
LABELS = [f"class {number}" for number in range(1000)]
ROWS_PER_PART = 1000
ADDED_PARTS, ADDED_ROWS = 64, 100_000
SIZE, QUICK_SIZE = 1_000_000, 20_000
ROUNDS = 5
PAUSE = 0.2
"""Seconds between two pages while rows are added."""
OPENED = "open again, first page"


def part(number: int, rows: int, run_id: str, first: int) -> bytes:
    """Return one part of the manifest: `rows` rows of consecutive photographs, the first of them is row `first`."""
    random, columns = np.random.default_rng(number), _settings_columns()
    numbers = range(first, first + rows)
    photographs = [row // len(SETTINGS) for row in numbers]
    points = [row % len(SETTINGS) for row in numbers]
    failed = random.random(rows) < 0.01
    before, gain = random.normal(0, 1, rows), random.gamma(2, 1, rows)
    etags = [f"{photograph:032x}" for photograph in photographs]
    ids = [result_id(etag, columns["settings_id"][point]) for etag, point in zip(etags, points, strict=True)]
    names = [f"2026/{photograph % 100:02d}/IMG_{photograph:07d}.jpg" for photograph in photographs]
    classes = [_classes(random) for _ in range(rows)]
    times = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=10 * number)
    done: dict[str, Iterable[Any]] = {
        "score_before": before.tolist(),
        "score_after": (before + gain).tolist(),
        "layer_scores": [[{"layer": "blocks.4", "before": 1.0, "after": float(value)}] for value in gain],
        "octave_scores": [[1.0, 2.0, 3.0, 4.0, 5.0, float(value)] for value in gain],
        "classes_before": [each[::-1] for each in classes],
        "classes_after": classes,
        "result_uri": [f"{DESTINATION}images/{name}/x-{each}.png" for name, each in zip(names, ids, strict=True)],
        "result_id": ids,
        "width": [1024] * rows,
        "height": [768] * rows,
        "seconds": random.gamma(4, 1, rows).tolist(),
        "device": ["cpu"] * rows,
        "result_bytes": [1_500_000] * rows,
    }
    always: dict[str, Iterable[Any]] = {
        "run_id": [run_id] * rows,
        "shard": [number] * rows,
        "status": ["failed" if bad else "done" for bad in failed],
        "error_kind": ["damaged" if bad else None for bad in failed],
        "error": ["JPEG: image file is truncated" if bad else None for bad in failed],
        "source_uri": [f"s3://photos/{name}" for name in names],
        "source_etag": etags,
        "created_at": [times + timedelta(milliseconds=row) for row in range(rows)],
        **{name: [values[point] for point in points] for name, values in columns.items()},
    }
    only_done = {
        name: [None if bad else value for value, bad in zip(values, failed, strict=True)]
        for name, values in done.items()
    }
    arrays = {name: pa.array(values, manifest.SCHEMA.field(name).type) for name, values in (always | only_done).items()}
    return manifest.table_to_parquet(pa.table(arrays))


def _settings_columns() -> dict[str, list[Any]]:
    return {
        "settings_id": [settings_id(each, "w") for each in SETTINGS],
        "settings": [each.canonical_json() for each in SETTINGS],
        "model": [each.model for each in SETTINGS],
    }


def _classes(random: np.random.Generator) -> list[dict[str, Any]]:
    return [{"label": LABELS[int(number)], "p": 0.1} for number in random.integers(0, len(LABELS), 5)]


def write_parts(storage: Storage, count: int, rows: int, run_id: str, first_row: int) -> None:
    """Write `count` parts with `rows` rows each."""
    storage.create_bucket(DESTINATION)
    for number in range(count):
        data = part(number, rows, run_id, first_row + number * rows)
        storage.write(layout.part_uri(DESTINATION, run_id, number), data, manifest.CONTENT_TYPE)


def fill() -> dict[str, float]:
    """Fill an empty cache."""
    start = now()
    with Cache.open(DESTINATION, Storage()) as cache:
        rows = cache.refresh()
    spent = since(start)
    return {"wall": spent.wall, "cpu": spent.cpu, "mib_peak": resident("VmHWM"), "rows": rows}


def questions(queries: Queries) -> dict[str, Callable[[], object]]:
    """Return the queries of the pages by name."""
    uri = queries.photographs(Filters())[0][0].source_uri
    everything, some = Filters(), Filters(layers=("blocks.4",), seen=tuple(LABELS[:20]))
    _, cursor = queries.photographs(everything, sort="gain", limit=100)
    return {
        "photographs by name": lambda: queries.photographs(everything),
        "photographs by gain": lambda: queries.photographs(everything, sort="gain"),
        "photographs by gain, next page": lambda: queries.photographs(everything, sort="gain", after=cursor),
        "photographs by date, best mark": lambda: queries.photographs(everything, sort="newest", best_by="mark"),
        "photographs by cost": lambda: queries.photographs(everything, sort="cost"),
        "photographs, layers and classes": lambda: queries.photographs(some),
        "photographs, text": lambda: queries.photographs(Filters(text="img_0012 37")),
        "counts": lambda: queries.counts(everything),
        "facets": lambda: queries.facets(everything),
        "facets, layers and classes": lambda: queries.facets(some),
        "one photograph": lambda: queries.photograph(uri),
        "neighbours": lambda: queries.neighbours(uri, everything),
        "axes and grid": lambda: (queries.axes(uri), queries.grid(uri, "layers", "octaves", {"seed": "0"})),
        "one dream": lambda: queries.dream(queries.dreams(uri)[0].result_id),
        "favourites": queries.favourites,
        "failure kinds": queries.failure_kinds,
        "failures": queries.failures,
        "score map": lambda: queries.score_map("layers", "octaves", everything),
        "gain against cost": lambda: queries.gain_against_cost(everything),
        "gain histogram": lambda: queries.gain_histogram(everything),
    }


def pages(size: int) -> dict[str, Any]:
    """Open a cache that is filled and ask each question; then add parts while the cache is open."""
    storage, start = Storage(), now()
    with Cache.open(DESTINATION, storage) as cache:
        marks: dict[str, int] = {}
        queries = Queries(cache, lambda: marks)
        cache.refresh()
        queries.photographs(Filters())
        times = {OPENED: since(start)}
        queries.counts(Filters())
        queries.facets(Filters())
        times["open again, page, counts and facets"] = since(start)
        marks.update({each.best.result_id: 4 for each in queries.photographs(Filters())[0] if each.best})
        times |= {name: _median_time(ask) for name, ask in questions(queries).items()}
        times["refresh, nothing new"] = _median_time(cache.refresh)
        peak = resident("VmHWM")
        added_rows = max(1, ADDED_ROWS * size // SIZE // ADDED_PARTS)
        subprocess.run(_command("add", added_rows, size), check=True)  # noqa: S603 - its memory does not count
        added, slowest = _add(cache, queries, ADDED_PARTS * added_rows)
    return {
        "times": {name: [spent.wall, spent.cpu] for name, spent in times.items()},
        "mib_peak": peak,
        "added": [added.wall, added.cpu],
        "slowest": slowest,
        "mib_peak_added": resident("VmHWM"),
    }


def _add(cache: Cache, queries: Queries, rows: int) -> tuple[Spent, float]:
    """Read new parts while pages are asked for. Return the time, and the seconds of the slowest page."""
    with ThreadPoolExecutor(1) as pool:
        start, slowest = now(), 0.0
        refreshing = pool.submit(cache.refresh)
        while not refreshing.done():
            page = now()
            queries.photographs(Filters())
            slowest = max(slowest, since(page).wall)
            time.sleep(PAUSE)
        added = since(start)
        if refreshing.result() != rows:
            raise RuntimeError(f"{refreshing.result()} rows were added")
    return added, slowest


def _median_time(ask: Callable[[], object]) -> Spent:
    """Return the median times of a call; the CPU time is the sum over all threads."""
    times = []
    for _ in range(ROUNDS):
        start = now()
        ask()
        times.append(since(start))
    return Spent(median(spent.wall for spent in times), median(spent.cpu for spent in times))


def measure_gallery(*, quick: bool) -> list[Row]:
    """Measure the section `gallery`. The rows are real Parquet parts in an embedded S3 server."""
    if not STATUS.exists():
        return [Row("", "", note=f"not measured: this system has no {STATUS}")]
    from benchmarks.collection import servers  # imports torch, whose memory does not count

    size = QUICK_SIZE if quick else SIZE
    with TemporaryDirectory() as folder, servers(Path(folder), []) as environment:
        write_parts(Storage(environment=environment), size // ROWS_PER_PART, ROWS_PER_PART, RUN, 0)
        environment = {**environment, "XDG_CACHE_HOME": folder}
        filled, found = _measure(environment, "fill"), _measure(environment, "pages", size)
    if filled["rows"] != size:
        raise RuntimeError(f"{filled['rows']} rows were read")
    case, added = f"{size:,} rows", f"{ADDED_ROWS * size // SIZE:,} rows more in {ADDED_PARTS} parts"
    peak, peak_added = {"mib_peak": found["mib_peak"]}, {"mib_peak": found["mib_peak_added"]}
    times = {name: (wall * 1000, None, cpu * 1000) for name, (wall, cpu) in found["times"].items()}
    return [
        Row(case, "fill", filled["wall"] * 1000, None, filled["cpu"] * 1000, {"mib_peak": filled["mib_peak"]}),
        *(Row(case, name, *each, peak if name == OPENED else {}) for name, each in times.items()),
        Row(added, "refresh", found["added"][0] * 1000, None, found["added"][1] * 1000, peak_added),
        Row(added, "slowest page meanwhile", found["slowest"] * 1000),
    ]


def _measure(environment: Mapping[str, str], *arguments: object) -> Mapping[str, Any]:
    """Run one measurement in a new process, because the peak of memory counts from its start."""
    done = subprocess.run(  # noqa: S603 - the command is constant
        _command(*arguments), env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the measurement {arguments[0]} failed:\n{done.stderr}")
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gallery", *map(str, arguments)]


def main(name: str, *numbers: int) -> None:
    """Do one step in this process."""
    if name == "add":
        rows, first = numbers
        write_parts(Storage(), ADDED_PARTS, rows, NEXT_RUN, first)
    else:
        print(json.dumps(fill() if name == "fill" else pages(*numbers)))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
