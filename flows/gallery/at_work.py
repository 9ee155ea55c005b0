"""The state of the unfinished run of a destination: whether it works or was stopped, and its progress.

No object in a destination says that a run works. A run counts as working if its process lives on this machine, or if it
has begun or written a dream within `QUIET_SECONDS`.
"""

from datetime import UTC, datetime
from typing import NamedTuple

from flows.gallery.job_runs import JobRun, last_run
from flows.gallery.records import Run
from flows.gallery.site import Place

__all__ = ["Work", "own_run", "work_of"]

QUIET_SECONDS = 120.0
"""A run that has written nothing for so long may have been stopped."""


class Work(NamedTuple):
    """The state of an unfinished run."""

    words: str
    """The progress in words."""
    finished: int
    planned: int
    """0 until the run has its plan."""
    is_going_on: bool
    """Whether the run works, and was not stopped."""


def own_run(place: Place) -> JobRun | None:
    """Return the run that a gallery has started here, if its process lives."""
    run = last_run(place.destination, place.storage)
    return run if run and run.is_running() else None


def work_of(place: Place) -> Work | None:
    """Return the state of the run that holds the destination; None if no run holds it."""
    if started := own_run(place):
        now = started.progress()
        return Work(_own_words(started), now.finished or 0, now.planned or 0, is_going_on=True)
    run = next((run for run in place.queries.runs() if run.state == "unfinished"), None)
    if run is None:
        return None
    finished = run.done + run.failed + run.skipped
    if run.planned:
        words = f"{finished:,} of {run.planned:,} dreams are finished"
    else:
        words = "its photographs are being listed, or it was stopped meanwhile"
    return Work(words, finished, run.planned, is_going_on=not _has_ended_here(place, run) and _was_busy(place, run))


def _own_words(started: JobRun) -> str:
    progress = started.progress()
    if progress.planned:
        return f"{progress.finished or 0:,} of {progress.planned:,} dreams are finished"
    return f"the photographs are being listed, {progress.listed:,} so far" if progress.listed else "it is starting"


def _has_ended_here(place: Place, run: Run) -> bool:
    """Return whether a gallery here had started this run; its process does not live any more."""
    last = last_run(place.destination, place.storage)
    return last is not None and last.progress().run_id == run.run_id


def _was_busy(place: Place, run: Run) -> bool:
    """Return whether the run has begun or written a dream a moment ago. A destination has one run at a time."""
    times = [time for time in (run.started_at, place.queries.newest()) if time]
    return bool(times) and (datetime.now(UTC) - max(times)).total_seconds() < QUIET_SECONDS
