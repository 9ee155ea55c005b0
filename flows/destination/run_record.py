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
from typing import Any

from pydantic import ValidationError

from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.settings import result_id
from dreamcore.targets import Frozen
from flows.destination import manifest
from flows.destination.parts import list_parts
from flows.jobs.assets import can_repeat
from flows.jobs.job import DreamJob
from flows.jobs.plan import Plan
from flows.jobs.work import PlannedSettings, Shard, Source
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = [
    "HeldDestination",
    "Run",
    "active_job",
    "active_run_id",
    "as_started",
    "check_no_compaction",
    "find_run",
    "load_active_run",
    "load_run",
    "planned_results",
    "read_mark",
    "read_mark_of_no_retry",
    "replaced_part",
    "resumable_run",
    "shards_with_runs",
    "unfinished",
    "unfinished_shards",
]

JSON = "application/json"
_CHANGED = (
    "other files or another version of Dreamgrid: restore them and run the job again to finish it, or add --abandon "
    "to abandon it"
)


class HeldDestination(InvalidInput):
    """The run of another job is unfinished in the destination. Nothing says whether it is working or was stopped."""


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


# --- the unfinished run


def make_mark(run: Run) -> bytes:
    """Return the mark of an unfinished run."""
    return json.dumps({"run_id": run.run_id, "job_id": _claim_id(run.job)}).encode()


def _claim_id(job: DreamJob) -> str:
    """Return what must be equal for a job to continue an unfinished run. A retry does not continue any other run."""
    return f"{job.job_id}{'-retry' if job.retry_failed else ''}"


def _is_retry(mark: Mapping[str, str]) -> bool:
    """Return whether the unfinished run with this mark tries failed dreams again."""
    return mark["job_id"].endswith("-retry")


def read_mark(destination: str, storage: Storage) -> dict[str, str] | None:
    """Return `run_id` and `job_id` of the unfinished run; None if the destination is free."""
    mark = storage.read(layout.active_uri(destination))
    return dict(json.loads(mark)) if mark is not None else None


def read_mark_of_no_retry(destination: str, storage: Storage, verb: str) -> dict[str, str] | None:
    """Return the mark of the unfinished run, as `read_mark`, for a command that cannot work beside a retry.

    Raises:
        HeldDestination: the run tries failed dreams again. The message says to finish it, then to `verb`.
    """
    mark = read_mark(destination, storage)
    if mark and _is_retry(mark):
        raise HeldDestination(
            f"{destination} is held by the unfinished run {mark['run_id']}, which tries failed dreams again and may be "
            f"working now: wait until it has ended, then {verb}. If that run was stopped, `dreamgrid run --resume "
            f"{destination}` continues it"
        )
    return mark


def active_run_id(job: DreamJob, storage: Storage) -> str | None:
    """Return the unfinished run of this job, which the next run continues; None if the destination is free.

    Raises:
        HeldDestination: another job's run is unfinished there.
    """
    mark = read_mark(job.destination, storage)
    if mark is None:
        return None
    if mark["job_id"] != _claim_id(job):
        other = "which tries failed dreams again" if _is_retry(mark) else "of another job"
        if mark["job_id"] == job.job_id:
            other = "of this job, which is not a retry"
        raise HeldDestination(
            f"{job.destination} is held by the unfinished run {mark['run_id']} {other}. That run may be working now: "
            f"wait until it has ended, then try again. If that run was stopped, `dreamgrid run --resume "
            f"{job.destination}` continues it. --abandon only gives it up: what it has not dreamt yet is left out"
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
    return as_started(Run(run_id=active, job=job, settings=tuple(settings)), storage), plan


def as_started(run: Run, storage: Storage) -> Run:
    """Return an unfinished run with the settings it was started with.

    The version of Dreamgrid that started it may have had other defaults.

    Raises:
        InvalidInput: dreams with these settings cannot be made any more, because files have changed.
    """
    started = _load(run.destination, run.run_id, storage) or run
    if [each.settings_id for each in started.settings] == [each.settings_id for each in run.settings]:
        return run
    if not all(can_repeat(each.settings, each.settings_id, storage) for each in started.settings):
        raise InvalidInput(f"the unfinished run {run.run_id} was started with {_CHANGED}")
    return run.model_copy(update={"settings": started.settings})


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

    Another version of Dreamgrid may have begun the run and have given its dreams other labels. For a movie, the folder
    of its frames is yielded, too.
    """
    for owner, shard in shards_with_runs(run, read_plan(run.destination, run.run_id, storage) or (), storage):
        for work in shard.works:
            for index in work.settings:
                uri = owner.result_uri(work.source, owner.settings[index])
                yield from (uri, layout.result_place(uri))
                if layout.is_movie(uri):
                    yield layout.frames_folder(owner.destination, uri)


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
