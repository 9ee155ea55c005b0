"""Processes that work at the same time, after each has prepared itself."""

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch

from flows.machine.machine import max_memory
from flows.machine.worker_process import disable_heap_trimming, start_worker

Prepare = Callable[..., Callable[[Any], Any]]
"""Called once in each process. Returns the function that handles the requests, one after the other."""


def become_worker() -> None:
    """Configure this process in the same way as a worker that dreams on a CPU."""
    start_worker()
    disable_heap_trimming(max_memory("cpu"))


class ProcessGroup:
    """Processes that handle requests at the same time, for the duration of a `with` block.

    Args:
        prepare: a function at module level. The constructor waits until every process has called it.
        arguments: arguments of `prepare`.
        processes: number of processes.
        threads: torch threads in each process; None: torch's default.

    Raises:
        RuntimeError: a process ended.
    """

    def __init__(
        self, prepare: Prepare, arguments: Sequence[object], processes: int = 1, threads: int | None = 1
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(processes):
            parent_end, child_end = context.Pipe()
            process = context.Process(target=_serve, args=(child_end, prepare, tuple(arguments), threads), daemon=True)
            process.start()
            child_end.close()  # so that the pipe ends when the process ends
            self._pipes.append(parent_end)
            self._processes.append(process)
        self.threads = int(self._receive()[0])
        """Torch threads in each process."""

    def ask(self, *requests: object) -> list[Any]:
        """Send one request to each of as many processes, and return their results when all have finished.

        Raises:
            RuntimeError: a process ended.
        """
        for pipe, request in zip(self._pipes, requests, strict=False):
            pipe.send((request,))
        return self._receive(len(requests))

    def _receive(self, count: int | None = None) -> list[Any]:
        try:
            return [pipe.recv() for pipe in self._pipes[:count]]
        except EOFError as error:
            raise RuntimeError("a process of the benchmark ended: see its traceback on standard error") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()


def _serve(pipe: Connection, prepare: Prepare, arguments: tuple[object, ...], threads: int | None) -> None:
    """Prepare this process, report its number of threads, and handle requests until the pipe ends."""
    if threads:
        torch.set_num_threads(threads)
    handle = prepare(*arguments)
    pipe.send(torch.get_num_threads())
    while True:
        try:
            (request,) = pipe.recv()
        except EOFError:
            return
        pipe.send(handle(request))
