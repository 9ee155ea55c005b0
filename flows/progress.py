"""The progress of a run: in the log, as a bar in the Prefect UI, and for a caller in the same process."""

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import httpx  # Prefect's client raises its errors
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import ObjectNotFound

from flows.job import DreamJob
from flows.pace import LINE_SECONDS, Display, Pace, ShardCounts, Snapshot
from flows.prefect_names import artifact_key
from flows.run_record import Run

__all__ = ["ProgressBar", "listing_progress", "on_progress"]

on_progress: ContextVar[Display | None] = ContextVar("on_progress", default=None)
"""Set by a caller in the same process that wants to show the progress."""

UPDATE_SECONDS = 4.0
"""The bar in the Prefect UI is moved at most this often."""


class ProgressBar:
    """Shows the progress of a run, with the dreams that worker processes report within a shard."""

    def __init__(self, job: DreamJob) -> None:
        self._key = artifact_key("dreams", job.destination, job)
        self._counts, self._pace = ShardCounts(), Pace()
        self._also = on_progress.get()
        self._artifact: Any = None
        self._moved, self._logged = 0.0, time.monotonic()

    @property
    def folder(self) -> str | None:
        """The folder in which worker processes report."""
        return self._counts.folder

    def start(self, run: Run) -> None:
        """Show which run has begun."""
        get_run_logger().info("run %s -> %s", run.run_id, run.destination)
        if self._also:
            self._also.start(run.run_id, run.destination)

    def update(self, finished: int, planned: int) -> None:
        """Show the progress: `finished` are the rows of finished shards."""
        snapshot = self._pace.update(finished + self._counts.total(), planned)
        now, is_end = time.monotonic(), finished == planned
        if not self._moved:
            self._artifact = create_progress_artifact(_percent(snapshot), key=self._key, description=str(snapshot))
            self._moved = now
        elif self._artifact and (is_end or now - self._moved >= UPDATE_SECONDS):
            self._moved = now
            self._move(snapshot)
        if is_end or now - self._logged >= LINE_SECONDS:
            self._logged = now
            get_run_logger().info("%s", snapshot)
        if self._also:
            self._also.show(snapshot)

    def close(self) -> None:
        """Remove the folder of the workers' reports."""
        self._counts.close()

    def _move(self, snapshot: Snapshot) -> None:
        """Move the bar. If the server refuses, because somebody deleted the bar for example, the run goes on."""
        try:
            update_progress_artifact(self._artifact, _percent(snapshot), str(snapshot))
        except (httpx.HTTPStatusError, ObjectNotFound) as error:  # an unreachable server raises other errors
            get_run_logger().warning("the progress bar of this run cannot be moved: %s", type(error).__name__)
            self._artifact = None


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
