"""The record of a run in its destination, and how it is read and written.

    DEST/_runs/<run_id>/job.json       the job with every point of its grid; written first
    DEST/_runs/active.json             the mark: which run of this destination is unfinished
    DEST/_runs/<run_id>/plan.parquet   the frozen plan; without rows if there was nothing to do
    DEST/_runs/<run_id>/index.parquet  a summary of the run's parts for later runs (see `history`)
    DEST/_runs/<run_id>/success.json   the report; written last

`protocol` says in which order a run writes these files.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError

from dreamcore.errors import DreamgridError, ErrorKind, InvalidInput, Unavailable
from dreamcore.settings import result_id
from dreamcore.targets import Frozen
from flows import layout, manifest
from flows.calibration import machine_name
from flows.history import Failures
from flows.job import DreamJob, RetryFailed
from flows.parts import list_parts
from flows.photographs import describe_ignored
from flows.plan import Plan
from flows.storage import Storage
from flows.work import PlannedSettings, Shard, Source

__all__ = [
    "NOT_RETRIED",
    "FailedRun",
    "Report",
    "Run",
    "active_job",
    "active_run_id",
    "check_no_compaction",
    "completed",
    "find_run",
    "in_words",
    "is_retry",
    "load_active_run",
    "load_run",
    "nothing_to_do",
    "nothing_to_retry",
    "planned_results",
    "replaced_part",
    "resumable_run",
    "shards_with_runs",
    "unfinished",
    "unfinished_shards",
    "why_failed",
]

JSON = "application/json"
NOT_RETRIED = "that this version of Dreamgrid, or other files, cannot dream with the same settings"
_CHANGED = (
    "other files or another version of Dreamgrid: restore them and run the job again to finish it, or add --abandon "
    "to abandon it"
)


class Run(Frozen):
    """One run of a job: everything that a shard needs to know about it."""

    run_id: str
    job: DreamJob
    settings: tuple[PlannedSettings, ...]

    @property
    def destination(self) -> str:
        """Folder of the results."""
        return self.job.destination

    def result_uri(self, source: Source, planned: PlannedSettings) -> str:
        """Return the address of the dream of a photograph under one point of the grid."""
        identity = result_id(source.etag, planned.settings_id)
        return self.destination + layout.result_name(source.name, planned.settings, identity)


class Report(Frozen):
    """The outcome of a run."""

    run_id: str | None
    """None if there was nothing to do."""
    state: Literal["completed", "nothing to do"]
    planned: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    failures: dict[ErrorKind, int] = Field(default={})
    """Number of failed and skipped dreams by error kind, most frequent first."""
    photographs: int = 0
    """Photographs in the source. For a completed run: photographs in its plan."""
    photographs_failed_earlier: int = 0
    """If there was nothing to do: photographs without some of their dreams because these failed in earlier runs."""
    failed_earlier: int = 0
    """The number of these dreams."""
    ignored: int | None = None
    """Objects in the source that are no photographs. None if the run was resumed, because it did not scan again."""
    ignored_kinds: dict[str, int] = Field(default={})
    """These objects by kind, most frequent first."""
    other_destinations: tuple[str, ...] = ()
    """Destinations below the source. Their dreams and sheets were left out."""
    warnings: tuple[str, ...] = ()
    """What looks wrong in the source."""
    retry_failed: RetryFailed = False
    """Which failed dreams of earlier runs the run tried again. If any, `planned` and the other counts are of these."""
    not_retried: int = 0
    """Failed dreams that such a run left alone, because this version of Dreamgrid or its files make other dreams."""
    seconds: float = 0.0
    machine: str | None = None
    """The machine that finished the run: processor, GPUs, workers. Estimates use the runs of machines like this one."""
    source: str
    destination: str
    manifest: str
    """Address of the manifest, for any reader of Parquet."""
    sheets: str | None = None
    """Address of the contact sheets; None if none were drawn."""

    @property
    def summary(self) -> str:
        """The outcome in one line, such as `8 done, 4 failed: 3 damaged, 1 too_small`."""
        if self.state == "nothing to do":
            return f"nothing to do: {self.why_nothing}"
        counts = {"done": self.done, "failed": self.failed, "skipped": self.skipped}
        outcome = in_words({name: count for name, count in counts.items() if count or name == "done"})
        return f"{outcome}: {in_words(self.failures)}" if self.failures else outcome

    @property
    def why_nothing(self) -> str:
        """The reason why there was nothing to do."""
        if self.retry_failed:
            kinds = f" with {' or '.join(self.retry_failed)}" if isinstance(self.retry_failed, tuple) else ""
            others = f" except {self.not_retried} {NOT_RETRIED}" if self.not_retried else ""
            return f"no dream in {self.destination} failed{kinds}{others}"
        if not self.photographs:
            return f"there is no photograph in {self.source}: {self._instead}"
        if self.failed_earlier:
            return (
                f"{self.failed_earlier} dreams (photographs: {self.photographs_failed_earlier}) failed earlier and are "
                f"tried again when the photograph changes, or with --retry-failed; see `dreamgrid manifest failures "
                f"{self.destination}`"
            )
        return "every photograph has its dreams"

    @property
    def _instead(self) -> str:
        """What the source holds instead of photographs."""
        if self.ignored_kinds:
            return f"it holds {describe_ignored(self.ignored_kinds, self.other_destinations)}"
        is_inside = self.destination.startswith(self.source.rstrip("/") + "/")
        return f"it holds nothing besides {self.destination}" if is_inside else "it is empty"


class FailedRun(DreamgridError):
    """A run that reached its end and counts as failed. Its dreams and rows are kept, and the destination is free.

    Args:
        message: the outcome and the reason.
        report: the report of the run.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[type["FailedRun"], tuple[str, Report]]:
        return FailedRun, (str(self), self.report)


def why_failed(job: DreamJob, report: Report) -> str | None:
    """Return why a run that reached its end counts as failed; None if it does not."""
    if report.failed and not report.done:
        return "every dream failed"
    if report.failed > report.planned * job.max_failures:
        return f"more dreams failed than max_failures allows ({job.max_failures:g})"
    if job.strict and report.failed:
        return "a strict run allows no failed dream"
    if job.strict and not report.retry_failed and (report.failed_earlier or not report.photographs):
        return "a strict run needs photographs, and no dream that failed earlier"
    return None


def in_words(counts: Mapping[Any, int]) -> str:
    """Return counts by name as text, such as `3 damaged, 1 too_small`."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def completed(
    run: Run, plan: Plan, counts: Mapping[str, int], failures: Mapping[ErrorKind, int], seconds: float
) -> Report:
    """Return the report of a run that came to its end.

    Args:
        run: the run.
        plan: its frozen plan.
        counts: number of rows by status.
        failures: number of rows that are not done by error kind.
        seconds: duration of the run.
    """
    drawn = run.job.sheets and counts.get("done", 0)
    return Report(
        run_id=run.run_id,
        state="completed",
        planned=plan.dreams,
        done=counts.get("done", 0),
        failed=counts.get("failed", 0),
        skipped=counts.get("skipped", 0),
        failures=dict(failures),
        photographs=sum(1 for _ in plan.sources()),
        retry_failed=run.job.retry_failed if plan.is_retry else False,
        not_retried=plan.not_retried,
        seconds=round(seconds, 3),
        machine=machine_name(),
        source=run.job.source,
        destination=run.destination,
        manifest=layout.manifest_folder(run.destination),
        sheets=layout.sheets_folder(run.destination) if drawn else None,
    )


def nothing_to_do(job: DreamJob, photographs: int, failures: Failures) -> Report:
    """Return the report of a run whose plan is empty; `failures` are dreams that failed in earlier runs."""
    return Report(
        run_id=None,
        state="nothing to do",
        photographs=photographs,
        photographs_failed_earlier=failures.photographs,
        failed_earlier=failures.dreams,
        source=job.source,
        destination=job.destination,
        manifest=layout.manifest_folder(job.destination),
    )


def nothing_to_retry(job: DreamJob, plan: Plan) -> Report:
    """Return the report of a run that found no failed dream to try again."""
    return Report(
        run_id=None,
        state="nothing to do",
        retry_failed=job.retry_failed,
        not_retried=plan.not_retried,
        source=job.source,
        destination=job.destination,
        manifest=layout.manifest_folder(job.destination),
    )


# --- the unfinished run


def make_mark(run: Run) -> bytes:
    """Return the mark of an unfinished run."""
    return json.dumps({"run_id": run.run_id, "job_id": _claim_id(run.job)}).encode()


def _claim_id(job: DreamJob) -> str:
    """Return what must be equal for a job to continue an unfinished run. A retry does not continue any other run."""
    return f"{job.job_id}{'-retry' if job.retry_failed else ''}"


def is_retry(mark: Mapping[str, str]) -> bool:
    """Return whether the unfinished run with this mark tries failed dreams again."""
    return mark["job_id"].endswith("-retry")


def read_mark(destination: str, storage: Storage) -> dict[str, str] | None:
    """Return `run_id` and `job_id` of the unfinished run; None if the destination is free."""
    mark = storage.read(layout.active_uri(destination))
    return dict(json.loads(mark)) if mark is not None else None


def active_run_id(job: DreamJob, storage: Storage) -> str | None:
    """Return the unfinished run of this job, which the next run continues; None if the destination is free.

    Raises:
        InvalidInput: another job's run is unfinished there.
    """
    mark = read_mark(job.destination, storage)
    if mark is None:
        return None
    if mark["job_id"] != _claim_id(job):
        other = "which tries failed dreams again" if is_retry(mark) else "of another job"
        if mark["job_id"] == job.job_id:
            other = "of this job, which is not a retry"
        raise InvalidInput(
            f"{job.destination} is held by the unfinished run {mark['run_id']} {other}: finish that run with "
            f"`dreamgrid run --resume {job.destination}`, or add --abandon to abandon it"
        )
    return mark["run_id"]


def check_no_compaction(destination: str, storage: Storage) -> None:
    """Raise `InvalidInput` if parts of the destination are being merged, so that nothing else may rewrite parts."""
    if storage.find(layout.compaction_uri(destination)):
        raise InvalidInput(
            f"parts of the manifest of {destination} are being merged, so failed dreams cannot be tried again now: "
            f"wait for the compaction, or finish it with `dreamgrid manifest compact {destination}`"
        )


def load_active_run(destination: str, storage: Storage) -> Run | None:
    """Return the unfinished run of a destination as it was started; None if the destination is free."""
    mark = read_mark(destination, storage)
    return _load(destination, mark["run_id"], storage) if mark else None


def active_job(destination: str, storage: Storage) -> dict[str, Any]:
    """Return the fields of the job whose run is unfinished.

    Raises:
        InvalidInput: the destination has no unfinished run.
    """
    run = load_active_run(destination, storage)
    if run is None:
        raise InvalidInput(f"{destination} has no unfinished run to resume")
    return run.job.model_dump(mode="json")


def resumable_run(
    job: DreamJob, settings: Sequence[PlannedSettings], storage: Storage
) -> tuple[Run, Plan | None] | None:
    """Return the run and the plan that a claim would continue; None if it would start a new run. Changes nothing.

    Raises:
        InvalidInput: a claim would be refused.
    """
    active = active_run_id(job, storage)
    plan = read_plan(job.destination, active, storage) if active else None
    if job.retry_failed and not plan:
        check_no_compaction(job.destination, storage)
    if active is None or (plan is not None and not plan):
        return None
    run = Run(run_id=active, job=job, settings=tuple(settings))
    check_unchanged(run, storage)
    return run, plan


def check_unchanged(run: Run, storage: Storage) -> None:
    """Raise `InvalidInput` if the settings of a run are not those it was started with."""
    started = _load(run.destination, run.run_id, storage) or run
    if [each.settings_id for each in started.settings] != [each.settings_id for each in run.settings]:
        raise InvalidInput(f"the unfinished run {run.run_id} was started with {_CHANGED}")


# --- any run


class _OtherVersion(InvalidInput):
    """The record of a run was written by another version of Dreamgrid."""


def find_run(destination: str, run_id: str, storage: Storage) -> Run | None:
    """Return a run as it was started; None if its record is missing or belongs to another version of Dreamgrid."""
    try:
        return _load(destination, run_id, storage)
    except _OtherVersion:
        return None


def load_run(destination: str, run_id: str, storage: Storage) -> Run:
    """Return a run as it was started. A worker gets only its name and reads the rest.

    Raises:
        Unavailable: the record of the run is missing.
    """
    run = _load(destination, run_id, storage)
    if run is None:
        uri = layout.job_uri(destination, run_id)
        raise Unavailable(f"{uri} is missing: restore it, or add --abandon to abandon the run")
    return run


def _load(destination: str, run_id: str, storage: Storage) -> Run | None:
    """Return a run as it was started; None if its record is missing."""
    data = storage.read(layout.job_uri(destination, run_id))
    try:
        return Run.model_validate_json(data) if data else None
    except ValidationError as error:
        raise _OtherVersion(f"the run {run_id} in {destination} was started with {_CHANGED}") from error


def finished_run_ids(destination: str, storage: Storage) -> Iterator[str]:
    """Yield the name of every finished run."""
    for info in storage.list(layout.runs_folder(destination)):
        folder, _, name = info.uri.rpartition("/")
        if name == "success.json":
            yield folder.rpartition("/")[2]


def planned_dreams(destination: str, run_id: str, storage: Storage) -> Iterator[tuple[Source, list[str]]]:
    """Yield each photograph of a run and its `settings_id`s. Works for records of every version of Dreamgrid.

    Raises:
        ValueError, LookupError, TypeError: the record is incomplete.
    """
    plan = read_plan(destination, run_id, storage)
    if plan is None:
        raise ValueError("it has no plan")
    known: dict[str, list[str]] = {}
    for shard in plan:
        owner = shard.run_of_part(run_id)
        if owner not in known:
            record = json.loads(storage.read(layout.job_uri(destination, owner)) or b"")
            known[owner] = [str(each["settings_id"]) for each in record["settings"]]
        for work in shard.works:
            yield work.source, [known[owner][index] for index in work.settings]


def planned_results(run: Run, storage: Storage) -> Iterator[str]:
    """Yield the address of every dream that an unfinished run planned, and the dream's `result_place`.

    Another version of Dreamgrid may have begun the run and have given its dreams other labels.
    """
    for owner, shard in shards_with_runs(run, read_plan(run.destination, run.run_id, storage) or (), storage):
        for work in shard.works:
            for index in work.settings:
                uri = owner.result_uri(work.source, owner.settings[index])
                yield from (uri, layout.result_place(uri))


# --- plans and shards


def read_plan(destination: str, run_id: str, storage: Storage) -> Plan | None:
    """Return the frozen plan of a run; None if it has none yet."""
    data = storage.read(layout.plan_uri(destination, run_id))
    return Plan(data) if data is not None else None


def write_plan(destination: str, run_id: str, plan: Plan, storage: Storage) -> Plan | None:
    """Write the plan of a run unless it has one. Return the plan that it has now; None if that has disappeared."""
    is_ours = storage.write_if_absent(layout.plan_uri(destination, run_id), plan.parquet, manifest.CONTENT_TYPE)
    return plan if is_ours else read_plan(destination, run_id, storage)


def unfinished_shards(destination: str, run_id: str, plan: Plan, storage: Storage) -> Iterator[Shard]:
    """Return the shards that have no part of the manifest yet, or whose part is not replaced yet, in order."""
    return filter(unfinished(destination, run_id, plan, storage), plan)


def unfinished(destination: str, run_id: str, plan: Plan, storage: Storage) -> Callable[[Shard], bool]:
    """List the manifest now. Return a function that says whether a shard of the plan was unfinished."""
    if plan.is_retry:
        versions = {(part.uri, part.etag) for part in list_parts(storage, destination)}
        return lambda shard: replaced_part(destination, shard) in versions
    finished = {number for part in list_parts(storage, destination, run_id) for number in part.shards}
    return lambda shard: shard.number not in finished


def replaced_part(destination: str, shard: Shard) -> tuple[str, str] | None:
    """Return address and ETag of the part that a shard replaces; None if it replaces none."""
    if (part := shard.replaces) is None:
        return None
    return layout.part_uri(destination, part.run_id, shard.number, part.last), part.etag


def shards_with_runs(run: Run, plan: Iterable[Shard], storage: Storage) -> Iterator[tuple[Run, Shard]]:
    """Yield each shard with the run whose settings it dreams: an earlier run, if the shard replaces a part."""
    owner = run
    for shard in plan:
        run_id = shard.run_of_part(run.run_id)
        if owner.run_id != run_id:
            owner = load_run(run.destination, run_id, storage)
        yield owner, shard


def write(uri: str, text: str, storage: Storage) -> None:
    """Write one JSON file of a run's record, unless it exists."""
    storage.write_if_absent(uri, text.encode(), JSON)
