"""A command that is killed, or whose terminal is closed, leaves no server, worker or decoder behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.local.stack import Stack
from flows.s3.storage import Storage
from tests.support.command import DREAMGRID, PHOTOS
from tests.support.shards import put_photograph

pytestmark = [
    pytest.mark.slow,
    pytest.mark.servers,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

SECONDS = 300
"""How long to wait until a command dreams; it takes about ten on an idle machine."""
ENDLESS = ("--steps", "10000", "--layers", "blocks.0")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A home folder, so that Prefect creates its database once."""
    return str(tmp_path_factory.mktemp("home"))


def descendants(pid: int) -> dict[int, str]:
    """Return the command lines of all children of a process, and of their children, by process number."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended since the folder was listed
            continue
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        children = [child for child, its_parent in parents.items() if its_parent == parent and child in commands]
        found |= {child: commands[child] for child in children}
        waiting += children
    return found


def is_running(pid: int, command: str) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") == command  # empty for a zombie
    except OSError:
        return False


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are killed after the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def hangups_are_not_ignored() -> Iterator[None]:
    """Under `nohup`, the tests and their commands would ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def check_nothing_is_left(
    process: "subprocess.Popen[bytes]", errors: Path, expected: tuple[str, ...], number: signal.Signals
) -> None:
    """Send a signal when the process has these children, and wait until it and all of them have ended."""
    deadline = time.monotonic() + SECONDS
    while not all(any(part in command for command in descendants(process.pid).values()) for part in expected):
        assert process.poll() is None, errors.read_text()
        assert time.monotonic() < deadline, descendants(process.pid)
        time.sleep(0.2)
    children = descendants(process.pid)
    process.send_signal(number)
    assert process.wait(60) == (-signal.SIGKILL if number == signal.SIGKILL else 3)
    deadline = time.monotonic() + 30
    while left := {pid: command for pid, command in children.items() if is_running(pid, command)}:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGHUP, marks=pytest.mark.soak)])
def test_a_run_that_is_killed_leaves_no_server_worker_or_decoder(
    number: signal.Signals, stack: Stack, storage: Storage, source: str, destination: str, home: str, tmp_path: Path,
    processes: list[subprocess.Popen[bytes]],
) -> None:  # fmt: skip
    put_photograph(storage, source + "cat.png")
    environment = os.environ | stack.environment() | {"HOME": home, "DREAMGRID_WORKERS": "1"}
    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        environment.pop(name, None)
    command = [str(DREAMGRID), "run", "--source", source, "--destination", destination, *ENDLESS]
    with (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=errors)
    processes.append(process)
    check_nothing_is_left(
        process, tmp_path / "errors", ("flows.local.temporary", "spawn_main", "flows.decoding.decoder"), number
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_an_image_that_is_killed_leaves_no_decoder(
    number: signal.Signals, tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    command = [str(DREAMGRID), "image", str(PHOTOS / "chelsea.png"), "dream.png", *ENDLESS]
    with (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=errors)
    processes.append(process)
    check_nothing_is_left(process, tmp_path / "errors", ("flows.decoding.decoder",), number)
