"""What a finished run shows in the Prefect UI: failures in the log, and artifacts with counts and contact sheets."""

import base64
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby, islice

from prefect import get_run_logger, task
from prefect.artifacts import create_image_artifact, create_table_artifact

from dreamcore.errors import DreamgridError
from flows.contact_sheets import sheets
from flows.destination import run_rows
from flows.destination.run_record import Run
from flows.destination.run_report import Report
from flows.jobs.work import Source
from flows.machine.terminal import one_line
from flows.prefect_ui.prefect_names import artifact_key
from flows.prefect_ui.retries import with_retries
from flows.running.protocol import FinishedRun
from flows.s3 import layout
from flows.s3.storage import storage

__all__ = ["show"]

NAMED_FAILURES = 10
"""Failed photographs that the log names."""


def show(finished: FinishedRun) -> Report:
    """Log the failures and draw contact sheets. The run is finished, so an error here does not fail the run."""
    run, report, log = finished.run, finished.report, get_run_logger()
    for warning in report.warnings:
        log.warning(warning)
    if report.state == "nothing to do":
        log.info("nothing to do: %s", report.why_nothing)
        return report.model_copy(update={"sheets": _earlier_sheets(run.destination)})
    try:
        log_failures(finished)
        draw(run, list(islice(finished.plan.sources(), run.job.sheets)), report)
    except Exception as error:
        log.warning("no contact sheets (%s); draw them with `dreamgrid sheet %s`", error, run.destination)
        return report.model_copy(update={"sheets": None})
    return report


def _earlier_sheets(destination: str) -> str | None:
    """Return the folder of the contact sheets that earlier runs drew; None if there are none."""
    folder = layout.sheets_folder(destination)
    with suppress(DreamgridError):
        return folder if any(True for _ in storage().list(folder)) else None
    return None


def log_failures(finished: FinishedRun) -> None:
    """Name the first photographs that failed or were skipped in the log of the flow."""
    run, count = finished.run, finished.report.failed + finished.report.skipped
    if not count:
        return
    messages = (
        one_line(f"{row['source_uri']}: {row['error_kind']}, {row['error']}")
        for row in run_rows.iter_failures(run, finished.plan, storage())
    )
    lines = [line for line, _ in islice(groupby(messages), NAMED_FAILURES)]  # a photograph has a row per point
    lines.append(f"list all: dreamgrid manifest failures {run.destination}")
    get_run_logger().warning("%d dreams failed or were skipped:\n%s", count, "\n".join(lines))


@task(**with_retries)
def draw(run: Run, sources: Sequence[Source], report: Report) -> None:
    """Draw contact sheets, and publish them, the counts and the failures by kind as artifacts of the run."""
    counts = {"planned": report.planned, "done": report.done, "failed": report.failed, "skipped": report.skipped}
    key = artifact_key("report", report.destination, run.job)
    create_table_artifact([counts | report.failures], key=key, description=f"Dreams in {report.destination}")
    photographs = [(source.uri, source.etag) for source in sources]
    for sheet in sheets.draw_sheets(run.destination, storage(), photographs, get_run_logger().warning):
        image = "data:image/jpeg;base64," + base64.b64encode(sheet.jpeg).decode()
        key = artifact_key("sheet", sheet.name, run.job, sheet.photograph, sheet.uri)
        create_image_artifact(image, key=key, description=f"Contact sheet of {sheet.name}: {sheet.uri}")
