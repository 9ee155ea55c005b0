"""What a run of a job would do, how long it would take, and what it would cost. Nothing is written to S3."""

from collections.abc import Iterable, Sequence
from typing import Any

from dreamcore.errors import InvalidInput
from flows.destination import run_record
from flows.destination.history import finished_dreams
from flows.destination.run_record import Run
from flows.jobs import calibration
from flows.jobs.cost import Throughput, step_kind
from flows.jobs.job import DreamJob
from flows.jobs.plan import Plan, make_plan
from flows.jobs.work import PlannedSettings, Shard
from flows.planning.channels import unwanted_dreams, without
from flows.planning.retry import plan_retry
from flows.planning.scan import check_access, plan_settings, scan
from flows.planning.speed import Earlier, earlier_run, speed_from, throughput
from flows.planning.workload import Workload, open_some
from flows.s3.listing import OnListed
from flows.s3.storage import storage

__all__ = ["estimate"]

SHORT_SECONDS = 3.0
"""Seconds of the reference core for each process, below which nothing is measured: the start takes longer."""
_MEASURED_KINDS = 6


def estimate(
    job: DreamJob, price_per_hour: float | None = None, on_listed: OnListed = lambda _count: None
) -> dict[str, Any]:
    """Return what a run of the job would do, and an estimate of its duration and cost. Nothing is written to S3.

    The estimate is for this machine. It uses the speed of an earlier run in the destination on the same kind of
    machine. If there is none, the speed is measured and kept in the user's cache.

    Args:
        job: the job.
        price_per_hour: what an hour of this machine costs, in any currency.
        on_listed: called with the number of objects of the source listed so far.

    Returns:
        The fields that `dreamgrid plan --json` prints: counts of photographs, grid points, shards and dreams, the run
        that would be resumed, the reason why a run would be refused, estimated seconds and where their speed comes
        from, requests to S3 by method, and the cost.

    Raises:
        InvalidInput: the job cannot run.
    """
    settings, store = plan_settings(job), storage()
    check_access(job)
    found = scan(job, store, on_listed)
    finished = finished_dreams(job.destination, store)
    run, frozen, refusal = _resumable(job, settings)
    pixels = open_some(found.sources, store)
    is_new_plan = not (run and frozen) and not job.retry_failed
    unwanted = unwanted_dreams(found.sources, settings if is_new_plan else (), store)

    def planned_work() -> tuple[int, Workload]:
        work = Workload(pixels, job.sheets)
        if run and frozen:
            total, todo = frozen.dreams, run_record.unfinished_shards(job.destination, run.run_id, frozen, store)
        elif job.retry_failed:
            again = plan_retry(job, store)
            total, todo = again.dreams, iter(again)
        else:
            total = len(found.sources) * len(settings) - len(unwanted)
            todo = iter(make_plan(found.sources, settings, without(unwanted, finished), throughput(settings)))
        for shard in todo:
            work.add(shard, _settings_of(job, shard, settings))
        return total, work

    total, work = planned_work()
    earlier = earlier_run(job.destination, settings, store) if work.dreams else None
    machine, origin, is_new = speed_for(work, earlier)
    if is_new and not frozen:
        total, work = planned_work()  # a run cuts its shards by the speed that is now kept
    seconds = work.elapsed_seconds(machine)
    runs = sum(1 for _ in run_record.finished_run_ids(job.destination, store))
    return {
        "source": job.source_in_words,
        "destination": job.destination,
        "resumes": run.run_id if run else None,
        "refused": refusal,
        "photographs": len(found.sources),
        **found.with_warnings(finished).report(),
        "grid_points": len(settings),
        "planned": work.dreams,
        "movie_frames": work.frames or None,
        "done": total - work.dreams,
        "failed_earlier": finished.failures(found.sources, settings).dreams,
        "shards": work.shards,
        "processes": machine.processes,
        "estimated_seconds_of_one_process": round(sum(work.seconds_of_shards(machine)), 1),
        "estimated_seconds": round(seconds, 1),
        "estimated_from": origin,
        "estimated_requests": work.requests(
            len(found.sources) + found.ignored, runs, machine.processes, job.s3_addresses if job.sources else ()
        ),
        "price_per_hour": price_per_hour,
        "estimated_cost": None if price_per_hour is None else round(seconds / 3600 * price_per_hour, 4),
    }


def speed_for(work: Workload, earlier: Earlier | None) -> tuple[Throughput, str, bool]:
    """Return the speed of this machine for the work, where it comes from, and whether it was measured just now."""
    settings, kept = [planned for planned, _ in work.points.values()], calibration.kept()
    if earlier:
        machine = speed_from(settings, kept, earlier.speeds)
        if _knows(machine, settings):
            return machine, f"the run {earlier.run_id}", False
    speeds = earlier.speeds if earlier else {}
    machine = speed_from(settings, kept, speeds)
    if _knows(machine, settings):
        return machine, "an earlier measurement on this machine", False
    if work.reference_seconds < SHORT_SECONDS * machine.processes:
        return machine, "typical figures, because the work is short", False
    if measured := calibration.measure(_to_measure(work, machine)):
        machine = speed_from(settings, measured, speeds)
        return machine, f"measured on this machine in {measured.took_seconds:.1f} s", True
    return machine, "typical figures, because this machine could not be measured", False


def _knows(machine: Throughput, settings: Iterable[PlannedSettings]) -> bool:
    return all(step_kind(planned) in machine.by_kind for planned in settings)


def _to_measure(work: Workload, machine: Throughput) -> list[tuple[PlannedSettings, int]]:
    """Return one point for each kind of step whose speed is not known: the costliest first, then the others evenly."""
    unknown: dict[str, tuple[PlannedSettings, int]] = {}
    for planned, pixels in work.points.values():
        if (kind := step_kind(planned)) not in machine.by_kind:
            unknown.setdefault(kind, (planned, pixels))
    by_cost = sorted(unknown.values(), key=lambda each: -each[0].cost)
    return by_cost[:: -(-len(by_cost) // _MEASURED_KINDS)]


def _settings_of(job: DreamJob, shard: Shard, settings: Sequence[PlannedSettings]) -> Sequence[PlannedSettings]:
    """Return the settings that a shard refers to: `settings`, or those of the earlier run whose part it replaces."""
    if shard.replaces is None:
        return settings
    return run_record.load_run(job.destination, shard.replaces.run_id, storage()).settings


def _resumable(job: DreamJob, settings: Sequence[PlannedSettings]) -> tuple[Run | None, Plan | None, str | None]:
    """Return the run that would be resumed, its plan if it is frozen, and the reason why a run would be refused."""
    try:
        run, plan = run_record.resumable_run(job, settings, storage()) or (None, None)
    except InvalidInput as error:
        return None, None, str(error)
    return run, plan, None
