"""Cut sources and settings into shards. Pure functions: no S3, no clock, no torch.

Photographs are held in compressed Arrow columns, and a plan is held as the Parquet bytes that are frozen. As Python
objects, a million photographs would need more than a gigabyte.
"""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress, groupby, islice, repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flows.jobs.cost import ONE_CORE, Throughput, dreamt_pixels, estimate_pixels, largest_pixels, reference_seconds
from flows.jobs.work import Keys, PlannedSettings, ReplacedPart, Shard, Source, Work, dream_keys

__all__ = [
    "MAX_SHARDS",
    "MIN_SHARDS_PER_PROCESS",
    "SHARD_SECONDS",
    "IsDone",
    "Plan",
    "Sources",
    "freeze_retry",
    "make_plan",
    "shard_count",
    "sources_of",
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

IsDone = Callable[[Keys], NDArray[np.bool_] | bool]
"""Returns which of these dreams are done. A single value stands for all of them."""
_Bits = NDArray[np.uint8]
"""Which dreams of a batch are missing, one bit for each."""
_ROWS_PER_BATCH = 5_000
"""Rows of a table that exist as Python objects at one time."""
_BATCHES_PER_BLOCK = 2
"""Batches of photographs that are sorted together, at least."""
_BLOCKS = 16
"""A block has at least one photograph for each 16 before it, so that there are not too many blocks."""


class Sources:
    """Photographs in the order of their addresses. Iterating builds the `Source` objects one by one.

    The photographs are compressed: they take about 30 bytes each. They are sorted in blocks, and blocks that overlap
    are merged whenever the photographs are read.

    Args:
        sources: the photographs, in any order.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        rows = ((source.uri, len(source.name), source.etag, source.size) for source in sources)
        batches = _batches(rows, _SOURCES)
        self._runs: list[list[pa.Buffer]] = []
        self._length = 0
        last = ""
        while block := list(islice(batches, max(_BATCHES_PER_BLOCK, self._length // _ROWS_PER_BATCH // _BLOCKS))):
            table = _sorted(pa.Table.from_batches(block))
            if not self._runs or table["uri"][0].as_py() < last:
                self._runs.append([])  # the block cannot be appended to the last one
            last = table["uri"][-1].as_py()
            self._runs[-1] += map(_compressed, _pieces(table))
            self._length += len(table)
            pa.default_memory_pool().release_unused()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Source]:
        return (source for batch in self.batches() for source in sources_of(batch))

    def not_ascii(self) -> Iterator[Source]:
        """Yield the photographs whose addresses have characters besides ASCII."""
        for batch in self.batches():
            yield from sources_of(batch.filter(pc.invert(pc.string_is_ascii(batch["uri"]))))

    def batches(self) -> Iterator[pa.Table]:
        """Yield the photographs as tables of some thousand rows, for `sources_of`. They are the same at each call."""
        runs = [map(_decompressed, run) for run in self._runs]
        return runs[0] if len(runs) == 1 else _merged(runs)


def sources_of(batch: pa.Table) -> Iterator[Source]:
    """Yield the photographs of a table of `Sources.batches`."""
    for uri, length, etag, size in _rows(batch.to_batches()):
        yield Source(uri, uri[len(uri) - length :], etag, size)


def _sorted(table: pa.Table) -> pa.Table:
    return table.take(pc.sort_indices(table["uri"]))  # `Table.sort_by` loads a query engine, which takes 20 MB


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    return (table.slice(first, _ROWS_PER_BATCH) for first in range(0, len(table), _ROWS_PER_BATCH))


def _compressed(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(table)
    return sink.getvalue()


def _decompressed(data: pa.Buffer) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()


def _merged(runs: Iterable[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Merge tables that are sorted by `uri`, with one table of each run in memory."""
    heads = [(head, run) for run in runs if (head := next(run, None))]
    while heads:
        # Every row up to the smallest last row of the heads is in the heads.
        bound = min(head["uri"][-1].as_py() for head, _ in heads)
        taken, rest = [], []
        for head, run in heads:
            count = pc.sum(pc.less_equal(head["uri"], bound)).as_py()
            taken.append(head.slice(0, count))
            if left := head.slice(count) if count < len(head) else next(run, None):
                rest.append((left, run))
        heads = rest
        yield from _pieces(_sorted(pa.concat_tables(taken)))


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
    is_done: IsDone,
    throughput: Throughput = ONE_CORE,
) -> Plan:
    """Cut the dreams that are not done yet into shards of about equal cost.

    Args:
        sources: the photographs.
        settings: the points of the grid.
        is_done: returns for an array of `dream_key`s which of these dreams the manifest already has.
        throughput: the speed of the machine that will dream.

    Returns:
        Shards in a stable order. Every pair of a photograph and settings that is not done is in exactly one shard.
        Settings for one photograph pair only with that photograph.
    """
    missing = [_missing(batch, settings, is_done) for batch in sources.batches()]
    dreams = sum(int(np.bitwise_count(bits).sum()) for bits in missing)
    estimates = [_estimate(planned, throughput.speed_of(planned)) for planned in settings]
    seconds = sum(seconds for _, entries in _estimated(sources, missing, estimates) for _, seconds in entries)
    count = min(dreams, shard_count(seconds, throughput.processes))
    rows = _cut(_estimated(sources, missing, estimates), seconds / max(count, 1))
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


def _missing(batch: pa.Table, settings: Sequence[PlannedSettings], is_done: IsDone) -> _Bits:
    """Return which dreams are not done, for each photograph of a batch and each of the settings."""
    uris, etags = batch["uri"].to_pylist(), batch["etag"].to_pylist()
    missing = np.empty((len(batch), len(settings)), np.bool_)
    for index, planned in enumerate(settings):
        missing[:, index] = np.logical_not(is_done(dream_keys(uris, etags, repeat(planned.settings_id))))
        if planned.photograph:
            uri, etag = planned.photograph
            only = pc.and_(pc.equal(batch["uri"], uri), pc.equal(batch["etag"], etag))
            missing[:, index] &= only.to_numpy()
    return np.packbits(missing)


_Estimated = Iterator[tuple[Source, list[tuple[int, float]]]]
"""Each photograph with the indices of its missing settings and the estimated seconds of each."""


def _estimate(planned: PlannedSettings, speed: float) -> Callable[[Source], float]:
    """Return a function that returns about how many seconds the dream of a photograph takes."""

    @lru_cache(maxsize=2**12)  # most photographs have more than `max_pixels` pixels
    def seconds(pixels: int) -> float:
        return reference_seconds(planned, pixels) / speed

    max_pixels = largest_pixels(planned.settings)
    return lambda source: seconds(dreamt_pixels(planned, estimate_pixels(source, max_pixels)))


def _estimated(
    sources: Sources, missing: Sequence[_Bits], estimates: Sequence[Callable[[Source], float]]
) -> _Estimated:
    count = len(estimates)
    for batch, bits in zip(sources.batches(), missing, strict=True):
        todo = np.unpackbits(bits, count=len(batch) * count).reshape(len(batch), count)
        some = todo.any(axis=1)
        for source, marks in zip(sources_of(batch.filter(pa.array(some))), todo[some].tolist(), strict=True):
            yield source, [(index, estimates[index](source)) for index in compress(range(count), marks)]


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
