"""Run the command line inside the test process: the same `main`, without the seconds that a process takes to start."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from flows.cli.main import main
from flows.s3.storage import storage
from tests.support.command import Command


@pytest.fixture
def dreamgrid_inprocess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs `dreamgrid` in `tmp_path` and returns exit code and output.

    Keyword arguments are additional environment variables. Prefect reads its variables once per process, so a command
    that uses Prefect needs the fixture `dreamgrid`.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with mock.patch.dict(os.environ, {"COLUMNS": "80", **env}), _restored_state(), pytest.raises(SystemExit) as end:
            main(arguments)
        assert isinstance(end.value.code, int)
        return subprocess.CompletedProcess(arguments, end.value.code, *capsys.readouterr())

    return run


@contextmanager
def _restored_state() -> Iterator[None]:
    """Restore the signal handlers that `main` sets, and give the command a new client for S3."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    storage.cache_clear()
    try:
        yield
    finally:
        storage.cache_clear()
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        os.close(signal.set_wakeup_fd(-1))
