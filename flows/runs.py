"""The record of a run in its destination: claimed, frozen, resumed, finished. S3 is the truth; no clock decides.

DEST/_runs/<run_id>/job.json       the job, with every point of its grid; comes first
DEST/_runs/active.json             the one unfinished run of this destination
DEST/_runs/<run_id>/plan.parquet   the frozen plan; without rows where there was nothing to do
DEST/_runs/<run_id>/index.parquet  what its parts say, for later runs (`history`)
DEST/_runs/<run_id>/success.json   comes last, with the counts

A process may sleep through anything: its run may be finished, given up and followed by others when it wakes. So each of
these files but `active.json` is written once, by whoever is first, and `active.json` is removed only by its own run.
"""

import json
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from dreamcore.errors import DreamgridError, InvalidInput, Unavailable
from dreamcore.objectives import Frozen
from dreamcore.settings import result_id
from flows import history, manifest, sheets
from flows.ahead import ahead, threads
from flows.job import DreamJob
from flows.plan import Plan, PlannedSettings, Shard, Source, Sources, make_plan, result_name
from flows.storage import Storage

ENOUGH_ROWS = 100
"""So many rows must be there before a run is stopped because too many of them failed."""

_JSON = "application/json"
_WRITERS = 8
_SHUFFLED = 64
"""Shards of which one is chosen by chance to be the next."""
_chance = secrets.SystemRandom()
_OTHERWISE = (
    "other files or another version of Dreamgrid: put them back and run it again to finish it, or add --abandon to "
    "give it up"
)


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
        return manifest.record_of(self.destination, self.run_id)

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
    """Found below the source; of a completed run, those that it dreamt."""
    photographs_failed_earlier: int = 0
    """Where there was nothing to do: those that have no dream under some settings, since they failed in other runs."""
    failed_earlier: int = 0
    """The dreams that they are without."""
    seconds: float = 0.0
    source: str
    destination: str
    manifest: str
    """Where the manifest lies, for any reader of Parquet."""
    sheets: str | None = None
    """Where contact sheets lie; None where none were drawn."""

    @property
    def why_nothing(self) -> str:
        """Why there was nothing to do, where there was not."""
        if not self.photographs:
            return f"there is no photograph in {self.source}"
        if self.failed_earlier:
            return (
                f"{self.failed_earlier} dreams failed earlier (photographs: {self.photographs_failed_earlier}), which "
                f"are tried again when the photograph changes; see `dreamgrid manifest failures {self.destination}`"
            )
        return "every photograph has its dreams"


def active_uri(destination: str) -> str:
    """Address of the mark of a destination's unfinished run."""
    return f"{destination}_runs/active.json"


def _mark(destination: str, storage: Storage) -> dict[str, str] | None:
    mark = storage.read(active_uri(destination))
    return dict(json.loads(mark)) if mark is not None else None


def holder(job: DreamJob, storage: Storage) -> str | None:
    """The unfinished run of this job, which the next one goes on with; None where the destination is free.

    Raises:
        InvalidInput: another job's run is unfinished there.
    """
    held = _mark(job.destination, storage)
    if held is None:
        return None
    if held["job_id"] != job.job_id:
        raise InvalidInput(
            f"{job.destination} is held by the unfinished run {held['run_id']} of another job: finish that with "
            f"`dreamgrid run --resume {job.destination}`, or add --abandon to give it up"
        )
    return held["run_id"]


def unfinished(destination: str, storage: Storage) -> Run | None:
    """The run that holds a destination, as it was begun; None where there is none."""
    held = _mark(destination, storage)
    return _begun(destination, held["run_id"], storage) if held else None


def begun(destination: str, run_id: str, storage: Storage) -> Run:
    """A run as it was begun: a worker is told its name, and reads the rest.

    Raises:
        Unavailable: its record is gone.
    """
    run = _begun(destination, run_id, storage)
    if run is None:
        raise Unavailable(f"{manifest.record_of(destination, run_id)}job.json is gone: put it back, or add --abandon")
    return run


def begun_job(destination: str, storage: Storage) -> dict[str, Any]:
    """The fields of the job whose unfinished run holds a destination.

    Raises:
        InvalidInput: no run is unfinished there.
    """
    run = unfinished(destination, storage)
    if run is None:
        raise InvalidInput(f"{destination} has no unfinished run to go on with")
    return run.job.model_dump(mode="json")


def finished(destination: str, storage: Storage) -> Iterator[str]:
    """The name of every run that came to its end."""
    for found in storage.list(f"{destination}_runs/"):
        folder, _, name = found.uri.rpartition("/")
        if name == "success.json":
            yield folder.rpartition("/")[2]


def planned(destination: str, run_id: str, storage: Storage) -> Iterator[tuple[Source, list[str]]]:
    """Each photograph of a run with the identities of its settings, whatever else its version says of them.

    Raises:
        ValueError, LookupError, TypeError: its record is not whole.
    """
    record = json.loads(storage.read(f"{manifest.record_of(destination, run_id)}job.json") or b"")
    identities = [str(each["settings_id"]) for each in record["settings"]]
    plan = _plan(destination, run_id, storage)
    if plan is None:
        raise ValueError("it has no plan")
    for work in plan.works():
        yield work.source, [identities[index] for index in work.settings]


def _begun(destination: str, run_id: str, storage: Storage) -> Run | None:
    data = storage.read(f"{manifest.record_of(destination, run_id)}job.json")
    try:
        return Run.model_validate_json(data) if data else None
    except ValidationError as error:
        raise InvalidInput(f"the run {run_id} in {destination} was begun with {_OTHERWISE}") from error


def claim(job: DreamJob, settings: Sequence[PlannedSettings], storage: Storage) -> tuple[Run, Plan | None]:
    """Take the destination for a run of this job, or go on with the job's unfinished run.

    Returns:
        The run, and its plan where that is frozen already.

    Raises:
        InvalidInput: another job's run is unfinished there, or this job's was begun with other settings.
    """
    run = Run(run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}", job=job, settings=tuple(settings))
    mark = json.dumps({"run_id": run.run_id, "job_id": job.job_id}).encode()
    while True:
        held = holder(job, storage)
        if held is None:
            storage.write_new(f"{run.folder}job.json", run.model_dump_json(indent=1).encode(), _JSON)
            if storage.write_new(active_uri(job.destination), mark, _JSON):
                return run, None
        elif (plan := _plan(job.destination, held, storage)) is not None and not plan:
            release(job.destination, held, storage)  # whoever ended it was stopped before that
        else:
            run = run.model_copy(update={"run_id": held})
            _check_unchanged(run, storage)
            return run, plan


def going_on(job: DreamJob, settings: Sequence[PlannedSettings], storage: Storage) -> tuple[Run, Plan | None] | None:
    """What `claim` would go on with; None where it would begin a new run. Nothing is touched.

    Raises:
        InvalidInput: `claim` would refuse.
    """
    held = holder(job, storage)
    plan = _plan(job.destination, held, storage) if held else None
    if held is None or (plan is not None and not plan):
        return None
    run = Run(run_id=held, job=job, settings=tuple(settings))
    _check_unchanged(run, storage)
    return run, plan


def _check_unchanged(run: Run, storage: Storage) -> None:
    """Raise `InvalidInput` where the settings of a run that was begun are no longer what they were."""
    begun = _begun(run.destination, run.run_id, storage) or run
    if [each.settings_id for each in begun.settings] != [each.settings_id for each in run.settings]:
        raise InvalidInput(f"the unfinished run {run.run_id} was begun with {_OTHERWISE}")


def freeze(run: Run, shards: Plan, storage: Storage) -> Plan:
    """Fix the plan of a run, also an empty one; the first plan wins, also over one of another attempt at the same time.

    Raises:
        Unavailable: the run was ended by another attempt, which saw nothing to do, or was given up.
    """
    frozen = _fixed(run.destination, run.run_id, shards, storage)
    if frozen is None or (shards and not frozen):
        raise Unavailable(f"the run {run.run_id} was ended by another process before anything was dreamt")
    return frozen


def frozen_plan(run: Run, storage: Storage) -> Plan | None:
    """The plan of a run that was begun; None where it is not frozen yet."""
    return _plan(run.destination, run.run_id, storage)


def _plan(destination: str, run_id: str, storage: Storage) -> Plan | None:
    data = storage.read(_plan_uri(destination, run_id))
    return Plan(data) if data is not None else None


def _fixed(destination: str, run_id: str, plan: Plan, storage: Storage) -> Plan | None:
    """The plan of a run, which is `plan` unless another was there; None where that has gone since."""
    is_ours = storage.write_new(_plan_uri(destination, run_id), plan.parquet, manifest.CONTENT_TYPE)
    return plan if is_ours else _plan(destination, run_id, storage)


def _plan_uri(destination: str, run_id: str) -> str:
    return f"{manifest.record_of(destination, run_id)}plan.parquet"


def remaining(run: Run, shards: Plan, storage: Storage) -> Iterator[Shard]:
    """The shards whose part is not there yet, each made when it is asked for: all of them may be more than fits.

    They come in no order that two processes have in common, so that these share the work and do not all do all of it.
    """
    some: list[Shard] = []
    for shard in _without_part(run.destination, run.run_id, shards, storage):
        some.append(shard)
        if len(some) == _SHUFFLED:
            yield some.pop(_chance.randrange(_SHUFFLED))
    _chance.shuffle(some)
    yield from some


def _without_part(destination: str, run_id: str, shards: Plan, storage: Storage) -> Iterator[Shard]:
    there = set(manifest.parts(storage, destination, run_id))
    return (shard for shard in shards if manifest.part_uri(destination, run_id, shard.number) not in there)


def tally(run: Run, storage: Storage) -> Counter[str]:
    """How many rows of each status the manifest has of this run."""
    counts = Counter[str]()
    for table in manifest.tables(storage, run.destination, ["status"], run.run_id):
        counts.update(manifest.counted(table["status"]))
    return counts


def check_failures(run: Run, counts: Mapping[str, int], storage: Storage) -> None:
    """Raise `DreamgridError` where more of the dreams failed than the job allows; `counts` is by status."""
    rows, failed = sum(counts.values()), counts.get("failed", 0)
    if rows < ENOUGH_ROWS or failed <= rows * run.job.max_failures:
        return
    found = manifest.rows_of_failures(storage, run.destination, run.run_id)
    kinds = Counter(row["error_kind"] for row in found if row["status"] == "failed")
    raise DreamgridError(
        f"the run {run.run_id} was stopped: {failed} of the first {rows} dreams failed "
        f"({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}). What is there stays. To go on all "
        "the same, run it again with --max-failures 1; or add --abandon to give it up"
    )


def finish(run: Run, shards: Plan, seconds: float, storage: Storage) -> Report:
    """Count what the manifest says of this run and write `success.json`.

    Raises:
        DreamgridError: there is not exactly one row for each dream that was planned.
    """
    index, planned = history.gather(run.destination, run.run_id, storage), shards.dreams
    counts = Counter(manifest.counted(index["status"]))
    if counts.total() != planned:
        raise DreamgridError(
            f"the run {run.run_id} has {counts.total()} rows of {planned} planned: it was given up by another process, "
            "or parts of it were removed. What is there stays; add --abandon to begin a new run with what is missing"
        )
    report = Report(
        run_id=run.run_id,
        state="completed",
        planned=planned,
        done=counts["done"],
        failed=counts["failed"],
        skipped=counts["skipped"],
        photographs=sum(1 for _ in shards.sources()),
        seconds=round(seconds, 3),
        source=run.job.source,
        destination=run.destination,
        manifest=manifest.folder_of(run.destination),
        sheets=sheets.folder_of(run.destination) if run.job.sheets and counts["done"] else None,
    )
    history.keep(index, run.folder, storage)
    storage.write_new(f"{run.folder}success.json", report.model_dump_json(indent=1).encode(), _JSON)
    return report


def release(destination: str, run_id: str, storage: Storage) -> None:
    """Give a destination free, if this run still holds it."""
    uri = active_uri(destination)
    mark = storage.read(uri)
    if mark is not None and json.loads(mark)["run_id"] == run_id:
        storage.delete_same(uri, mark)


def abandon(destination: str, storage: Storage) -> None:
    """Give up the unfinished run of a destination, if there is one. Its parts stay valid rows.

    A process of it that still works, or sleeps, can add none from now on: what it would write is there already, an
    empty plan or an empty part for each shard that has none. So another run may dream what is missing at once.
    """
    if (held := _mark(destination, storage)) is None:
        return
    run_id, empty, nothing = held["run_id"], manifest.to_parquet([]), make_plan(Sources(()), (), lambda _key: True)
    shards = _plan(destination, run_id, storage)
    if shards is None:
        shards = _fixed(destination, run_id, nothing, storage) or nothing
    left = _without_part(destination, run_id, shards, storage)
    parts = (manifest.part_uri(destination, run_id, shard.number) for shard in left)
    with threads(_WRITERS) as writers:
        for _ in ahead(writers, lambda part: storage.write_new(part, empty, manifest.CONTENT_TYPE), parts, _WRITERS):
            pass
    if shards:
        history.keep(history.gather(destination, run_id, storage), manifest.record_of(destination, run_id), storage)
    release(destination, run_id, storage)
