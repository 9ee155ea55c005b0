"""Decode untrusted images in sandboxed child processes.

An image may be crafted to attack its decoder: to run code, to fill the memory, or to compute forever. Therefore
nothing in `flows` decodes an image except the child processes of this module. A child has no credentials and cannot
open files or connections. If an image exceeds a limit of time or memory, its child is killed and only that image
fails. The next image gets a new child.

A request is two integers and the bytes of the image. A reply is one line of JSON, followed by the pixels. An image may
have taken control of the child, so every reply is validated and nothing in it is executed. What a decoder library
prints is discarded.
"""

import atexit
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from io import BufferedWriter
from queue import LifoQueue
from typing import BinaryIO, TypeVar, cast, get_args

import numpy as np

from dreamcore import images
from dreamcore.errors import ErrorKind, ImageError
from dreamcore.image_formats import load_plugins, needs_thread
from dreamcore.images import MAX_SOURCE_PIXELS, Photograph
from flows.decoding.child_process import CLOCK_FACTOR, MEMORY, READY, SECONDS, ChildProcess
from flows.decoding.sandbox import enter_sandbox
from flows.machine.machine import cores_per_worker

__all__ = [
    "CLOCK_FACTOR",
    "MEMORY",
    "SECONDS",
    "Decoder",
    "Decoders",
    "check_size",
    "decode",
    "start",
    "thread_safe_cache",
]

_REQUEST = struct.Struct("<QQ")  # length of the image in bytes; `max_pixels`, or 0 for no limit

_T = TypeVar("_T")


def thread_safe_cache(make: Callable[[], _T]) -> Callable[[], _T]:
    """Return a function that calls `make` once and then returns the same result, also to threads that call it first.

    `functools.cache` may call `make` several times if several threads make the first call at the same time.
    """
    lock = threading.Lock()
    results: list[_T] = []

    def get() -> _T:
        with lock:
            if not results:
                results.append(make())
        return results[0]

    return get


_decoders = thread_safe_cache(lambda: Decoders(cores_per_worker()))


def decode(data: bytes, *, max_pixels: int | None = None) -> Photograph:
    """Decode an image as `dreamcore.images.decode` does, in one of the child processes that this process keeps.

    There are at most as many children as the process has cores: one for a process that dreams on a core, more for one
    that feeds a GPU.

    Args:
        data: the encoded image.
        max_pixels: larger images are shrunk to at most this many pixels.

    Raises:
        ImageError: as `dreamcore.images.decode`; also `undecodable` if decoding takes longer than `SECONDS` or
            crashes the child, and `out_of_memory` if it takes more than `MEMORY`.
        Unavailable: no child process can be started.
    """
    return _decoders().decode(data, max_pixels=max_pixels)


def check_size(size: int) -> None:
    """Check that a file of `size` bytes may be read. A larger one would use up the memory of the worker.

    Raises:
        ImageError: `too_large`: the file has more than `MEMORY` bytes.
    """
    if size > MEMORY:
        raise ImageError("too_large", f"the file has {size} bytes; at most {MEMORY} bytes are read")


def start() -> None:
    """Start a child process in the background, for an image that is decoded soon.

    Raises:
        Unavailable: no child process can be started.
    """
    _decoders().start()


class Decoder:
    """A child process that decodes one image after another, for one thread at a time. It starts when it is needed.

    Args:
        seconds: CPU seconds that one image may take.
        memory: bytes that one image may take.
        clock_factor: an image may take this many times `seconds` in elapsed time.
    """

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY, clock_factor: int = CLOCK_FACTOR) -> None:
        self.seconds, self.memory, self.clock_factor = seconds, memory, clock_factor
        self.child: _Child | None = None
        atexit.register(self.close)

    def decode(self, data: bytes, *, max_pixels: int | None = None) -> Photograph:
        """Decode an image; see the function `decode`."""
        try:
            return self._try_decode(data, max_pixels)
        except ImageError:
            if self.child is None or not self.child.was_killed:
                raise
        return self._try_decode(data, max_pixels)  # an operator may have killed the child, so the image gets another

    def _try_decode(self, data: bytes, max_pixels: int | None) -> Photograph:
        child = self._running_child()
        reply: Photograph | ImageError | None = None
        try:
            with child.watchdog(self.seconds, self.clock_factor):
                reply = child.request(data, max_pixels)
        except (EOFError, OSError):
            raise child.failure("one image", self.seconds) from None
        except ValueError:
            raise ImageError("undecodable", "the decoder sent a malformed reply") from None
        finally:
            if reply is None or child.timed_out:  # a late reply would be taken for the reply to the next request
                child.stop()
        if isinstance(reply, ImageError):
            raise reply
        return reply

    def close(self) -> None:
        """Stop the child process, if there is one. The next image starts another."""
        if self.child is not None:
            self.child.stop()

    def start(self) -> None:
        """Start the child process in the background, if none runs."""
        if self.child is None or self.child.process.poll() is not None:
            self.close()
            self.child = _Child(self.memory)

    def _running_child(self) -> "_Child":
        self.start()
        assert self.child is not None  # noqa: S101 - it was started
        self.child.await_ready()
        return self.child


class Decoders:
    """Several child processes that decode images at the same time, for any number of threads.

    Args:
        count: the largest number of child processes. Each starts when it is needed.
        seconds: CPU seconds that one image may take.
        memory: bytes that one image may take.
    """

    def __init__(self, count: int, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.all = [Decoder(seconds, memory) for _ in range(count)]
        self._idle: LifoQueue[Decoder] = LifoQueue()  # last in, first out, so that no more start than are needed
        for decoder in self.all:
            self._idle.put(decoder)

    def decode(self, data: bytes, *, max_pixels: int | None = None) -> Photograph:
        """Decode an image; see the function `decode`."""
        decoder = self._idle.get()
        try:
            return decoder.decode(data, max_pixels=max_pixels)
        finally:
            self._idle.put(decoder)

    def start(self) -> None:
        """Start the child process that decodes the next image in the background."""
        decoder = self._idle.get()
        try:
            decoder.start()
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """Stop the child processes. The next images start others."""
        for decoder in self.all:
            decoder.close()


class _Child(ChildProcess):
    """A child process that decodes images.

    Args:
        memory: bytes that one image may take.
    """

    def __init__(self, memory: int) -> None:
        super().__init__("flows.decoding.decoder", str(memory), stdin=subprocess.PIPE)
        self.requests = cast(BufferedWriter, self.process.stdin)

    def request(self, data: bytes, max_pixels: int | None) -> Photograph | ImageError:
        """Send one image and return the validated reply.

        Raises:
            EOFError, OSError: the child has exited.
            ValueError: the reply is malformed.
        """
        self.requests.write(_REQUEST.pack(len(data), max_pixels or 0))
        self.requests.write(data)
        self.requests.flush()
        match self.read_line():
            case {"kind": str(kind), "error": str(error)} if kind in get_args(ErrorKind):
                return ImageError(cast(ErrorKind, kind), error)
            case {"size": [int(width), int(height)], "shape": [int(rows), int(columns)]} if (
                min(width, height, rows, columns) > 0
                and width * height <= MAX_SOURCE_PIXELS
                and rows * columns <= min(max_pixels or MAX_SOURCE_PIXELS, width * height)
            ):
                pixels = np.empty((rows, columns, 3), np.uint8)
                self.read_into(pixels.data)
                return Photograph(pixels, width, height)
        raise ValueError("an unknown reply")


# --- inside the child process


def _serve(memory: int) -> None:
    """Reply to requests until standard input is closed."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    load_plugins(one_thread=True)  # they need files, which cannot be opened later
    enter_sandbox(memory, threads=needs_thread())
    replies.write(READY)
    replies.flush()
    while request := requests.read(_REQUEST.size):
        size, max_pixels = _REQUEST.unpack(request)
        _reply(requests.read(size), max_pixels or None, replies)
        replies.flush()


def _reply(data: bytes, max_pixels: int | None, replies: BinaryIO) -> None:
    try:
        photograph = images.decode(data, max_pixels=max_pixels)
    except ImageError as error:
        replies.write(json.dumps({"kind": error.kind, "error": str(error)}).encode() + b"\n")
    else:
        size, shape = (photograph.width, photograph.height), photograph.pixels.shape[:2]
        replies.write(json.dumps({"size": size, "shape": shape}).encode() + b"\n")
        replies.write(photograph.pixels.data)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
