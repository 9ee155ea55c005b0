"""The report of a run: its counts, its outcome in words, and whether it counts as failed."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from dreamcore.errors import DreamgridError, ErrorKind
from dreamcore.targets import Frozen
from flows.destination.history import Failures
from flows.destination.run_record import Run
from flows.jobs.calibration import machine_name
from flows.jobs.job import DreamJob
from flows.jobs.job_options import RetryFailed
from flows.jobs.photographs import describe_ignored
from flows.jobs.plan import Plan
from flows.s3 import layout

__all__ = [
    "NOT_RETRIED",
    "FailedRun",
    "Report",
    "completed",
    "in_words",
    "nothing_to_do",
    "nothing_to_retry",
    "why_failed",
]

NOT_RETRIED = "that this version of Dreamgrid, or other files, cannot dream with the same settings"


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
    """Address of the photographs, or the length of the list of sources and its first address."""
    destination: str
    manifest: str
    """Address of the manifest, for any reader of Parquet."""
    sheets: str | None = None
    """Address of the contact sheets; None if the run drew none, or had nothing to do and none are there."""

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
        source=run.job.source_in_words,
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
        source=job.source_in_words,
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
        source=job.source_in_words,
        destination=job.destination,
        manifest=layout.manifest_folder(job.destination),
    )
