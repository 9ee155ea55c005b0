"""Images that attack a decoder, and functions that inspect its child process."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamcore.errors import ImageError
from flows.decoding.decoder import Decoder
from tests.support.pictures import photo, saved

GOOD = saved(Image.fromarray(photo(60, 40)), "PNG")


def small_bomb() -> bytes:
    """Return 34 bytes of WebP within the limit of pixels. Decoding them takes 1.5 GB."""
    return saved(Image.new("RGBA", (9900, 9900)), "WEBP", lossless=True, method=0, quality=0)


def many_scans(times: int, side: int = 3000) -> bytes:
    """Return a progressive JPEG whose last scan is repeated: 23 bytes and 3 to 5 ms of decoding for each."""
    once = saved(Image.new("RGB", (side, side), (50, 100, 150)), "JPEG", progressive=True)
    last = once.rindex(b"\xff\xda")
    return once[:last] + once[last:-2] * times + once[-2:]


ENDLESS = many_scans(20_000)
"""Half a megabyte of JPEG. Decoding it takes minutes."""


def pid(decoder: Decoder) -> int:
    decoder.decode(GOOD)
    assert decoder.child is not None
    return decoder.child.process.pid


def works(decoder: Decoder) -> bool:
    return np.array_equal(decoder.decode(GOOD).pixels, photo(60, 40))


def failure(decoder: Decoder, data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decoder.decode(data)
    return caught.value


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.005)


def when_busy(process: int, action: Callable[[], object]) -> threading.Thread:
    """Call `action` after the process has used more CPU time, so that it is in the middle of an image."""
    idle = cpu_seconds(process)

    def watch() -> None:
        wait_until(lambda: cpu_seconds(process) > idle + 0.2)
        action()

    watcher = threading.Thread(target=watch)
    watcher.start()
    return watcher
