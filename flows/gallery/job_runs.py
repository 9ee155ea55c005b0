"""Runs of jobs that the gallery starts: `dreamgrid run` in a child process, one at a time for each destination.

The child process belongs to no terminal and no gallery. It goes on when the gallery ends, because a run is the user's
and may take hours. The next gallery on this machine finds it: everything about it is in a folder of the user's cache.

    ~/.cache/dreamgrid/gallery/runs/<destination and store>/
        lock            locked as long as the child process lives, however it ends
        pid             the process id of the child process
        job.json        the job
        job.yaml        the job as the child process reads it
        progress.json   what `dreamgrid run --progress` writes
        report.json     the report of the finished run
        messages        what the child process wrote to standard error
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from dreamcore.errors import InvalidInput
from dreamcore.settings import digest
from dreamcore.user_cache import cache_folder
from flows.destination import run_record
from flows.destination.run_report import Report, why_failed
from flows.gallery.jobs import job_yaml
from flows.jobs.job import DreamJob
from flows.s3.storage import Storage

__all__ = ["JobOutcome", "JobProgress", "JobRun", "last_run", "start"]

_COMMAND = "from flows.cli.main import main; main()"
_FILES = ("progress.json", "report.json", "messages", "pid")
_LOCK_SECONDS = 0.3
_children: dict[int, "subprocess.Popen[bytes]"] = {}
"""The child processes of this process, by process id, until they have ended."""


@dataclass(frozen=True)
class JobProgress:
    """The progress of a run. A value that is not known yet is None."""

    run_id: str | None = None
    flow_run: str | None = None
    """Address of the flow run's page in the Prefect UI; None if the Prefect server ends with the run."""
    listed: int | None = None
    """Objects of the sources that were listed so far."""
    finished: int | None = None
    """Dreams that are done, failed or skipped."""
    planned: int | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class JobOutcome:
    """The state of a run."""

    state: Literal["running", "completed", "failed", "stopped", "refused"]
    """`failed`: the run reached its end and counts as failed. `stopped`: the same job continues the run. `refused`:
    nothing was started."""
    message: str
    """The counts, or the reason, in one line; empty while the run is running."""
    report: Report | None = None
    """The report of a run that reached its end."""


@dataclass(frozen=True)
class JobRun:
    """The run that was started last for a destination. Its state is read anew at each call."""

    destination: str
    folder: Path

    @property
    def job(self) -> DreamJob:
        """The job."""
        return DreamJob.model_validate_json((self.folder / "job.json").read_bytes())

    def is_running(self) -> bool:
        """Return whether the child process lives."""
        for pid, child in list(_children.items()):
            if child.poll() is not None:
                _children.pop(pid, None)
        with self._lock() as is_free:
            return not is_free

    def progress(self) -> JobProgress:
        """Return the progress of the run."""
        with suppress(OSError, ValueError, TypeError):
            return JobProgress(**json.loads((self.folder / "progress.json").read_bytes()))
        return JobProgress()

    def outcome(self) -> JobOutcome:
        """Return whether the run is running, or how it ended."""
        if self.is_running():
            return JobOutcome("running", "")
        with suppress(OSError, ValidationError):
            report = Report.model_validate_json((self.folder / "report.json").read_bytes())
            reason = why_failed(self.job, report)
            return JobOutcome("failed" if reason else "completed", _with_reason(report.summary, reason), report)
        state: Literal["stopped", "refused"] = "stopped" if self.progress().run_id else "refused"
        return JobOutcome(state, self._last_message() or "the process of the run ended without a message")

    def stop(self) -> None:
        """Stop the run as Ctrl-C does. Finished dreams are kept, and the same job continues the run."""
        with suppress(OSError, ValueError):
            pid = int((self.folder / "pid").read_text())
            if self.is_running():
                os.kill(pid, signal.SIGTERM)

    def wait(self, seconds: float) -> bool:
        """Wait until the child process has ended, at most some seconds. Return whether it has."""
        deadline = time.monotonic() + seconds
        while self.is_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _last_message(self) -> str:
        """Return the last message of the command."""
        with suppress(OSError):
            lines = (self.folder / "messages").read_text(errors="replace").splitlines()
            messages = [line.removeprefix("dreamgrid: ") for line in lines if line.startswith("dreamgrid: ")]
            return (messages or lines or [""])[-1]
        return ""

    @contextmanager
    def _lock(self) -> Iterator[int | None]:
        """Yield the locked file, which a child process may inherit; None if a child process has it."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield descriptor
        except BlockingIOError:
            yield None
        finally:
            os.close(descriptor)


def last_run(destination: str, storage: Storage) -> JobRun | None:
    """Return the run that a gallery of this user has started last for a destination; None if there is none."""
    run = JobRun(destination, _folder(destination, storage))
    return run if (run.folder / "job.json").exists() else None


def start(job: DreamJob, storage: Storage) -> JobRun:
    """Start a job through Prefect, as `dreamgrid run` does, in a child process, which goes on when this process ends.

    The child process checks the job, so a wrong job is reported by `JobRun.outcome` as refused.

    Args:
        job: the job. If it has an unfinished run in its destination, that run is continued.
        storage: access to S3.

    Raises:
        InvalidInput: another job's run is unfinished in the destination, or a gallery has started one there; or the
            user's cache cannot be written.
        Unavailable: S3 failed.
    """
    run_record.active_run_id(job, storage)
    run = JobRun(job.destination, _folder(job.destination, storage))
    try:
        run.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        run.wait(_LOCK_SECONDS)  # another thread may be looking whether the last run has ended
        with run._lock() as lock:
            if lock is None:
                raise InvalidInput(
                    f"a job is already running for {job.destination}: wait until it has finished, or stop it"
                )
            _start_child(run, job, lock)
    except OSError as error:
        raise InvalidInput(f"the run cannot be kept in {run.folder} ({error.strerror}): set XDG_CACHE_HOME") from error
    return run


def _start_child(run: JobRun, job: DreamJob, lock: int) -> None:
    for name in _FILES:
        (run.folder / name).unlink(missing_ok=True)
    (run.folder / "job.json").write_text(job.model_dump_json())
    (run.folder / "job.yaml").write_text(job_yaml(job), encoding="utf-8")
    arguments = ["run", str(run.folder / "job.yaml"), "--json", "--progress", str(run.folder / "progress.json")]
    with (run.folder / "report.json").open("wb") as report, (run.folder / "messages").open("wb") as messages:
        child = subprocess.Popen(  # noqa: S603 - a fixed command
            [sys.executable, "-P", "-c", _COMMAND, *arguments],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },  # the child imports from where this process does
            stdin=subprocess.DEVNULL,
            stdout=report,
            stderr=messages,
            pass_fds=[lock],
            start_new_session=True,  # a terminal sends Ctrl-C to every process of its session
        )
    _children[child.pid] = child
    (run.folder / "pid").write_text(str(child.pid))


def _folder(destination: str, storage: Storage) -> Path:
    """Return the folder of a destination in one store."""
    return cache_folder() / "gallery" / "runs" / digest(storage.endpoint, destination)


def _with_reason(summary: str, reason: str | None) -> str:
    return f"{summary}; {reason}" if reason else summary
