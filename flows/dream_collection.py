"""The Prefect flow: dream every photograph below a prefix under every point of a grid."""

import os
import socket
import time
from contextlib import closing
from contextvars import ContextVar
from functools import lru_cache, partial

from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from dreamcore.fields import Reference
from flows.destination import run_record
from flows.destination.run_record import Run
from flows.destination.run_report import FailedRun, Report, why_failed
from flows.jobs.job import DreamJob
from flows.jobs.work import PlannedSettings, Shard, ShardResult
from flows.machine.machine import check_environment
from flows.machine.pace import shard_counter
from flows.machine.prefect_logs import log_record, shorten_errors
from flows.machine.prefetch import AnyFuture
from flows.planning.scan import Scan, check_access, plan_settings, scan, store_warning
from flows.planning.speed import throughput
from flows.prefect_ui import events
from flows.prefect_ui.artifacts import show
from flows.prefect_ui.cancellation import clean_termination
from flows.prefect_ui.prefect_names import run_name, tag_run
from flows.prefect_ui.progress import Progress, listing_progress
from flows.prefect_ui.retries import with_retries
from flows.running.executors import WorkerPool, check_executor, open_pool, submitted
from flows.running.protocol import FinishedRun, run_job
from flows.s3.storage import storage

__all__ = ["checked_settings", "dream_collection"]

shorten_errors()  # here, because Prefect logs an error of a deployed flow in the process that imports the flow

checked_settings: ContextVar[tuple[PlannedSettings, ...] | None] = ContextVar("checked_settings", default=None)
"""Set by a caller in the same process that has already checked the job: the points of its grid."""


@flow(name="dream-collection", flow_run_name=run_name)
def dream_collection(job: DreamJob) -> State[Report]:
    """Dream every photograph below a prefix under every point of a grid.

    Nothing is done twice: the flow skips what the manifest of the destination has, and continues an unfinished run.

    Returns:
        The final state. Prefect gives callers in the same process the report inside it, or raises `FailedRun`.
    """
    with clean_termination():
        tag_run(job)
        settings = check(job)
        finished = dream(job, settings)
        report = show(finished)
        state = final_state(job, report)
        events.emit_run(finished.run, report, str(state.name))
        return state


def dream(job: DreamJob, settings: tuple[PlannedSettings, ...]) -> FinishedRun:
    """Run the checked job on its executor, and show the progress."""
    with open_pool(job.executor) as pool, closing(Progress(job)) as progress:
        return run_job(
            job,
            settings,
            storage(),
            submitted(pool, partial(submit_shard, pool, progress.folder), progress.add_shard),
            find_sources=find_photographs,
            throughput=pool.throughput or throughput(settings),
            on_claim=progress.start,
            on_progress=progress.update,
        )


def final_state(job: DreamJob, report: Report) -> State[Report]:
    """Return the state of a run that reached its end. The message has the counts and the failures by kind."""
    if reason := why_failed(job, report):
        message = f"{report.summary}; {reason}"
        return Failed(message=message, data=FailedRun(message, report))
    name = "Completed with failures" if report.failures else "Completed"
    return Completed(name=name, message=report.summary, data=report)


@task
def check(job: DreamJob) -> tuple[PlannedSettings, ...]:
    """Check the source, the destination, the networks and the layers before any network is loaded."""
    settings = plan_and_check(job)
    if warning := store_warning(job.destination, replacing=bool(job.retry_failed)):
        get_run_logger().warning(warning)
    return settings


# Prefect pickles the bodies of flows and tasks by value, and a ContextVar cannot be pickled. Therefore only plain
# functions and classes, which are pickled by reference, may read them.


def plan_and_check(job: DreamJob) -> tuple[PlannedSettings, ...]:
    """Return the points of the grid, and check the job unless the caller has done so."""
    if (settings := checked_settings.get()) is not None:
        return settings
    check_environment()
    check_executor(job.executor)
    settings = plan_settings(job)
    check_access(job)
    return settings


@task(**with_retries)
def find_photographs(job: DreamJob) -> Scan:
    """List the source, or read its inventory."""
    found, log = scan(job, storage(), listing_progress()), get_run_logger()
    if found.inventory:
        log.info("read %s instead of listing the source", found.inventory)
    log.info("%d photographs in %s; %d ignored", len(found.sources), job.source_in_words, found.ignored)
    if found.ignored:
        log.info("ignored: %s", found.ignored_in_words)
    return found


def submit_shard(pool: WorkerPool, progress: str | None, run: Run, shard: Shard) -> AnyFuture:
    """Submit one shard to the pool. Processes of this machine report finished dreams in the folder `progress`."""
    parameters = {
        "destination": run.destination,
        "run_id": run.run_id,
        "shard": shard,
        "stage_scores": run.job.stage_scores,
        "labels": run.job.labels,
        "progress": None if pool.is_remote else progress,
    }
    return pool.submit(dream_shard, parameters)


@task(task_run_name="shard {shard.number}", **with_retries)
def dream_shard(
    destination: str,
    run_id: str,
    shard: Shard,
    *,
    stage_scores: bool,
    labels: Reference | None,
    progress: str | None,
) -> ShardResult:
    """Dream one shard in a worker process, which reads the record of the run from S3.

    `stage_scores` and `labels` may differ from those of the job that the run was started with.
    """
    from flows.running import shard as shards  # imports torch, which the process of the flow does not need

    started = time.perf_counter()
    run_of_part = shard.run_of_part(run_id)
    with shard_counter(progress, f"{run_of_part}-{shard.number}") as count:
        run = _load_run(destination, run_id, stage_scores, labels)
        rows = shards.dream_shard(run, shard, storage(), on_row=lambda row: count(row.error_kind))
    seconds = round(time.perf_counter() - started, 3)
    failures, node = dict(count.failures), socket.gethostname()
    result = ShardResult(shard.number, run_of_part, rows, failures, count.finished, node, os.getpid(), seconds)
    if rows:
        log_record(get_run_logger(), events.shard_record(destination, run_id, result))
    else:
        get_run_logger().info("shard %d is put off: another process has begun it", shard.number)
    return result


@lru_cache(maxsize=1)
def _load_run(destination: str, run_id: str, stage_scores: bool, labels: Reference | None) -> Run:
    """Read the record of a run once per process, because it may have hundreds of settings."""
    run = run_record.load_run(destination, run_id, storage())
    changed = {"stage_scores": stage_scores, "labels": labels}
    return run.model_copy(update={"job": run.job.model_copy(update=changed)})
