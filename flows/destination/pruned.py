"""The marks and records of prunes.

    DEST/_runs/prune.json            the mark: the command of the unfinished prune
    DEST/_runs/pruned/<id>.parquet   the record: which dreams were deleted on purpose

The record has the `dream_key` of each row that a prune was to delete, and the `source_key` of its photograph, so that
no later run dreams it again. A prune writes its record before it deletes anything. Therefore a dream in a record may
still have its row: the prune was stopped, or the row has changed meanwhile. Such a row counts like any other.
"""

import io
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dreamcore.errors import InvalidInput
from flows.destination import manifest
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = [
    "PrunedDreams",
    "check_no_prune",
    "pruned_dreams",
    "read_mark",
    "read_records",
    "remove_mark",
    "write_mark",
    "write_record",
]

_RECORD = pa.schema([("source", pa.uint64()), ("key", pa.uint64())])
_COMMAND = "dreamgrid.command"


@dataclass(frozen=True, eq=False)
class PrunedDreams:
    """Dreams that one prune, or all prunes of a destination, were to delete."""

    keys: NDArray[np.uint64]
    """The `dream_key` of each dream, sorted."""
    sources: NDArray[np.uint64]
    """The `source_key` of each photograph."""
    command: str = ""
    """The command of the prune; empty for several prunes."""


def write_mark(destination: str, command: str, storage: Storage) -> bool:
    """Write the mark of a prune. Return False if the mark of the same command exists: that prune is continued.

    Raises:
        InvalidInput: another prune of the destination is unfinished.
    """
    uri = layout.prune_uri(destination)
    if storage.find(uri) is None and storage.write_if_absent(uri, _mark(command), "application/json"):
        return True
    if (other := read_mark(destination, storage)) not in (command, None):
        raise InvalidInput(f"another prune of {destination} is unfinished: finish it with `{other}`")
    return False


def read_mark(destination: str, storage: Storage) -> str | None:
    """Return the command of the unfinished prune; None if there is none."""
    mark = storage.read(layout.prune_uri(destination))
    return str(json.loads(mark)["command"]) if mark is not None else None


def check_no_prune(destination: str, storage: Storage) -> None:
    """Raise `InvalidInput` if a prune is unfinished, so that nothing else may rewrite parts."""
    if command := read_mark(destination, storage):
        raise InvalidInput(f"a prune of {destination} is unfinished: finish it with `{command}`, then try again")


def remove_mark(destination: str, command: str, storage: Storage) -> None:
    """Remove the mark of the prune with this command."""
    storage.delete_if_unchanged(layout.prune_uri(destination), _mark(command))


def _mark(command: str) -> bytes:
    return json.dumps({"command": command}).encode()


def write_record(destination: str, dreams: PrunedDreams, storage: Storage) -> str:
    """Write the record of a prune and return its address."""
    uri = layout.pruned_uri(destination, f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}")
    columns = [pa.array(each) for each in (dreams.sources, dreams.keys)]
    table = pa.table(columns, schema=_RECORD.with_metadata({_COMMAND: dreams.command}))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write_if_absent(uri, sink.getvalue(), manifest.CONTENT_TYPE)
    return uri


def read_records(destination: str, storage: Storage) -> Iterator[PrunedDreams]:
    """Yield the record of each prune of a destination.

    Raises:
        InvalidInput: a record is damaged.
    """
    for found in storage.list(layout.pruned_folder(destination)):
        if (data := storage.read(found.uri)) is None:
            continue
        try:
            table = pq.read_table(io.BytesIO(data), columns=_RECORD.names)
        except (pa.ArrowException, OSError) as error:
            raise InvalidInput(
                f"{found.uri} cannot be read: {error}; restore it, or delete it: then later runs may make the dreams "
                "of this prune again"
            ) from error
        command = (table.schema.metadata or {}).get(_COMMAND.encode(), b"").decode()
        yield PrunedDreams(np.sort(table["key"].to_numpy()), table["source"].to_numpy(), command)


def pruned_dreams(destination: str, storage: Storage) -> PrunedDreams:
    """Return the dreams of all records.

    To learn which dreams have neither a row nor were pruned, read the rows first: a prune writes its record before it
    removes rows.
    """
    keys, sources = ([np.empty(0, np.uint64)] for _ in range(2))
    for record in read_records(destination, storage):
        keys.append(record.keys)
        sources.append(record.sources)
    return PrunedDreams(np.unique(np.concatenate(keys)), np.unique(np.concatenate(sources)))
