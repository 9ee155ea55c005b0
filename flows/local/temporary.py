"""A Prefect server for the duration of one command, without the page of its UI.

The server ends with the process that started it, however that process ends: the server waits for the end of its
standard input, and the kernel closes the other end. Prefect's own temporary server stays if the process is killed.
"""

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from dreamcore.errors import InvalidInput
from flows.local.servers import HOST, START_SECONDS, check_health

__all__ = ["provide_home", "start_prefect"]

STOP_SECONDS = 5.0
"""How long the server may take to end after SIGTERM."""


def provide_home() -> None:
    """Give Prefect a temporary folder if the home folder cannot be written, unless `PREFECT_HOME` names one.

    Prefect creates its folder when it is imported. Containers often have no home that can be written.

    Raises:
        InvalidInput: there is no folder that can be written.
    """
    if os.environ.get("PREFECT_HOME"):
        return
    home = Path.home() / ".prefect" if os.environ.get("HOME") else None
    try:
        if home:
            home.mkdir(exist_ok=True)
    except OSError:
        pass
    else:
        if home and os.access(home, os.W_OK):
            return
    try:
        folder = tempfile.mkdtemp(prefix="dreamgrid-prefect-")
    except OSError as error:
        raise InvalidInput(
            f"Prefect needs a folder, but neither the home folder nor a temporary folder can be written ({error}): set "
            "PREFECT_HOME"
        ) from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["PREFECT_HOME"] = folder
    if home and (profiles := home / "profiles.toml").exists():
        os.environ.setdefault("PREFECT_PROFILES_PATH", str(profiles))


def start_prefect() -> str:
    """Start a Prefect server, wait until it is ready, and return the address of its API.

    Its data is in the database of the user's Prefect profile. It is stopped when this process exits.

    Raises:
        InvalidInput: the server ended, or was not ready in time.
    """
    listener = socket.create_server((HOST, 0))
    port = listener.getsockname()[1]
    errors = _error_file()
    process = subprocess.Popen(  # noqa: S603 - a fixed command
        [sys.executable, "-P", "-m", __name__, str(listener.fileno())],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),  # the server imports from where this process does
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT__SERVER_EPHEMERAL": "1",  # as Prefect's own temporary server
            "PREFECT__SERVER_FINAL": "1",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors or subprocess.DEVNULL,
        pass_fds=[listener.fileno()],
        start_new_session=True,  # a terminal sends Ctrl-C to every process of its session
    )
    listener.close()
    atexit.register(_stop, process)
    deadline = time.monotonic() + START_SECONDS
    while failure := check_health(port):
        if process.poll() is not None or time.monotonic() > deadline:
            state = "ended while it was starting" if process.poll() is not None else "is not ready in time"
            raise InvalidInput(
                f"the temporary Prefect server {state} ({_last_line(errors) or failure}): check PREFECT_HOME and the "
                "other PREFECT variables, or start a server and set PREFECT_API_URL"
            )
        time.sleep(0.1)
    return f"http://{HOST}:{port}/api"


def _error_file() -> IO[bytes] | None:
    """Return a file for the messages of the server; None if there is no place for one."""
    try:
        return tempfile.TemporaryFile()  # open as long as the server runs
    except OSError:
        return None


def _last_line(errors: IO[bytes] | None) -> str:
    if errors is None:
        return ""
    errors.seek(0)
    return errors.read().decode(errors="replace").strip().rpartition("\n")[2]


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop the server: first with SIGTERM, then by force."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# --- inside the server process


def _serve(descriptor: int) -> None:
    """Run Prefect's server on a socket that listens already."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    import uvicorn  # slow, so the thread is started first

    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
