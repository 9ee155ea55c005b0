"""Pictures from strangers, decoded in a process that has nothing to lose.

A picture may be made to break its reader: to run code in it, to fill the memory, never to end. So nothing in `flows`
decodes but the child processes that are kept here. They have no credentials and can open neither file nor connection; a
picture that takes too long or too much ends its child, and only that picture fails: the next one gets a new child.

A request is two numbers and the picture's bytes; an answer is a line of JSON, and then the pixels. The child may have
been taken over by a picture, so an answer is held against what was asked, and nothing in it is ever run.
"""

import atexit
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader, BufferedWriter
from pathlib import Path
from queue import LifoQueue
from typing import BinaryIO, cast, get_args

import numpy as np
from PIL import Image

from dreamcore import images
from dreamcore.errors import ErrorKind, ImageError, Unavailable
from dreamcore.images import MAX_SOURCE_PIXELS, Photograph
from flows.machine import cores_per_worker

SECONDS = 10.0
"""Of computing that one picture may take."""
WAITING = 6
"""Times as many it may take by the clock: others may keep its child from computing."""
MEMORY = 2**30
"""Bytes that one picture may take, its file and its pixels included."""

_REQUEST = struct.Struct("<QQ")  # bytes of the picture, and max_pixels or 0
_READY = b"ready\n"
_STEPS = 20  # in which `SECONDS` are counted
_LINE = 4096  # bytes of an answer before its pixels, at most
_ENVIRONMENT = ("LD_LIBRARY_PATH",)  # Python itself may need it to start; everything else is the worker's own


def decode(data: bytes, *, max_pixels: int | None = None) -> Photograph:
    """`dreamcore.images.decode` in one of this process's children, which are kept.

    There are as many as it has cores: one for a process that dreams on a core, more for one that feeds a GPU.

    Raises:
        ImageError: as there; also ``undecodable``: it took longer than `SECONDS` or broke the child, and
            ``out_of_memory``: it took more than `MEMORY`.
        Unavailable: no child can be started.
    """
    with _one_at_a_time:
        decoders = _decoders()
    return decoders.decode(data, max_pixels=max_pixels)


_one_at_a_time = threading.Lock()
"""For `_decoders`: threads that ask before it is remembered would make one each, with children that nobody ends."""


@cache
def _decoders() -> "Decoders":
    return Decoders(cores_per_worker())


class Decoders:
    """Child processes that decode as many pictures at once, for any number of threads; each starts when needed."""

    def __init__(self, count: int, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.all = [Decoder(seconds, memory) for _ in range(count)]
        self._idle: LifoQueue[Decoder] = LifoQueue()  # the one that was used last first: no more start than are needed
        for decoder in self.all:
            self._idle.put(decoder)

    def decode(self, data: bytes, *, max_pixels: int | None = None) -> Photograph:
        """See `decode` above."""
        decoder = self._idle.get()
        try:
            return decoder.decode(data, max_pixels=max_pixels)
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """End the children; the next pictures start others."""
        for decoder in self.all:
            decoder.close()


class Decoder:
    """A child process that decodes one picture after another, for one thread at a time."""

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.seconds, self.memory = seconds, memory
        self.child: _Child | None = None
        atexit.register(self.close)

    def decode(self, data: bytes, *, max_pixels: int | None = None) -> Photograph:
        """See `decode` above."""
        try:
            return self._ask(data, max_pixels)
        except ImageError:
            if self.child is None or not self.child.killed:
                raise
        return self._ask(data, max_pixels)  # an operator may have killed it, and once is not the picture's fault

    def _ask(self, data: bytes, max_pixels: int | None) -> Photograph:
        child = self._living()
        answer: Photograph | ImageError | None = None
        try:
            with child.watched(self.seconds):
                answer = child.ask(data, max_pixels)
        except (EOFError, OSError):
            raise self._verdict(child) from None
        except ValueError:
            raise ImageError("undecodable", "it made its decoder talk nonsense") from None
        finally:
            if answer is None or child.late:  # it may still say something, which would answer nothing
                child.end()
        if isinstance(answer, ImageError):
            raise answer
        return answer

    def close(self) -> None:
        """End the child, if there is one; the next picture starts another."""
        if self.child is not None:
            self.child.end()

    def _living(self) -> "_Child":
        if self.child is None or self.child.process.poll() is not None:
            self.close()
            self.child = _Child(self.memory)
        return self.child

    def _verdict(self, child: "_Child") -> ImageError:
        """Why a picture got no answer; the child is gone or going."""
        code = child.end()
        if child.late:
            return ImageError("undecodable", f"decoding it takes longer than {self.seconds:g} s")
        if child.killed or code == 1:  # what the system does where memory is short, and Python's own end then
            return ImageError("out_of_memory", "decoding it takes more memory than there is for one picture")
        how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
        return ImageError("undecodable", f"it broke its decoder ({how})")


class _Child:
    """One child process, as its parent sees it."""

    def __init__(self, memory: int) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # The child finds the modules where this process does, and not in the folder that somebody happens to be in.
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        try:
            self.process = subprocess.Popen(  # noqa: S603 - the command is ours
                [sys.executable, "-P", "-m", "flows.decoder", str(memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches every process of a terminal
            )
        except OSError as error:
            raise Unavailable(f"no process can be started to decode pictures: {error}") from error
        self.requests = cast(BufferedWriter, self.process.stdin)
        self.answers = cast(BufferedReader, self.process.stdout)
        self.leash = cast(BufferedReader, self.process.stderr)
        self.late = False
        if self.answers.readline() != _READY:
            self.process.kill()
            said = self.leash.read().decode(errors="replace").strip().rpartition("\n")[2]
            self.end()
            raise Unavailable(f"the process that decodes pictures does not start: {said}")

    def ask(self, data: bytes, max_pixels: int | None) -> Photograph | ImageError:
        """What it makes of a picture.

        Raises:
            EOFError, OSError: it ended.
            ValueError: it answers nonsense.
        """
        self.requests.write(_REQUEST.pack(len(data), max_pixels or 0))
        self.requests.write(data)
        self.requests.flush()
        line = self.answers.readline(_LINE)
        if not line.endswith(b"\n") and len(line) < _LINE:
            raise EOFError
        match json.loads(line):
            case {"kind": str(kind), "error": str(error)} if kind in get_args(ErrorKind):
                return ImageError(cast(ErrorKind, kind), error)
            case {"size": [int(width), int(height)], "shape": [int(rows), int(columns)]} if (
                min(width, height, rows, columns) > 0
                and width * height <= MAX_SOURCE_PIXELS
                and rows * columns <= min(max_pixels or MAX_SOURCE_PIXELS, width * height)
            ):
                pixels = np.empty((rows, columns, 3), np.uint8)
                if self.answers.readinto(pixels.data) < pixels.nbytes:
                    raise EOFError
                return Photograph(pixels, width, height)
        raise ValueError(line)

    @contextmanager
    def watched(self, seconds: float) -> Iterator[None]:
        """Kill it if it computes for longer in this block, or sleeps much longer.

        Time is counted in small steps, so that the hours of a machine that was stopped do not count.
        """
        done, before = threading.Event(), self.computed()

        def watch() -> None:
            for _ in range(WAITING * _STEPS):
                if done.wait(seconds / _STEPS):
                    return
                if self.computed() - before > seconds:
                    break
            self.late = True
            self.process.kill()

        watchdog = threading.Thread(target=watch)
        watchdog.start()
        try:
            yield
        finally:
            done.set()
            watchdog.join()

    def computed(self) -> float:
        """Seconds that it has computed; only Linux tells."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def killed(self) -> bool:
        """Whether it was killed, and not because it was late."""
        return self.process.returncode == -signal.SIGKILL and not self.late

    def end(self) -> int:
        """Kill it, unless it has ended by itself, and give the code that it ended with."""
        self.process.kill()
        for pipe in (self.requests, self.answers, self.leash):
            with suppress(OSError):  # bytes that it did not take
                pipe.close()
        return self.process.wait()


def _serve(memory: int) -> None:
    """The child itself: answers requests until no more come."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    _give_up(memory)
    answers.write(_READY)
    answers.flush()
    while request := requests.read(_REQUEST.size):
        size, max_pixels = _REQUEST.unpack(request)
        _answer(requests.read(size), max_pixels or None, answers)
        answers.flush()


def _answer(data: bytes, max_pixels: int | None, answers: BinaryIO) -> None:
    try:
        photograph = images.decode(data, max_pixels=max_pixels)
    except ImageError as error:
        answers.write(json.dumps({"kind": error.kind, "error": str(error)}).encode() + b"\n")
    else:
        size, shape = (photograph.width, photograph.height), photograph.pixels.shape[:2]
        answers.write(json.dumps({"size": size, "shape": shape}).encode() + b"\n")
        answers.write(photograph.pixels.data)


def _give_up(memory: int) -> None:
    """Give up, for good, whatever decoding does not need; only Linux takes all of it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent decides, and this ends with it
        signal.signal(number, signal.SIG_IGN)
    Image.init()  # Pillow imports its formats when it meets them, and then no file can be opened any more
    if sys.platform != "linux":
        return
    import fcntl
    import resource

    # An idle child ends when its requests do. A busy one is told by the kernel, at once and whatever it is doing: when
    # the other end of its stderr, which nobody reads, closes with the parent, it gets the signal SIGIO, and dies of it.
    fcntl.fcntl(2, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_ASYNC)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for nothing in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(nothing, (0, 0))


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
