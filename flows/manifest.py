"""The manifest: one row for every photograph and settings, in Parquet parts.

Each part is written as a whole. A run that tries failed dreams again replaces a part by a conditional write.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dreamcore.errors import ErrorKind
from dreamcore.targets import Target, layers_label
from flows import layout
from flows.prefetch import ordered_prefetch, thread_pool
from flows.storage import ObjectInfo, Storage

__all__ = [
    "CONTENT_TYPE",
    "IDENTITY",
    "SCHEMA",
    "SCHEMA_VERSION",
    "Row",
    "count_statuses",
    "failures",
    "find_results",
    "from_parquet",
    "iter_tables",
    "list_parts",
    "part_uris",
    "read",
    "read_parts",
    "read_rows",
    "replace_rows",
    "summary",
    "to_parquet",
    "value_counts",
]

SCHEMA_VERSION = "3"
"""Incremented when a column is added. Columns are never changed or removed, and new ones are nullable."""

CONTENT_TYPE = "application/vnd.apache.parquet"
"""The content type of parts and of plans."""

IDENTITY = ("source_uri", "source_etag", "settings_id")
"""The columns that identify a dream: a destination has at most one row with the same values."""

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
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def replace_rows(part: bytes, rows: Sequence[Row]) -> bytes:
    """Return a part in which `rows` replace the rows of the same dreams.

    All other rows keep all columns, also columns that only a later version of Dreamgrid has.
    """
    whole = pq.ParquetFile(io.BytesIO(part)).read()
    old = from_parquet(part, SCHEMA.names)  # with the columns that an earlier version did not have
    for name in set(whole.column_names) - set(SCHEMA.names):
        old = old.append_column(name, whole[name])
    replaced = {(row.source_uri, row.source_etag, row.settings_id) for row in rows}
    identities = zip(*(old[name].to_pylist() for name in IDENTITY), strict=True)
    kept = old.filter(pa.array([identity not in replaced for identity in identities], pa.bool_()))
    new = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    table = pa.concat_tables([kept, new], promote_options="default").replace_schema_metadata(SCHEMA.metadata)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


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
    return pa.concat_tables(tables) if tables else _schema(wanted).empty_table()


def iter_tables(
    storage: Storage, destination: str, columns: Sequence[str], run_id: str | None = None
) -> Iterator[pa.Table]:
    """Yield columns of the manifest part by part, with only a few parts in memory."""
    yield from read_parts(storage, part_uris(storage, destination, run_id), columns)


def read_parts(storage: Storage, uris: Iterable[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield columns of the parts with these addresses, in this order. A part that does not exist is an empty table."""

    def read_part(uri: str) -> pa.Table:
        data = storage.read(uri)  # the part may have been deleted since it was listed
        return from_parquet(data, columns) if data else _schema(columns).empty_table()

    with thread_pool(_READERS) as readers:
        yield from ordered_prefetch(readers, read_part, uris, _READERS)


def from_parquet(data: bytes, columns: Sequence[str]) -> pa.Table:
    """Return columns of a part. Columns that did not exist when the part was written are null.

    One exception is `result_id`, which is then taken from `result_uri`.
    """
    part = pq.ParquetFile(io.BytesIO(data))
    existing = part.schema_arrow.names
    derived = "result_id" in columns and "result_id" not in existing
    table = part.read([name for name in existing if name in columns or (derived and name == "result_uri")])
    if derived:
        ids = [layout.result_id_of(uri or "") for uri in table["result_uri"].to_pylist()]
        table = table.append_column("result_id", pa.array(ids, _TEXT))
    for name in set(columns) - set(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), SCHEMA.field(name).type))
    return table.select(columns).cast(_schema(columns))


def count_statuses(part: bytes) -> dict[str, int]:
    """Return the number of rows of a part by status."""
    return value_counts(from_parquet(part, ["status"])["status"])


def _schema(columns: Iterable[str]) -> pa.Schema:
    return pa.schema([SCHEMA.field(name) for name in columns])


def part_uris(storage: Storage, destination: str, run_id: str | None = None) -> list[str]:
    """Return the addresses of the parts of a destination, or of one run, sorted."""
    return [part.uri for part in list_parts(storage, destination, run_id)]


def list_parts(storage: Storage, destination: str, run_id: str | None = None) -> list[ObjectInfo]:
    """Return the parts of a destination, or of one run, sorted by address."""
    objects = storage.list(layout.manifest_folder(destination, run_id))
    return sorted((info for info in objects if info.uri.endswith(".parquet")), key=lambda info: info.uri)


_SETTINGS_COLUMNS = ["model", "layers", "octaves", "steps", "settings"]


def summary(storage: Storage, destination: str) -> dict[str, Any]:
    """Return counts of a destination, and the mean scores of its dreams for each point of the grid."""
    columns = ["run_id", "status", "error_kind", "source_uri", "settings_id", "score_before", "score_after"]
    points: dict[str, dict[str, Any]] = {}  # long texts that many rows share
    tables = [_schema(columns).empty_table()]
    for part in iter_tables(storage, destination, [*columns, *_SETTINGS_COLUMNS]):
        for number, settings_id in enumerate(part["settings_id"].to_pylist()):
            if settings_id not in points:
                (points[settings_id],) = part.slice(number, 1).select(_SETTINGS_COLUMNS).to_pylist()
        tables.append(part.select(columns))
    table = pa.concat_tables(tables)
    done = table.filter(pc.field("status") == "done")
    means = done.group_by("settings_id", use_threads=False).aggregate(
        [("score_before", "mean"), ("score_after", "mean"), ("score_after", "count")]
    )
    return {
        "rows": len(table),
        "photographs": pc.count_distinct(table["source_uri"]).as_py(),
        "runs": pc.count_distinct(table["run_id"]).as_py(),
        "statuses": value_counts(table["status"]),
        "errors": value_counts(table["error_kind"].drop_null()),
        "settings": [_mean_scores(row, points[row["settings_id"]]) for row in means.to_pylist()],
    }


_FAILURE_COLUMNS = ["source_uri", "source_etag", "status", "error_kind", "error"]


def failures(storage: Storage, destination: str) -> list[dict[str, Any]]:
    """Return the photographs that failed or were skipped, with the reason and the number of missing dreams."""
    rows = read(storage, destination, _FAILURE_COLUMNS, where=pc.field("status") != "done")
    groups = rows.group_by(_FAILURE_COLUMNS, use_threads=False).aggregate([([], "count_all")])
    named = groups.rename_columns([*_FAILURE_COLUMNS, "dreams"])
    return named.sort_by("source_uri").to_pylist()  # type: ignore[no-any-return]


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


def _mean_scores(row: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    layers = (Target(layer=each["name"], channels=each["channels"], weight=each["weight"]) for each in point["layers"])
    return {
        "settings_id": row["settings_id"],
        "model": point["model"],
        "layers": layers_label(tuple(layers)),
        "octaves": point["octaves"],
        "steps": point["steps"],
        "dreams": row["score_after_count"],
        "score_before": row["score_before_mean"],
        "score_after": row["score_after_mean"],
        "settings": json.loads(point["settings"]),
    }
