"""Read the objects of a source from an S3 Inventory, which AWS writes daily or weekly, instead of listing the source.

    s3://BUCKET/PREFIX/SOURCE_BUCKET/CONFIGURATION/2026-01-02T01-00Z/manifest.json   names the files and their columns
    s3://BUCKET/PREFIX/SOURCE_BUCKET/CONFIGURATION/data/*.csv.gz or *.parquet        the objects

The files are read from the bucket of the manifest, one at a time, through a temporary file.
"""

import gzip
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from dreamcore.errors import InvalidInput
from flows.s3.layout import parse_uri
from flows.s3.listing import OnListed
from flows.s3.storage import ObjectInfo, Storage

__all__ = ["Inventory"]

_COLUMNS = {
    "CSV": {
        "key": "Key",
        "size": "Size",
        "etag": "ETag",
        "is_latest": "IsLatest",
        "is_delete_marker": "IsDeleteMarker",
    },
    "Parquet": {
        "key": "key",
        "size": "size",
        "etag": "e_tag",
        "is_latest": "is_latest",
        "is_delete_marker": "is_delete_marker",
    },
}
"""Names of the columns of `_TYPES` in each file format."""
_TYPES = {
    "key": pa.string(),
    "size": pa.int64(),
    "etag": pa.string(),
    "is_latest": pa.bool_(),
    "is_delete_marker": pa.bool_(),
}
_REQUIRED = ("key", "size", "etag")
"""Inventories of the current versions alone have none of the other columns."""
_PARQUET_COLUMN = re.compile(r"(\w+)\s*(?:\([^)]*\))?\s*;")
_DATED_FOLDER = re.compile(r"/\d{4}-\d\d-\d\dT\d\d-\d\dZ/$")
_ROWS_PER_BATCH = 10_000


class Inventory:
    """One inventory of the bucket of a source.

    Args:
        storage: access to S3.
        address: address of its `manifest.json`, or of the folder of its configuration, with a slash at the end: then
            the newest inventory in this folder.
        source: a prefix in the bucket that the inventory must be of.

    Raises:
        InvalidInput: there is no manifest, or it is malformed, of another bucket, or without a necessary column.
    """

    def __init__(self, storage: Storage, address: str, source: str) -> None:
        self._storage = storage
        self.manifest_uri, data = _read_manifest(storage, address)
        try:
            manifest = json.loads(data)
            self._bucket = str(manifest["sourceBucket"])
            self._format, schema = str(manifest["fileFormat"]), str(manifest["fileSchema"])
            self._files = [(str(file["key"]), str(file["MD5checksum"])) for file in manifest["files"]]
        except (ValueError, LookupError, TypeError) as error:
            raise InvalidInput(
                f"{self.manifest_uri} is not the manifest of an S3 Inventory ({type(error).__name__}: {error})"
            ) from error
        self._fields = self._check(schema, parse_uri(source)[0])
        self.outside = 0
        """Objects of the inventory outside the source, as far as `objects` was read."""

    def _check(self, schema: str, bucket: str) -> list[str]:
        """Return the columns of the files. An access point may have any bucket behind it."""
        if not bucket.startswith("arn:") and self._bucket != bucket:
            raise InvalidInput(f"{self.manifest_uri} is an inventory of {self._bucket}, but the source is in {bucket}")
        if self._format not in _COLUMNS:
            raise InvalidInput(
                f"{self.manifest_uri} has files in the format {self._format}: choose CSV or Parquet in the "
                "configuration of the inventory"
            )
        is_csv = self._format == "CSV"
        fields = [name.strip() for name in schema.split(",")] if is_csv else _PARQUET_COLUMN.findall(schema)
        names = (_COLUMNS[self._format][column] for column in _REQUIRED)
        if missing := [name for name in names if name not in fields]:
            raise InvalidInput(
                f"{self.manifest_uri} has no column {' and no column '.join(missing)}: add Size and ETag to the "
                "optional fields in the configuration of the inventory"
            )
        return fields

    def objects(self, folder: str, on_listed: OnListed = lambda _count: None) -> Iterator[ObjectInfo]:
        """Yield the current version of every object whose address starts with `folder`, and count the others.

        Args:
            folder: the address of the source, with a slash at the end.
            on_listed: called with the number of rows read so far, after some thousand rows.

        Raises:
            InvalidInput: a file does not exist, has another checksum than the manifest says, or is malformed.
        """
        bucket, prefix = parse_uri(folder)
        listed = 0
        for key, md5 in self._files:
            with tempfile.TemporaryDirectory(prefix="dreamgrid-inventory-") as temporary:
                uri, path = f"s3://{parse_uri(self.manifest_uri)[0]}/{key}", Path(temporary) / "file"
                self._copy(uri, path, md5)
                for batch in self._read(uri, path):
                    listed += len(batch)
                    for name, size, etag in _current(batch):
                        if name.startswith(prefix):
                            yield ObjectInfo(f"s3://{bucket}/{name}", etag.strip('"'), size)
                        else:
                            self.outside += 1
                    on_listed(listed)

    def _copy(self, uri: str, path: Path, md5: str) -> None:
        """Copy one file to `path`, and compare its checksum."""
        with path.open("w+b") as file:
            if not self._storage.copy_to(uri, file):
                raise InvalidInput(f"{uri} does not exist, but {self.manifest_uri} names it")
            file.seek(0)
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != md5:
            raise InvalidInput(f"{uri} has the MD5 {found}, but {self.manifest_uri} says {md5}: take another inventory")

    def _read(self, uri: str, path: Path) -> Iterator[pa.RecordBatch]:
        """Yield the columns of `_TYPES` that one file has."""
        names = {column: name for column, name in _COLUMNS[self._format].items() if name in self._fields}
        types = [_TYPES[column] for column in names]
        try:
            for batch in _read_csv(path, self._fields, names) if self._format == "CSV" else _read_parquet(path, names):
                columns = [batch[name].cast(type_) for name, type_ in zip(names.values(), types, strict=True)]
                yield pa.RecordBatch.from_arrays(columns, list(names))
        except (pa.ArrowException, LookupError, OSError) as error:
            raise InvalidInput(f"{uri} is not the {self._format} file that its manifest describes: {error}") from error


def _read_manifest(storage: Storage, address: str) -> tuple[str, bytes]:
    """Return the address and the content of a manifest, in a folder of the newest one."""
    uris = [address]
    if address.endswith("/"):
        page = storage.list_page(address, by_folder=True)
        folders = list(page.folders)
        while page.token:
            page = storage.list_page(address, token=page.token, by_folder=True)
            folders += page.folders
        uris = [f"{each}manifest.json" for each in sorted(folders, reverse=True) if _DATED_FOLDER.search(each)]
    for uri in uris:  # the folder of the newest inventory has no manifest before its files are complete
        if (data := storage.read(uri)) is not None:
            return uri, data
    raise InvalidInput(
        f"there is no inventory at {address}: give the address of a manifest.json, or of the folder that has the "
        "folders of each date, with a slash at the end"
    )


def _read_csv(path: Path, fields: list[str], names: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """Yield columns of a compressed CSV file, with the keys as they are in S3."""
    convert = pa.csv.ConvertOptions(
        include_columns=list(names.values()), column_types={name: _TYPES[column] for column, name in names.items()}
    )
    with gzip.open(path) as file:
        if not file.peek(1):
            return  # of an empty bucket; pyarrow refuses an empty file
    with pa.input_stream(str(path), compression="gzip") as stream:
        options = pa.csv.ReadOptions(column_names=fields)
        for batch in pa.csv.open_csv(stream, read_options=options, convert_options=convert):
            keys = [unquote_plus(key) for key in batch["Key"].to_pylist()]
            yield batch.set_column(batch.schema.get_field_index("Key"), "Key", pa.array(keys, pa.string()))


def _read_parquet(path: Path, names: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """Yield columns of a Parquet file."""
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(_ROWS_PER_BATCH, columns=list(names.values()))


def _current(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """Yield key, size and ETag of the rows that are the current version of an object, and no delete marker."""
    if "is_latest" in batch.schema.names:
        batch = batch.filter(batch["is_latest"].fill_null(True))
    if "is_delete_marker" in batch.schema.names:
        batch = batch.filter(pc.invert(batch["is_delete_marker"].fill_null(False)))
    columns = [batch[name] for name in _REQUIRED]
    if any(column.null_count for column in columns):
        raise InvalidInput("the inventory has an object without key, size or ETag: take another inventory")
    return zip(*(column.to_pylist() for column in columns), strict=True)
