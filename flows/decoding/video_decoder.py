"""Read untrusted videos in sandboxed child processes.

A video may be crafted to attack its decoder, as an image may. Therefore nothing outside the child processes of this
module reads a video of unknown origin. A child inherits the open file and can open nothing else. It sends the frames
one after another, as pixels. The limits of memory and time are those of `child_process.py`, for each frame.
"""

import importlib
import json
import math
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from dreamcore.errors import ErrorKind, ImageError
from dreamcore.images import MAX_SOURCE_PIXELS
from flows.decoding.child_process import CLOCK_FACTOR, MEMORY, READY, SECONDS, ChildProcess
from flows.decoding.sandbox import enter_sandbox
from flows.decoding.video_selection import Selection, VideoInfo

__all__ = ["MAX_FRAMES", "VideoFile"]

MAX_FRAMES = 1_000_000
"""Frames that a video may have."""

_CHUNK = 2**20
"""Bytes of a movie with sound that are read at a time."""
_SOUND_RATE = 60_000
"""Bytes that a second of encoded sound may have."""

_Pixels = NDArray[np.uint8]


class VideoFile:
    """An untrusted video file.

    Args:
        file: the regular file, open for reading. The caller closes it.
        seconds: CPU seconds that one frame may take.
        memory: bytes that a child process may take.
    """

    def __init__(self, file: IO[bytes], seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.file, self.seconds, self.memory = file, seconds, memory
        self.damaged = 0
        """How many packets of the last selection could not be decoded."""

    def measure(self) -> VideoInfo:
        """Read the file once, and return what is known of its video.

        Raises:
            ImageError: the file is not a video, contains none, or cannot be decoded within the limits.
            Unavailable: no child process can be started.
        """
        with self._child("measure") as child:
            for reply in self._replies(child):
                match reply:
                    case {"info": [int(width), int(height), int() | float() as fps, *times, bool(sound)]} if len(
                        times
                    ) == 2 and all(isinstance(time, int | float) and math.isfinite(time) for time in times):
                        if min(width, height) > 0 and width * height <= MAX_SOURCE_PIXELS and 1 <= fps <= 120:
                            return VideoInfo(width, height, float(fps), float(times[0]), float(times[1]), sound)
                        raise ImageError("unsupported", f"its frames of {width} x {height} pixels are not supported")
        raise ImageError("undecodable", "the decoder sent a malformed reply")

    def frames(self, selection: Selection) -> Iterator[_Pixels]:
        """Yield the frames of a selection, from `selection.first` on, as (H, W, 3), sRGB.

        There are fewer frames than `selection.frames` if the end of the file is damaged.

        Raises:
            ImageError: the video cannot be decoded within the limits.
            Unavailable: no child process can be started.
        """
        expected = selection.first
        with self._child("frames", *selection) as child:
            for reply in self._replies(child, (selection.height, selection.width, 3)):
                match reply:
                    case {"frame": int(number), "pixels": pixels} if number == expected < selection.frames:
                        expected += 1
                        yield pixels
                    case {"damaged": int(damaged)}:
                        self.damaged = damaged
                        return
                    case _:
                        raise ImageError("undecodable", "the decoder sent a malformed reply")

    def add_sound(self, movie: IO[bytes], result: IO[bytes], start: float, seconds: float) -> None:
        """Write a movie with the sound of this file.

        Args:
            movie: the movie without sound, open for reading.
            result: the file to write.
            start: where the movie begins, in the time of this file, in seconds.
            seconds: length of the movie.

        Raises:
            ImageError: the sound cannot be read within the limits.
            Unavailable: no child process can be started.
        """
        number = movie.fileno()
        limit = sum(os.fstat(each).st_size for each in (number, self.file.fileno())) + int(_SOUND_RATE * (seconds + 60))
        with self._child("sound", number, start, seconds, files=[number], memory=self.memory + 4 * limit) as child:
            for reply in self._replies(child):
                match reply:
                    case {"bytes": int(size)} if 0 < size <= limit:
                        with self._limits(child):
                            for done in range(0, size, _CHUNK):
                                chunk = bytearray(min(_CHUNK, size - done))
                                child.read_into(memoryview(chunk))
                                result.write(chunk)
                        return
        raise ImageError("undecodable", "the decoder sent a malformed reply")

    @contextmanager
    def _child(
        self, task: str, *arguments: float, files: Sequence[int] = (), memory: int | None = None
    ) -> Iterator[ChildProcess]:
        """Start a child process for one task, and stop it at the end of the block."""
        text = json.dumps([memory or self.memory, *arguments])
        child = ChildProcess("flows.decoding.video_decoder", task, text, stdin=self.file.fileno(), files=files)
        child.await_ready()
        try:
            yield child
        finally:
            child.stop()

    def _replies(self, child: ChildProcess, shape: tuple[int, int, int] = (0, 0, 0)) -> Iterator[Mapping[str, Any]]:
        """Yield the replies of a child, with the pixels of frames of this shape. Signs of life are left out.

        Raises:
            ImageError: the child sent an error or a malformed reply, or was stopped at a limit.
        """
        for _ in range(MAX_FRAMES):
            with self._limits(child):
                reply = child.read_line()
                if not isinstance(reply, dict):
                    raise ValueError("not an object")  # noqa: TRY004 - a malformed reply
                if "frame" in reply:
                    reply["pixels"] = np.empty(shape, np.uint8)
                    child.read_into(reply["pixels"].data)
            match reply:
                case {"kind": str(kind), "error": str(error)} if kind in get_args(ErrorKind):
                    raise ImageError(cast(ErrorKind, kind), error)
            if reply:
                yield reply
        raise ImageError("too_large", f"the video has more than {MAX_FRAMES:,} frames")

    @contextmanager
    def _limits(self, child: ChildProcess) -> Iterator[None]:
        """Stop the child if the block takes longer than one frame may; raise what went wrong as `ImageError`."""
        try:
            with child.watchdog(self.seconds, CLOCK_FACTOR):
                yield
        except (EOFError, OSError):
            raise child.failure("one video", self.seconds) from None
        except ValueError:
            raise ImageError("undecodable", "the decoder sent a malformed reply") from None


# --- inside the child process


def _serve(task: str, memory: int, *arguments: Any) -> None:
    """Do one task and reply."""
    import av.logging

    for module in pkgutil.walk_packages(av.__path__, "av."):  # PyAV imports late, but files cannot be opened later
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    av.logging.set_level(av.logging.PANIC)
    importlib.import_module("flows.decoding.video_sound")
    replies = os.fdopen(os.dup(1), "wb")
    enter_sandbox(memory, threads=task == "sound")  # the resampler of sound starts threads
    replies.write(READY)
    replies.flush()
    try:
        for line, data in _TASKS[task](*arguments):
            replies.write(json.dumps(line).encode() + b"\n")
            replies.write(data)
            replies.flush()
    except MemoryError:
        sys.exit(1)
    except BrokenPipeError:  # the parent needs no more
        os._exit(0)
    except ImageError as error:
        replies.write(json.dumps({"kind": error.kind, "error": str(error)}).encode() + b"\n")
    except Exception as error:
        text = f"it cannot be decoded ({type(error).__name__})"
        replies.write(json.dumps({"kind": "damaged", "error": text}).encode() + b"\n")
    replies.flush()


_Reply = tuple[dict[str, Any], bytes | memoryview]


def _measure() -> Iterator[_Reply]:
    from flows.decoding.video_frames import measure

    for info in measure(0):
        yield ({"info": info} if info else {}), b""


def _frames(*arguments: Any) -> Iterator[_Reply]:
    from flows.decoding.video_frames import OpenVideo, frames_at

    video = OpenVideo.open(0)
    for found in frames_at(video, Selection(*arguments)):
        yield ({}, b"") if found is None else ({"frame": found[0]}, found[1].data)
    yield {"damaged": video.damaged}, b""


def _sound(movie: int, start: float, seconds: float) -> Iterator[_Reply]:
    from flows.decoding.video_sound import Span, add_sound

    for data in add_sound(movie, 0, Span(start, seconds)):
        yield ({}, b"") if data is None else ({"bytes": len(data)}, data)


_TASKS: Mapping[str, Callable[..., Iterator[_Reply]]] = {"measure": _measure, "frames": _frames, "sound": _sound}

if __name__ == "__main__":
    _serve(sys.argv[1], *json.loads(sys.argv[2]))
