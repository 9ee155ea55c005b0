"""A process that reads and writes the files of a shard for a worker process with a GPU.

The operations of a GPU are started by Python code. Beside threads that read and write, this code waits for Python's
global lock most of the time. So these threads run in a process of their own, and the worker process only sends
photographs and dreams to and from it. The process stays for the next shard. It imports PyTorch only to enlarge dreams.
"""

import multiprocessing
import shutil
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.managers import BaseManager, BaseProxy
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from threading import Lock
from typing import Any

from dreamcore.errors import Unavailable
from dreamcore.fields import Output
from dreamcore.images import Photograph
from flows.decoding import decoder
from flows.destination.manifest import Row
from flows.destination.run_record import Run
from flows.jobs.work import Work
from flows.machine.worker_process import exit_with_parent
from flows.running.delivery import Picture
from flows.running.shard_files import Files, Loaded, ShardFiles
from flows.s3.storage import Storage

__all__ = ["files_for"]

EXIT_SECONDS = 5.0
"""How long a process whose connections broke may take to exit."""


def files_for(device: str, run: Run, storage: Storage, decode: Callable[..., Photograph] = decoder.decode) -> Files:
    """Return access to the files of a shard: in a process of its own for a GPU, and in this process otherwise.

    Args:
        device: the device of this process.
        run: the run that the shard belongs to.
        storage: access to S3.
        decode: decodes one photograph. For a GPU, it is a function of a module.

    Raises:
        Unavailable: the process does not start.
    """
    if device.startswith("cuda"):
        return _RemoteFiles(_running_process(), run, storage, decode)
    return ShardFiles(run, storage, decode)


class _Process(BaseManager):
    """The process. It calls the methods of a `ShardFiles` in one thread for each thread of the worker process."""


_Process.register("ShardFiles", ShardFiles)
_current: list[_Process] = []
_lock = Lock()


def _running_process() -> _Process:
    """Return the process of this worker process. It is started if there is none, or if it has ended."""
    with _lock:
        if not _current or _has_ended(_current[0], 0):
            process = _Process(ctx=multiprocessing.get_context("spawn"))
            try:
                process.start(exit_with_parent, (_remove_socket,))
            except (EOFError, OSError) as error:
                raise Unavailable(
                    "the process that reads and writes files did not start, perhaps for lack of memory"
                ) from error
            _current[:] = [process]
        return _current[0]


def _has_ended(process: _Process, seconds: float) -> bool:
    """Wait some seconds for the end of the process. `Process.is_alive` can be wrong if several threads ask."""
    return bool(wait([_child(process).sentinel], seconds))


def _child(process: _Process) -> BaseProcess:
    return process._process  # type: ignore[attr-defined, no-any-return]


def _remove_socket() -> None:
    """Remove the folder with the socket of this process, as the process itself does when it ends regularly."""
    shutil.rmtree(get_temp_dir(), ignore_errors=True)


class _RemoteFiles:
    """`ShardFiles` in another process; see `Files`."""

    def __init__(self, process: _Process, run: Run, storage: Storage, decode: Callable[..., Photograph]) -> None:
        self._process = process
        self._files: BaseProxy = self._checked(process.ShardFiles, run, storage, decode)  # type: ignore[attr-defined]

    def load(self, work: Work) -> Loaded:
        """Read and decode a photograph, unless all its dreams exist."""
        return self._checked(self._files._callmethod, "load", (work,))  # type: ignore[no-any-return]

    def deliver(self, row: Row, picture: Picture | None, output: Output) -> Row:
        """Write a dream if none exists, and return the row of the dream that exists then."""
        return self._checked(self._files._callmethod, "deliver", (row, picture, output))  # type: ignore[no-any-return]

    def _checked(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the process.

        Raises:
            Unavailable: the process has ended, or S3 failed.
        """
        try:
            return function(*arguments)
        except (EOFError, OSError) as error:
            if not _has_ended(self._process, EXIT_SECONDS):
                raise
            child = _child(self._process)
            with _lock:
                child.join()  # the sentinel is ready a little earlier than the exit code
                code = child.exitcode
            raise Unavailable(
                f"the process that reads and writes files has ended (exit code {code}), perhaps for lack of memory: "
                "try fewer workers (--workers)"
            ) from error
