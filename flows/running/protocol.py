"""The run protocol: claim a destination, plan, execute the shards, finish.

Nothing here knows Prefect. The Prefect flow, `dreamgrid run` and the tests that kill processes all call `run_job`;
they differ only in the executor, which says where the shards run.

1. Claim: a conditional write of `active.json` takes the destination. If this job has an unfinished run there, that run
   continues.
2. Plan: what the manifest does not have yet is cut into shards, and the plan is frozen. With `retry_failed`, each part
   with failed dreams is a shard instead (see `flows.planning.retry`).
3. Execute: each shard writes its dreams and then its part of the manifest, or replaces a part. Several processes may
   share the shards (see `flows.destination.sharing`).
4. Finish: `index.parquet`, then `success.json`, then the destination is released.

S3 is the truth, and no decision depends on a clock. A process may sleep at any point and wake up after its run was
finished, or abandoned and followed by other runs. Therefore each file of a run is written once, by whoever is first,
a part is replaced only while it has the ETag of the plan, and `active.json` is removed only by the run that it names.
"""

import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

from dreamcore.errors import DreamgridError, InvalidInput, Unavailable
from flows.destination import history, manifest, run_record, run_report, run_rows, sharing
from flows.destination.pruned import check_no_prune
from flows.destination.run_record import Run
from flows.destination.run_report import Report
from flows.jobs.cost import Throughput
from flows.jobs.job import DreamJob
from flows.jobs.plan import Plan, Sources, make_plan
from flows.jobs.work import Keys, PlannedSettings, Shard
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.planning.channels import TooManyPhotographs, unwanted_dreams, without
from flows.planning.retry import plan_retry
from flows.planning.scan import Scan
from flows.running.frames import remove_remaining_frames
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["Executor", "FinishedRun", "OnProgress", "abandon", "resumable", "run_job"]

MIN_ROWS = 100
"""A run is not stopped for too many failures before it has this many rows."""
WRITERS = 8

OnProgress = Callable[[int, int], None]
"""Called with the number of rows of finished shards and the number of planned dreams, after each shard and whenever an
executor yields no rows because none has finished."""


class Executor(Protocol):
    """Where shards run. An executor yields the number of rows by status of each shard, in any order."""

    def __call__(self, run: Run, shards: Iterator[Shard], /) -> Generator[Mapping[str, int], None, None]:
        """Run the shards. Closing the generator stops what still runs."""


@dataclass(frozen=True)
class FinishedRun:
    """A run that has reached its end, and its report."""

    run: Run
    plan: Plan
    """Empty if there was nothing to do."""
    report: Report


def run_job(
    job: DreamJob,
    settings: Sequence[PlannedSettings],
    storage: Storage,
    executor: Executor,
    *,
    find_sources: Callable[[DreamJob], Scan],
    throughput: Throughput,
    on_claim: Callable[[Run], None] = lambda _run: None,
    on_progress: OnProgress = lambda _finished, _planned: None,
) -> FinishedRun:
    """Run a job to its end, or continue its unfinished run.

    Args:
        job: the job, already checked.
        settings: every point of the job's grid.
        storage: access to S3.
        executor: runs the shards.
        find_sources: scans the source of the job.
        throughput: the speed of the machines that will dream; the plan is cut for it.
        on_claim: called with the run as soon as it holds the destination.
        on_progress: called during the run.

    Raises:
        InvalidInput: another job's run is unfinished in the destination, or photographs choose their channels and
            there are too many of them; nothing was started.
        Unavailable: the run stopped and can be resumed.
        DreamgridError: too many dreams failed, or the run was abandoned by another process.
    """
    started = time.perf_counter()
    run, plan = claim(job, settings, storage)
    if plan is None and job.retry_failed:
        plan = give_up_during_compaction(run, storage)
    on_claim(run)
    found: Scan | None = None
    with resumable():
        if not plan and job.retry_failed:
            plan = freeze(run, plan_retry(job, storage), storage)
            if not plan:
                release(job.destination, run.run_id, storage)
                return FinishedRun(run, plan, run_report.nothing_to_retry(job, plan))
        elif not plan:
            found, finished = find_sources(job), history.finished_dreams(job.destination, storage)
            found = found.with_warnings(finished)
            unwanted = choose_channels(run, found.sources, storage)
            plan = make_plan(found.sources, settings, without(unwanted, finished), throughput)
            plan = freeze(run, plan, storage)
            if not plan:
                release(job.destination, run.run_id, storage)
                failures = finished.failures(found.sources, settings)
                report = run_report.nothing_to_do(job, len(found.sources), failures)
                return FinishedRun(run, plan, report.model_copy(update=found.report()))
        execute(run, plan, storage, executor, on_progress)
        report = finish(run, plan, time.perf_counter() - started, storage, found)
        release(job.destination, run.run_id, storage)
    return FinishedRun(run, plan, report)


@contextmanager
def resumable() -> Iterator[None]:
    """After the claim, invalid input (such as credentials that expired) stops the run so that it can be resumed."""
    try:
        yield
    except TooManyPhotographs:  # the run has ended
        raise
    except InvalidInput as error:
        raise Unavailable(str(error)) from error


def claim(job: DreamJob, settings: Sequence[PlannedSettings], storage: Storage) -> tuple[Run, Plan | None]:
    """Claim the destination for a new run of this job, or continue the job's unfinished run.

    Returns:
        The run, and its plan if the plan is frozen already.

    Raises:
        InvalidInput: another job's run is unfinished there, or this job's run was started with other settings.
    """
    run = Run(run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}", job=job, settings=tuple(settings))
    mark = run_record.make_mark(run)
    while True:
        active = run_record.active_run_id(job, storage)
        if active is None:
            run_record.write(layout.job_uri(run.destination, run.run_id), run.model_dump_json(indent=1), storage)
            if storage.write_if_absent(layout.active_uri(job.destination), mark, run_record.JSON):
                return run, None
        elif (plan := run_record.read_plan(job.destination, active, storage)) is not None and not plan:
            release(job.destination, active, storage)  # that run had nothing to do and was stopped before its release
        else:
            return run_record.as_started(run.model_copy(update={"run_id": active}), storage), plan


def give_up_during_compaction(run: Run, storage: Storage) -> Plan | None:
    """Give up a retry that has just claimed the destination, if a compaction or a prune is unfinished there.

    These write their mark and then look for an unfinished retry. A retry does it the other way round, so that at least
    one of them sees the other.

    Returns:
        The plan, if another attempt at this retry has frozen one. Then that attempt came first, and the other process
        has given up.

    Raises:
        InvalidInput: a compaction or a prune is unfinished. The destination is released.
    """
    try:
        run_record.check_no_compaction(run.destination, storage)
        check_no_prune(run.destination, storage)
    except InvalidInput:
        if plan := run_record.write_plan(run.destination, run.run_id, _empty_plan(), storage):
            return plan
        release(run.destination, run.run_id, storage)
        raise
    return None


def choose_channels(run: Run, sources: Sources, storage: Storage) -> Keys:
    """Return the dreams that are left out because photographs choose their channels; see `unwanted_dreams`.

    Raises:
        TooManyPhotographs: there are too many to be measured. The destination is released.
    """
    try:
        return unwanted_dreams(sources, run.settings, storage)
    except TooManyPhotographs:
        if not freeze(run, _empty_plan(), storage):  # otherwise another attempt found fewer photographs, and runs
            release(run.destination, run.run_id, storage)
        raise


def freeze(run: Run, plan: Plan, storage: Storage) -> Plan:
    """Freeze the plan of a run, even an empty one. If two attempts plan at the same time, the first plan wins.

    Raises:
        Unavailable: another attempt found nothing to do and ended the run, or the run was abandoned.
    """
    frozen = run_record.write_plan(run.destination, run.run_id, plan, storage)
    if frozen is None or (plan and not frozen):
        raise Unavailable(f"another process ended the run {run.run_id} before anything was dreamt: run the job again")
    return frozen


def execute(run: Run, plan: Plan, storage: Storage, executor: Executor, on_progress: OnProgress) -> None:
    """Run all unfinished shards, and stop if too many dreams fail.

    Shards that another process has begun are put off until the end, when that process has finished them or has died.
    """
    planned = plan.dreams
    for process in (secrets.token_hex(8), None):
        counts, _ = run_rows.count_rows(run, plan, storage)
        on_progress(counts.total(), planned)
        # The shards are listed after the rows were counted, so that none counts twice.
        shards = sharing.remaining_shards(run, plan, storage, process, partial(_count_elsewhere, counts))
        with closing(executor(run, shards)) as outcomes:
            for outcome in outcomes:
                counts.update(outcome)
                if counts.total() < planned:
                    check_failures(run, plan, counts, storage)
                on_progress(counts.total(), planned)
        if counts.total() >= planned:
            return


def _count_elsewhere(counts: Counter[str], shard: Shard) -> None:
    """Count the dreams of a shard that another process has finished; that process checks their failures."""
    counts["elsewhere"] += shard.dreams


def check_failures(run: Run, plan: Plan, counts: Mapping[str, int], storage: Storage) -> None:
    """Raise `DreamgridError` if so many dreams failed that the run should not go on.

    A run that tries failed dreams again goes on, because many of them fail again for good reasons.

    Args:
        run: the run.
        plan: its frozen plan.
        counts: finished rows by status.
        storage: access to S3.
    """
    rows, failed = sum(counts.values()), counts.get("failed", 0)
    if plan.is_retry or rows < MIN_ROWS or failed <= rows * run.job.max_failures:
        return
    _, kinds = run_rows.count_rows(run, plan, storage)
    raise DreamgridError(
        f"the run {run.run_id} was stopped: {failed} of the first {rows} dreams failed "
        f"({run_report.in_words(kinds)}). Finished dreams are kept. To "
        "continue anyway, run it again with --max-failures 1; to abandon it, add --abandon"
    )


def finish(run: Run, plan: Plan, seconds: float, storage: Storage, found: Scan | None = None) -> Report:
    """Count the rows of the run, and write the index and `success.json`.

    This is the report of a finished run, even if all dreams failed. `run_report.why_failed` says whether the run counts
    as failed.

    Args:
        run: the run.
        plan: its frozen plan.
        seconds: duration of the run.
        storage: access to S3.
        found: the scan of the source; None if the run was resumed.

    Raises:
        DreamgridError: the manifest does not have exactly one row for each planned dream.
    """
    planned, (counts, failures) = plan.dreams, run_rows.count_rows(run, plan, storage)
    if counts.total() != planned:
        raise DreamgridError(
            f"the run {run.run_id} has {counts.total()} rows, but {planned} dreams were planned: another process "
            "abandoned it, or parts of its manifest were removed. Finished dreams are kept; add --abandon to start a "
            "new run with what is missing"
        )
    report = run_report.completed(run, plan, counts, failures, seconds)
    if found:
        report = report.model_copy(update=found.report())
    for run_id in plan.runs_with_replaced_parts() or [run.run_id]:
        index = history.build_index(run.destination, run_id, storage)
        history.write_index(index, run.destination, run_id, storage, replace=plan.is_retry)
    remove_remaining_frames(run, storage)
    run_record.write(layout.success_uri(run.destination, run.run_id), report.model_dump_json(indent=1), storage)
    return report


def release(destination: str, run_id: str, storage: Storage) -> None:
    """Release the destination if this run still holds it, and remove what is left of its hints."""
    uri = layout.active_uri(destination)
    mark = storage.read(uri)
    if mark is not None and json.loads(mark)["run_id"] == run_id:
        sharing.remove_hints(destination, run_id, storage)
        storage.delete_if_unchanged(uri, mark)


def abandon(destination: str, storage: Storage) -> None:
    """Abandon the unfinished run of a destination, if there is one. Its finished parts stay valid.

    A process of that run may still work or sleep, but cannot add rows any more: this function writes an empty plan, or
    an empty part for every shard without one. So another run may dream what is missing immediately. A run that tries
    failed dreams again adds no rows and needs no empty parts.
    """
    if (mark := run_record.read_mark(destination, storage)) is None:
        return
    run_id, empty = mark["run_id"], manifest.to_parquet([])
    plan = run_record.read_plan(destination, run_id, storage)
    if plan is None:
        plan = run_record.write_plan(destination, run_id, _empty_plan(), storage) or _empty_plan()
    if plan.is_retry:
        release(destination, run_id, storage)
        return
    missing = run_record.unfinished_shards(destination, run_id, plan, storage)
    parts = (layout.part_uri(destination, run_id, shard.number) for shard in missing)

    def close(part: str) -> bool:
        return storage.write_if_absent(part, empty, manifest.CONTENT_TYPE)

    with thread_pool(WRITERS) as writers:
        for _ in ordered_prefetch(writers, close, parts, WRITERS):
            pass
    if plan:
        index = history.build_index(destination, run_id, storage)
        history.write_index(index, destination, run_id, storage)
    release(destination, run_id, storage)


def _empty_plan() -> Plan:
    return make_plan(Sources(()), (), lambda _key: True)
