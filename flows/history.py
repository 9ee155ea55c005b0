"""What earlier runs did. A run that is over tells it in one object: a night need not open every part ever written.

`_runs/<run_id>/index.parquet` has the numbers of each row of the run's parts. It is a copy and never the truth: it
counts only while the run's parts are those that it was made from, by their addresses and ETags.
"""

import io
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dreamcore.settings import digest
from flows import layout, manifest
from flows.plan import Sources
from flows.prefetch import ordered_prefetch, thread_pool
from flows.storage import ObjectInfo, Storage
from flows.work import PlannedSettings, dream_key

_READERS = 8
_COLUMNS = ("shard", *manifest.IDENTITY, "status")
_INDEX = pa.schema(
    [
        ("shard", pa.int64()),
        ("source", pa.uint64()),  # see `_source_number`
        ("key", pa.uint64()),  # see `dream_key`
        ("status", pa.dictionary(pa.int8(), pa.string())),
    ]
)
_Numbers = NDArray[np.uint64]


class Failures(NamedTuple):
    """What a job is without, because it came to nothing in an earlier run."""

    photographs: int
    dreams: int


@dataclass(frozen=True, eq=False)
class FinishedDreams:
    """The rows of a destination, by `dream_key`.

    A photograph that failed is not tried again until it changes: it would fail again.
    """

    keys: _Numbers
    """Of all rows, in order."""
    failed: _Numbers
    """Of those that are not done, in order."""

    def __call__(self, key: int) -> bool:
        """Whether there is a row of this dream, whatever became of it."""
        return contains(self.keys, key)

    def failures(self, sources: Sources, settings: Sequence[PlannedSettings]) -> Failures:
        """How many of these dreams are not there for all that."""
        photographs = dreams = 0
        for source in sources if len(self.failed) else ():
            keys = (dream_key(source.uri, source.etag, planned.settings_id) for planned in settings)
            failed = sum(contains(self.failed, key) for key in keys)
            photographs, dreams = photographs + bool(failed), dreams + failed
        return Failures(photographs, dreams)


def contains(keys: _Numbers, key: int) -> bool:
    """Whether keys in order have this one, by bisection: there may be millions, asked for millions of times."""
    place = np.searchsorted(keys, np.uint64(key))
    return bool(place < len(keys) and keys[place] == key)


def finished_dreams(destination: str, storage: Storage) -> FinishedDreams:
    """What a destination has rows of, in 8 bytes for each row, and 8 more for each that is not done."""
    keys, failed = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for index in _tables(destination, storage):
        numbers = index["key"].to_numpy()
        keys.append(numbers)
        failed.append(numbers[pc.not_equal(index["status"], "done").to_numpy()])
    return FinishedDreams(np.sort(np.concatenate(keys)), np.sort(np.concatenate(failed)))


def parts_with(sources: Iterable[str], destination: str, storage: Storage) -> list[str]:
    """Addresses of the parts that may have rows of these photographs: of runs with an index only those that do."""
    wanted = np.array([_source_number(uri) for uri in sources], np.uint64)
    found: list[str] = []
    for parts, index in _runs(destination, storage):
        if index is None:
            found.extend(part.uri for part in parts)
            continue
        shards = set(index["shard"].to_numpy()[np.isin(index["source"].to_numpy(), wanted)].tolist())
        found.extend(part.uri for part in parts if layout.shard_of_part(part.uri) in shards)
    return found


def build_index(destination: str, run_id: str, storage: Storage) -> pa.Table:
    """The index of a run, from its parts."""
    parts = manifest.list_parts(storage, destination, run_id)
    tables = [_index_of(part) for part in manifest.read_parts(storage, [part.uri for part in parts], _COLUMNS)]
    return pa.concat_tables([_INDEX.empty_table(), *tables]).replace_schema_metadata({"parts": _fingerprint(parts)})


def write_index(index: pa.Table, folder: str, storage: Storage) -> None:
    """Put the index of a run that is over into the folder of its record."""
    sink = io.BytesIO()
    pq.write_table(index, sink, compression="zstd")
    storage.write_if_absent(f"{folder}index.parquet", sink.getvalue(), manifest.CONTENT_TYPE)


def _tables(destination: str, storage: Storage) -> Iterator[pa.Table]:
    """The index of every run, or part by part what it would say."""
    unknown: list[str] = []
    for parts, index in _runs(destination, storage):
        if index is None:
            unknown.extend(part.uri for part in parts)
        else:
            yield index
    yield from map(_index_of, manifest.read_parts(storage, unknown, _COLUMNS))


def _runs(destination: str, storage: Storage) -> Iterator[tuple[list[ObjectInfo], pa.Table | None]]:
    """The parts of each run, and its index, if there is one of these very parts."""
    runs: dict[str, list[ObjectInfo]] = defaultdict(list)
    for part in manifest.list_parts(storage, destination):
        runs[layout.run_id_of_part(part.uri)].append(part)

    def read(run: tuple[str, list[ObjectInfo]]) -> tuple[list[ObjectInfo], pa.Table | None]:
        run_id, parts = run
        return parts, _valid(storage.read(f"{layout.run_folder(destination, run_id)}index.parquet"), parts)

    with thread_pool(_READERS) as readers:
        yield from ordered_prefetch(readers, read, runs.items(), _READERS)


def _valid(data: bytes | None, parts: Sequence[ObjectInfo]) -> pa.Table | None:
    """An index, if it is one, and of these parts."""
    try:
        index = pq.read_table(io.BytesIO(data or b""))
    except (pa.ArrowException, OSError):
        return None
    is_theirs = index.schema.equals(_INDEX) and (index.schema.metadata or {}).get(b"parts") == _fingerprint(parts)
    return index if is_theirs else None


def _fingerprint(parts: Sequence[ObjectInfo]) -> bytes:
    return digest(*((part.uri, part.etag) for part in parts)).encode()


def _index_of(part: pa.Table) -> pa.Table:
    """What an index says of one part."""
    sources, keys = array("Q"), array("Q")  # 8 bytes a number
    for source_uri, *rest in zip(*(part[name].to_pylist() for name in manifest.IDENTITY), strict=True):
        sources.append(_source_number(source_uri))
        keys.append(dream_key(source_uri, *rest))
    numbers = (pa.array(np.array(each, np.uint64)) for each in (sources, keys))
    return pa.table([part["shard"], *numbers, part["status"].cast(_INDEX.field("status").type)], schema=_INDEX)


def _source_number(uri: str) -> int:
    return int(digest(uri), 16)
