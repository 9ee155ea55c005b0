"""The record of a run in its destination: claimed, frozen, resumed, finished. S3 is the truth; no clock decides.

DEST/_runs/active.json             the one unfinished run of this destination
DEST/_runs/<run_id>/job.json       the job, with every point of its grid
DEST/_runs/<run_id>/plan.parquet   the frozen plan
DEST/_runs/<run_id>/success.json   comes last, with the counts
"""

import json
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal

from dreamcore.errors import InvalidInput
from dreamcore.objectives import Frozen
from dreamcore.settings import result_id
from flows import manifest
from flows.job import DreamJob
from flows.plan import Plan, PlannedSettings, Shard, Source, result_name
from flows.storage import Storage


class Run(Frozen):
    """One run of a job: what every shard of it has to know."""

    run_id: str
    job: DreamJob
    settings: tuple[PlannedSettings, ...]

    @property
    def destination(self) -> str:
        """Folder of the results."""
        return self.job.destination

    @property
    def folder(self) -> str:
        """Folder of this run's record."""
        return f"{self.destination}_runs/{self.run_id}/"

    def result_uri(self, source: Source, planned: PlannedSettings) -> str:
        """Address of the dream of a photograph under a point of the grid."""
        return self.destination + result_name(source, planned, result_id(source.etag, planned.settings_id))


class Report(Frozen):
    """What became of a run."""

    run_id: str | None
    """None when there was nothing to do."""
    state: Literal["completed", "nothing to do"]
    planned: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    photographs: int = 0
    """Found below the source."""
    seconds: float = 0.0
    destination: str
    manifest: str
    """Where the manifest lies, for any reader of Parquet."""

    @property
    def why_nothing(self) -> str:
        """Why there was nothing to do, where there was not."""
        return "every photograph has its dreams" if self.photographs else "there is no photograph below the source"


def active_uri(destination: str) -> str:
    """Address of the mark of a destination's unfinished run."""
    return f"{destination}_runs/active.json"


def holder(job: DreamJob, storage: Storage) -> str | None:
    """The unfinished run of this job, which the next one goes on with; None where the destination is free.

    Raises:
        InvalidInput: another job's run is unfinished there.
    """
    mark = storage.read(active_uri(job.destination))
    if mark is None:
        return None
    held = json.loads(mark)
    if held["job_id"] != job.job_id:
        raise InvalidInput(
            f"{job.destination} is held by the unfinished run {held['run_id']} of another job: run that job again to "
            f"finish it (see {job.destination}_runs/{held['run_id']}/job.json), or add --abandon to give it up"
        )
    return str(held["run_id"])


def unfinished(destination: str, storage: Storage) -> Run | None:
    """The run that holds a destination, as it was begun; None where there is none, or it has no plan yet."""
    mark = storage.read(active_uri(destination))
    return _begun(destination, json.loads(mark)["run_id"], storage) if mark else None


def finished(destination: str, storage: Storage) -> Iterator[tuple[Run, Plan]]:
    """Every run that came to its end, with its plan."""
    for found in storage.list(f"{destination}_runs/"):
        folder, _, name = found.uri.rpartition("/")
        run = _begun(destination, folder.rpartition("/")[2], storage) if name == "success.json" else None
        plan = frozen_plan(run, storage) if run else None
        if run and plan:
            yield run, plan


def _begun(destination: str, run_id: str, storage: Storage) -> Run | None:
    data = storage.read(f"{destination}_runs/{run_id}/job.json")
    return Run.model_validate_json(data) if data else None


def claim(job: DreamJob, settings: Sequence[PlannedSettings], storage: Storage) -> Run:
    """Take the destination for a run of this job, or go on with the job's unfinished run.

    Raises:
        InvalidInput: another job's run is unfinished there.
    """
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    mark = json.dumps({"run_id": run_id, "job_id": job.job_id}).encode()
    while not storage.write_new(active_uri(job.destination), mark, "application/json"):
        if held := holder(job, storage):  # else it was given free in between
            run_id = held
            break
    return Run(run_id=run_id, job=job, settings=tuple(settings))


def check_unchanged(run: Run, storage: Storage) -> None:
    """Raise `InvalidInput` where the settings of a run that was begun are no longer what they were."""
    begun = _begun(run.destination, run.run_id, storage) or run
    if [each.settings_id for each in begun.settings] != [each.settings_id for each in run.settings]:
        raise InvalidInput(
            f"the unfinished run {run.run_id} was begun with other files or another version of Dreamgrid: put them "
            "back and run it again to finish it, or add --abandon to give it up"
        )


def freeze(run: Run, shards: Plan, storage: Storage) -> Plan:
    """Fix the plan of a run; the first plan wins, also over one of another attempt at the same time."""
    storage.write(f"{run.folder}job.json", run.model_dump_json(indent=1).encode(), "application/json")
    storage.write_new(f"{run.folder}plan.parquet", shards.parquet, "application/vnd.apache.parquet")
    return frozen_plan(run, storage) or shards


def frozen_plan(run: Run, storage: Storage) -> Plan | None:
    """The plan of a run that was begun before; None for a new one."""
    data = storage.read(f"{run.folder}plan.parquet")
    return Plan(data) if data is not None else None


def remaining(run: Run, shards: Plan, storage: Storage) -> list[Shard]:
    """The shards whose part is not there yet."""
    there = set(manifest.parts(storage, run.destination, run.run_id))
    return [shard for shard in shards if manifest.part_uri(run.destination, run.run_id, shard.number) not in there]


def finish(run: Run, shards: Plan, seconds: float, storage: Storage) -> Report:
    """Count what the manifest says of this run and write `success.json`."""
    statuses: Counter[str] = Counter()
    for table in manifest.tables(storage, run.destination, ["status"], run.run_id):
        statuses.update(table["status"].to_pylist())
    report = Report(
        run_id=run.run_id,
        state="completed",
        planned=shards.dreams,
        done=statuses["done"],
        failed=statuses["failed"],
        skipped=statuses["skipped"],
        photographs=sum(1 for _ in shards.sources()),
        seconds=round(seconds, 3),
        destination=run.destination,
        manifest=f"{run.destination}manifest/",
    )
    storage.write(f"{run.folder}success.json", report.model_dump_json(indent=1).encode(), "application/json")
    return report


def release(destination: str, storage: Storage) -> None:
    """Give a destination free; the parts of a run that is given up stay valid rows."""
    storage.delete(active_uri(destination))
