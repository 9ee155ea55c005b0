"""The progress of a run: in the log, as a bar and a table in the Prefect UI, and for a caller in the same process."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from uuid import UUID

import httpx  # Prefect's client raises its errors
from prefect import get_run_logger, runtime
from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import ObjectNotFound

from dreamcore.errors import InvalidInput
from flows.destination.run_record import Run
from flows.jobs.job import DreamJob
from flows.jobs.work import ShardResult
from flows.machine.pace import LINE_SECONDS, Display, ShardCounts, Snapshot
from flows.prefect_ui import events
from flows.prefect_ui.gallery_links import run_page
from flows.prefect_ui.prefect_names import artifact_key
from flows.running.rates import RunPace

__all__ = ["Progress", "ProgressFile", "listing_progress", "on_progress"]

on_progress: ContextVar[Display | None] = ContextVar("on_progress", default=None)
"""Set by a caller in the same process that wants to show the progress."""

BAR_SECONDS = 4.0
"""The bar in the Prefect UI is moved at most this often."""
TABLE_SECONDS = 60.0
"""The table in the Prefect UI is updated at most this often."""


class Progress:
    """Shows the progress of a run, with the dreams that worker processes of this machine report within a shard."""

    def __init__(self, job: DreamJob) -> None:
        self._job = job
        self._run: Run | None = None
        self._counts = ShardCounts()
        self._pace = RunPace(self._counts)
        self._also = on_progress.get()
        self._bar, self._table = _LiveArtifact("progress bar", BAR_SECONDS), _LiveArtifact("table", TABLE_SECONDS)
        self._logged = time.monotonic()

    @property
    def folder(self) -> str | None:
        """The folder in which worker processes report."""
        return self._counts.folder

    def start(self, run: Run) -> None:
        """Show which run has begun."""
        self._run = run
        get_run_logger().info("run %s -> %s", run.run_id, run.destination)
        self._link(run)
        if self._also:
            self._also.start(run.run_id, run.destination)

    def _link(self, run: Run) -> None:
        """Link to the gallery's page of the run, which fills in while the run works."""
        try:
            page = run_page(run.destination, run.run_id)
        except InvalidInput as error:
            get_run_logger().warning("no link to the gallery: %s", error)
            return
        if page:
            key = artifact_key("gallery", run.destination, self._job)
            text = f"Dreams of this run in {run.destination}"
            create_link_artifact(page, link_text=text, key=key, description="The gallery")

    def add_shard(self, result: ShardResult) -> None:
        """Count a finished shard for its machine, and emit its event. A shard that was put off has no rows."""
        if not result.rows:
            return
        self._pace.nodes.add(result)
        if self._run:
            events.emit_shard(self._run, result)

    def update(self, finished: int, planned: int) -> None:
        """Show the progress: `finished` are the rows of finished shards."""
        snapshot, is_end = self._pace.update(finished, planned), finished == planned
        self._bar.show(is_end, lambda: self._create_bar(snapshot), lambda bar: _move_bar(bar, snapshot))
        if self._pace.nodes:
            self._table.show(is_end, self._create_table, self._update_table)
        if is_end or time.monotonic() - self._logged >= LINE_SECONDS:
            self._logged = time.monotonic()
            get_run_logger().info("%s", snapshot)
        if self._also:
            self._also.show(snapshot)

    def close(self) -> None:
        """Remove the folder of the workers' reports."""
        self._counts.close()

    def _create_bar(self, snapshot: Snapshot) -> UUID:
        key = artifact_key("dreams", self._job.destination, self._job)
        # The functions of Prefect return a coroutine only if an event loop runs.
        return create_progress_artifact(_percent(snapshot), key=key, description=str(snapshot))  # type: ignore[return-value]

    def _create_table(self) -> UUID:
        key = artifact_key("nodes", self._job.destination, self._job)
        description = f"Machines that dream for {self._job.destination}, since this flow run started or continued it"
        return create_table_artifact(self._pace.nodes.rows(), key=key, description=description)  # type: ignore[return-value]

    def _update_table(self, table: UUID) -> None:
        with get_client(sync_client=True) as client:
            client.update_artifact(table, ArtifactUpdate(data=json.dumps(self._pace.nodes.rows())))


class _LiveArtifact:
    """An artifact that is updated in place.

    Args:
        name: what a warning calls it.
        seconds: it is updated at most this often, and at the end of the run.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self._name, self._seconds = name, seconds
        self._id: UUID | None = None
        self._shown: float | None = None

    def show(self, is_end: bool, create: Callable[[], UUID], update: Callable[[UUID], None]) -> None:
        """Create or update the artifact, if it is time.

        If the server refuses an update, because somebody deleted the artifact for example, the run goes on without it.
        """
        now = time.monotonic()
        if self._shown is None:
            self._id = create()
        elif self._id and (is_end or now - self._shown >= self._seconds):
            try:
                update(self._id)
            except (httpx.HTTPStatusError, ObjectNotFound) as error:  # an unreachable server raises other errors
                warning = "the %s of this run cannot be updated: %s"
                get_run_logger().warning(warning, self._name, type(error).__name__)
                self._id = None
        else:
            return
        self._shown = now


class ProgressFile:
    """Writes the progress of a run into a file as JSON, and passes it on to another display.

    The file has `run_id`, `flow_run` (the page of the flow run), `listed`, `finished`, `planned` and `seconds_left`.
    What is not known is null. If the file cannot be written, the run goes on without it.

    Args:
        path: the file.
        display: shows the progress, too.
        has_page: whether the Prefect server has a page of its flow runs after the run.
    """

    def __init__(self, path: Path, display: Display, *, has_page: bool) -> None:
        self._path, self._display, self._has_page = path, display, has_page
        names = ("run_id", "flow_run", "listed", "finished", "planned", "seconds_left")
        self._values: dict[str, object] = dict.fromkeys(names)

    def start(self, run_id: str, destination: str) -> None:
        """Write which run has begun."""
        self._display.start(run_id, destination)
        self._write(run_id=run_id, flow_run=runtime.flow_run.ui_url if self._has_page else None)

    def listed(self, count: int) -> None:
        """Write how many objects have been listed."""
        self._display.listed(count)
        self._write(listed=count)

    def show(self, snapshot: Snapshot) -> None:
        """Write the progress."""
        self._display.show(snapshot)
        left = (snapshot.planned - snapshot.finished) / snapshot.rate if snapshot.rate else None
        self._write(finished=snapshot.finished, planned=snapshot.planned, seconds_left=left)

    def _write(self, **values: object) -> None:
        self._values |= values
        with suppress(OSError):
            partial = self._path.with_name(f"{self._path.name}.partial")
            partial.write_text(json.dumps(self._values))
            partial.replace(self._path)  # a reader never sees half of it


def _move_bar(bar: UUID, snapshot: Snapshot) -> None:
    update_progress_artifact(bar, _percent(snapshot), str(snapshot))


def listing_progress() -> Callable[[int], None]:
    """Return a function that shows how many objects were listed: in the log, and for a caller in this process."""
    also, log, logged = on_progress.get(), get_run_logger(), time.monotonic()

    def show(count: int) -> None:
        nonlocal logged
        if time.monotonic() - logged >= LINE_SECONDS:
            logged = time.monotonic()
            log.info("%d objects listed", count)
        if also:
            also.listed(count)

    return show


def _percent(snapshot: Snapshot) -> float:
    return 100 * snapshot.finished / snapshot.planned
