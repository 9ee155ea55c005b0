"""What there is to do: checks a job against the world, finds its photographs, takes away what is done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from dreamcore.catalog import network_spec, weights_identity_of
from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.images import has_image_suffix
from dreamcore.settings import DreamSettings, settings_id
from flows import layout, run_record
from flows.assets import resolve
from flows.cost import CORE, GPU, Throughput, estimate_seconds
from flows.history import finished_dreams
from flows.job import DreamJob, explain_validation
from flows.layout import parse_uri
from flows.machine import gpu_count, worker_count
from flows.plan import Plan, Sources, make_plan
from flows.run_record import Run
from flows.storage import FAIL_FAST, ObjectInfo, Storage, storage
from flows.work import PlannedSettings, Source


@dataclass(frozen=True)
class Scan:
    """The photographs of a job."""

    sources: Sources
    ignored: int
    """Objects below the source that are no photographs by their name."""


def plan_settings(job: DreamJob) -> tuple[PlannedSettings, ...]:
    """Every point of the job's grid with its identity and cost.

    Raises:
        InvalidInput: there is no such network, layer, channel or file.
    """
    planned = {}
    for settings in _settled(job):
        known, weights = network_spec(settings.model), weights_identity_of(settings)
        cost = max(known.layer(target.layer).cost for target in settings.layers)
        identity = settings_id(settings, weights)
        planned[identity] = PlannedSettings(settings=settings, settings_id=identity, weights=weights, cost=cost)
    return tuple(planned.values())  # of two depths the same layer may be nearest


def _settled(job: DreamJob) -> list[DreamSettings]:
    """Every point of the job's grid with its files and layers, which are looked at before anything begins."""
    try:
        return [resolve(settings) for settings in job.settings()]
    except ValidationError as error:
        raise InvalidInput(f"grid: {explain_validation(error)}") from error
    except Unavailable as error:
        raise InvalidInput(str(error)) from error


def check_access(job: DreamJob) -> None:
    """See within seconds whether source and destination can be reached, and whether the source is one.

    Raises:
        InvalidInput: no credentials, refused, no such bucket, nothing answers, or the source is mistyped.
    """
    store = Storage(FAIL_FAST)
    try:
        store.check_bucket(job.source)
        store.check_bucket(job.destination)
        _check_source(job, store)
    except Unavailable as error:
        raise InvalidInput(str(error)) from error


def _check_source(job: DreamJob, store: Storage) -> None:
    """Raise `InvalidInput` where the source is no photograph, and no folder that anything is in.

    One that is spelt as a folder may be empty: a job of every night may begin before the first photograph arrives.
    """
    if job.source.endswith("/") or not parse_uri(job.source)[1]:
        return
    there = store.find(job.source)
    if (there and has_image_suffix(job.source)) or any(True for _ in store.list(f"{job.source}/")):
        return
    if store.find(layout.active_uri(job.destination)):
        return  # that run goes on with the photographs that it found, even if they are gone by now
    if there:
        raise InvalidInput(f"{job.source} is no photograph by its name, which would end in .jpg, .png or the like")
    raise InvalidInput(
        f"there is neither a photograph nor a folder {job.source}: correct it, or write {job.source}/ for a folder "
        "that is still empty"
    )


@lru_cache
def store_warning(destination: str) -> str | None:
    """What to tell people where the store ignores conditional writes, on which the protocol rests; else None.

    Tried once a process: the command asks before the flow does.
    """
    if storage().supports_conditional_writes(f"{destination}_runs/"):
        return None
    return f"{storage().endpoint} ignores conditional writes: let no other run write to {destination} meanwhile"


def scan(job: DreamJob, store: Storage) -> Scan:
    """Find every photograph of the source; a destination below it is left out."""
    ignored = 0
    folder = job.source.rstrip("/") + "/"
    left_out = () if folder.startswith(job.destination) else job.destination  # a job's source is not among its results
    alone = store.find(job.source) if has_image_suffix(parse_uri(job.source)[1]) else None

    def photographs() -> Iterator[Source]:
        nonlocal ignored
        for found in [alone] if alone else store.list(folder):
            if found.uri.startswith(left_out) or found.uri.endswith("/"):
                continue
            if has_image_suffix(found.uri):
                yield _source(found, folder)
            else:
                ignored += 1

    sources = Sources(photographs())
    return Scan(sources, ignored)


def _source(found: ObjectInfo, folder: str) -> Source:
    below = found.uri.removeprefix(folder) if found.uri.startswith(folder) else found.uri.rpartition("/")[2]
    return Source(found.uri, below, found.etag, found.size)


def throughput() -> Throughput:
    """How fast this machine dreams, for a plan to be cut by.

    Raises:
        InvalidInput: `DREAMGRID_WORKERS` is no positive number.
    """
    return Throughput(worker_count(), GPU if gpu_count() else CORE)


def estimate(job: DreamJob) -> dict[str, Any]:
    """What a run of the job would do and about what it would cost; nothing is touched.

    Raises:
        InvalidInput: the job cannot run.
    """
    settings = plan_settings(job)
    check_access(job)
    found = scan(job, storage())
    before, here = finished_dreams(job.destination, storage()), throughput()
    run, frozen, refusal = _going_on(job, settings)
    if run and frozen:
        everything, todo = frozen.dreams, run_record.remaining_shards(run, frozen, storage())
    else:
        everything, todo = len(found.sources) * len(settings), iter(make_plan(found.sources, settings, before, here))
    shards = planned = 0
    seconds = 0.0
    for shard in todo:
        shards, planned = shards + 1, planned + shard.dreams
        dreams = ((work.source, settings[each]) for work in shard.works for each in work.settings)
        seconds += sum(estimate_seconds(source, planned, here.speed) for source, planned in dreams)
    return {
        "source": job.source,
        "destination": job.destination,
        "resumes": run.run_id if run else None,
        "refused": refusal,
        "photographs": len(found.sources),
        "ignored": found.ignored,
        "settings": len(settings),
        "planned": planned,
        "done": everything - planned,
        "failed_earlier": before.failures(found.sources, settings).dreams,
        "shards": shards,
        "processes": here.processes,
        "estimated_seconds_of_one_process": round(seconds, 1),
        "estimated_seconds": round(seconds / here.processes, 1),
    }


def _going_on(job: DreamJob, settings: Sequence[PlannedSettings]) -> tuple[Run | None, Plan | None, str | None]:
    """The run that would be gone on with, its plan if there is one already, or else why a run would be refused."""
    try:
        run, plan = run_record.resumable_run(job, settings, storage()) or (None, None)
    except InvalidInput as error:
        return None, None, str(error)
    return run, plan, None
