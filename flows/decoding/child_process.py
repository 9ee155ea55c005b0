"""A sandboxed child process that reads an untrusted file, from the side of its parent.

The child may have been taken control of by the file. Therefore each reply is validated: one line of JSON, in some cases
followed by bytes of a known number. Nothing in a reply is executed.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from dreamcore.errors import ImageError, Unavailable

__all__ = ["CLOCK_FACTOR", "MEMORY", "READY", "SECONDS", "ChildProcess"]

SECONDS = 10.0
"""CPU seconds that decoding one image may take."""
CLOCK_FACTOR = 6
"""Decoding may take this many times the CPU limit in elapsed time, because other processes may use the CPU."""
MEMORY = 2**30
"""Bytes that decoding one image may take, including the file and the pixels."""
READY = b"ready\n"
"""What the child writes first, when it has given up its rights."""

_CHECKS_PER_LIMIT = 20  # the watchdog checks the CPU time this often during the CPU limit
_MAX_REPLY_LINE = 4096  # bytes of the JSON line of a reply
_ENVIRONMENT = ("LD_LIBRARY_PATH",)  # Python may need it to start; all other variables are withheld from the child


class ChildProcess:
    """A Python module that runs in a child process of its own. It starts in the background; see `await_ready`.

    Args:
        module: the module. It calls `flows.decoding.sandbox.enter_sandbox`, and writes `READY` before it replies.
        arguments: its arguments.
        stdin: its standard input: an open file or `subprocess.PIPE`.
        files: further open files that the child inherits, by their numbers.

    Raises:
        Unavailable: the process cannot be started.
    """

    def __init__(self, module: str, *arguments: str, stdin: int, files: Sequence[int] = ()) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # The child imports from where this process does, and not from the current directory.
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        try:
            self.process = subprocess.Popen(  # noqa: S603 - a fixed command
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                pass_fds=files,
                start_new_session=True,  # a terminal sends Ctrl-C to every process of its session
            )
        except OSError as error:
            raise Unavailable(f"cannot start a process to decode images: {error}") from error
        self.replies = cast(BufferedReader, self.process.stdout)
        self.errors = cast(BufferedReader, self.process.stderr)
        self.timed_out = self._ready = False

    def await_ready(self) -> None:
        """Wait until the child has given up its rights and reads requests.

        Raises:
            Unavailable: the child failed to start.
        """
        if not self._ready and self.replies.readline() != READY:
            self.process.kill()
            message = self.errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            self.stop()
            raise Unavailable(f"the process that decodes images failed to start: {message}")
        self._ready = True

    def read_line(self) -> Any:
        """Return the JSON value of the next line.

        Raises:
            EOFError: the child has exited.
            ValueError: the line is too long or is not JSON.
        """
        line = self.replies.readline(_MAX_REPLY_LINE)
        if not line.endswith(b"\n") and len(line) < _MAX_REPLY_LINE:
            raise EOFError
        try:
            return json.loads(line)
        except RecursionError as error:
            raise ValueError("the reply is nested too deeply") from error

    def read_into(self, buffer: memoryview) -> None:
        """Fill a buffer with the bytes that follow a line.

        Raises:
            EOFError: the child has exited.
        """
        if self.replies.readinto(buffer) < buffer.nbytes:
            raise EOFError

    @contextmanager
    def watchdog(self, seconds: float, clock_factor: int) -> Iterator[None]:
        """Kill the child if this block takes more CPU time than `seconds`, or `clock_factor` times that by the clock.

        The elapsed time is counted in small waits, so that the hours of a suspended machine do not count.
        """
        done, before = threading.Event(), self.cpu_seconds()

        def watch() -> None:
            for _ in range(clock_factor * _CHECKS_PER_LIMIT):
                if done.wait(seconds / _CHECKS_PER_LIMIT):
                    return
                if self.cpu_seconds() - before > seconds:
                    break
            self.timed_out = True
            self.process.kill()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def cpu_seconds(self) -> float:
        """Return the CPU time of the child in seconds. On other systems than Linux it is 0."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def was_killed(self) -> bool:
        """Whether something other than the watchdog killed the child."""
        return self.process.returncode == -signal.SIGKILL and not self.timed_out

    def stop(self) -> int:
        """Kill the child unless it has exited, and return its exit code."""
        self.process.kill()
        for pipe in (self.process.stdin, self.replies, self.errors):
            with suppress(OSError):  # the child did not read everything
                if pipe:
                    pipe.close()
        return self.process.wait()

    def failure(self, what: str, seconds: float) -> ImageError:
        """Stop a child that sent no reply, and return the reason.

        Args:
            what: what the child decoded, such as `one image`.
            seconds: the limit of CPU time.
        """
        code = self.stop()
        if self.timed_out:
            return ImageError("undecodable", f"decoding takes longer than {seconds:g} s")
        if self.was_killed or code == 1:  # killed by the system for lack of memory, or a MemoryError in Python
            return ImageError("out_of_memory", f"decoding takes more memory than {what} may use")
        how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
        return ImageError("undecodable", f"the decoder crashed ({how})")
