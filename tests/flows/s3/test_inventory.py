"""A source by S3 Inventory gives the photographs of a listing, in both formats, and refuses what it cannot read."""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamcore.errors import InvalidInput
from flows.jobs.job import DreamJob
from flows.planning.scan import OUTSIDE, check_access, scan
from flows.running.shard import dream_shard
from flows.s3.inventory import Inventory
from flows.s3.storage import ObjectInfo, Storage
from tests.support.shards import plan_run, put_photograph, rows_of

INVENTORY = "s3://dreams/inventory/photos/daily/"
NAMES = ("a b+c%2F.png", "caf\xe9/\U0001f388.png", "cafe\u0301.jpg", 'x,"y"\'.png', "n.txt", "trip/")
CSV_NAMES = {
    "bucket": "Bucket",
    "key": "Key",
    "version_id": "VersionId",
    "is_latest": "IsLatest",
    "is_delete_marker": "IsDeleteMarker",
    "size": "Size",
    "last_modified_date": "LastModifiedDate",
    "e_tag": "ETag",
}
"""The columns by their names in a Parquet file, in the order of the files."""
PARQUET_TYPES = {
    **dict.fromkeys(CSV_NAMES, ("binary", "(UTF8)", pa.string())),
    "is_latest": ("boolean", "", pa.bool_()),
    "is_delete_marker": ("boolean", "", pa.bool_()),
    "size": ("int64", "", pa.int64()),
    "last_modified_date": ("int64", "(TIMESTAMP_MILLIS)", pa.timestamp("ms")),
}
CURRENT_ONLY = ("bucket", "key", "size", "e_tag")

Row = dict[str, Any]


def row(key: str, info: ObjectInfo | None = None, *, latest: bool = True) -> Row:
    """Return a version of an object; without `info`, a delete marker."""
    values = ("photos", key, "v1", latest, info is None, info and info.size, None, info and info.etag)
    return dict(zip(CSV_NAMES, values, strict=True))


def csv_file(rows: Sequence[Row], fields: Sequence[str]) -> bytes:
    """Return a file as S3 writes it: no header, every value in quotation marks, keys as in a URL."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    for each in rows:
        values = {**each, "key": quote_plus(each["key"], safe="/"), "last_modified_date": "2026-01-02T01:00:00.000Z"}
        writer.writerow([_csv_value(values[name]) for name in fields])
    return gzip.compress(text.getvalue().encode())


def _csv_value(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def parquet_file(rows: Sequence[Row], fields: Sequence[str]) -> bytes:
    schema = pa.schema([(name, PARQUET_TYPES[name][2]) for name in fields])
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{name: each[name] for name in fields} for each in rows], schema), sink)
    return sink.getvalue()


def schema_of(format_: str, fields: Sequence[str]) -> str:
    """Return the field `fileSchema` of a manifest."""
    if format_ != "Parquet":
        return ", ".join(CSV_NAMES[name] for name in fields)
    types = (f"optional {PARQUET_TYPES[name][0]} {name} {PARQUET_TYPES[name][1]}".rstrip() for name in fields)
    return f"message s3.inventory {{  {';  '.join(types)};}}"


def put_inventory(
    storage: Storage,
    rows: Sequence[Row],
    format_: str = "CSV",
    fields: Sequence[str] = tuple(CSV_NAMES),
    date: str = "2026-01-02T01-00Z",
    **changes: object,
) -> str:
    """Write an inventory of two files, and return the address of its manifest. `changes` are fields of the manifest."""
    storage.create_bucket(INVENTORY)
    make, suffix = (parquet_file, "parquet") if format_ == "Parquet" else (csv_file, "csv.gz")
    files = []
    for number, half in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        data, key = make(half, fields), f"inventory/photos/daily/data/{date}-{number}.{suffix}"
        storage.write(f"s3://dreams/{key}", data, "application/octet-stream")
        files.append({"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})
    manifest = {
        "sourceBucket": "photos",
        "destinationBucket": "arn:aws:s3:::dreams",
        "version": "2016-11-30",
        "creationTimestamp": "1767315600000",
        "fileFormat": format_,
        "fileSchema": schema_of(format_, fields),
        "files": files,
        **changes,
    }
    uri = f"{INVENTORY}{date}/manifest.json"
    storage.write(uri, json.dumps(manifest).encode(), "application/json")
    return uri


def rows_of_source(storage: Storage, source: str) -> list[Row]:
    return [row(info.uri.removeprefix("s3://photos/"), info) for info in storage.list(source)]


def job(source: str, inventory: str | None = None) -> DreamJob:
    return DreamJob.model_validate({"source": source, "destination": "s3://dreams/out/", "inventory": inventory})


@pytest.fixture
def two(storage: Storage, source: str) -> list[Row]:
    """The rows of two photographs in the source."""
    for name in ("a.png", "b.png"):
        put_photograph(storage, source + name, seed=ord(name[0]))
    return rows_of_source(storage, source)


@pytest.mark.parametrize("format_", ["CSV", "Parquet"])
def test_the_photographs_are_those_of_a_listing(storage: Storage, source: str, format_: str) -> None:
    for name in NAMES:
        storage.write(source + name, name.encode(), "image/png")
    current, prefix = rows_of_source(storage, source), source.removeprefix("s3://photos/")
    old, other = ObjectInfo("", "old", 1), ObjectInfo("", "other", 2)
    others = [
        row(f"{prefix}deleted.png"),
        row(f"{prefix}a b+c%2F.png", old, latest=False),
        row("elsewhere/a.png", other),
        row(f"{prefix.rstrip('/')}.png", other),
        row("elsewhere/deleted.png"),
    ]
    manifest = put_inventory(storage, [*others[:3], *current, *others[3:]], format_)
    counts: list[int] = []
    by_listing, by_inventory = scan(job(source), storage), scan(job(source, manifest), storage, counts.append)
    assert list(by_inventory.sources) == list(by_listing.sources)
    assert len(by_inventory.sources) == 4
    assert by_inventory.kinds == {**by_listing.kinds, OUTSIDE: 2}
    assert by_inventory.inventory == manifest
    assert counts[-1] == len(current) + len(others)


@pytest.mark.parametrize("format_", ["CSV", "Parquet"])
def test_an_inventory_of_current_versions_has_fewer_columns(
    storage: Storage, source: str, two: list[Row], format_: str
) -> None:
    manifest = put_inventory(storage, two, format_, CURRENT_ONLY)
    assert list(scan(job(source, manifest), storage).sources) == list(scan(job(source), storage).sources)


def test_a_folder_stands_for_its_newest_complete_inventory(storage: Storage, source: str, two: list[Row]) -> None:
    put_inventory(storage, two, date="2026-11-01T01-00Z")
    newest = put_inventory(storage, two[:1], date="2026-11-28T01-00Z")
    storage.write(f"{INVENTORY}2026-11-29T01-00Z/manifest.checksum", b"", "text/plain")
    storage.write(f"{INVENTORY}hive/dt=2026-11-29-01-00/symlink.txt", b"", "text/plain")
    found = scan(job(source, INVENTORY), storage)
    assert found.inventory == newest
    assert [f"s3://photos/{two[0]['key']}"] == [each.uri for each in found.sources]


@pytest.mark.parametrize(
    ("format_", "fields", "changes", "message"),
    [
        ("ORC", CURRENT_ONLY, {}, "has files in the format ORC: choose CSV or Parquet"),
        ("CSV", ("bucket", "key", "size"), {}, "has no column ETag: add Size and ETag"),
        ("Parquet", ("bucket", "key"), {}, "has no column size and no column e_tag: add"),
        ("CSV", CURRENT_ONLY, {"sourceBucket": "other"}, "is an inventory of other, but the source is in photos"),
        ("CSV", CURRENT_ONLY, {"files": [{}]}, "is not the manifest of an S3 Inventory"),
    ],
)
def test_an_inventory_that_cannot_be_used_is_refused_at_the_start(
    storage: Storage, source: str, two: list[Row], format_: str, fields: Sequence[str], changes: Row, message: str
) -> None:
    storage.create_bucket("s3://dreams")
    manifest = put_inventory(storage, two, format_, fields, **changes)
    with pytest.raises(InvalidInput, match=message):
        check_access(job(source, manifest))


def test_a_missing_inventory_is_refused_at_the_start(storage: Storage, source: str, destination: str) -> None:
    storage.create_bucket(destination)
    for address in (f"{destination}manifest.json", f"{destination}daily/"):
        with pytest.raises(InvalidInput, match=f"there is no inventory at {address}"):
            check_access(job(source, address))
    with pytest.raises(ValueError, match=r"neither the address of a manifest\.json nor a folder"):
        job(source, "s3://dreams/daily")


def test_a_changed_missing_or_malformed_file_is_refused(storage: Storage, source: str, two: list[Row]) -> None:
    manifest = json.loads(storage.read(uri := put_inventory(storage, two)) or b"")
    (first, second), data = (f"s3://dreams/{file['key']}" for file in manifest["files"]), gzip.compress(b'"a","b"\n')
    storage.write(second, data, "")
    with pytest.raises(InvalidInput, match=f"{second} has the MD5 .*: take another inventory"):
        scan(job(source, uri), storage)
    manifest["files"][1]["MD5checksum"] = hashlib.md5(data).hexdigest()
    storage.write(uri, json.dumps(manifest).encode(), "")
    with pytest.raises(InvalidInput, match=f"{second} is not the CSV file that its manifest describes"):
        scan(job(source, uri), storage)
    storage.delete(first)
    with pytest.raises(InvalidInput, match=f"{first} does not exist"):
        scan(job(source, uri), storage)


def test_an_object_without_size_is_refused(storage: Storage, source: str, two: list[Row]) -> None:
    uri = put_inventory(storage, [{**two[0], "size": None}, two[1]])
    with pytest.raises(InvalidInput, match="an object without key, size or ETag"):
        scan(job(source, uri), storage)


def test_an_access_point_may_have_any_bucket(storage: Storage, two: list[Row]) -> None:
    uri = put_inventory(storage, two)
    arn = "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/"
    (first, *_) = Inventory(storage, uri, arn).objects(arn)
    assert first.uri == arn + two[0]["key"]


def test_photographs_that_changed_since_the_inventory_get_rows(
    storage: Storage, source: str, destination: str, two: list[Row]
) -> None:
    put_photograph(storage, f"{source}c.png", seed=3)
    manifest = put_inventory(storage, rows_of_source(storage, source))
    put_photograph(storage, f"{source}a.png", seed=9)
    storage.delete(f"{source}b.png")
    run, shard = plan_run(storage, source, destination, ["blocks.0"], inventory=manifest)
    assert dream_shard(run, shard, storage) == {"skipped": 2, "done": 1}
    kinds = {str(each["source_uri"])[-5]: each["error_kind"] for each in rows_of(storage, run)}
    assert kinds == {"a": "source_changed", "b": "source_missing", "c": None}
    assert two[0]["e_tag"] in {each["source_etag"] for each in rows_of(storage, run)}


def test_a_new_inventory_continues_the_unfinished_run() -> None:
    by_night = [job("s3://photos/in/", f"s3://i/{night}/manifest.json").job_id for night in (1, 2)]
    assert {*by_night} == {job("s3://photos/in/").job_id}
