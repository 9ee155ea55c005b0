"""The Prefect flow: dream every photograph below a prefix under every point of a grid."""

import base64
import re
import time
from collections.abc import Sequence
from contextvars import ContextVar
from functools import lru_cache
from itertools import groupby, islice
from typing import Any

import httpx  # Prefect's client raises its errors
from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_image_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import ObjectNotFound
from prefect.task_runners import ProcessPoolTaskRunner
from prefect.tasks import exponential_backoff

from dreamcore.errors import Unavailable
from flows import layout, manifest, run_record, sheets
from flows.executors import submitted
from flows.job import DreamJob
from flows.machine import check_environment, worker_count
from flows.plan import Sources
from flows.protocol import FinishedRun, OnProgress, run_job
from flows.run_record import Report, Run
from flows.scan import check_access, plan_settings, scan, store_warning, throughput
from flows.storage import storage
from flows.terminal import one_line
from flows.work import PlannedSettings, Shard, Source
from flows.worker_process import start_worker

__all__ = ["checked_settings", "dream_collection", "on_progress"]

on_progress: ContextVar[OnProgress | None] = ContextVar("on_progress", default=None)
"""Set by a caller in the same process that wants to show progress: called after each shard."""

checked_settings: ContextVar[tuple[PlannedSettings, ...] | None] = ContextVar("checked_settings", default=None)
"""Set by a caller in the same process that has already checked the job: the points of its grid."""

NAMED_FAILURES = 10
"""Failed photographs that the log names."""


def _is_retryable(_task: Any, _run: Any, state: Any) -> bool:
    """Return whether another attempt can help: only infrastructure failures are retried."""
    try:
        state.result()
    except Unavailable:
        return True
    except Exception:
        return False
    return False


with_retries: dict[str, Any] = {
    "retries": 2,  # each S3 request has been retried for a minute before
    "retry_delay_seconds": exponential_backoff(backoff_factor=1),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _is_retryable,
}


@flow(
    name="dream-collection",
    task_runner=ProcessPoolTaskRunner(worker_count(), initializer=start_worker),  # type: ignore[arg-type]
)
def dream_collection(job: DreamJob) -> Report:
    """Dream every photograph below a prefix under every point of a grid.

    Nothing is done twice: the flow skips what the manifest of the destination has, and continues an unfinished run.
    """
    settings = check(job)
    finished = run_job(
        job,
        settings,
        storage(),
        submitted(submit_shard),
        find_sources=find_photographs,
        throughput=throughput(),
        on_progress=ProgressBar(),
    )
    return show(finished)


@task
def check(job: DreamJob) -> tuple[PlannedSettings, ...]:
    """Check the source, the destination, the networks and the layers before any network is loaded."""
    settings = plan_and_check(job)
    if warning := store_warning(job.destination):
        get_run_logger().warning(warning)
    return settings


# Prefect pickles the bodies of flows and tasks by value, and a ContextVar cannot be pickled. Therefore only plain
# functions and classes, which are pickled by reference, read the two above.


def plan_and_check(job: DreamJob) -> tuple[PlannedSettings, ...]:
    """Return the points of the grid, and check the job unless the caller has done so."""
    if (settings := checked_settings.get()) is not None:
        return settings
    check_environment()
    settings = plan_settings(job)
    check_access(job)
    return settings


@task(**with_retries)
def find_photographs(job: DreamJob) -> Sources:
    """List the source."""
    found = scan(job, storage())
    get_run_logger().info("%d photographs in %s", len(found.sources), job.source)
    return found.sources


def submit_shard(run: Run, shard: Shard) -> Any:
    """Submit one shard to the worker processes."""
    return dream_shard.submit(run.destination, run.run_id, shard, stage_scores=run.job.stage_scores)


@task(task_run_name="shard {shard.number}", **with_retries)
def dream_shard(destination: str, run_id: str, shard: Shard, *, stage_scores: bool) -> dict[str, int]:
    """Dream one shard in a worker process, which reads the record of the run from S3.

    `stage_scores` may differ from the job that the run was started with.
    """
    from flows import shard as shards  # imports torch, which the process of the flow does not need

    started = time.perf_counter()
    counts = shards.dream_shard(_load_run(destination, run_id, stage_scores), shard, storage())
    seconds = time.perf_counter() - started
    get_run_logger().info("shard %d: %s in %.1f s", shard.number, counts, seconds)
    return counts


@lru_cache(maxsize=1)
def _load_run(destination: str, run_id: str, stage_scores: bool) -> Run:
    """Read the record of a run once per process, because it may have hundreds of settings."""
    run = run_record.load_run(destination, run_id, storage())
    return run.model_copy(update={"job": run.job.model_copy(update={"stage_scores": stage_scores})})


class ProgressBar:
    """The progress artifact of a run in the Prefect UI. It also calls the caller's `on_progress`."""

    def __init__(self) -> None:
        self.also = on_progress.get()
        self.artifact: Any = None
        self.created = False

    def __call__(self, finished: int, planned: int) -> None:
        """Move the bar, and create it on the first call."""
        percent = 100 * finished / planned
        if not self.created:
            self.artifact = create_progress_artifact(percent, key="dreams", description=f"{planned} dreams")
            self.created = True
        elif self.artifact:
            self._update(percent)
        if self.also:
            self.also(finished, planned)

    def _update(self, percent: float) -> None:
        """Move the bar. If the server refuses, because somebody deleted the bar for example, the run goes on."""
        try:
            update_progress_artifact(self.artifact, percent)
        except (httpx.HTTPStatusError, ObjectNotFound) as error:  # an unreachable server raises other errors
            get_run_logger().warning("the progress bar of this run cannot be moved: %s", type(error).__name__)
            self.artifact = None


def show(finished: FinishedRun) -> Report:
    """Log the failures and draw contact sheets. The run is finished, so an error here does not fail the run."""
    run, report, log = finished.run, finished.report, get_run_logger()
    if report.state == "nothing to do":
        log.info("nothing to do: %s", report.why_nothing)
        return report
    try:
        log_failures(run, report)
        draw(run, list(islice(finished.plan.sources(), run.job.sheets)), report)
    except Exception as error:
        log.warning("no contact sheets (%s); draw them with `dreamgrid sheet %s`", error, run.destination)
        return report.model_copy(update={"sheets": None})
    return report


def log_failures(run: Run, report: Report) -> None:
    """Name the first photographs that failed or were skipped in the log of the flow."""
    count = report.failed + report.skipped
    if not count:
        return
    messages = (
        one_line(f"{row['source_uri']}: {row['error_kind']}, {row['error']}")
        for row in manifest.iter_failures(storage(), run.destination, run.run_id)
    )
    lines = [line for line, _ in islice(groupby(messages), NAMED_FAILURES)]  # a photograph has a row per point
    lines.append(f"list all: dreamgrid manifest failures {run.destination}")
    get_run_logger().warning("%d dreams failed or were skipped:\n%s", count, "\n".join(lines))


@task(**with_retries)
def draw(run: Run, sources: Sequence[Source], report: Report) -> None:
    """Draw contact sheets, and publish them and the counts as artifacts of the run."""
    counts = {"planned": report.planned, "done": report.done, "failed": report.failed, "skipped": report.skipped}
    create_table_artifact([counts], key="report", description=f"Dreams in {report.destination}")
    photographs = [(source.uri, source.etag) for source in sources]
    for sheet in sheets.draw_sheets(run.destination, storage(), photographs, get_run_logger().warning):
        image = "data:image/jpeg;base64," + base64.b64encode(sheet.jpeg).decode()
        name = sheet.uri.removeprefix(layout.sheets_folder(run.destination)).removesuffix(".jpg")
        key = re.sub(r"[^a-z0-9]+", "-", f"sheet {name.lower()}").strip("-")
        create_image_artifact(image, key=key, description=f"Contact sheet of {sheet.name}: {sheet.uri}")
