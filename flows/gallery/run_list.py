"""The runs of a destination and their progress, from `_runs/` and from the rows of the cache."""

import json
from collections.abc import Mapping, Set
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from flows.destination.parts import list_parts
from flows.destination.run_record import read_mark, read_plan, replaced_part
from flows.destination.run_report import Report
from flows.gallery.cache import Cache
from flows.gallery.records import Run, RunState
from flows.gallery.tables import STATUSES
from flows.jobs.plan import Plan
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.s3 import layout

__all__ = ["RunReader"]

_READERS = 8


class RunReader:
    """Reads the runs of a destination. What never changes is read once: jobs, plans and reports of finished runs.

    Args:
        cache: the rows of the destination.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._finished: dict[str, Run] = {}
        self._jobs: dict[str, dict[str, Any]] = {}
        self._plans: dict[str, Plan] = {}
        self._is_empty: dict[str, bool] = {}

    def read(self) -> list[Run]:
        """Return all runs, the latest first."""
        destination, storage = self._cache.destination, self._cache.storage
        runs = layout.runs_folder(destination)
        objects = {info.uri.removeprefix(runs) for info in storage.list(runs)}
        names = {name.partition("/")[0] for name in objects if name.endswith(("/job.json", "/success.json"))}
        mark = read_mark(destination, storage)
        active = mark["run_id"] if mark else None
        finished = {name for name in names if f"{name}/success.json" in objects}
        # An abandoned run has an index if it had a plan. So only the small plans of the others have to be read.
        maybe_empty = {name for name in names - finished if f"{name}/index.parquet" not in objects}
        counts = self._counts()
        with thread_pool(_READERS) as pool:
            found = ordered_prefetch(
                pool,
                lambda run_id: self._run(
                    run_id, self._state(run_id, finished, maybe_empty, active), counts.get(run_id, {})
                ),
                sorted(names, reverse=True),
                _READERS,
            )
            return list(found)

    def _counts(self) -> dict[str, dict[str, int]]:
        """Return the number of rows of each run by status."""
        counts: dict[str, dict[str, int]] = {}
        sql = "SELECT run_id, status, count(*) FROM dreams JOIN runs USING (run_no) GROUP BY run_id, status"
        for run_id, status, count in self._cache.query(sql):
            counts.setdefault(run_id, {})[STATUSES[status]] = count
        return counts

    def _state(self, run_id: str, finished: Set[str], maybe_empty: Set[str], active: str | None) -> RunState:
        """Return the state of a run.

        Args:
            run_id: the run.
            finished: the runs that have a report.
            maybe_empty: the runs without a report whose plan may have no rows.
            active: the run that holds the destination.
        """
        if run_id in finished:
            return "finished"
        if run_id == active:
            return "unfinished"
        if run_id in maybe_empty and run_id not in self._is_empty:
            if (plan := self._plan(run_id)) is not None:
                self._is_empty[run_id] = not plan
            self._plans.pop(run_id, None)  # only the plan of the unfinished run is needed again
        return "nothing to do" if self._is_empty.get(run_id) else "abandoned"

    def _run(self, run_id: str, state: RunState, rows: Mapping[str, int]) -> Run:
        if run_id in self._finished:
            return self._finished[run_id]
        if state == "finished":
            if found := self._read_finished(run_id):
                self._finished[run_id] = found
                return found
            state = "abandoned"
        job = self._job(run_id)
        plan = self._plan(run_id) if state == "unfinished" else None
        is_retry = bool(plan and plan.is_retry) or bool(job.get("retry_failed"))
        if plan and plan.is_retry:
            rows = self._retried(plan)
        return Run(
            run_id,
            state,
            _started_at(run_id),
            str(job.get("source") or ""),
            plan.dreams if plan else 0,
            rows.get("done", 0),
            rows.get("failed", 0),
            rows.get("skipped", 0),
            is_retry=is_retry,
            job=job,
        )

    def _read_finished(self, run_id: str) -> Run | None:
        """Return a finished run from its report; None if another version wrote the report with other fields."""
        data = self._cache.storage.read(layout.success_uri(self._cache.destination, run_id))
        try:
            report = Report.model_validate_json(data or b"")
        except ValidationError:
            return None
        return Run(
            run_id,
            "finished",
            _started_at(run_id),
            report.source,
            report.planned,
            report.done,
            report.failed,
            report.skipped,
            is_retry=bool(report.retry_failed),
            seconds=report.seconds,
            summary=report.summary,
            failures=dict(report.failures),
            job=self._job(run_id),
        )

    def _job(self, run_id: str) -> dict[str, Any]:
        """Return the job of a run; empty if the record is missing or damaged."""
        if run_id not in self._jobs:
            data = self._cache.storage.read(layout.job_uri(self._cache.destination, run_id))
            record: Any = {}
            with suppress(ValueError):
                record = json.loads(data or b"{}")
            job = record.get("job") if isinstance(record, dict) else None
            self._jobs[run_id] = job if isinstance(job, dict) else {}
        return self._jobs[run_id]

    def _plan(self, run_id: str) -> Plan | None:
        """Return the plan of a run; None if the run has none yet, or if the plan is damaged."""
        if run_id not in self._plans:
            plan = read_plan(self._cache.destination, run_id, self._cache.storage)
            with suppress(pa.ArrowException, OSError):
                if plan is not None and plan.dreams >= 0:
                    self._plans[run_id] = plan
        return self._plans.get(run_id)

    def _retried(self, plan: Plan) -> dict[str, int]:
        """Return the finished dreams of a retry: its rows are those of replaced parts and keep their old run."""
        versions = {(part.uri, part.etag) for part in list_parts(self._cache.storage, self._cache.destination)}
        finished = (shard.dreams for shard in plan if replaced_part(self._cache.destination, shard) not in versions)
        return {"done": sum(finished)}


def _started_at(run_id: str) -> datetime | None:
    """Return the time in the name of a run."""
    with suppress(ValueError):
        return datetime.strptime(run_id.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return None
