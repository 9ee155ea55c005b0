"""Cut sources and settings into shards. Pure functions: no S3, no clock, no torch.

Photographs are held in Arrow columns, and a plan is held as the Parquet bytes that are frozen. As Python objects a
million photographs would need more than a gigabyte.
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
from flows.work import PlannedSettings, ReplacedPart, Shard, Source, Work, dream_key

__all__ = [
    "MAX_SHARDS",
    "MIN_SHARDS_PER_PROCESS",
    "SHARD_SECONDS",
    "Plan",
    "Sources",
    "freeze_retry",
    "make_plan",
    "shard_count",
]

SHARD_SECONDS = 60.0
"""Target duration of a shard on one process: long compared with the overhead of a task, short enough to repeat."""
MIN_SHARDS_PER_PROCESS = 4
"""A small run is cut into at least this many shards per process, so that all processes have work and the progress bar
moves."""
MAX_SHARDS = 10_000
"""A large run is cut into at most this many shards, because each is a Prefect task and a part that readers open. More
processes than `MAX_SHARDS / MIN_SHARDS_PER_PROCESS` get more shards."""

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
_RETRY = pa.schema([*_PLAN, ("part_run_id", pa.string()), ("part_etag", pa.string()), ("part_last_shard", pa.int32())])
"""The plan of a run that tries failed dreams again: each shard replaces a part of an earlier run. `part_last_shard` is
null if the part is not merged. Dreamgrid 0.1 did not write this column."""
_NOT_RETRIED = "not_retried"
_ROWS_PER_BATCH = 10_000
"""Rows of a table that exist as Python objects at one time."""


class Sources:
    """Photographs in the order of their addresses. Iterating builds the `Source` objects one by one.

    Args:
        sources: the photographs, in any order.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        rows = ((source.uri, len(source.name), source.etag, source.size) for source in sources)
        self._table = pa.Table.from_batches(_batches(rows, _SOURCES), _SOURCES).combine_chunks()
        self._order = pc.sort_indices(self._table["uri"])

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Source]:
        return self._ordered(self._order)

    def not_ascii(self) -> Iterator[Source]:
        """Yield the photographs whose addresses have characters besides ASCII."""
        selected = pc.invert(pc.string_is_ascii(self._table["uri"]))
        return self._ordered(self._order.filter(selected.take(self._order)))

    def _ordered(self, rows: pa.Array) -> Iterator[Source]:
        for first in range(0, len(rows), _ROWS_PER_BATCH):  # a sorted copy would double the memory
            batch = self._table.take(rows.slice(first, _ROWS_PER_BATCH))
            for uri, length, etag, size in _rows(batch.to_batches()):
                yield Source(uri, uri[len(uri) - length :], etag, size)


@dataclass(frozen=True)
class Plan:
    """The shards of a run in the order of their numbers. Iterating builds the `Shard` objects one by one."""

    parquet: bytes
    """The plan as it is frozen in S3: one row for each photograph of each shard."""

    def __len__(self) -> int:
        return int(pc.count_distinct(self._column("part_etag" if self.is_retry else "shard")).as_py())

    def __bool__(self) -> bool:
        return bool(self._file().metadata.num_rows)

    def __iter__(self) -> Iterator[Shard]:
        batches, width = self._file().iter_batches(_ROWS_PER_BATCH), len(_PLAN)
        for (number, *part), rows in groupby(_rows(batches), key=lambda row: (row[0], *row[width:])):
            works = tuple(Work(Source(*row[1 : width - 1]), tuple(row[width - 1])) for row in rows)
            yield Shard(number, works, ReplacedPart(*part) if part else None)

    @property
    def dreams(self) -> int:
        """The number of rows that the manifest of the run will have."""
        return int(pc.sum(pc.list_value_length(self._column("settings")), min_count=0).as_py())

    def rows_by_shard(self) -> list[int]:
        """Return the number of rows that the part of each shard has. Shards are numbered from 0 without gaps."""
        rows: list[int] = []
        for batch in self._file().iter_batches(_ROWS_PER_BATCH, columns=["shard", "settings"]):
            shards = batch["shard"].to_numpy()
            rows.extend([0] * (int(shards.max(initial=-1)) + 1 - len(rows)))
            for shard, count in zip(shards.tolist(), pc.list_value_length(batch["settings"]).to_pylist(), strict=True):
                rows[shard] += count
        return rows

    @property
    def is_retry(self) -> bool:
        """Whether the run tries failed dreams again: its shards replace parts of earlier runs."""
        return "part_etag" in self._file().schema_arrow.names

    @property
    def not_retried(self) -> int:
        """The number of failed dreams that a retry leaves alone, because it cannot make them with the same settings."""
        return int((self._file().metadata.metadata or {}).get(_NOT_RETRIED.encode(), 0))

    def runs_with_replaced_parts(self) -> list[str]:
        """Return the earlier runs that have parts which the shards replace."""
        return pc.unique(self._column("part_run_id")).to_pylist() if self.is_retry else []

    def works(self) -> Iterator[Work]:
        """Yield the work of all shards."""
        return (work for shard in self for work in shard.works)

    def sources(self) -> Iterator[Source]:
        """Yield each photograph once, even if several shards share its settings."""
        sources = (work.source for work in self.works())
        return iter(dict.fromkeys(sources)) if self.is_retry else (source for source, _ in groupby(sources))

    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(io.BytesIO(self.parquet))

    def _column(self, name: str) -> pa.ChunkedArray:
        """Return one column. Counting in it is fast; building a million objects would take seconds."""
        return self._file().read([name])[name]


def _batches(rows: Iterator[tuple[Any, ...]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    while batch := list(islice(rows, _ROWS_PER_BATCH)):
        columns = zip(zip(*batch, strict=True), schema, strict=True)
        yield pa.record_batch([pa.array(column, field.type) for column, field in columns], schema=schema)


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Any, ...]]:
    for batch in batches:
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def make_plan(
    sources: Sources,
    settings: Sequence[PlannedSettings],
    is_done: Callable[[int], bool],
    throughput: Throughput = ONE_CORE,
) -> Plan:
    """Cut the dreams that are not done yet into shards of about equal cost.

    Args:
        sources: the photographs.
        settings: the points of the grid.
        is_done: returns whether the manifest already has the dream with this `dream_key`.
        throughput: the speed of the machine that will dream.

    Returns:
        Shards in a stable order. Every pair of a photograph and settings that is not done is in exactly one shard.
    """
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}  # most photographs need the same settings: keep one tuple
    missing = (_missing(source, settings, is_done) for source in sources)
    todo = [shared.setdefault(indices, indices) for indices in missing]
    speeds = [throughput.speed_of(planned) for planned in settings]
    seconds = sum(seconds for _, entries in _estimated(sources, todo, settings, speeds) for _, seconds in entries)
    count = min(sum(map(len, todo)), shard_count(seconds, throughput.processes))
    rows = _cut(_estimated(sources, todo, settings, speeds), seconds / max(count, 1))
    frozen = io.BytesIO()
    with pq.ParquetWriter(frozen, _PLAN, compression="zstd") as writer:
        for batch in _batches(rows, _PLAN):
            writer.write_batch(batch)
    return Plan(frozen.getvalue())


def freeze_retry(shards: Iterable[Shard], not_retried: Callable[[], int]) -> Plan:
    """Return the plan of a run that tries failed dreams again.

    Args:
        shards: each replaces one part.
        not_retried: called after the last shard; returns the number of failed dreams that the run leaves alone.
    """
    rows = (
        (shard.number, *_columns(work), shard.replaces.run_id, shard.replaces.etag, shard.replaces.last)
        for shard in shards
        if shard.replaces
        for work in shard.works
    )
    frozen = io.BytesIO()
    with pq.ParquetWriter(frozen, _RETRY, compression="zstd") as writer:
        for batch in _batches(rows, _RETRY):
            writer.write_batch(batch)
        writer.add_key_value_metadata({_NOT_RETRIED: str(not_retried())})
    return Plan(frozen.getvalue())


def _columns(work: Work) -> tuple[str, str, str, int, Sequence[int]]:
    """Return the columns of a plan that describe the work."""
    source = work.source
    return source.uri, source.name, source.etag, source.size, work.settings


def shard_count(seconds: float, processes: int) -> int:
    """Return into how many shards a run is cut, if it has at least as many dreams.

    Args:
        seconds: estimated work of the run on one process.
        processes: number of worker processes.
    """
    return max(MIN_SHARDS_PER_PROCESS * processes, min(math.ceil(seconds / SHARD_SECONDS), MAX_SHARDS))


def _missing(source: Source, settings: Sequence[PlannedSettings], is_done: Callable[[int], bool]) -> tuple[int, ...]:
    """Return the indices of the settings under which a photograph is not dreamt yet."""
    keys = (dream_key(source.uri, source.etag, planned.settings_id) for planned in settings)
    return tuple(index for index, key in enumerate(keys) if not is_done(key))


_Estimated = Iterator[tuple[Source, list[tuple[int, float]]]]
"""Each photograph with the indices of its missing settings and the estimated seconds of each."""


def _estimated(
    sources: Sources, todo: Sequence[tuple[int, ...]], settings: Sequence[PlannedSettings], speeds: Sequence[float]
) -> _Estimated:
    for source, indices in zip(sources, todo, strict=True):
        yield source, [(index, estimate_seconds(source, settings[index], speeds[index])) for index in indices]


def _cut(estimated: _Estimated, shard_seconds: float) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a plan. A dream goes into the shard that contains the middle of its time span."""
    number, slot, elapsed = -1, -1, 0.0
    for source, entries in estimated:
        shares: dict[int, list[int]] = {}
        for index, seconds in entries:
            slot_of_middle = int((elapsed + seconds / 2) / shard_seconds)
            number += slot_of_middle != slot  # a dream longer than several shards leaves no empty numbers
            slot, elapsed = slot_of_middle, elapsed + seconds
            shares.setdefault(number, []).append(index)
        for shard, indices in shares.items():
            yield shard, *_columns(Work(source, tuple(indices)))
