"""Copies of a finished destination, so that each test need not dream it again."""

import io
from collections.abc import Mapping

import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.destination import history
from flows.s3 import layout
from flows.s3.storage import Storage


def read_destination(storage: Storage, destination: str) -> dict[str, bytes]:
    """Return the content of every object of a destination by its name below the destination."""
    return {info.uri.removeprefix(destination): storage.read(info.uri) or b"" for info in storage.list(destination)}


def write_destination(storage: Storage, objects: Mapping[str, bytes], original: str, destination: str) -> None:
    """Write these objects as a destination of another address. What was there before is deleted."""
    storage.delete_many(info.uri for info in storage.list(destination))
    for name, data in objects.items():
        if name.startswith("manifest/"):
            data = _moved_part(data, original, destination)
        elif name.endswith(".json"):
            data = data.replace(original.encode(), destination.encode())
        storage.write(destination + name, data, "application/octet-stream")
    runs = {layout.run_id_of_part(name) for name in objects if name.startswith("manifest/")}
    history.repair_indices(destination, runs, storage)


def _moved_part(part: bytes, original: str, destination: str) -> bytes:
    table = pq.ParquetFile(io.BytesIO(part)).read()
    moved = pc.replace_substring(table["result_uri"], original, destination)
    sink = io.BytesIO()
    place = table.schema.get_field_index("result_uri")
    pq.write_table(table.set_column(place, table.schema.field(place), moved), sink, compression="zstd")
    return sink.getvalue()
