"""From sources and settings to shards: pure functions, no S3, no clock, no torch.

Photographs are held in columns, and a plan as the Parquet that is frozen: a million of them as objects take more than a
gigabyte.
"""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dreamcore.objectives import Frozen, objective_label
from dreamcore.settings import DreamSettings, digest

SHARD_SECONDS = 60.0
"""A shard is cut at about this much work on one process: long against a task's overhead, short to lose."""
SHARDS_A_PROCESS = 4
"""A small run is still cut into so many shards at least, so that all processes have work and the progress moves."""
SHARDS_AT_MOST = 10_000
"""A large run is cut into no more: each is a task of Prefect's and a part of the manifest that readers open."""

_BITS_A_PIXEL = {"jpg": 2.5, "jpeg": 2.5, "jpe": 2.5, "webp": 2.0, "png": 12.0, "gif": 6.0}
_BITS_A_PIXEL_UNPACKED = 24.0
_STEP_PASSES = 2.0
"""A step runs forward and back to the picture: about two forward passes."""
_SECONDS_BESIDES = 0.1
"""To read, decode, encode and write, whatever is dreamt."""
CORE, GPU = 25e9, 2e12
"""Multiply-adds in a second: of one core of 2024, measured, and of a GPU, a guess from data sheets."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a run is dreamt, roughly: the processes, and the multiply-adds that each of them makes in a second."""

    processes: int
    speed: float


ONE_CORE = Pace(1, CORE)


@dataclass(frozen=True, slots=True)
class Source:
    """One photograph: one version of one object."""

    uri: str
    name: str
    """Its key below the source prefix: the end of its address."""
    etag: str
    size: int
    """Bytes."""


class PlannedSettings(Frozen):
    """One point of the grid, ready to be dreamt."""

    settings: DreamSettings
    settings_id: str
    weights: str
    cost: int
    """Multiply-adds of one forward pass for each pixel of the picture."""


@dataclass(frozen=True, slots=True)
class Work:
    """One photograph and the settings, by their index in the run, under which a shard dreams it."""

    source: Source
    settings: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """The work of one task."""

    number: int
    works: tuple[Work, ...]

    @property
    def dreams(self) -> int:
        """How many rows the shard's part of the manifest will have."""
        return sum(len(work.settings) for work in self.works)


_SOURCES = pa.schema([("uri", pa.string()), ("name_length", pa.int32()), ("etag", pa.string()), ("size", pa.int64())])
_PLAN = pa.schema(
    [
        ("shard", pa.int32()),
        ("source_uri", pa.string()),
        ("source_name", pa.string()),
        ("source_etag", pa.string()),
        ("source_bytes", pa.int64()),
        ("settings", pa.list_(pa.int32())),
    ]
)
_ROWS_AT_ONCE = 10_000
"""Of a table, as objects."""


class Sources:
    """Photographs in the order of their addresses; each is made when it is looked at."""

    def __init__(self, sources: Iterable[Source]) -> None:
        rows = ((source.uri, len(source.name), source.etag, source.size) for source in sources)
        self._table = pa.Table.from_batches(_batches(rows, _SOURCES), _SOURCES).combine_chunks()
        self._order = pc.sort_indices(self._table["uri"])

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Source]:
        for first in range(0, len(self), _ROWS_AT_ONCE):  # a sorted copy would be as large again
            some = self._table.take(self._order.slice(first, _ROWS_AT_ONCE))
            for uri, length, etag, size in _rows(some.to_batches()):
                yield Source(uri, uri[len(uri) - length :], etag, size)


@dataclass(frozen=True)
class Plan:
    """The shards of a run, by their numbers; each is made when it is looked at."""

    parquet: bytes
    """The plan as it is frozen: a row for each photograph in a shard."""

    def __len__(self) -> int:
        return int(pc.count_distinct(self._column("shard")).as_py())

    def __bool__(self) -> bool:
        return bool(self._file().metadata.num_rows)

    def __iter__(self) -> Iterator[Shard]:
        batches = self._file().iter_batches(_ROWS_AT_ONCE)
        for number, rows in groupby(_rows(batches), key=lambda row: row[0]):
            works = (Work(Source(*source), tuple(settings)) for _, *source, settings in rows)
            yield Shard(number, tuple(works))

    @property
    def dreams(self) -> int:
        """How many rows the manifest of the run will have."""
        return int(pc.sum(pc.list_value_length(self._column("settings")), min_count=0).as_py())

    def works(self) -> Iterator[Work]:
        """The work of all shards."""
        return (work for shard in self for work in shard.works)

    def sources(self) -> Iterator[Source]:
        """Each photograph once, also where its settings are in two shards."""
        return (source for source, _ in groupby(work.source for work in self.works()))

    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(io.BytesIO(self.parquet))

    def _column(self, name: str) -> pa.ChunkedArray:
        """To count in: made into objects, a million photographs take seconds."""
        return self._file().read([name])[name]


def _batches(rows: Iterator[tuple[Any, ...]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    while some := list(islice(rows, _ROWS_AT_ONCE)):
        columns = zip(zip(*some, strict=True), schema, strict=True)
        yield pa.record_batch([pa.array(column, field.type) for column, field in columns], schema=schema)


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Any, ...]]:
    for batch in batches:
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def dream_key(source_uri: str, etag: str, settings_id: str) -> int:
    """Identity of one dream in a destination, in 8 bytes; the manifest holds exactly one row for each."""
    return int(digest(source_uri, etag, settings_id), 16)


def estimate_pixels(source: Source, max_pixels: int) -> int:
    """Pixels that will be dreamt, guessed from the file's size: a scan does not open photographs."""
    bits = _BITS_A_PIXEL.get(source.name.rpartition(".")[2].lower(), _BITS_A_PIXEL_UNPACKED)
    return max(1, min(max_pixels, round(source.size * 8 / bits)))


def estimate_seconds(source: Source, planned: PlannedSettings, speed: float = CORE) -> float:
    """Seconds of one dream on a process that makes `speed` multiply-adds in a second, roughly."""
    settings = planned.settings
    octaves = _octaves(settings.octaves, settings.octaves_above, settings.octave_scale)
    passes = octaves * settings.steps * _STEP_PASSES
    multiply_adds = estimate_pixels(source, settings.max_pixels) * passes * planned.cost
    return _SECONDS_BESIDES + multiply_adds / speed


@lru_cache
def _octaves(octaves: int, above: int, scale: float) -> float:
    """Pixels of all octaves together, in pictures."""
    return sum(scale ** (2 * (above - level)) for level in range(octaves))


def make_plan(
    sources: Sources, settings: Sequence[PlannedSettings], is_done: Callable[[int], bool], pace: Pace = ONE_CORE
) -> Plan:
    """Cut what is not done yet into shards of about equal cost.

    Args:
        sources: the photographs.
        settings: the points of the grid.
        is_done: whether the manifest already has the dream with this `dream_key`.
        pace: of the machine that is going to dream.

    Returns:
        Shards in a stable order. Every (source, settings) that is not done is in exactly one of them.
    """
    alike: dict[tuple[int, ...], tuple[int, ...]] = {}  # most photographs have the same to do: it is held once
    undone = (_undone(source, settings, is_done) for source in sources)
    todo = [alike.setdefault(indices, indices) for indices in undone]
    seconds = sum(seconds for _, entries in _estimated(sources, todo, settings, pace.speed) for _, seconds in entries)
    count = min(sum(map(len, todo)), shards_for(seconds, pace.processes))
    rows = _cut(_estimated(sources, todo, settings, pace.speed), seconds / max(count, 1))
    frozen = io.BytesIO()
    with pq.ParquetWriter(frozen, _PLAN, compression="zstd") as writer:
        for batch in _batches(rows, _PLAN):
            writer.write_batch(batch)
    return Plan(frozen.getvalue())


def shards_for(seconds: float, processes: int) -> int:
    """Into how many shards so many seconds of work are cut, if there are as many dreams."""
    return max(SHARDS_A_PROCESS * processes, min(math.ceil(seconds / SHARD_SECONDS), SHARDS_AT_MOST))


def _undone(source: Source, settings: Sequence[PlannedSettings], is_done: Callable[[int], bool]) -> tuple[int, ...]:
    keys = (dream_key(source.uri, source.etag, planned.settings_id) for planned in settings)
    return tuple(index for index, key in enumerate(keys) if not is_done(key))


_Estimated = Iterator[tuple[Source, list[tuple[int, float]]]]
"""Each photograph with the settings it is to be dreamt under and the seconds that each of them takes."""


def _estimated(
    sources: Sources, todo: Sequence[tuple[int, ...]], settings: Sequence[PlannedSettings], speed: float
) -> _Estimated:
    for source, indices in zip(sources, todo, strict=True):
        yield source, [(index, estimate_seconds(source, settings[index], speed)) for index in indices]


def _cut(estimated: _Estimated, seconds_a_shard: float) -> Iterator[tuple[Any, ...]]:
    """The rows of a plan: a dream goes into the shard where the middle of its time lies."""
    number, place, spent = -1, -1, 0.0
    for source, entries in estimated:
        shares: dict[int, list[int]] = {}
        for index, seconds in entries:
            middle = int((spent + seconds / 2) / seconds_a_shard)
            number += middle != place  # a dream of many shards' time leaves no empty ones behind it
            place, spent = middle, spent + seconds
            shares.setdefault(number, []).append(index)
        for shard, indices in shares.items():
            yield shard, source.uri, source.name, source.etag, source.size, indices


def result_name(source: Source, planned: PlannedSettings, result_id: str) -> str:
    """Key of a dream below the destination: `images/<source>/<readable label>-<result_id>.<suffix>`."""
    settings = planned.settings
    label = quote(f"{objective_label(settings.layers)}-{settings.octaves}x{settings.steps}", safe="=+,")[:60]
    return f"images/{safe_name(source.name)}/{label}-{result_id}.{settings.output.format}"


def safe_name(name: str) -> str:
    """`name` as a key that every store keeps apart: what reads as a path step or a control code is spelt out."""
    # Some stores take a backslash for a slash.
    spelt = "".join(quote(c) if c in "%\\" or not c.isprintable() else c for c in name)
    # A key has 1,024 bytes, of which the destination needs some, and in some stores 255 from slash to slash.
    return _cut_short("/".join(_cut_short(_safe_part(part), 200) for part in spelt.split("/")), 800)


def _safe_part(part: str) -> str:
    # Neither %20 nor %2D can come from a name: a space and a hyphen stay as they are.
    return "%2E" * len(part) if part in (".", "..") else part or "%20"


def _cut_short(name: str, most: int) -> str:
    """At most so many bytes; what a long name says beyond them is told apart by its digest."""
    data = name.encode()
    return name if len(data) <= most else data[: most - 100].decode(errors="ignore") + "%2D" + digest(name)
