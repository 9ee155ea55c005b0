"""Finished runs without dreams, and readers of a manifest that parts are merged in."""

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from flows.destination import history, manifest
from flows.destination.manifest import Row
from flows.jobs.plan import Plan
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.support.rows import DONE, FAILED

Identity = tuple[str, str, str]
"""Photograph, ETag and settings_id: the key of a row."""


def rows_of(run_id: str, shard: int, count: int) -> list[Row]:
    """Return rows of one shard, of photographs that no other shard has. Every third row is a failure."""
    return [
        replace(
            FAILED if number % 3 == 2 else DONE,
            run_id=run_id,
            shard=shard,
            source_uri=f"s3://photos/{run_id}/{shard:06d}-{number}.png",
        )
        for number in range(count)
    ]


def write_run(storage: Storage, destination: str, run_id: str, shards: int, rows: int = 3) -> list[Row]:
    """Write parts, plan, index and report of a finished run, and return its rows."""
    written = [rows_of(run_id, shard, rows) for shard in range(shards)]
    for shard, part in enumerate(written):
        data = manifest.to_parquet(part)
        storage.write(layout.part_uri(destination, run_id, shard), data, manifest.CONTENT_TYPE)
    everything = [row for part in written for row in part]
    storage.write(layout.plan_uri(destination, run_id), plan_of(everything).parquet, manifest.CONTENT_TYPE)
    history.write_index(history.build_index(destination, run_id, storage), destination, run_id, storage)
    storage.write(layout.success_uri(destination, run_id), b"{}", "application/json")
    return everything


def plan_of(rows: list[Row]) -> Plan:
    """Return a plan with one photograph for each row."""
    columns = {
        "shard": pa.array([row.shard for row in rows], pa.int32()),
        "source_uri": [row.source_uri for row in rows],
        "source_name": [row.source_uri.rpartition("/")[2] for row in rows],
        "source_etag": [row.source_etag for row in rows],
        "source_bytes": pa.array([row.source_bytes for row in rows], pa.int64()),
        "settings": pa.array([[0]] * len(rows), pa.list_(pa.int32())),
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return Plan(sink.getvalue())


def identity(row: Row) -> Identity:
    """Return the key of a row."""
    return row.source_uri, row.source_etag, row.settings_id


def dreamgrid_rows(storage: Storage, destination: str) -> Counter[Identity]:
    """Return how often Dreamgrid's readers find each row."""
    table = manifest.read(storage, destination, manifest.IDENTITY)
    return Counter(zip(*(table[name].to_pylist() for name in manifest.IDENTITY), strict=True))


def foreign_rows(storage: Storage, destination: str) -> Counter[Identity]:
    """Return how often a reader of all Parquet files finds each row. If a file has gone, the reader begins again."""
    while (parts := _read_all(storage, destination)) is None:
        pass
    tables = (pq.read_table(io.BytesIO(data), columns=list(manifest.IDENTITY)) for data in parts.values())
    return Counter(
        found
        for table in tables
        for found in zip(*(table[name].to_pylist() for name in manifest.IDENTITY), strict=True)
    )


def _read_all(storage: Storage, destination: str) -> Mapping[str, bytes] | None:
    """Return all files of a manifest by address; None if one has gone since they were listed."""
    found: dict[str, bytes] = {}
    for info in storage.list(layout.manifest_folder(destination)):
        if (data := storage.read(info.uri)) is None:
            return None
        found[info.uri] = data
    return found
