"""The command under test, and the folders that tests read."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["DREAMGRID", "PHOTOS", "REPOSITORY", "Command", "await_end_of_group"]

REPOSITORY = Path(__file__).parents[2]
PHOTOS = REPOSITORY / "examples" / "photos"
DREAMGRID = Path(sys.executable).with_name("dreamgrid")

Command = Callable[..., subprocess.CompletedProcess[str]]
"""Runs the command with these arguments; keyword arguments are environment variables."""


def await_end_of_group(group: int, seconds: float) -> None:
    """Wait until no process of a process group is left; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)
        raise AssertionError("a process outlives the command")
