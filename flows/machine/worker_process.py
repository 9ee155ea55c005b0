"""Set-up of a process that dreams: its threads, its signals, its heap, and its end together with the parent."""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import util
from multiprocessing.synchronize import SemLock
from typing import Any

from flows.machine.machine import assign_gpu, set_up_gpu_allocator
from flows.machine.prefect_logs import shorten_errors

__all__ = [
    "disable_heap_trimming",
    "exit_with_parent",
    "let_pool_end",
    "release_gpu_cache",
    "set_up_compute",
    "start_worker",
    "stop_workers",
    "trim_heap",
    "unlink_semaphores",
]

ONEDNN_CACHE = "256"
"""Convolutions that oneDNN keeps compiled, each for one image size and with its own memory. oneDNN's default of 1,024
fills up with photographs of many sizes and then takes about 200 MiB more."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_MAX_INT = 2**31 - 1
_LARGE_BLOCK_SHARE = 64
"""A block is large if it has more than this fraction (1/64) of the memory limit."""


def set_up_compute() -> None:
    """Prepare a worker process for dreaming: one compute thread, since there is one process per core.

    If the process has a GPU, it must see only its own.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it at import, and only worker processes import torch
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", ONEDNN_CACHE)
    set_up_gpu_allocator()
    shorten_errors()


def start_worker(gpus: Sequence[str] = (), workers: int = 1) -> None:
    """Initialize a worker process of this machine.

    Args:
        gpus: the GPUs of all worker processes, as entries of `CUDA_VISIBLE_DEVICES`. This process gets one of them.
        workers: number of worker processes that share these GPUs.
    """
    assign_gpu(gpus, workers)
    set_up_compute()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to every process; the flow handles it
    exit_with_parent()


def exit_with_parent(clean_up: Callable[[], None] = lambda: None) -> None:
    """Exit when the parent exits. Without this, an idle worker would wait forever for a parent that was killed.

    Args:
        clean_up: called before the exit.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            clean_up()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def let_pool_end(pool: ProcessPoolExecutor) -> None:
    """Let a pool end although its processes were killed. Call this once, before anything is submitted.

    A pool sends calls through a pipe. Python before 3.11.5 waits at the end until somebody has read the calls, even if
    all processes are dead. Later versions wait as long as a fork of this process has the pipe open. If the processes
    live, the pool ends after they have read everything.
    """
    pool._call_queue.cancel_join_thread()  # type: ignore[attr-defined]


def stop_workers() -> None:
    """Kill the worker processes of this process. The next run repeats what they had not delivered."""
    for child in multiprocessing.active_children():
        child.kill()


def unlink_semaphores() -> None:
    """Remove the names of this process's semaphores, which would stay if the process was killed.

    Processes that have opened a semaphore can use it as before.
    """
    for finalizer in list(util._finalizer_registry.values()):  # type: ignore[attr-defined]
        # The others would close the queue of Prefect's logs and events.
        if finalizer._callback is SemLock._cleanup:  # type: ignore[attr-defined]
            finalizer()


def disable_heap_trimming(max_memory: int) -> None:
    """Make glibc keep freed memory for the next step; other C libraries are left alone.

    By default glibc returns large blocks to the kernel immediately, and the kernel clears every page before it hands
    the page out again. At one megapixel that took up to half the time of a step.

    Args:
        max_memory: bytes that the process may use for dreaming. Blocks larger than 1/64 of it are still returned,
            because keeping them would leave holes that no other block fits into.
    """
    if (mallopt := _libc_function("mallopt")) is not None:
        mallopt(_M_MMAP_THRESHOLD, min(max_memory // _LARGE_BLOCK_SHARE, _MAX_INT))
        mallopt(_M_TRIM_THRESHOLD, _MAX_INT)


def trim_heap() -> None:
    """Return unused heap memory to the kernel. Fragmentation between blocks of many sizes makes it grow."""
    if (malloc_trim := _libc_function("malloc_trim")) is not None:
        malloc_trim(0)


def release_gpu_cache(device: str) -> None:
    """Return the memory that torch keeps for later images to the GPU. On CPUs nothing is done."""
    if device.startswith("cuda"):
        import torch  # slow to import; a process with a GPU has done so

        torch.cuda.empty_cache()


def _libc_function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
