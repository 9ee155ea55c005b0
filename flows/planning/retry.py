"""Plan a run that tries failed dreams of earlier runs again.

Each shard of such a run replaces one part of the manifest that has rows of failed dreams; a merged part is one shard.
The part is replaced as a whole, by a write that succeeds only if the part still has the ETag of the plan. Therefore a
reader sees one row for each dream at every moment, and two processes never replace the same version of a part. The
shard is finished when the part has another ETag.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from flows.destination import history, manifest, run_record
from flows.destination.parts import Part
from flows.destination.run_record import Run
from flows.jobs.assets import can_repeat
from flows.jobs.job import DreamJob
from flows.jobs.plan import Plan, freeze_retry
from flows.jobs.work import PlannedSettings, ReplacedPart, Shard, Work, dream_key
from flows.s3.storage import Storage

__all__ = ["plan_retry"]

_COLUMNS = (*manifest.IDENTITY, "status", "error_kind")


def plan_retry(job: DreamJob, storage: Storage) -> Plan:
    """Return the plan of a run that tries the failed dreams of a destination again, whatever job they belong to.

    Args:
        job: its `retry_failed` says which dreams: all with the status `failed`, or those of some error kinds.
        storage: access to S3.

    Returns:
        A plan with one shard for each part that has such rows. Dreams that this version of Dreamgrid cannot make with
        the same settings are left out and counted in `not_retried`.
    """
    search = _Search(job, storage)
    return freeze_retry(search.shards(), lambda: search.found - search.planned)


class _Search:
    """The search for failed dreams, and how many were found and planned."""

    def __init__(self, job: DreamJob, storage: Storage) -> None:
        self.job, self.storage = job, storage
        self.found = self.planned = 0
        self._known: dict[str, bool] = {}

    def shards(self) -> Iterator[Shard]:
        """Yield a shard for each part with failed dreams that can be made again."""
        for run_id, parts in history.parts_with_failures(self.job.destination, self.storage):
            failed = list(self.failed(parts))
            self.found += sum(len(keys) for _, keys in failed)
            run = run_record.find_run(self.job.destination, run_id, self.storage) if failed else None
            plan = run_record.read_plan(self.job.destination, run_id, self.storage) if run else None
            if run is None or plan is None:
                continue
            for shard in self.shards_of_run(run, plan, failed):
                self.planned += shard.dreams
                yield shard

    def shards_of_run(self, run: Run, plan: Plan, failed: Sequence[tuple[Part, set[int]]]) -> Iterator[Shard]:
        """Yield a shard for each part of one run.

        Args:
            run: the run that wrote the parts.
            plan: its frozen plan.
            failed: the parts with the `dream_key`s of their failed dreams.
        """
        parts = {number: (part, keys) for part, keys in failed for number in part.shards}
        planned = (shard for shard in plan if shard.number in parts)
        for part, shards in groupby(planned, lambda shard: parts[shard.number][0]):
            works = (work for shard in shards for work in self.select(run, shard.works, parts[shard.number][1]))
            if again := tuple(works):
                last = part.shards[-1] if part.is_merged else None
                yield Shard(part.shards[0], again, ReplacedPart(run.run_id, part.etag, last))

    def failed(self, parts: Sequence[Part]) -> Iterator[tuple[Part, set[int]]]:
        """Yield the parts with failed dreams, and the `dream_key`s of these dreams."""
        tables = manifest.read_parts(self.storage, [part.uri for part in parts], _COLUMNS)
        for part, table in zip(parts, tables, strict=True):
            rows = table.filter(self.condition())
            if len(rows):
                identities = zip(*(rows[name].to_pylist() for name in manifest.IDENTITY), strict=True)
                yield part, {dream_key(*identity) for identity in identities}

    def condition(self) -> pc.Expression:
        """Return the condition for rows that are tried again."""
        if self.job.retry_failed is True:
            return pc.field("status") == "failed"
        return pc.field("error_kind").isin(pa.array(self.job.retry_failed or (), pa.string()))

    def select(self, run: Run, works: Iterable[Work], keys: set[int]) -> Iterator[Work]:
        """Yield the works with only those dreams whose `dream_key` is in `keys` and whose settings are the same."""
        for work in works:
            source = work.source
            indices = tuple(
                index
                for index in work.settings
                if dream_key(source.uri, source.etag, run.settings[index].settings_id) in keys
                and self.is_possible(run.settings[index])
            )
            if indices:
                yield replace(work, settings=indices)

    def is_possible(self, planned: PlannedSettings) -> bool:
        """Return whether the settings have the same identity now: the same algorithm, network and files."""
        identity = planned.settings_id
        if identity not in self._known:
            self._known[identity] = can_repeat(planned.settings, identity, self.storage)
        return self._known[identity]
