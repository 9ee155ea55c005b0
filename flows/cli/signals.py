"""How signals stop a command, and what the command says about resuming."""

import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from dreamcore.errors import Unavailable
from flows.machine.terminal import print_message, print_remedy

__all__ = ["Stopped", "resumable", "stop_on_signals"]

_PRINT_SECONDS = 2.0
"""The last message of a process that is ended by force may take this long."""
_remedies: list[str] = []
"""How to resume the blocks of `resumable` that are running, the innermost last."""


class Stopped(Unavailable):
    """A run was stopped by a signal or by an infrastructure failure. Its finished dreams are kept.

    Args:
        message: what stopped the run.
        command: the command that resumes the run.
        what: what the command resumes.
    """

    def __init__(self, message: str, command: str, what: str = "the run") -> None:
        super().__init__(message)
        self.remedy = _remedy(command, what)


@contextmanager
def resumable(command: str = "the same command", what: str = "the run") -> Iterator[None]:
    """Name the command that resumes this block. It is printed if the process is ended by force inside the block."""
    _remedies.append(_remedy(command, what))
    try:
        yield
    finally:
        _remedies.pop()


def _remedy(command: str, what: str) -> str:
    return f"Nothing is lost. Give {command} to resume {what}."


def stop_on_signals(seconds: float) -> None:
    """Stop the command at SIGTERM and SIGHUP as at Ctrl-C, and end this process by force if that takes too long.

    Args:
        seconds: from the signal until the process is ended by force.
    """
    numbers = [signal.SIGTERM]
    for name in ("SIGINT", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is not signal.SIG_IGN:  # as in the background, or after nohup
            numbers.append(number)
    for number in numbers:
        signal.signal(number, _interrupt)
    _end_by_force(numbers, seconds)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt`. asyncio would replace Python's own handler by one that only cancels a task."""
    signal.default_int_handler(number, frame)


def _end_by_force(numbers: Collection[int], seconds: float) -> None:
    """Watch for signals in a thread, and end this process some seconds after the first one.

    A handler cannot do this alone. Prefect replaces the handler of SIGTERM during a flow. Python drops an exception
    that a handler raises inside a callback of the garbage collector or of an import. And a worker that is killed while
    it holds a lock never releases the lock, for which this process may wait. Python writes the number of each signal
    into the socket, whatever its handler does.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)

    def watch() -> None:
        with reader:
            while received := reader.recv(64):
                if not set(numbers).isdisjoint(received):
                    time.sleep(seconds)
                    printer = threading.Thread(target=_print_remedy, args=(seconds,), daemon=True)
                    printer.start()
                    printer.join(_PRINT_SECONDS)  # the main thread may be inside a write that never ends
                    os._exit(3)

    threading.Thread(target=watch, name="watch-signals", daemon=True).start()


def _print_remedy(seconds: float) -> None:
    """Print how to resume what this process was doing. Outside of `resumable`, the command has said so or cannot."""
    if _remedies:
        print_message(f"stopped by force: the command did not end within {seconds:g} seconds", "red")
        print_remedy(_remedies[-1])


def _forget_signals() -> None:
    """Let a fork write no signals into the socket of its parent."""
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_signals)
