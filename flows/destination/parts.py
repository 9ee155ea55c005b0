"""The parts of the manifest: objects that have the rows of one shard, or of consecutive shards that were merged.

While a compaction merges parts, a merged part and the parts that it covers exist at the same time. `list_parts` ignores
covered parts, so that each row is listed once at any moment.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["Part", "find_merged", "list_all_parts", "list_parts", "part_uris", "uncovered"]


@dataclass(frozen=True, slots=True)
class Part:
    """An object of the manifest: the rows of one shard of a run, or of consecutive shards that were merged."""

    uri: str
    etag: str
    size: int
    """Size in bytes."""
    run_id: str
    shards: range
    """Numbers of the shards. Empty if the object has another name than a part of Dreamgrid."""

    @property
    def is_merged(self) -> bool:
        """Whether the part has the rows of several shards."""
        return len(self.shards) > 1

    def covers(self, uri: str) -> bool:
        """Return whether this part is merged and has the rows of the shard whose part is at `uri`."""
        shards = layout.shards_of_part(uri)
        in_run = uri.rpartition("/")[0] == self.uri.rpartition("/")[0]
        return self.is_merged and in_run and len(shards) == 1 and shards.start in self.shards


def part_uris(storage: Storage, destination: str, run_id: str | None = None) -> list[str]:
    """Return the addresses of the parts of a destination, or of one run, in the order of `list_parts`."""
    return [part.uri for part in list_parts(storage, destination, run_id)]


def list_parts(storage: Storage, destination: str, run_id: str | None = None) -> list[Part]:
    """Return the parts of a destination, or of one run, by run and shard. They have each row once at any moment."""
    return uncovered(list_all_parts(storage, destination, run_id))


def list_all_parts(storage: Storage, destination: str, run_id: str | None = None) -> list[Part]:
    """Return the parts of a destination, or of one run, and also those that a merged part covers.

    A part may be deleted while the objects are listed. Then the list has the merged part: S3 lists in the order of the
    keys, in which the parts of one shard are before merged parts, and a merged part exists before the parts that it
    covers are deleted. A store that lists in another order is asked again.
    """
    folder = layout.manifest_folder(destination, run_id)
    found = _list(storage, folder)
    if [part.uri for part in found] != sorted(part.uri for part in found):  # such as in S3 directory buckets
        merged = (part for part in _list(storage, folder) if part.is_merged)
        found = list({part.uri: part for part in (*found, *merged)}.values())
    return sorted(found, key=lambda part: (part.run_id, part.shards.start, part.uri))


def uncovered(parts: Iterable[Part]) -> list[Part]:
    """Return the parts whose rows are in no merged part, and the merged parts."""
    parts, merged = list(parts), defaultdict[str, list[Part]](list)
    for part in parts:
        if part.is_merged:
            merged[part.run_id].append(part)
    return [part for part in parts if not any(other.covers(part.uri) for other in merged[part.run_id])]


def find_merged(storage: Storage, uri: str) -> Part | None:
    """Return the merged part that covers the part with this address; None if there is none."""
    return next((part for part in _list(storage, uri.rpartition("/")[0] + "/") if part.covers(uri)), None)


def _list(storage: Storage, folder: str) -> list[Part]:
    """Return the parts in a folder in the order in which the store lists them."""
    return [
        Part(info.uri, info.etag, info.size, layout.run_id_of_part(info.uri), layout.shards_of_part(info.uri))
        for info in storage.list(folder)
        if info.uri.endswith(".parquet")
    ]
