"""Marks of dreams, kept in the destination: 1 to 5 for favourites, -1 for rejected dreams, 0 for none.

    DEST/favourites/<time>-<random>.parquet                  marks that were added together
    DEST/favourites/merged-<generation>-<random>.parquet     the newest mark of each dream, merged from other objects

Each object is written once, under a name of its own, and never changes. Therefore no writer can lose a mark of another.
The newest mark of a dream counts, and of two marks with one time the larger one. A reader may see marks in any order
and any number of times; all readers agree.

`merge_marks` replaces many objects by one: it writes the merged object and then deletes those that it has read. If it
is killed in between, the same marks are in two objects, which changes nothing.
"""

import io
import logging
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from types import MappingProxyType
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dreamcore.errors import InvalidInput, Unavailable
from flows.destination import manifest
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["GROUP_SECONDS", "MAX_OBJECTS", "Mark", "Marks", "damaged_marks", "merge_marks", "read_marks"]

GROUP_SECONDS = 0.05
"""Marks that are added within this time are written together."""
MAX_OBJECTS = 64
"""If a destination has more objects with marks, they are merged."""

_READERS = 8
_SCHEMA = pa.schema(
    [
        ("result_id", pa.string()),
        ("source_uri", pa.string()),
        ("settings_id", pa.string()),
        ("mark", pa.int64()),
        ("time", pa.timestamp("us", tz="UTC")),
    ],
    metadata={"dreamgrid.marks_version": "1"},
)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mark:
    """A mark for a dream. Photograph and settings are for readers of the files; only `result_id` identifies the dream.

    Raises:
        InvalidInput: `result_id` is no id of a dream, or `mark` is not between -1 and 5.
    """

    result_id: str
    """16 hex digits."""
    mark: int
    """1 to 5, -1: rejected, 0: no mark."""
    source_uri: str | None = None
    settings_id: str | None = None

    def __post_init__(self) -> None:
        if not layout.is_result_id(self.result_id):
            raise InvalidInput(f"{self.result_id!r} is not the id of a dream: give its 16 hex digits")
        if not -1 <= self.mark <= 5:
            raise InvalidInput(f"a dream cannot have the mark {self.mark}: give 1 to 5, 0 for none or -1 for rejected")


class _DamagedMarks(InvalidInput):
    """An object with marks cannot be read."""


class _Stamped(NamedTuple):
    """A mark with its time, as one row of an object. Of two for one dream, the larger one counts."""

    time: int
    """Microseconds since 1970, UTC."""
    mark: int
    source_uri: str | None = None
    settings_id: str | None = None


@dataclass(eq=False)
class _Group:
    """Marks that are written together, by `result_id`."""

    rows: list[tuple[str, _Stamped]] = field(default_factory=list)
    written: "Future[None]" = field(default_factory=Future)


def read_marks(destination: str, storage: Storage) -> Mapping[str, int]:
    """Return the mark of each dream of a destination that has one other than 0, by `result_id`.

    Raises:
        InvalidInput: an object with marks is damaged, or access is refused.
        Unavailable: S3 failed.
    """
    return Marks(destination, storage).read()


class Marks:
    """Reads and adds marks of one destination. Threads may share it, and any number of processes may work at once."""

    def __init__(self, destination: str, storage: Storage) -> None:
        self._destination, self._storage = destination, storage
        self._lock, self._reading = Lock(), Lock()
        self._seen: set[str] = set()  # addresses of objects whose marks are known
        self._newest: dict[str, tuple[int, int]] = {}  # time and mark by `result_id`
        self._marks: Mapping[str, int] = MappingProxyType({})
        self._given: dict[str, int] = {}  # times that this process has given to marks, by `result_id`
        self._clock = 0
        self._group: _Group | None = None
        self._merges = True  # False as soon as the store refuses a merge

    @property
    def known(self) -> Mapping[str, int]:
        """The marks that this object has read or added, without asking S3. The mapping does not change later."""
        return self._marks

    def read(self) -> Mapping[str, int]:
        """Return the marks, as `read_marks` does. Only objects that are new since the last call are read.

        The returned mapping does not change later.
        """
        with self._reading:
            while not self._read_new():
                pass  # objects were merged while they were read; the merged object is in the next listing
        return self._marks

    def _read_new(self) -> bool:
        """List the objects and read new ones. Return False if one of them was deleted before it could be read."""
        listed = set(_objects(self._destination, self._storage))
        found = dict(_read_objects(self._storage, listed - self._seen))
        read = {uri: rows for uri, rows in found.items() if rows is not None}
        with self._lock:
            self._learn([row for rows in read.values() for row in rows])
            self._seen = (self._seen & listed) | read.keys()
        return len(read) == len(found)

    def _learn(self, rows: Sequence[tuple[str, _Stamped]]) -> None:
        """Add marks that are in S3 to what is known. The lock is held."""
        for result_id, row in rows:
            self._newest[result_id] = max(self._newest.get(result_id, row[:2]), row[:2])
        if rows:
            self._marks = MappingProxyType({name: mark for name, (_, mark) in self._newest.items() if mark})

    def add(self, marks: Iterable[Mark]) -> None:
        """Add marks. They are in S3 when this method returns.

        The first caller of a group waits `GROUP_SECONDS` for others, and writes the marks of all of them. A mark is
        newer than every mark of its dream that this object knows, even if the clock of another machine is ahead.

        Raises:
            InvalidInput: access is refused.
            Unavailable: S3 failed. Some or all of the marks of the group may have been written.
        """
        given = list(marks)
        with self._lock:
            leads = self._group is None
            group = self._group = self._group or _Group()
            group.rows += [(each.result_id, self._stamp(each)) for each in given]
        if leads:
            self._lead(group)
        group.written.result()
        if leads:
            self._merge_if_many()

    def _lead(self, group: _Group) -> None:
        """Wait for others, and write the marks of a group."""
        try:
            time.sleep(GROUP_SECONDS)
            self._close(group)
            self._write(group.rows)
        except BaseException as error:  # others wait for the result
            self._close(group)
            group.written.set_exception(error)
        else:
            group.written.set_result(None)

    def _close(self, group: _Group) -> None:
        with self._lock:
            if self._group is group:
                self._group = None

    def _write(self, rows: Sequence[tuple[str, _Stamped]]) -> None:
        if not rows:
            return
        uri = layout.marks_uri(self._destination, _unique_name())
        _write_object(self._storage, uri, rows)
        with self._lock:
            self._learn(rows)
            self._seen.add(uri)

    def _stamp(self, mark: Mark) -> _Stamped:
        """Return a mark with the time of now, or of later if its dream has a mark of now or later. The lock is held."""
        known = max(self._newest.get(mark.result_id, (0, 0))[0], self._given.get(mark.result_id, 0))
        self._clock = max(time.time_ns() // 1000, self._clock)
        self._given[mark.result_id] = max(self._clock, known + 1)
        return _Stamped(self._given[mark.result_id], mark.mark, mark.source_uri, mark.settings_id)

    def _merge_if_many(self) -> None:
        """Merge objects if there are many. The marks are written already, so a failure costs nothing."""
        if len(self._seen) <= MAX_OBJECTS or not self._merges:
            return
        try:
            merge_marks(self._destination, self._storage)
            self.read()
        except (InvalidInput, Unavailable) as error:
            self._merges = not isinstance(error, InvalidInput)
            _logger.warning("marks were not merged: %s", error)


def merge_marks(destination: str, storage: Storage) -> int:
    """Merge all objects with marks into one, with the newest mark of each dream. Return how many it replaces.

    Several merges may run at the same time, and each may be killed at any moment.

    Raises:
        InvalidInput: an object with marks is damaged, or access is refused.
        Unavailable: S3 failed.
    """
    found = {uri: rows for uri, rows in _read_objects(storage, _objects(destination, storage)) if rows is not None}
    if len(found) < 2:
        return 0
    newest: dict[str, _Stamped] = {}
    for rows in found.values():
        for result_id, row in rows:
            newest[result_id] = max(newest.get(result_id, row), row, key=_order)
    # Its name comes after those of the objects that it replaces, so that no listing of several pages lacks both.
    generation = 1 + max(layout.marks_generation(uri) or 0 for uri in found)
    merged = layout.merged_marks_uri(destination, generation, _unique_name())
    _write_object(storage, merged, sorted(newest.items()))
    storage.delete_many(found)
    return len(found)


def damaged_marks(destination: str, storage: Storage) -> Iterator[tuple[str, str]]:
    """Yield the address of each object with marks that cannot be read, and the reason."""
    for uri in _objects(destination, storage):
        try:
            list(_read_objects(storage, [uri]))
        except _DamagedMarks as error:
            yield uri, str(error)


def _order(row: _Stamped) -> tuple[int, int, str, str]:
    return row.time, row.mark, row.source_uri or "", row.settings_id or ""


def _unique_name() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(8)}"


def _objects(destination: str, storage: Storage) -> Iterator[str]:
    """Yield the addresses of all objects with marks. Other objects in the folder are ignored."""
    listed = storage.list(layout.favourites_folder(destination))
    return (info.uri for info in listed if layout.marks_generation(info.uri) is not None)


def _write_object(storage: Storage, uri: str, rows: Sequence[tuple[str, _Stamped]]) -> None:
    columns = [
        pa.array([result_id for result_id, _ in rows], pa.string()),
        pa.array([row.source_uri for _, row in rows], pa.string()),
        pa.array([row.settings_id for _, row in rows], pa.string()),
        pa.array([row.mark for _, row in rows], pa.int64()),
        pa.array([row.time for _, row in rows], pa.int64()).cast(_SCHEMA.field("time").type),
    ]
    data = manifest.table_to_parquet(pa.table(columns, schema=_SCHEMA))
    if not storage.write_if_absent(uri, data, manifest.CONTENT_TYPE):
        raise Unavailable(f"{uri} exists already: another program wrote it; try again")


def _read_objects(storage: Storage, uris: Iterable[str]) -> Iterator[tuple[str, list[tuple[str, _Stamped]] | None]]:
    """Yield the rows of each object, by `result_id`; None if the object was deleted meanwhile."""

    def read(uri: str) -> tuple[str, list[tuple[str, _Stamped]] | None]:
        data = storage.read(uri)
        return uri, _rows_of(uri, data) if data is not None else None

    with thread_pool(_READERS) as readers:
        yield from ordered_prefetch(readers, read, uris, _READERS)


def _rows_of(uri: str, data: bytes) -> list[tuple[str, _Stamped]]:
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read().select(_SCHEMA.names).cast(_SCHEMA)
        times = table["time"].cast(pa.int64()).to_pylist()
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise _DamagedMarks(
            f"{uri} cannot be read: {error}; restore it, or delete it: then its marks are lost"
        ) from error
    names = ("mark", "source_uri", "settings_id")
    rows = map(_Stamped, times, *(table[name].to_pylist() for name in names))
    return list(zip(table["result_id"].to_pylist(), rows, strict=True))
