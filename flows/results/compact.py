"""Merge the many small parts of finished runs into few large ones.

Consecutive shards of a run form a group, and a merged part takes the place of the parts of a group. The groups depend
only on the frozen plan of the run, so that every attempt makes the same ones. For each group, the merged part is
written if it is absent, and then the parts that it covers are deleted. The functions of `parts` and `manifest` in
`flows.destination` read each row once at any moment, because they ignore covered parts.

A compaction may be killed at any request. What exists tells the next compaction what is left: a group without a merged
part, covered parts, or an index that does not fit the parts. A mark excludes runs that try failed dreams again, because
they also replace parts (see `compact_mark`).
"""

import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dreamcore.errors import ImageError, Unavailable
from dreamcore.targets import Frozen
from flows.destination import history, manifest, run_record
from flows.destination.parts import Part, list_all_parts, uncovered
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.results import compact_mark
from flows.running.protocol import resumable
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["ROWS_PER_PART", "CompactReport", "CompactedRun", "LeftAlone", "compact", "groups"]

ROWS_PER_PART = 100_000
"""Planned rows of a merged part. It belongs to the format: with another value, a compaction that is continued by
another version of Dreamgrid would make other groups."""
SHARDS_PER_PART = 1_000
"""Parts that one merged part covers, at most: S3 deletes so many objects with one request."""
_READERS = 8
_ATTEMPTS = 10
"""How often a run is listed again because its parts change."""


class CompactedRun(Frozen):
    """A run whose parts were merged."""

    run_id: str
    parts_before: int
    parts_after: int
    bytes_before: int
    """Size of all parts of the run."""
    bytes_after: int


class LeftAlone(Frozen):
    """Something that the compaction did not change, although it should have."""

    uri: str
    """Address of the part, or of the folder of the run's record."""
    why: str
    """The reason, and what to do."""


class CompactReport(Frozen):
    """The result of a compaction."""

    destination: str
    runs: list[CompactedRun]
    """The runs whose parts were merged."""
    left_alone: list[LeftAlone]


def compact(
    storage: Storage,
    destination: str,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
    rows_per_part: int = ROWS_PER_PART,
) -> CompactReport:
    """Merge the parts of all finished runs of a destination. Ordinary runs may work there at the same time.

    Args:
        storage: access to S3.
        destination: folder of the results.
        on_progress: called with the number of parts that are finished, and of all parts of finished runs.
        rows_per_part: planned rows of a merged part.

    Raises:
        InvalidInput: failed dreams are tried again in the destination; nothing was changed.
        Unavailable: the compaction stopped. Another one continues it.
    """
    mark, is_resumed = compact_mark.claim(destination, storage)
    compaction = _Compaction(storage, destination, rows_per_part, on_progress)
    with resumable():
        runs = list(compaction.runs(is_resumed))
        compact_mark.release(destination, mark, storage)
    return CompactReport(destination=destination, runs=runs, left_alone=list(compaction.left_alone.values()))


def groups(rows_by_shard: Sequence[int], rows_per_part: int = ROWS_PER_PART) -> Iterator[range]:
    """Yield the shards of each merged part of a run. A shard that would be alone in its part is left out.

    Args:
        rows_by_shard: number of planned rows of each shard.
        rows_per_part: a merged part has at most this many rows.
    """
    first = rows = 0
    for shard, count in enumerate([*rows_by_shard, rows_per_part + 1]):  # the last one only ends the last group
        if rows + count > rows_per_part or shard - first == SHARDS_PER_PART:
            if shard - first > 1:
                yield range(first, shard)
            first, rows = shard, 0
        rows += count


class _Changed(Exception):
    """A part was replaced or deleted after it was listed, for example by another compaction."""


class _Damaged(Exception):
    """A part cannot be merged.

    Args:
        uri: address of the part.
        why: the reason.
    """

    def __init__(self, uri: str, why: str) -> None:
        super().__init__(why)
        self.uri = uri


class _Compaction:
    """One compaction of a destination, and what it left alone by address."""

    def __init__(
        self, storage: Storage, destination: str, rows_per_part: int, on_progress: Callable[[int, int], None]
    ) -> None:
        self.storage, self.destination, self.rows_per_part = storage, destination, rows_per_part
        self.on_progress = on_progress
        self.left_alone: dict[str, LeftAlone] = {}

    def runs(self, check_indices: bool) -> Iterator[CompactedRun]:
        """Merge the parts of each finished run, and yield the runs that changed.

        Args:
            check_indices: also write the index of a run that was compacted earlier, if it does not fit the parts.
        """
        finished = set(run_record.finished_run_ids(self.destination, self.storage))  # before the parts are listed
        runs: dict[str, list[Part]] = defaultdict(list)
        for part in list_all_parts(self.storage, self.destination):
            if part.run_id in finished:
                runs[part.run_id].append(part)
        done, total = 0, sum(map(len, runs.values()))
        for run_id, before in runs.items():
            after = self.compact_run(run_id, before, lambda merged: self.on_progress(done + merged, total))  # noqa: B023 - called at once
            has_changed = {part.uri for part in before} != {part.uri for part in after}
            if has_changed or (check_indices and not history.has_valid_index(self.destination, run_id, self.storage)):
                self.refresh_index(run_id)
            if has_changed:
                yield _compacted(run_id, before, after)
            done += len(before)
            self.on_progress(done, total)

    def compact_run(self, run_id: str, parts: Sequence[Part], on_merged: Callable[[int], None]) -> list[Part]:
        """Merge the parts of one run.

        Args:
            run_id: the finished run.
            parts: all its parts.
            on_merged: called with the number of parts that were merged.

        Returns:
            All parts that the run has now.
        """
        for _ in range(_ATTEMPTS):
            try:
                self.delete_what_is_covered(parts)
                self.merge_groups(run_id, parts, on_merged)
                break
            except _Changed:  # another compaction may work at the same time
                parts = list_all_parts(self.storage, self.destination, run_id)
        else:
            raise Unavailable(f"the parts of the run {run_id} in {self.destination} change all the time: try again")
        after = list_all_parts(self.storage, self.destination, run_id)
        for part in set(after).difference(uncovered(after)):
            self.leave(
                part.uri,
                "it was written after its rows had been merged into another part. Dreamgrid ignores it, but other "
                "readers find its rows twice: delete it",
            )
        return after

    def delete_what_is_covered(self, parts: Sequence[Part]) -> None:
        """Delete the parts that an earlier compaction has merged but not deleted."""
        covered = set(parts).difference(uncovered(parts))
        for merged in parts:
            if any(merged.covers(part.uri) for part in covered):
                self.delete_covered(merged.uri, merged.shards, self.read_merged(merged.uri))

    def merge_groups(self, run_id: str, parts: Sequence[Part], on_merged: Callable[[int], None]) -> None:
        """Merge each group of parts that is not merged yet."""
        merged = [part for part in parts if part.is_merged]
        single = {part.shards.start: part for part in uncovered(parts) if len(part.shards) == 1}
        count = 0
        for shards in groups(self.rows_by_shard(run_id) if len(single) > 1 else (), self.rows_per_part):
            if any(part.shards.start in shards or shards.start in part.shards for part in merged):
                continue
            if missing := [number for number in shards if number not in single]:
                uri = layout.part_uri(self.destination, run_id, missing[0])
                self.leave(
                    uri, f"it is missing, so the parts of the shards {_range(shards)} were not merged: restore it"
                )
                continue
            try:
                self.merge(run_id, shards, [single[number] for number in shards])
            except _Damaged as error:
                why = f"it cannot be merged ({error}), and neither can the parts of the shards {_range(shards)}"
                self.leave(error.uri, why)
            count += len(shards)
            on_merged(count)

    def rows_by_shard(self, run_id: str) -> list[int]:
        """Return the number of planned rows of each shard; nothing if the run has no readable plan."""
        try:
            if plan := run_record.read_plan(self.destination, run_id, self.storage):
                return plan.rows_by_shard()
            why = "this run has no plan"
        except (pa.ArrowException, LookupError, OSError) as error:
            why = f"the plan of this run cannot be read ({error})"
        self.leave(layout.run_folder(self.destination, run_id), f"{why}, so its parts were not merged")
        return []

    def merge(self, run_id: str, shards: range, parts: Sequence[Part]) -> None:
        """Write the merged part of a group unless it exists, and delete the parts that it covers."""
        with thread_pool(_READERS) as readers:
            tables = list(ordered_prefetch(readers, self.read, parts, _READERS))
        uri = layout.part_uri(self.destination, run_id, shards[0], shards[-1])
        etags = {_name(part.uri): part.etag for part in parts}
        try:
            table = pa.concat_tables(tables, promote_options="default")
        except pa.ArrowException as error:
            raise _Damaged(uri, str(error)) from error
        metadata = {**manifest.SCHEMA.metadata, manifest.MERGED: json.dumps(etags)}
        data = manifest.table_to_parquet(table.replace_schema_metadata(metadata))
        is_ours = self.storage.write_if_absent(uri, data, manifest.CONTENT_TYPE)
        self.delete_covered(uri, shards, etags if is_ours else self.read_merged(uri))

    def read(self, part: Part) -> pa.Table:
        """Return the rows of a part, with all columns.

        Raises:
            _Changed: the part is not the one that was listed.
            _Damaged: the part is unreadable, or has rows of other shards.
        """
        try:
            table = manifest.read_all_columns(self.storage.read_version(part.uri, part.etag))
        except ImageError as error:
            if error.kind in ("source_missing", "source_changed"):
                raise _Changed from error
            raise _Damaged(part.uri, str(error)) from error
        except (pa.ArrowException, OSError) as error:
            raise _Damaged(part.uri, str(error)) from error
        owners = {name: set(pc.unique(table[name]).to_pylist()) for name in ("run_id", "shard")}
        if not (owners["run_id"] <= {part.run_id} and owners["shard"] <= {part.shards.start}):
            raise _Damaged(part.uri, "it has rows of another shard")
        return table

    def read_merged(self, uri: str) -> dict[str, str]:
        """Return the ETag of each part that was merged into the part at `uri`, by file name."""
        try:
            metadata = pq.read_schema(io.BytesIO(self.storage.read(uri) or b"")).metadata or {}
        except (pa.ArrowException, OSError) as error:
            self.leave(uri, f"this part cannot be read: {error}")
            return {}
        return dict(json.loads(metadata.get(manifest.MERGED, b"{}")))

    def delete_covered(self, uri: str, shards: range, etags: Mapping[str, str]) -> None:
        """Delete the parts that were merged into the part at `uri`, if they still have the ETags that were merged."""
        run_id = layout.run_id_of_part(uri)
        ends = [layout.part_uri(self.destination, run_id, shard) for shard in (shards[0], shards[-1])]
        found = self.storage.list(os.path.commonprefix(ends))  # noqa: RUF071 - a prefix of keys, not of folders
        self.storage.delete_versions([info for info in found if etags.get(_name(info.uri)) == info.etag])

    def refresh_index(self, run_id: str) -> None:
        """Write the index of a run for the parts that it has now."""
        try:
            index = history.build_index(self.destination, run_id, self.storage)
        except (pa.ArrowException, OSError) as error:
            self.leave(layout.run_folder(self.destination, run_id), f"a part of this run cannot be read: {error}")
            return
        history.write_index(index, self.destination, run_id, self.storage, replace=True)

    def leave(self, uri: str, why: str) -> None:
        """Note what was left alone, and why."""
        self.left_alone[uri] = LeftAlone(uri=uri, why=why)


def _compacted(run_id: str, before: Sequence[Part], after: Sequence[Part]) -> CompactedRun:
    return CompactedRun(
        run_id=run_id,
        parts_before=len(before),
        parts_after=len(after),
        bytes_before=sum(part.size for part in before),
        bytes_after=sum(part.size for part in after),
    )


def _range(shards: range) -> str:
    return f"{shards[0]} to {shards[-1]}"


def _name(uri: str) -> str:
    return uri.rpartition("/")[2]
