"""The manifest: a row for every photograph and settings, in Parquet parts that are written once, whole."""

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

SCHEMA_VERSION = "2"
"""Columns are only ever added, and nullable; then this is raised."""

CONTENT_TYPE = "application/vnd.apache.parquet"
"""Of parts, and of plans."""

IDENTITY = ("source_uri", "source_etag", "settings_id")
"""The columns that tell a dream from all others: no two rows of a destination agree in them."""

_READERS = 8


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one photograph under one point of the grid."""

    run_id: str
    job_id: str
    shard: int
    status: Literal["done", "failed", "skipped"]
    """`skipped` is a photograph that was deleted or replaced before its turn came."""
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
    """SHA-256 of the file of weights, or the library's versioned name for them."""
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
    """Octaves that would have been smaller than the network can see."""
    octave_scores: list[float] | None = None
    stage_scores: list[dict[str, Any]] | None = None


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
    """A part, whole: it is put in one piece, so that no reader ever meets half of one."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def read(
    storage: Storage,
    destination: str,
    columns: Iterable[str] | None = None,
    run_id: str | None = None,
    where: pc.Expression | None = None,
) -> pa.Table:
    """The manifest of a destination, or one run's part of it: these columns of the rows that `where` chooses."""
    return read_rows(storage, part_uris(storage, destination, run_id), columns, where)


def read_rows(
    storage: Storage, uris: Iterable[str], columns: Iterable[str] | None = None, where: pc.Expression | None = None
) -> pa.Table:
    """These columns of the rows that `where` chooses in the parts with these addresses."""
    wanted = list(columns or SCHEMA.names)
    found = read_parts(storage, uris, wanted)
    chosen = [table if where is None else table.filter(where) for table in found]
    return pa.concat_tables(chosen) if chosen else _schema(wanted).empty_table()


def iter_tables(
    storage: Storage, destination: str, columns: Sequence[str], run_id: str | None = None
) -> Iterator[pa.Table]:
    """The same part by part, of which only a few are in memory."""
    yield from read_parts(storage, part_uris(storage, destination, run_id), columns)


def read_parts(storage: Storage, uris: Iterable[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of the parts with these addresses, in their order."""

    def read_part(uri: str) -> pa.Table:
        data = storage.read(uri)  # a part may have been deleted meanwhile
        return from_parquet(data, columns) if data else _schema(columns).empty_table()

    with thread_pool(_READERS) as readers:
        yield from ordered_prefetch(readers, read_part, uris, _READERS)


def from_parquet(data: bytes, columns: Sequence[str]) -> pa.Table:
    """These columns of a part; those that an older version did not have yet are null."""
    part = pq.ParquetFile(io.BytesIO(data))
    table = part.read([name for name in columns if name in part.schema_arrow.names])
    for name in set(columns) - set(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), SCHEMA.field(name).type))
    return table.select(columns).cast(_schema(columns))


def count_statuses(part: bytes) -> dict[str, int]:
    """How many rows of a part have each status."""
    return value_counts(from_parquet(part, ["status"])["status"])


def _schema(columns: Iterable[str]) -> pa.Schema:
    return pa.schema([SCHEMA.field(name) for name in columns])


def part_uris(storage: Storage, destination: str, run_id: str | None = None) -> list[str]:
    """Addresses of the parts of a destination, or of one run."""
    return [found.uri for found in list_parts(storage, destination, run_id)]


def list_parts(storage: Storage, destination: str, run_id: str | None = None) -> list[ObjectInfo]:
    """The parts of a destination, or of one run, as they are listed."""
    there = storage.list(layout.manifest_folder(destination, run_id))
    return sorted((found for found in there if found.uri.endswith(".parquet")), key=lambda found: found.uri)


_POINT = ["model", "layers", "octaves", "steps", "settings"]


def summary(storage: Storage, destination: str) -> dict[str, Any]:
    """Counts and mean scores of a destination, for people to look at."""
    columns = ["run_id", "status", "error_kind", "source_uri", "settings_id", "score_before", "score_after"]
    points: dict[str, dict[str, Any]] = {}  # long texts, the same for many rows
    found = [_schema(columns).empty_table()]
    for part in iter_tables(storage, destination, [*columns, *_POINT]):
        for number, settings_id in enumerate(part["settings_id"].to_pylist()):
            if settings_id not in points:
                (points[settings_id],) = part.slice(number, 1).select(_POINT).to_pylist()
        found.append(part.select(columns))
    table = pa.concat_tables(found)
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


_FAILURE = ["source_uri", "source_etag", "status", "error_kind", "error"]


def failures(storage: Storage, destination: str) -> list[dict[str, Any]]:
    """Photographs of a destination that failed or were skipped, with why and of how many dreams."""
    rows = read(storage, destination, _FAILURE, where=pc.field("status") != "done")
    alike = rows.group_by(_FAILURE, use_threads=False).aggregate([([], "count_all")])
    return alike.rename_columns([*_FAILURE, "dreams"]).sort_by("source_uri").to_pylist()  # type: ignore[no-any-return]


def iter_failures(storage: Storage, destination: str, run_id: str) -> Iterator[dict[str, Any]]:
    """What a run failed at or skipped, row by row: there may be more of it than fits."""
    for table in iter_tables(storage, destination, _FAILURE, run_id):
        yield from table.filter(pc.field("status") != "done").to_pylist()


def value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    """How often a column has each of its values."""
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
