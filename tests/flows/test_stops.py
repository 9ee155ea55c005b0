"""A run that is stopped by kill -9, a dead worker, SIGTERM or a lost Prefect server is resumed by the next command."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from flows.destination import run_record
from flows.jobs.job import DreamJob
from flows.local import stack as embedded
from flows.local.stack import Stack
from flows.s3.storage import Storage
from tests.support.command import DREAMGRID, await_end_of_group
from tests.support.kills import Observer, put_photographs

STOPPED_SECONDS = 25
"""A stopped command ends within this time."""
SERVER_LOST_SECONDS = 600
"""A run without a Prefect server ends within this time."""
GRID = {"layers": ["blocks.0", "blocks.1"], "octaves": [2], "steps": [30]}


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts `dreamgrid run` as the leader of a process group. It makes one dream at a time."""

    def popen(*arguments: str, workers: int = 1) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [DREAMGRID, "run", *arguments],
            cwd=tmp_path,
            env=os.environ | {"DREAMGRID_WORKERS": str(workers), "DREAMGRID_BATCH": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return popen


def workers_of(command: subprocess.Popen[str]) -> list[int]:
    """Return the process numbers of the worker processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == command.pid and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def await_more(observer: Observer, command: subprocess.Popen[str]) -> None:
    """Wait until a command that was just started has added dreams."""
    observer.look()  # count the last dreams of the previous command
    before = len(observer.dreams)
    while len(observer.dreams) == before:
        assert command.poll() is None, command.communicate()
        time.sleep(0.1)
        observer.look()


def end(command: subprocess.Popen[str], within: float = 300) -> tuple[int, str]:
    """Wait for the end of a command and all its processes, and return exit code and standard error."""
    _, errors = command.communicate(timeout=within)
    await_end_of_group(command.pid, 60)
    return command.returncode, errors


def test_the_next_command_resumes_a_run_however_it_was_stopped(
    stack: Stack,
    storage: Storage,
    source: str,
    destination: str,
    start: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    put_photographs(storage, source, 12)
    job = DreamJob.model_validate({"source": source, "destination": destination, "grid": GRID})
    (tmp_path / "job.yaml").write_text(job.model_dump_json())
    observer = Observer(storage, destination)

    command = start("job.yaml")
    await_more(observer, command)
    os.killpg(command.pid, signal.SIGKILL)
    assert end(command)[0] == -signal.SIGKILL

    command = start("job.yaml", workers=2)
    await_more(observer, command)
    os.kill(workers_of(command)[0], signal.SIGKILL)
    code, errors = end(command)
    assert (code, "a worker process died" in errors) == (3, True), errors

    command = start("job.yaml")
    await_more(observer, command)
    stopped = time.monotonic()
    os.killpg(command.pid, signal.SIGTERM)  # as systemd does
    code, errors = end(command)
    assert (code, "to resume the run" in errors) == (3, True), errors
    assert time.monotonic() - stopped < STOPPED_SECONDS

    command = start("job.yaml")
    await_more(observer, command)
    os.kill(command.pid, signal.SIGINT)  # only to the command, as Docker and Kubernetes do
    code, errors = end(command)
    assert (code, "to resume the run" in errors) == (3, True), errors

    held = run_record.load_active_run(destination, storage)
    assert held is not None
    command = start("--resume", destination, "--json")
    await_more(observer, command)
    os.kill(stack.servers[1].pid, signal.SIGKILL)
    assert embedded.up(stack.folder).prefect_url == stack.prefect_url
    output, errors = command.communicate(timeout=300)
    assert command.returncode == 0, errors
    assert json.loads(output)["run_id"] == held.run_id
    observer.check_finished(job)
    assert len(observer.rows) == 24


@pytest.mark.soak
def test_a_run_ends_in_bounded_time_without_a_prefect_server(
    stack: Stack, storage: Storage, source: str, destination: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    put_photographs(storage, source, 12)
    job = DreamJob.model_validate({"source": source, "destination": destination, "grid": GRID})
    grid = ["--layers=blocks.0", "--layers=blocks.1", "--octaves=2", "--steps=30"]  # as `GRID`
    observer = Observer(storage, destination)
    command = start("--source", source, "--destination", destination, *grid)
    await_more(observer, command)
    os.kill(stack.servers[1].pid, signal.SIGKILL)
    try:
        code, errors = end(command, SERVER_LOST_SECONDS)
    finally:
        embedded.up(stack.folder)
    assert code == 3, errors
    finished = start("--resume", destination, "--json")
    output, errors = finished.communicate(timeout=300)
    assert finished.returncode == 0, errors
    assert json.loads(output)["planned"] == 24
    observer.check_finished(job)
