"""The rows of a run: their counts by status and by error kind, and those of failed dreams.

A run has a part of the manifest for each of its shards. A run that tries failed dreams again has no parts, because its
rows replace rows in the parts of earlier runs.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dreamcore.errors import ErrorKind
from flows.destination import manifest
from flows.destination.parts import list_parts
from flows.destination.run_record import Run, replaced_part, shards_with_runs
from flows.jobs.plan import Plan
from flows.jobs.work import Shard, dream_key
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.s3.storage import Storage

__all__ = ["count_rows", "iter_failures", "planned_rows", "shard_rows"]

_READERS = 8
_OUTCOME = ("status", "error_kind", "error")


def planned_rows(run: Run, plan: Plan, storage: Storage) -> Iterator[pa.Table]:
    """Yield status, error kind, error and photograph of the run's rows, one table for each finished shard or part."""
    columns = [*manifest.IDENTITY, *_OUTCOME]
    if not plan.is_retry:
        yield from manifest.iter_tables(storage, run.destination, columns, run.run_id)
        return
    unchanged = {(part.uri, part.etag) for part in list_parts(storage, run.destination)}
    places = ((pair, replaced_part(run.destination, pair[1])) for pair in shards_with_runs(run, plan, storage))
    reader = manifest.PartReader(storage, columns)

    def read(place: tuple[tuple[Run, Shard], str]) -> pa.Table:
        (owner, shard), uri = place
        return shard_rows(reader.read(uri), owner, shard).select(columns)

    with thread_pool(_READERS) as readers:
        finished = ((pair, part[0]) for pair, part in places if part and part not in unchanged)
        yield from ordered_prefetch(readers, read, finished, _READERS)


def shard_rows(rows: pa.Table, run: Run, shard: Shard) -> pa.Table:
    """Return the rows of a part that belong to the dreams of a shard; `run` wrote the part."""
    keys = {
        dream_key(work.source.uri, work.source.etag, run.settings[index].settings_id)
        for work in shard.works
        for index in work.settings
    }
    identities = zip(*(rows[name].to_pylist() for name in manifest.IDENTITY), strict=True)
    return rows.filter(pa.array([dream_key(*identity) in keys for identity in identities], pa.bool_()))


def count_rows(run: Run, plan: Plan, storage: Storage) -> tuple[Counter[str], dict[ErrorKind, int]]:
    """Return the number of the run's rows by status, and of those that are not done by error kind."""
    statuses, kinds = Counter[str](), Counter[ErrorKind]()
    for table in planned_rows(run, plan, storage):
        statuses.update(manifest.value_counts(table["status"]))
        kinds.update(table["error_kind"].drop_null().to_pylist())
    return statuses, dict(kinds.most_common())


def iter_failures(run: Run, plan: Plan, storage: Storage) -> Iterator[dict[str, Any]]:
    """Yield the rows of a run that failed or were skipped one by one, because all of them may not fit into memory."""
    for table in planned_rows(run, plan, storage):
        yield from table.filter(pc.field("status") != "done").to_pylist()
