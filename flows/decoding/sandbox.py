"""Give up the rights of a process that decodes untrusted images.

The functions change the whole process, irrevocably. The limits need Linux; elsewhere only the output is discarded.
"""

import ctypes
import os
import platform
import signal
import struct
import sys
from pathlib import Path

__all__ = ["enter_sandbox"]

_SECCOMP_MACHINES = {  # by machine: its number, the calls fork, vfork, execve and execveat where they exist, and clone
    "x86_64": (0xC000003E, (57, 58, 59, 322), 56),
    "aarch64": (0xC00000B7, (221, 281), 220),
}
_CLONE3 = 435  # the same number on all machines
_FIRST_X32_CALL = 0x40000000  # calls of another binary interface, which x86-64 also accepts
_CLONE_THREAD = 0x10000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def enter_sandbox(memory: int, *, threads: bool) -> None:
    """Give up all rights that decoding does not need.

    Args:
        memory: bytes that the process may take besides what it has now.
        threads: whether a decoder needs to start a thread. Processes can never be started.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent decides when the child exits
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "linux":
        _discard_output()
        return
    import resource

    _exit_with_parent()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(name, (0, 0))
    if not (_forbid_processes() and threads):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # the system counts threads as processes
    _discard_output()  # only now, so that the parent can report an error of the lines above
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def _exit_with_parent() -> None:
    """Make the child exit when its parent exits.

    An idle child exits when its standard input is closed. A busy child gets SIGIO from the kernel, and exits, when the
    parent's end of the pipe of standard error is closed. A duplicate keeps the child's end open.
    """
    import fcntl

    pipe = os.dup(2)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)


def _discard_output() -> None:
    """Discard what decoder libraries print.

    The parent does not read standard error, so libtiff's warnings would fill the pipe and block the child. A line on
    standard output would be taken for a reply.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    for standard in (1, 2):
        os.dup2(null, standard)
    os.close(null)


class _Filter(ctypes.Structure):
    """The program of a seccomp filter: `struct sock_fprog` of Linux."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _forbid_processes() -> bool:
    """Make the kernel refuse new processes and programs, but not threads. Return False where this is impossible."""
    if platform.machine() not in _SECCOMP_MACHINES:
        return False
    machine, forbidden, clone = _SECCOMP_MACHINES[platform.machine()]
    program = [
        _instruction(_LOAD, 4),  # the machine
        _instruction(_EQUAL, machine, skip_if_true=1),
        _instruction(_RETURN, _EPERM),
        _instruction(_LOAD, 0),  # the number of the call
        _instruction(_AT_LEAST, _FIRST_X32_CALL, skip_if_false=1),
        _instruction(_RETURN, _EPERM),
    ]
    for number in forbidden:
        program += [_instruction(_EQUAL, number, skip_if_false=1), _instruction(_RETURN, _EPERM)]
    program += [
        _instruction(_EQUAL, _CLONE3, skip_if_false=1),
        _instruction(_RETURN, _ENOSYS),  # its flags are in memory; the C library uses clone instead
        _instruction(_EQUAL, clone, skip_if_false=3),
        _instruction(_LOAD, 16),  # the flags
        _instruction(_ANY_BIT, _CLONE_THREAD, skip_if_true=1),
        _instruction(_RETURN, _EPERM),
        _instruction(_RETURN, _ALLOW),
    ]
    installed = _Filter(len(program), b"".join(program))
    system = ctypes.CDLL(None)
    return bool(
        system.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        and system.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(installed), 0, 0) == 0
    )


def _instruction(code: int, value: int, skip_if_true: int = 0, skip_if_false: int = 0) -> bytes:
    """Return one instruction of a filter: `struct sock_filter` of Linux."""
    return struct.pack("=HBBI", code, skip_if_true, skip_if_false, value)
