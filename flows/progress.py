"""The progress of a run: the bar in the Prefect UI, and whoever else wants to know."""

from contextvars import ContextVar
from typing import Any

import httpx  # Prefect's client raises its errors
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import ObjectNotFound

from flows.job import DreamJob
from flows.prefect_names import artifact_key
from flows.protocol import OnProgress

__all__ = ["ProgressBar", "on_progress"]

on_progress: ContextVar[OnProgress | None] = ContextVar("on_progress", default=None)
"""Set by a caller in the same process that wants to show progress: called after each shard."""


class ProgressBar:
    """The progress artifact of a run in the Prefect UI. It also calls the caller's `on_progress`."""

    def __init__(self, job: DreamJob) -> None:
        self.key = artifact_key("dreams", job.destination, job)
        self.also = on_progress.get()
        self.artifact: Any = None
        self.created = False

    def __call__(self, finished: int, planned: int) -> None:
        """Move the bar, and create it on the first call."""
        percent = 100 * finished / planned
        if not self.created:
            self.artifact = create_progress_artifact(percent, key=self.key, description=f"{planned} dreams")
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
