"""From sources and settings to shards: pure functions, no S3, no clock, no torch.

Photographs are held in columns, and a plan as the Parquet that is frozen: a million of them as objects take more than a
gigabyte.
"""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.cost import ONE_CORE, Throughput, estimate_seconds
from flows.work import PlannedSettings, Shard, Source, Work, dream_key

SHARD_SECONDS = 60.0
"""A shard is cut at about this much work on one process: long against a task's overhead, short to lose."""
SHARDS_A_PROCESS = 4
"""A small run is still cut into so many shards at least, so that all processes have work and the progress moves."""
SHARDS_AT_MOST = 10_000
"""A large run is cut into no more: each is a task of Prefect's and a part of the manifest that readers open."""


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


def make_plan(
    sources: Sources, settings: Sequence[PlannedSettings], is_done: Callable[[int], bool], pace: Throughput = ONE_CORE
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
