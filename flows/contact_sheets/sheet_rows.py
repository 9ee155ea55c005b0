"""The dreams of a photograph in the order of its contact sheet, and their numbers.

Number 1 is the first dream of the first run. The number does not depend on how the sheet is laid out, and later runs
add larger numbers. Numbers change if dreams are deleted, or if failed dreams are tried again. The `result_id` of a
dream never changes.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow.compute as pc

from dreamcore.errors import InvalidInput
from flows.destination import history, manifest
from flows.destination.parts import part_uris
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["find_numbered", "latest_photographs", "rows_by_photograph", "short_ids", "split_number"]

MIN_DIGITS = 8
"""Digits of a `result_id` on a sheet, at least. With a million dreams, two in a thousand need more in `redream`."""

_ORDER = ["run_id", "shard", "created_at"]
_NUMBER = re.compile(r"(.+)#(\d{1,9})", re.DOTALL)
_NAMED = 3
"""Photographs that a message names."""


def rows_by_photograph(
    destination: str, storage: Storage, photographs: Sequence[tuple[str, str]], columns: Sequence[str]
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the rows of the dreams of each photograph, in the order of its sheet.

    Args:
        destination: folder of the results.
        storage: access to S3.
        photographs: address and ETag of each photograph.
        columns: columns of the manifest that are needed.
    """
    uris = [uri for uri, _ in photographs]
    parts = history.parts_with(iter(uris), destination, storage)
    return _read(storage, parts, columns, pc.field("source_uri").isin(uris))


def _read(
    storage: Storage, parts: Iterable[str], columns: Sequence[str], chosen: pc.Expression
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the rows of finished dreams for which `chosen` is true, by photograph and in the order of its sheet."""
    wanted = list(dict.fromkeys([*_ORDER, "source_uri", "source_etag", "status", *columns]))
    rows = manifest.read_rows(storage, parts, wanted, chosen & (pc.field("status") == "done")).to_pylist()
    dreams: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in _in_order(rows):
        dreams.setdefault((row["source_uri"], row["source_etag"]), []).append(row)
    return dreams


def _in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows run by run, each run in the order of its grid."""
    started: dict[str, Any] = {}
    for row in rows:
        started[row["run_id"]] = min(row["created_at"], started.get(row["run_id"], row["created_at"]))
    return sorted(rows, key=lambda row: (started[row["run_id"]], row["shard"], row["created_at"]))


def short_ids(ids: Sequence[str]) -> list[str]:
    """Return the first digits of each `result_id`, as many as distinguish all, and at least `MIN_DIGITS`.

    Example:
        >>> short_ids(["0123456789abcdef", "0123456780000000"])
        ['0123456789', '0123456780']
    """
    lengths = range(MIN_DIGITS, max(map(len, ids), default=0) + 1)
    length = next((count for count in lengths if len({each[:count] for each in ids}) == len(set(ids))), MIN_DIGITS)
    return [each[:length] for each in ids]


def split_number(text: str) -> tuple[str, int] | None:
    """Return the name of a photograph and a number of its sheet from a text such as `cat.jpg#37`; None for others.

    Example:
        >>> split_number("cat.jpg#37"), split_number("0123456789abcdef")
        (('cat.jpg', 37), None)
    """
    found = _NUMBER.fullmatch(text)
    return (found[1], int(found[2])) if found else None


def find_numbered(destination: str, storage: Storage, name: str, number: int) -> str:
    """Return the address of the dream with this number on the contact sheet of a photograph.

    Args:
        destination: folder of the results, with a slash at its end.
        storage: access to S3.
        name: the title of the sheet, or the end of the address of the photograph after a slash, or the whole address.
            Of several versions of the photograph, the one that was dreamt last counts.
        number: the number on the sheet, from 1.

    Raises:
        InvalidInput: there is no such photograph or number, or there are several such photographs.
    """
    base = name.rpartition("/")[2]
    dreams = _read(storage, part_uris(storage, destination), ["result_uri"], pc.ends_with(pc.field("source_uri"), base))
    folder = f"{layout.images_folder(destination)}{layout.safe_name(name)}"
    titled = {key: rows for key, rows in dreams.items() if rows[0]["result_uri"].rpartition("/")[0] == folder}
    found = titled or {key: rows for key, rows in dreams.items() if f"/{key[0]}".endswith(f"/{name}")}
    uris = sorted({uri for uri, _ in found})
    if not uris:
        raise InvalidInput(f"{destination} has no dreams of a photograph {name}: give its name as on the contact sheet")
    if len(uris) > 1:
        named = ", ".join(uris[:_NAMED]) + (" and more" if len(uris) > _NAMED else "")
        raise InvalidInput(f"{name} may be {named}: give the whole address of the photograph")
    rows = max(found.values(), key=lambda rows: max(row["created_at"] for row in rows))
    if not 1 <= number <= len(rows):
        raise InvalidInput(f"the contact sheet of {name} has the numbers 1 to {len(rows)}, and no {number}")
    return str(rows[number - 1]["result_uri"])


def latest_photographs(destination: str, storage: Storage, count: int, part: str = "") -> list[tuple[str, str]]:
    """Return address and ETag of the photographs that were dreamt last, the latest first.

    Args:
        destination: folder of the results.
        storage: access to S3.
        count: the largest number of photographs to return.
        part: return only photographs with this text in their address.

    Returns:
        Each photograph once, in the version that was dreamt last.
    """
    columns = ["source_uri", "source_etag", "created_at", "status"]
    rows = manifest.read(storage, destination, columns, where=pc.field("status") == "done")
    last = rows.group_by(["source_uri", "source_etag"]).aggregate([("created_at", "max")])
    versions: dict[str, str] = {}
    for row in last.sort_by([("created_at_max", "descending")]).to_pylist():
        if part in row["source_uri"]:
            versions.setdefault(row["source_uri"], row["source_etag"])
    return list(versions.items())[:count]
