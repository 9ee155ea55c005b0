"""Rows of earlier runs. A finished run has an index, so that later runs need not read every part ever written.

`_runs/<run_id>/index.parquet` has one entry for each row of the run's parts. The index is a cache: it is used only
while the addresses and ETags of the run's parts are those that it was built from.
"""

import io
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dreamcore.settings import digest
from flows.destination import manifest
from flows.destination.parts import Part, list_parts
from flows.destination.pruned import pruned_dreams
from flows.jobs.plan import Sources
from flows.jobs.work import Keys, PlannedSettings, dream_keys
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = [
    "Failures",
    "FinishedDreams",
    "build_index",
    "contains",
    "contains_each",
    "finished_dreams",
    "has_valid_index",
    "parts_with",
    "parts_with_failures",
    "repair_indices",
    "source_key",
    "write_index",
]

_READERS = 8
_COLUMNS = ("shard", *manifest.IDENTITY, "status")
_ROWS_PER_GROUP = 2**17
"""Rows of an index that are decoded together."""
_INDEX = pa.schema(
    [
        ("shard", pa.int64()),
        ("source", pa.uint64()),  # see `source_key`
        ("key", pa.uint64()),  # see `dream_key`
        ("status", pa.dictionary(pa.int8(), pa.string())),
    ]
)


class Failures(NamedTuple):
    """Dreams of a job that do not exist because they failed or were skipped in earlier runs."""

    photographs: int
    """Number of photographs without some of their dreams."""
    dreams: int
    """Number of these dreams."""


@dataclass(frozen=True, eq=False)
class FinishedDreams:
    """The rows of a destination by `dream_key`, whatever their status, and the dreams that were pruned.

    A photograph that failed is not tried again until it changes, because it would fail again. A run with
    `retry_failed` tries it again.
    """

    keys: Keys
    """Keys of all rows and of all pruned dreams, sorted."""
    failed: Keys
    """Keys of the rows whose status is not done, sorted."""
    sources: Keys
    """The photographs that have rows, as 64-bit numbers of their addresses, sorted."""

    def __call__(self, keys: Keys) -> NDArray[np.bool_]:
        """Return for each key whether the destination has a row for this dream, or the dream was pruned."""
        return contains_each(self.keys, keys)

    def has_source(self, uri: str) -> bool:
        """Return whether the destination has a row for any version of the photograph at this address."""
        return contains(self.sources, source_key(uri))

    def failures(self, sources: Sources, settings: Sequence[PlannedSettings]) -> Failures:
        """Count the dreams of these photographs and settings that failed or were skipped."""
        photographs = dreams = 0
        for batch in sources.batches() if len(self.failed) else ():
            uris, etags = batch["uri"].to_pylist(), batch["etag"].to_pylist()
            failed = np.zeros(len(batch), np.int64)
            for planned in settings:
                failed += contains_each(self.failed, dream_keys(uris, etags, repeat(planned.settings_id)))
            photographs, dreams = photographs + int(np.count_nonzero(failed)), dreams + int(failed.sum())
        return Failures(photographs, dreams)


def contains(keys: Keys, key: int) -> bool:
    """Return whether sorted keys contain `key`."""
    return bool(contains_each(keys, np.array([key], np.uint64))[0])


def contains_each(keys: Keys, wanted: Keys) -> NDArray[np.bool_]:
    """Return for each of the keys in `wanted` whether the sorted `keys` contain it, by binary search."""
    if not len(keys):
        return np.zeros(len(wanted), np.bool_)
    places = np.searchsorted(keys, wanted)
    return np.asarray(keys.take(places, mode="clip") == wanted)


def finished_dreams(destination: str, storage: Storage) -> FinishedDreams:
    """Read the keys of all rows and of all pruned dreams of a destination.

    They take 8 bytes for each row, 8 more if the row is not done, and 8 for each photograph.
    """
    keys, failed, sources = ([np.empty(0, np.uint64)] for _ in range(3))
    for each in map(_keys_of, _indices(destination, storage)):
        for arrays, numbers in zip((keys, failed, sources), each, strict=True):
            arrays.append(numbers)
        pa.default_memory_pool().release_unused()  # the bytes from which the index was read
    pruned = pruned_dreams(destination, storage)  # after the rows: a prune removes rows after it has written its record
    keys.append(pruned.keys)
    sources.append(pruned.sources)
    finished = FinishedDreams(_sorted(keys), _sorted(failed), _without_repetitions(_sorted(sources)))
    pa.default_memory_pool().release_unused()
    return finished


def _keys_of(index: pa.Table) -> tuple[Keys, Keys, Keys]:
    """Return the keys of the rows, of those that are not done, and of the photographs."""
    keys = index["key"].to_numpy()
    failed = keys[pc.not_equal(index["status"], "done").to_numpy()]
    return keys, failed, _without_repetitions(np.sort(index["source"].to_numpy()))


def _sorted(arrays: list[Keys]) -> Keys:
    """Return all numbers sorted, and empty the list: for ten million rows, each copy takes 80 MB."""
    numbers = np.concatenate(arrays)
    arrays.clear()
    numbers.sort()
    return numbers


def _without_repetitions(numbers: Keys) -> Keys:
    """Return sorted numbers once each. `np.unique` needs several times as much memory."""
    return numbers[np.append(True, numbers[1:] != numbers[:-1])] if len(numbers) else numbers


def parts_with(sources: Iterable[str], destination: str, storage: Storage) -> list[str]:
    """Return the addresses of the parts that may have rows of these photographs.

    Args:
        sources: addresses of the photographs.
        destination: folder of the results.
        storage: access to S3.

    Returns:
        For runs with an index, exactly the parts with such rows; for other runs, all parts.
    """
    wanted = np.array([source_key(uri) for uri in sources], np.uint64)
    found: list[str] = []
    for parts, index in _runs(destination, storage):
        if index is None:
            found.extend(part.uri for part in parts)
            continue
        shards = set(index["shard"].to_numpy()[np.isin(index["source"].to_numpy(), wanted)].tolist())
        found.extend(part.uri for part in parts if not shards.isdisjoint(part.shards))
    return found


def build_index(destination: str, run_id: str, storage: Storage) -> pa.Table:
    """Build the index of a run from its parts."""
    parts = list_parts(storage, destination, run_id)
    tables = [_index_of(part) for part in manifest.read_parts(storage, [part.uri for part in parts], _COLUMNS)]
    return pa.concat_tables([_INDEX.empty_table(), *tables]).replace_schema_metadata({"parts": _fingerprint(parts)})


def has_valid_index(destination: str, run_id: str, storage: Storage) -> bool:
    """Return whether a run has an index that was built from the parts that the run has now."""
    data = storage.read(layout.index_uri(destination, run_id))
    return _parse_index(data, list_parts(storage, destination, run_id)) is not None


def write_index(index: pa.Table, destination: str, run_id: str, storage: Storage, *, replace: bool = False) -> None:
    """Write the index of a finished run into the folder of its record, unless it has one; `replace` overwrites it."""
    sink = io.BytesIO()
    pq.write_table(index, sink, compression="zstd", row_group_size=_ROWS_PER_GROUP)
    write = storage.write if replace else storage.write_if_absent
    write(layout.index_uri(destination, run_id), sink.getvalue(), manifest.CONTENT_TYPE)


def repair_indices(destination: str, run_ids: Collection[str], storage: Storage) -> None:
    """Build the indices of those of these runs again whose index is missing or was built from other parts."""
    for parts, index in _runs(destination, storage):
        run_id = parts[0].run_id
        if index is None and run_id in run_ids:
            write_index(build_index(destination, run_id, storage), destination, run_id, storage, replace=True)


def parts_with_failures(destination: str, storage: Storage) -> Iterator[tuple[str, list[Part]]]:
    """Yield each run with the parts that may have rows of failed dreams; for runs without an index, all parts."""
    for parts, index in _runs(destination, storage):
        if index is not None:
            failed = index.filter(pc.not_equal(index["status"], "done"))
            shards = set(failed["shard"].to_pylist())
            parts = [part for part in parts if not shards.isdisjoint(part.shards)]
        if parts:
            yield parts[0].run_id, parts


def _indices(destination: str, storage: Storage) -> Iterator[pa.Table]:
    """Yield the index of every run; for runs without a valid one, build the index of each part."""
    not_indexed: list[str] = []
    for parts, index in _runs(destination, storage):
        if index is None:
            not_indexed.extend(part.uri for part in parts)
        else:
            yield index
    yield from map(_index_of, manifest.read_parts(storage, not_indexed, _COLUMNS))


def _runs(destination: str, storage: Storage) -> Iterator[tuple[list[Part], pa.Table | None]]:
    """Yield the parts of each run and the run's index; None if the index is missing or not of these parts."""
    runs: dict[str, list[Part]] = defaultdict(list)
    for part in list_parts(storage, destination):
        runs[part.run_id].append(part)

    def read(run: tuple[str, list[Part]]) -> tuple[list[Part], pa.Table | None]:
        run_id, parts = run
        return parts, _parse_index(storage.read(layout.index_uri(destination, run_id)), parts)

    with thread_pool(_READERS) as readers:
        yield from ordered_prefetch(readers, read, runs.items(), _READERS)


def _parse_index(data: bytes | None, parts: Sequence[Part]) -> pa.Table | None:
    """Return the index in `data`; None if it is missing, damaged, or was built from other parts."""
    try:
        with pq.ParquetFile(pa.BufferReader(data or b"")) as file:
            # With threads, all columns would be in memory twice.
            index = pa.Table.from_batches(file.iter_batches(_ROWS_PER_GROUP, use_threads=False), file.schema_arrow)
    except (pa.ArrowException, OSError):
        return None
    is_valid = index.schema.equals(_INDEX) and (index.schema.metadata or {}).get(b"parts") == _fingerprint(parts)
    return index if is_valid else None


def _fingerprint(parts: Sequence[Part]) -> bytes:
    return digest(*((part.uri, part.etag) for part in parts)).encode()


def _index_of(part: pa.Table) -> pa.Table:
    """Return the index entries of one part."""
    uris, *rest = (part[name].to_pylist() for name in manifest.IDENTITY)
    by_uri = {uri: source_key(uri) for uri in dict.fromkeys(uris)}
    sources = np.fromiter((by_uri[uri] for uri in uris), np.uint64, len(uris))
    numbers = (pa.array(each) for each in (sources, dream_keys(uris, *rest)))
    return pa.table([part["shard"], *numbers, part["status"].cast(_INDEX.field("status").type)], schema=_INDEX)


def source_key(uri: str) -> int:
    """Return a 64-bit number for the address of a photograph."""
    return int(digest(uri), 16)
