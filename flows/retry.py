"""Plan a run that tries failed dreams of earlier runs again.

Each shard of such a run replaces one part of the manifest that has rows of failed dreams. The part is replaced as a
whole, by a write that succeeds only if the part still has the ETag of the plan. Therefore a reader sees one row for
each dream at every moment, and two processes never replace the same version of a part. The shard is finished when the
part has another ETag.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from dreamcore.catalog import weights_identity_of
from dreamcore.errors import InvalidInput
from dreamcore.settings import settings_id
from flows import history, layout, manifest, run_record
from flows.assets import resolve
from flows.job import DreamJob
from flows.plan import Plan, freeze_retry
from flows.run_record import Run
from flows.storage import ObjectInfo, Storage
from flows.work import PlannedSettings, ReplacedPart, Shard, dream_key

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
            failed = dict(self.failed(parts))
            self.found += sum(map(len, failed.values()))
            run = run_record.find_run(self.job.destination, run_id, self.storage) if failed else None
            plan = run_record.read_plan(self.job.destination, run_id, self.storage) if run else None
            if run is None or plan is None:
                continue
            etags = {layout.shard_of_part(part.uri): part.etag for part in parts}
            for shard in plan:
                if shard.number in failed and (again := self.select(run, shard, failed[shard.number])).works:
                    self.planned += again.dreams
                    yield replace(again, replaces=ReplacedPart(run_id, etags[shard.number]))

    def failed(self, parts: Sequence[ObjectInfo]) -> Iterator[tuple[int, set[int]]]:
        """Yield the number of each shard with failed dreams, and their `dream_key`s."""
        tables = manifest.read_parts(self.storage, [part.uri for part in parts], _COLUMNS)
        for part, table in zip(parts, tables, strict=True):
            rows = table.filter(self.condition())
            if len(rows):
                identities = zip(*(rows[name].to_pylist() for name in manifest.IDENTITY), strict=True)
                yield layout.shard_of_part(part.uri), {dream_key(*identity) for identity in identities}

    def condition(self) -> pc.Expression:
        """Return the condition for rows that are tried again."""
        if self.job.retry_failed is True:
            return pc.field("status") == "failed"
        return pc.field("error_kind").isin(pa.array(self.job.retry_failed or (), pa.string()))

    def select(self, run: Run, shard: Shard, keys: set[int]) -> Shard:
        """Return the shard with only those dreams whose `dream_key` is in `keys` and whose settings are the same."""
        works = []
        for work in shard.works:
            source = work.source
            indices = tuple(
                index
                for index in work.settings
                if dream_key(source.uri, source.etag, run.settings[index].settings_id) in keys
                and self.is_possible(run.settings[index])
            )
            if indices:
                works.append(replace(work, settings=indices))
        return Shard(shard.number, tuple(works))

    def is_possible(self, planned: PlannedSettings) -> bool:
        """Return whether the settings have the same identity now: the same algorithm, network and files."""
        identity = planned.settings_id
        if identity not in self._known:
            try:
                settings = resolve(planned.settings, open_storage=lambda: self.storage)
                self._known[identity] = settings_id(settings, weights_identity_of(settings)) == identity
            except InvalidInput:
                self._known[identity] = False
        return self._known[identity]
