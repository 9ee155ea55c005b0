"""The rows of a run: their counts by status and by error kind, and those of failed dreams.

A run has a part of the manifest for each of its shards. A run that tries failed dreams again has no parts, because its
rows replace rows in the parts of earlier runs.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dreamcore.errors import ErrorKind
from flows import layout, manifest
from flows.plan import Plan
from flows.prefetch import ordered_prefetch, thread_pool
from flows.run_record import Run, replaced_part, shards_with_runs
from flows.storage import Storage
from flows.work import Shard, dream_key

__all__ = ["count_rows", "iter_failures", "planned_rows", "shard_rows"]

_READERS = 8
_OUTCOME = ("status", "error_kind", "error")


def planned_rows(run: Run, plan: Plan, storage: Storage) -> Iterator[pa.Table]:
    """Yield status, error kind, error and photograph of the run's rows, one table for each finished shard."""
    columns = [*manifest.IDENTITY, *_OUTCOME]
    if not plan.is_retry:
        yield from manifest.iter_tables(storage, run.destination, columns, run.run_id)
        return
    unchanged = {(part.uri, part.etag) for part in manifest.list_parts(storage, run.destination)}
    pairs = shards_with_runs(run, plan, storage)
    finished = (pair for pair in pairs if replaced_part(run.destination, pair[1]) not in unchanged)

    def read(pair: tuple[Run, Shard]) -> pa.Table:
        owner, shard = pair
        data = storage.read(layout.part_uri(owner.destination, owner.run_id, shard.number))
        return shard_rows(data or manifest.to_parquet([]), owner, shard, columns)

    with thread_pool(_READERS) as readers:
        yield from ordered_prefetch(readers, read, finished, _READERS)


def shard_rows(part: bytes, run: Run, shard: Shard, columns: Sequence[str]) -> pa.Table:
    """Return columns of the rows of a part that belong to the dreams of a shard; `run` wrote the part."""
    keys = {
        dream_key(work.source.uri, work.source.etag, run.settings[index].settings_id)
        for work in shard.works
        for index in work.settings
    }
    table = manifest.from_parquet(part, list(dict.fromkeys([*manifest.IDENTITY, *columns])))
    rows = zip(*(table[name].to_pylist() for name in manifest.IDENTITY), strict=True)
    return table.filter(pa.array([dream_key(*row) in keys for row in rows], pa.bool_())).select(columns)


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
