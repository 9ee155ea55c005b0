"""What this machine has to dream with: how many processes, which device for each, and how much memory."""

import ctypes
import math
import multiprocessing
import os
import re
import signal
import threading
import warnings
from itertools import takewhile
from pathlib import Path
from typing import Any

from dreamcore.errors import InvalidInput

BATCH = 16
"""Dreams made at once, at most."""
SMALL = 600_000
"""Pixels that are dreamt at once on a processor, if one picture has no more."""
PRIMITIVES = "256"
"""Convolutions that oneDNN keeps ready, each for one size of picture and with memory of its own: 1,024 by itself, which
photographs of many sizes fill."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
_MOST = 2**31 - 1
"""More is no C int."""
_LARGE = 64
"""A block of more than one part in so many of the memory is large."""
UNUSABLE = (
    "torch can use none of the {} GPUs counted here (is the driver too old, or this torch a build for processors?), so "
    "processors dream, in a run with one process for each GPU: with CUDA_VISIBLE_DEVICES= there is one for each core"
)


def asked_for(name: str, what: str) -> int | None:
    """The number of `what` that a variable of the environment asks for; None where it is not set.

    Raises:
        InvalidInput: it is no positive number.
    """
    asked = os.environ.get(name)
    if asked and not (asked.isdecimal() and int(asked)):
        raise InvalidInput(f"{name} is {asked!r}: give a number of {what}, 1 or more")
    return int(asked) if asked else None


def workers() -> int:
    """How many processes dream at once: `DREAMGRID_WORKERS`, or one a GPU, or one a core.

    Raises:
        InvalidInput: `DREAMGRID_WORKERS` is no positive number.
    """
    return asked_for("DREAMGRID_WORKERS", "processes") or gpus() or cores()


def cores_a_worker() -> int:
    """Cores that each of `workers` has, at least 1: those that feed a GPU have several; raises as `workers`."""
    return max(1, cores() // workers())


def gpus() -> int:
    """How many GPUs this process may use; without torch, which is slow to import."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return sum(1 for _ in Path("/dev").glob("nvidia[0-9]*"))
    # CUDA looks no further than the first entry that names no GPU, such as -1.
    return len(list(takewhile(lambda gpu: gpu and not gpu.startswith("-"), map(str.strip, visible.split(",")))))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_environment() -> None:
    """See, before anything begins, whether what the environment asks for can be read; workers read it when they dream.

    Raises:
        InvalidInput: `DREAMGRID_WORKERS`, `DREAMGRID_BATCH` or `DREAMGRID_MAX_MEMORY` is nothing of the kind.
    """
    workers()
    _asked_batch()
    _asked_memory()


def start_worker() -> None:
    """Set up a worker process: one thread of arithmetic, since there is one process a core."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, which only worker processes do
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRIMITIVES)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the flow decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """An idle worker would wait for ever for a flow that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def stop_workers() -> None:
    """Kill this process's workers where they are: what they had not delivered is dreamt again by the next run."""
    for child in multiprocessing.active_children():
        child.kill()


def max_memory(device: str) -> int:
    """Bytes that a process may dream in: `DREAMGRID_MAX_MEMORY`, or its share of what the machine has.

    What is free at the moment does not count: the same machine dreams the same pictures, whatever else it does.

    Raises:
        InvalidInput: `DREAMGRID_MAX_MEMORY` is no size.
    """
    if asked := _asked_memory():
        return asked
    if device.startswith("cuda"):
        import torch

        sharing = math.ceil(workers() / torch.cuda.device_count())  # of this GPU, or of another one
        return int(torch.cuda.get_device_properties(device).total_memory * 0.8 / sharing)
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limit = Path("/sys/fs/cgroup/memory.max")  # of the container
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        sizes.append(int(text))
    return int(min(sizes) * 0.6 / workers())


def _asked_memory() -> int | None:
    asked = os.environ.get("DREAMGRID_MAX_MEMORY")
    try:
        return parse_size(asked) if asked else None
    except InvalidInput as error:
        raise InvalidInput(f"DREAMGRID_MAX_MEMORY: {error}") from error


def keep_memory(max_memory: int) -> None:
    """Let this process keep the memory of a step's tensors for the next step.

    Left alone, glibc gives large blocks back to the system at once, and the system clears every page of them before
    it gives them out again: at a megapixel that was up to half of a step. Other C libraries are left alone.

    Args:
        max_memory: bytes that the process may dream in. Blocks above a small part of it still go back: kept, they
            would leave holes that nothing fits into.
    """
    if (set_option := _of_libc("mallopt")) is not None:
        set_option(_M_MMAP_THRESHOLD, min(max_memory // _LARGE, _MOST))
        set_option(_M_TRIM_THRESHOLD, _MOST)


def give_back_memory() -> None:
    """Give the system back what nobody uses of the memory kept: between blocks of many sizes it is ever more."""
    if (trim := _of_libc("malloc_trim")) is not None:
        trim(0)


def _of_libc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None


def parse_size(text: str) -> int:
    """Bytes from `2GiB`, `500 MB` or `1000000`.

    Raises:
        InvalidInput: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?)?", text.strip(), re.IGNORECASE)
    power = " KMGT".index((match[2] or " ").upper()) if match else 0
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** power) if match else 0
    if not size:
        raise InvalidInput(f"{text!r} is no amount of memory: write such as 2GiB or 500MB")
    return size


def at_once(device: str, pixels: int) -> int:
    """How many dreams of one size a process makes at once, if memory allows: `DREAMGRID_BATCH`.

    By itself `BATCH` on a GPU, which one picture does not fill. On processors as many as have `SMALL` pixels together:
    small octaves gain up to three times the speed, and large ones leave the caches. Either way a dream is the one that
    it would be alone: to rounding, which the ascent lets grow, and on processors to the bit with most networks, among
    them the bundled one.

    Args:
        device: where they are dreamt.
        pixels: of one of them.

    Raises:
        InvalidInput: `DREAMGRID_BATCH` is no positive number.
    """
    if asked := _asked_batch():
        return asked
    return BATCH if device.startswith("cuda") else max(1, min(BATCH, SMALL // pixels))


def _asked_batch() -> int | None:
    return asked_for("DREAMGRID_BATCH", "dreams")


def lookahead(device: str) -> int:
    """Photographs loaded ahead, and dreams encoded and uploaded behind, of those being dreamt: a batch of a GPU."""
    return BATCH if device.startswith("cuda") else 2


def choose_device() -> str:
    """The GPU of this worker process, counted round the machine's GPUs, or the CPU."""
    import torch  # slow to import; whoever counts processes can do without

    if not torch.cuda.is_available():
        if counted := gpus():  # as many processes were begun, and to nobody else does this look wrong
            warnings.warn(UNUSABLE.format(counted), stacklevel=2)
        return "cpu"
    ordinal = (multiprocessing.current_process()._identity or (1,))[0] - 1
    return f"cuda:{ordinal % torch.cuda.device_count()}"
