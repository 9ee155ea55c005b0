"""The gallery's copy of a manifest: a DuckDB file in the user's cache.

    XDG_CACHE_HOME/dreamgrid/gallery/<key>/<slot>.duckdb, <slot>.lock

The key is a digest of the store's endpoint and the destination. DuckDB allows one process to write a file, so each
server takes the first slot that is free, and holds it by a lock. A second server on the same destination fills a slot
of its own. The file is a cache: a damaged one is built again. It has no credentials, and only its user may read it.
`delete_unused` deletes what no process has opened for a long time.
"""

import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from threading import Lock, RLock
from types import TracebackType
from typing import IO, Any, Self

import duckdb
import pyarrow as pa

from dreamcore.errors import Unavailable
from dreamcore.settings import digest
from dreamcore.user_cache import cache_folder
from flows.destination.manifest import PartReader, empty_table
from flows.destination.parts import Part, list_parts
from flows.gallery import tables
from flows.gallery.points import Point, read_point
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.s3.storage import Storage

__all__ = ["UNUSED_DAYS", "Cache", "delete_unused"]

_LOG = logging.getLogger(__name__)

_SLOTS = 16
UNUSED_DAYS = 90
_READERS = 8
_ROWS_PER_BATCH = 100_000
"""Rows that are added with one transaction while the cache is filled."""
_DAMAGED = (duckdb.IOException, duckdb.InternalException, duckdb.FatalException, duckdb.SerializationException)
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "700MB",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "preserve_insertion_order": "false",
}


class Cache:
    """The rows of a destination in a local database. Threads may share a cache.

    Use `Cache.open`, and `close` it, for example by `with`.
    """

    def __init__(self, destination: str, storage: Storage, folder: Path) -> None:
        self.destination, self.storage = destination, storage
        self.points: dict[int, Point] = {}
        """The settings of the dreams, by `settings_no`. A refresh replaces this dictionary and never changes it."""
        self.generation = 0
        """Changes whenever rows are added or removed."""
        self._key = digest(storage.endpoint, destination)
        self._writing, self._marking = RLock(), Lock()
        self._marks: dict[str, int] | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._lock: IO[bytes] | None = None
        self._file = self._take_slot(folder)
        self._db = self._connect()

    @classmethod
    def open(cls, destination: str, storage: Storage) -> Self:
        """Open the cache of a destination. Call `refresh` to read the manifest.

        Args:
            destination: folder of the results, with a slash at its end.
            storage: access to S3.

        Raises:
            Unavailable: neither the user's cache nor the folder of temporary files can be written.
        """
        return cls(destination, storage, cache_folder() / "gallery" / digest(storage.endpoint, destination))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write everything to the file and free the slot."""
        with self._writing:
            with suppress(duckdb.Error):
                self._db.close()
            if self._lock:
                self._lock.close()
            if self._temporary:
                self._temporary.cleanup()

    # --- the file

    def _take_slot(self, folder: Path) -> Path:
        """Return the path of the first database that no other server holds, and hold it."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            for number in range(_SLOTS):
                if lock := _try_lock(folder / f"{number}.lock"):
                    self._lock = lock
                    os.utime(lock.fileno())  # when it was opened last, for `delete_unused`
                    return folder / f"{number}.duckdb"
        except OSError as error:
            _LOG.warning("The cache %s cannot be used, so the manifest is read anew: %s", folder, error)
        try:
            self._temporary = tempfile.TemporaryDirectory(prefix="dreamgrid-gallery-")
        except OSError as error:
            raise Unavailable(f"the gallery has no place for its cache: {error}; set XDG_CACHE_HOME") from error
        return Path(self._temporary.name) / "0.duckdb"

    def _connect(self) -> Any:
        """Return a connection to the database, which is made anew if it is damaged, foreign or of another format."""
        for path in self._file.parent.glob(f"{self._file.stem}-*"):  # see `_rebuild`
            _remove(path)
        if self._file.exists():
            try:
                return self._connect_filled()
            except (duckdb.Error, ValueError) as error:
                _LOG.warning("The cache %s is built again: %s", self._file, error)
        return self._make()

    def _connect_filled(self) -> Any:
        """Return a connection to a database that has rows.

        Raises:
            duckdb.Error, ValueError: it is damaged, or another version filled it.
        """
        db = self._connect_file()
        try:
            tables.check(db, self._key)
            self.points = _read_points(db)
            tables.rank_if_needed(db)  # a first fill may have been stopped
        except BaseException:
            db.close()
            raise
        return db

    def _make(self) -> Any:
        """Return a connection to a new database without rows."""
        self.points, self._marks = {}, None
        for suffix in ("", ".wal", ".tmp"):
            _remove(self._file.with_name(self._file.name + suffix))
        try:
            db = self._connect_file()
            tables.create(db, self._key)
        except duckdb.Error as error:
            raise Unavailable(f"the cache {self._file} cannot be written: {error}") from error
        return db

    def _connect_file(self) -> Any:
        db = duckdb.connect(str(self._file), config=_CONFIG)
        try:
            self._file.chmod(0o600)
            db.execute("ATTACH ':memory:' AS live")
            db.execute("CREATE TABLE live.marks (result_no UBIGINT, mark TINYINT)")
            db.execute("SET enable_external_access = false")  # no statement reads or writes another file
        except BaseException:
            db.close()
            raise
        return db

    # --- reading

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query. A damaged file is built again first.

        Args:
            sql: a constant statement. Values from outside are in `parameters`.
            parameters: values for the placeholders.
        """
        db = self._db
        try:
            return _fetch(db, sql, parameters)
        except duckdb.Error as error:
            with self._writing:
                if self._db is db:  # otherwise another thread has replaced it
                    if not isinstance(error, _DAMAGED):
                        raise
                    self._start_anew(error)
                    self.refresh()
            return _fetch(self._db, sql, parameters)

    def _start_anew(self, error: duckdb.Error) -> None:
        """Replace a damaged database by an empty one."""
        _LOG.warning("The cache %s is built again: %s", self._file, error)
        marks = self._marks or {}
        with suppress(duckdb.Error):
            self._db.close()
        _remove(self._file)
        # Other threads may still use the damaged database, and DuckDB shares databases by their path.
        self._file = self._file.with_name(f"{self._file.name.partition('.')[0]}-{uuid.uuid4().hex}.duckdb")
        self._db = self._make()
        self.use_marks(marks)

    def use_marks(self, marks: Mapping[str, int]) -> None:
        """Let queries see these marks, by `result_id`."""
        with self._marking:
            if marks == self._marks:
                return
            copy = dict(marks)
            rows = pa.table(
                {
                    "result_no": pa.array([int(result_id, 16) for result_id in copy], pa.uint64()),
                    "mark": pa.array(list(copy.values()), pa.int8()),
                }
            )
            with closing(self._db.cursor()) as cursor:
                cursor.register("new_marks", rows)
                cursor.execute("BEGIN; DELETE FROM live.marks; INSERT INTO live.marks SELECT * FROM new_marks; COMMIT")
            self._marks = copy

    # --- refreshing

    def refresh(self) -> int:
        """Read the parts of the manifest that are new or changed, and forget those that have gone.

        Returns:
            The number of rows that were read.

        Raises:
            InvalidInput: access is refused, or the bucket does not exist.
            Unavailable: S3 failed, or the cache cannot be written.
        """
        with self._writing:
            try:
                return self._refresh()
            except _DAMAGED as error:
                self._start_anew(error)
            try:
                return self._refresh()
            except _DAMAGED as error:  # such as a full disk
                raise Unavailable(f"the cache {self._file} cannot be written: {error}") from error

    def _refresh(self) -> int:
        listed = {(part.uri, part.etag): part for part in list_parts(self.storage, self.destination)}
        rows = _fetch(self._db, "SELECT part_no, uri, etag FROM parts")
        known = {(uri, etag): number for number, uri, etag in rows}
        new = [part for version, part in listed.items() if version not in known]
        gone = [number for version, number in known.items() if version not in listed]
        if not new and not gone:
            return 0
        try:
            return self._update(new, gone, is_first=not known)
        except BaseException as error:
            with suppress(duckdb.Error):
                self._db.rollback()
                self.points = _read_points(self._db)
            if isinstance(error, duckdb.Error) and not isinstance(error, _DAMAGED):
                raise Unavailable(f"the cache {self._file} cannot be written: {error}") from error
            raise

    def _update(self, new: Sequence[Part], gone: Sequence[int], *, is_first: bool) -> int:
        """Replace the rows of parts that have gone by those of new parts, in one step unless the cache was empty."""
        count, db = 0, self._db
        db.begin()
        tables.forget(db, gone)
        for batch in self._read(new):
            self.points = tables.insert(db, batch, self.points)
            count += len(batch)
            if is_first:
                db.commit()
                db.begin()
        tables.rank(db)
        db.commit()
        self.generation += 1
        return count

    def _read(self, parts: Sequence[Part]) -> Iterator[pa.Table]:
        """Yield the rows of parts in batches, and enter the parts into the table `parts`."""
        reader = PartReader(self.storage, tables.COLUMNS)
        (last,) = self._db.execute("SELECT coalesce(max(part_no), 0) FROM parts").fetchone()
        waiting: list[pa.Table] = []

        def read(part: Part) -> pa.Table | None:
            try:
                return reader.read(part.uri)
            except (pa.ArrowException, OSError) as error:
                _LOG.warning("%s is left out, because it is damaged: %s", part.uri, error)
                return None

        with thread_pool(_READERS) as pool:
            found: Iterable[pa.Table | None] = ordered_prefetch(pool, read, parts, _READERS)
            for number, (part, table) in enumerate(zip(parts, found, strict=True), start=last + 1):
                self._db.execute("INSERT INTO parts VALUES (?, ?, ?, ?)", [number, part.uri, part.etag, table is None])
                rows = empty_table(tables.COLUMNS) if table is None else table
                waiting.append(rows.append_column("part_no", pa.array([number] * len(rows), pa.int32())))
                if sum(map(len, waiting)) >= _ROWS_PER_BATCH:
                    yield pa.concat_tables(waiting)
                    waiting = []
        if waiting:
            yield pa.concat_tables(waiting)


def _fetch(db: Any, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    with closing(db.cursor()) as cursor:  # a connection serves one thread at a time
        rows: list[tuple[Any, ...]] = cursor.execute(sql, [_encodable(value) for value in parameters]).fetchall()
        return rows


def _encodable(value: Any) -> Any:
    """Return a parameter with question marks in place of what is no character, as an address may have it."""
    if isinstance(value, list):
        return [_encodable(each) for each in value]
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _read_points(db: Any) -> dict[int, Point]:
    rows = db.execute("SELECT settings_no, settings_id, text FROM settings").fetchall()
    return {number: read_point(settings_id, text) for number, settings_id, text in rows}


def _remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def delete_unused(root: Path, days: float = UNUSED_DAYS) -> list[str]:
    """Delete the databases that no process has opened for some days, and none that a process has open.

    Args:
        root: the folder of all caches.
        days: how long.

    Returns:
        The keys of the destinations that have no file left.
    """
    oldest, gone = time.time() - days * 86_400, []
    for folder in {path.parent for path in root.glob("*/*.lock")}:
        with suppress(OSError):
            for path in folder.glob("*.lock"):
                _delete_slot(path, oldest)
            folder.rmdir()
            gone.append(folder.name)
    return gone


def _delete_slot(path: Path, oldest: float) -> None:
    """Delete the files of a slot that was opened last before `oldest`, and its lock last."""
    files = [path, *path.parent.glob(f"{path.stem}.duckdb*"), *path.parent.glob(f"{path.stem}-*")]
    if max(file.stat().st_mtime for file in files) > oldest:
        return
    if lock := _try_lock(path):
        with lock:
            if os.fstat(lock.fileno()).st_mtime <= oldest:  # another process may have opened it a moment ago
                for file in reversed(files):
                    _remove(file)


def _try_lock(path: Path) -> IO[bytes] | None:
    """Return an open file that this process alone holds; None if another one holds it."""
    try:
        import fcntl  # Windows does not have it: there, each server has a temporary cache
    except ImportError:
        return None
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
    except OSError:
        pass
    file.close()  # held by another process, or deleted a moment ago
    return None
