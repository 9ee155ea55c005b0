"""The flow: dream every photograph below a prefix under every point of a grid."""

import base64
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from itertools import groupby, islice
from typing import Any

import httpx  # which Prefect speaks to its server with
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

from dreamcore.errors import InvalidInput, Unavailable
from flows import manifest, runs, sheets
from flows.ahead import as_they_end
from flows.history import Failures, done_before
from flows.job import DreamJob
from flows.machine import check_environment, start_worker, stop_workers, workers
from flows.plan import Plan, PlannedSettings, Shard, Source, make_plan
from flows.runs import Report, Run
from flows.scan import Scan, check_access, pace, plan_settings, scan, warn_of_store
from flows.storage import storage
from flows.terminal import one_line

on_progress: ContextVar[Callable[[int, int], None] | None] = ContextVar("on_progress", default=None)
"""Called in the flow's own process with the dreams that are there and the dreams planned, after each shard."""

SUBMITTED = 64
"""Shards that are submitted and have not ended, at least: Prefect holds some ten KiB and the photographs of each."""
SUBMITTED_A_WORKER = 4
"""The same for each worker process, where there are many: none may idle while a shard is left."""

NAMED = 10
"""Photographs that came to nothing and are named in the log."""


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Only trouble of the world is worth another attempt."""
    try:
        state.result()
    except Unavailable:
        return True
    except Exception:
        return False
    return False


patiently: dict[str, Any] = {
    "retries": 2,  # each request has been tried for a minute by then
    "retry_delay_seconds": exponential_backoff(backoff_factor=1),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _may_pass,
}


@flow(
    name="dream-collection",
    task_runner=ProcessPoolTaskRunner(workers(), initializer=start_worker),  # type: ignore[arg-type]
)
def dream_collection(job: DreamJob) -> Report:
    """Dream every photograph below a prefix under every point of a grid.

    Nothing is done twice: what the destination's manifest has is left out, and a run that was stopped goes on.
    """
    started = time.perf_counter()
    settings = check(job)
    run, shards = runs.claim(job, settings, storage())
    with begun():
        if not shards:
            found, before = find_photographs(job), done_before(job.destination, storage())
            shards = runs.freeze(run, make_plan(found.sources, settings, before, pace()), storage())
            if not shards:
                return nothing_to_do(run, found, before.failures(found.sources, settings))
        dream(run, shards)
        report = runs.finish(run, shards, time.perf_counter() - started, storage())
        runs.release(run.destination, run.run_id, storage())
    return report if shown(run, shards, report) else report.model_copy(update={"sheets": None})


@contextmanager
def begun() -> Iterator[None]:
    """What turns out wrong after a run has begun, such as credentials that expired, stops it to be resumed."""
    try:
        yield
    except InvalidInput as error:
        raise Unavailable(str(error)) from error


@task
def check(job: DreamJob) -> tuple[PlannedSettings, ...]:
    """Check, before any network is loaded, that source, destination, networks and layers are there."""
    check_environment()
    settings = plan_settings(job)
    check_access(job)
    if warning := warn_of_store(job.destination):
        get_run_logger().warning(warning)
    return settings


@task(**patiently)
def find_photographs(job: DreamJob) -> Scan:
    """List the source."""
    found = scan(job, storage())
    get_run_logger().info("%d photographs in %s", len(found.sources), job.source)
    return found


def nothing_to_do(run: Run, found: Scan, failures: Failures) -> Report:
    """Say so, and give the destination free."""
    runs.release(run.destination, run.run_id, storage())
    report = Report(
        run_id=None,
        state="nothing to do",
        photographs=len(found.sources),
        photographs_failed_earlier=failures.photographs,
        failed_earlier=failures.dreams,
        source=run.job.source,
        destination=run.destination,
        manifest=manifest.folder_of(run.destination),
    )
    get_run_logger().info("nothing to do: %s", report.why_nothing)
    return report


def dream(run: Run, shards: Plan) -> None:
    """Fan the shards out over the worker processes, and show how far it is."""
    planned, counts = shards.dreams, runs.tally(run, storage())
    description = f"{planned} dreams"
    artifact: Any = create_progress_artifact(100 * counts.total() / planned, key="dreams", description=description)
    watch = on_progress.get() or (lambda _finished, _planned: None)
    watch(counts.total(), planned)
    submit = partial(dream_shard.submit, run.destination, run.run_id, stage_scores=run.job.stage_scores)
    todo = runs.remaining(run, shards, storage())  # looked up after the rows were counted, so that none counts twice
    try:
        for future in as_they_end(submit, todo, max(SUBMITTED, SUBMITTED_A_WORKER * workers())):
            counts.update(future.result())
            runs.check_failures(run, counts, storage())
            watch(counts.total(), planned)
            artifact = move_bar(artifact, 100 * counts.total() / planned)
    except BaseException as error:
        stop_workers()  # or the pool would dream all that was submitted before it let go
        if isinstance(error, BrokenProcessPool):
            raise Unavailable("a worker process died, perhaps for want of memory: try fewer (--workers)") from error
        raise


def move_bar(artifact: Any, percent: float) -> Any:
    """Move the bar of the run's page; None once that is refused, as where somebody deleted it: a run is worth more."""
    try:
        if artifact:
            update_progress_artifact(artifact, percent)
    except (httpx.HTTPStatusError, ObjectNotFound) as error:  # a server that is away is trouble enough to stop
        get_run_logger().warning("the progress bar of this run can be moved no more: %s", type(error).__name__)
        return None
    return artifact


@task(task_run_name="shard {shard.number}", **patiently)
def dream_shard(destination: str, run_id: str, shard: Shard, *, stage_scores: bool) -> dict[str, int]:
    """Dream one shard in a worker process, which is told no more of the run than its name.

    `stage_scores` may differ from what the run was begun with.
    """
    from flows import shard as shards  # imports torch, which the flow's own process can do without

    started = time.perf_counter()
    counts = shards.dream_shard(_run_of(destination, run_id, stage_scores), shard, storage())
    seconds = time.perf_counter() - started
    get_run_logger().info("shard %d: %s in %.1f s", shard.number, counts, seconds)
    return counts


@lru_cache(maxsize=1)
def _run_of(destination: str, run_id: str, stage_scores: bool) -> Run:
    """A run, read once a process: it may have hundreds of settings."""
    run = runs.begun(destination, run_id, storage())
    return run.model_copy(update={"job": run.job.model_copy(update={"stage_scores": stage_scores})})


def shown(run: Run, shards: Plan, report: Report) -> bool:
    """Tell what failed and show what was dreamt; the run is finished, and trouble with that no reason to repeat it."""
    try:
        tell_failures(run, report)
        show(run, list(islice(shards.sources(), run.job.sheets)), report)
    except Exception as error:
        say = get_run_logger().warning
        say("not everything could be shown (%s); `dreamgrid sheet %s` draws contact sheets", error, run.destination)
        return False
    return True


def tell_failures(run: Run, report: Report) -> None:
    """Name the first photographs that came to nothing in the flow's log."""
    if not report.failed + report.skipped:
        return
    told = (
        one_line(f"{row['source_uri']}: {row['error_kind']}, {row['error']}")
        for row in manifest.rows_of_failures(storage(), run.destination, run.run_id)
    )
    lines = [line for line, _ in islice(groupby(told), NAMED)]  # each of a photograph's settings has a row
    lines.append(f"all of them: dreamgrid manifest failures {run.destination}")
    count = report.failed + report.skipped
    get_run_logger().warning("%d dreams failed or were skipped:\n%s", count, "\n".join(lines))


@task(**patiently)
def show(run: Run, sources: Sequence[Source], report: Report) -> None:
    """Draw contact sheets; show them and the counts in the run's artifacts."""
    counts = {"planned": report.planned, "done": report.done, "failed": report.failed, "skipped": report.skipped}
    create_table_artifact([counts], key="report", description=f"Dreams in {report.destination}")
    photographs = [(source.uri, source.etag) for source in sources]
    for sheet in sheets.draw_sheets(run.destination, storage(), photographs, get_run_logger().warning):
        picture = "data:image/jpeg;base64," + base64.b64encode(sheet.jpeg).decode()
        name = sheet.uri.removeprefix(sheets.folder_of(run.destination)).removesuffix(".jpg")
        key = re.sub(r"[^a-z0-9]+", "-", f"sheet {name.lower()}").strip("-")
        create_image_artifact(picture, key=key, description=f"Contact sheet of {sheet.name}: {sheet.uri}")
