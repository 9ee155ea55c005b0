"""The manifest: one row for every photograph and settings, in Parquet parts.

Each part is written as a whole. A run that tries failed dreams again replaces a part by a conditional write. A
compaction (see `flows.results.compact`) merges the parts of a finished run: it writes a merged part and then deletes
the parts that it covers. The functions here find each row once at any moment of a compaction.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from threading import Lock
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dreamcore.errors import ErrorKind
from flows.destination.parts import Part, find_merged, part_uris
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = [
    "CONTENT_TYPE",
    "IDENTITY",
    "MERGED",
    "SCHEMA",
    "SCHEMA_VERSION",
    "PartReader",
    "Row",
    "count_statuses",
    "empty_table",
    "find_results",
    "from_parquet",
    "iter_tables",
    "read",
    "read_all_columns",
    "read_parts",
    "read_rows",
    "replace_rows",
    "table_to_parquet",
    "to_parquet",
    "value_counts",
]

SCHEMA_VERSION = "4"
"""Incremented when a column is added. Columns are never changed or removed, and new ones are nullable."""

CONTENT_TYPE = "application/vnd.apache.parquet"
"""The content type of parts and of plans."""

IDENTITY = ("source_uri", "source_etag", "settings_id")
"""The columns that identify a dream: a destination has at most one row with the same values."""

MERGED = b"dreamgrid.merged"
"""In the metadata of a merged part: the ETag of each part that was merged, by file name, as JSON."""

_READERS = 8


@dataclass(frozen=True, kw_only=True)
class Row:
    """The outcome of one photograph under one point of the grid.

    Bytes are counted in `source_bytes` and `result_bytes`, pixels in `width`, `height`, `source_width`,
    `source_height`, `jitter` and `tile`, seconds in `seconds`; `batch` is the number of dreams computed together.
    """

    run_id: str
    job_id: str
    shard: int
    status: Literal["done", "failed", "skipped"]
    """`skipped`: the photograph was deleted or replaced after the scan."""
    error_kind: ErrorKind | None = None
    error: str | None = None
    source_uri: str
    source_etag: str
    source_bytes: int
    source_width: int | None = None
    source_height: int | None = None
    settings_id: str
    model: str
    weights_sha256: str
    """SHA-256 of the weights file, or the library's versioned name of the weights."""
    layers: list[dict[str, Any]]
    octaves: int
    octave_scale: float
    steps: int
    step_size: float
    jitter: int
    seed: int
    settings: str
    """Canonical JSON of all settings."""
    score_before: float | None = None
    score_after: float | None = None
    layer_scores: list[dict[str, Any]] | None = None
    classes_before: list[dict[str, Any]] | None = None
    classes_after: list[dict[str, Any]] | None = None
    result_uri: str | None = None
    result_bytes: int | None = None
    result_sha256: str | None = None
    width: int | None = None
    height: int | None = None
    device: str | None = None
    precision: str | None = None
    batch: int | None = None
    tile: int | None = None
    seconds: float | None = None
    algorithm_version: int
    created_at: datetime
    octaves_left_out: int | None = None
    """Number of octaves that were left out because they would be smaller than the network's minimum size."""
    octave_scores: list[float] | None = None
    stage_scores: list[dict[str, Any]] | None = None
    result_id: str | None = None
    """Identity of the dream, 16 hex digits: by this name people and commands refer to it."""
    enlarged_from: str | None = None
    """The `result_id` of the dream that this dream enlarges; null for any other dream."""


_TEXT, _INT, _REAL = pa.string(), pa.int64(), pa.float64()
_CLASSES = pa.list_(pa.struct([("label", _TEXT), ("p", _REAL)]))
_SCORES = pa.list_(pa.struct([("layer", _TEXT), ("before", _REAL), ("after", _REAL)]))
_SPECIAL = {
    "layers": pa.list_(pa.struct([("name", _TEXT), ("channels", pa.list_(pa.int32())), ("weight", _REAL)])),
    "layer_scores": _SCORES,
    "stage_scores": _SCORES,
    "octave_scores": pa.list_(_REAL),
    "classes_before": _CLASSES,
    "classes_after": _CLASSES,
    "created_at": pa.timestamp("us", tz="UTC"),
}


def _arrow_type(name: str, annotation: object) -> pa.DataType:
    if name in _SPECIAL:
        return _SPECIAL[name]
    if annotation in (int, int | None):
        return _INT
    return _REAL if annotation in (float, float | None) else _TEXT


SCHEMA = pa.schema(
    [pa.field(field.name, _arrow_type(field.name, field.type)) for field in fields(Row)],
    metadata={"dreamgrid.schema_version": SCHEMA_VERSION},
)


def to_parquet(rows: Sequence[Row]) -> bytes:
    """Return the bytes of a part. A part is written with one request, so that readers never see an incomplete one."""
    return table_to_parquet(pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA))


def table_to_parquet(table: pa.Table) -> bytes:
    """Return the bytes of a part with the columns and the metadata of `table`."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def read_all_columns(part: bytes) -> pa.Table:
    """Return a whole part, to be written again: all columns of this version, and those that only later versions have.

    The metadata of the table is that of this version; that of a merged part also has `MERGED`.
    """
    whole = pq.ParquetFile(io.BytesIO(part)).read()
    table = _adapted(whole, SCHEMA.names)
    for name in whole.column_names:
        if name not in SCHEMA.names:
            table = table.append_column(name, whole[name])
    merged = {key: value for key, value in (whole.schema.metadata or {}).items() if key == MERGED}
    return table.replace_schema_metadata({**SCHEMA.metadata, **merged})


def replace_rows(part: bytes, rows: Sequence[Row]) -> bytes:
    """Return a part in which `rows` replace the rows of the same dreams.

    A new row keeps the `shard` of the old one. All other rows keep all columns, also columns that only a later version
    of Dreamgrid has.
    """
    old = read_all_columns(part)
    replaced = {(row.source_uri, row.source_etag, row.settings_id) for row in rows}
    identities = list(zip(*(old[name].to_pylist() for name in IDENTITY), strict=True))
    kept = old.filter(pa.array([identity not in replaced for identity in identities], pa.bool_()))
    shards = dict(zip(identities, old["shard"].to_pylist(), strict=True))
    new = [asdict(row) for row in rows]
    for row in new:
        row["shard"] = shards.get(tuple(row[name] for name in IDENTITY), row["shard"])
    table = pa.concat_tables([kept, pa.Table.from_pylist(new, schema=SCHEMA)], promote_options="default")
    return table_to_parquet(table.replace_schema_metadata(old.schema.metadata))


def read(
    storage: Storage,
    destination: str,
    columns: Iterable[str] | None = None,
    run_id: str | None = None,
    where: pc.Expression | None = None,
) -> pa.Table:
    """Read the manifest of a destination into memory.

    Args:
        storage: access to S3.
        destination: folder of the results.
        columns: the columns to read; None for all.
        run_id: read only the rows of this run.
        where: read only the rows for which this expression is true. Its columns must be among `columns`.
    """
    return read_rows(storage, part_uris(storage, destination, run_id), columns, where)


def read_rows(
    storage: Storage, uris: Iterable[str], columns: Iterable[str] | None = None, where: pc.Expression | None = None
) -> pa.Table:
    """Read columns of the parts with these addresses; if `where` is given, only the rows for which it is true."""
    wanted = list(columns or SCHEMA.names)
    parts = read_parts(storage, uris, wanted)
    tables = [table if where is None else table.filter(where) for table in parts]
    return pa.concat_tables(tables) if tables else empty_table(wanted)


def iter_tables(
    storage: Storage, destination: str, columns: Sequence[str], run_id: str | None = None
) -> Iterator[pa.Table]:
    """Yield columns of the manifest part by part, with only a few parts in memory."""
    yield from read_parts(storage, part_uris(storage, destination, run_id), columns)


def read_parts(storage: Storage, uris: Iterable[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield columns of the parts with these addresses, in this order, with one table for each (see `PartReader`)."""
    reader = PartReader(storage, columns)
    with thread_pool(_READERS) as readers:
        yield from ordered_prefetch(readers, reader.read, uris, _READERS)


class PartReader:
    """Reads parts that were listed before. Threads may share a reader.

    Args:
        storage: access to S3.
        columns: the columns to read.
    """

    def __init__(self, storage: Storage, columns: Sequence[str]) -> None:
        self._storage, self._columns = storage, columns
        self._lock = Lock()
        self._merged: tuple[Part, pa.Table] | None = None  # the merged part that was read last

    def read(self, uri: str) -> pa.Table:
        """Return the rows of a part. If it was merged since it was listed, they are read from the merged part.

        If the part was deleted for another reason, there are no rows.

        Raises:
            pyarrow.ArrowException, OSError: the part is damaged.
        """
        data = self._storage.read(uri)
        return self._read_merged(uri) if data is None else from_parquet(data, self._columns)

    def _read_merged(self, uri: str) -> pa.Table:
        with self._lock:  # other threads wait, because they probably need the same merged part
            if self._merged is None or not self._merged[0].covers(uri):
                merged = find_merged(self._storage, uri)
                data = self._storage.read(merged.uri) if merged else None
                if merged is None or data is None:
                    return empty_table(self._columns)
                self._merged = merged, from_parquet(data, list(dict.fromkeys([*self._columns, "shard"])))
            rows = self._merged[1]
        return rows.filter(pc.field("shard").isin(list(layout.shards_of_part(uri)))).select(self._columns)


def from_parquet(data: bytes, columns: Sequence[str]) -> pa.Table:
    """Return columns of a part. Columns that did not exist when the part was written are null.

    One exception is `result_id`, which is then taken from `result_uri`.
    """
    part = pq.ParquetFile(io.BytesIO(data))
    existing = part.schema_arrow.names
    derived = "result_id" in columns and "result_id" not in existing
    return _adapted(
        part.read([name for name in existing if name in columns or (derived and name == "result_uri")]), columns
    )


def _adapted(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return columns of a part that any version wrote, with the types of this version (see `from_parquet`)."""
    if "result_id" in columns and "result_id" not in table.column_names:
        ids = [layout.result_id_of(uri or "") for uri in table["result_uri"].to_pylist()]
        table = table.append_column("result_id", pa.array(ids, _TEXT))
    for name in set(columns) - set(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), SCHEMA.field(name).type))
    return table.select(columns).cast(_schema(columns))


def count_statuses(part: bytes) -> dict[str, int]:
    """Return the number of rows of a part by status."""
    return value_counts(from_parquet(part, ["status"])["status"])


def empty_table(columns: Iterable[str]) -> pa.Table:
    """Return a table with these columns and no rows."""
    return _schema(columns).empty_table()


def _schema(columns: Iterable[str]) -> pa.Schema:
    return pa.schema([SCHEMA.field(name) for name in columns])


def find_results(storage: Storage, destination: str, result_id: str) -> dict[str, str]:
    """Return the addresses of the dreams whose `result_id` begins with these digits, by the whole `result_id`.

    Equal photographs in several files have equal dreams with one `result_id`. Then one of the addresses is returned.
    """
    chosen = pc.starts_with(pc.field("result_id"), result_id) & (pc.field("status") == "done")
    rows = read(storage, destination, ["result_id", "result_uri", "status"], where=chosen)
    return dict(sorted(zip(rows["result_id"].to_pylist(), rows["result_uri"].to_pylist(), strict=True), reverse=True))


def value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Return how often each value occurs in a column."""
    return {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}
