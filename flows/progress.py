"""The progress of a run: in the log, as a bar and a table in the Prefect UI, and for a caller in the same process."""

import json
import time
from collections.abc import Callable
from contextvars import ContextVar
from uuid import UUID

import httpx  # Prefect's client raises its errors
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import ObjectNotFound

from flows import events
from flows.job import DreamJob
from flows.pace import LINE_SECONDS, Display, ShardCounts, Snapshot
from flows.prefect_names import artifact_key
from flows.rates import RunPace
from flows.run_record import Run
from flows.work import ShardResult

__all__ = ["Progress", "on_progress"]

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
        if self._also:
            self._also.start(run.run_id, run.destination)

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


def _move_bar(bar: UUID, snapshot: Snapshot) -> None:
    update_progress_artifact(bar, _percent(snapshot), str(snapshot))


def _percent(snapshot: Snapshot) -> float:
    return 100 * snapshot.finished / snapshot.planned
