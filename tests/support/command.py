"""The command under test, and the folders that tests read."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["DREAMGRID", "PHOTOS", "REPOSITORY", "Command"]

REPOSITORY = Path(__file__).parents[2]
PHOTOS = REPOSITORY / "examples" / "photos"
DREAMGRID = Path(sys.executable).with_name("dreamgrid")

Command = Callable[..., subprocess.CompletedProcess[str]]
"""Runs the command with these arguments; keyword arguments are environment variables."""
