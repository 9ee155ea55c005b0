"""Processes that work side by side, each after preparing itself."""

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch

from flows.machine import max_memory
from flows.worker_process import disable_heap_trimming, start_worker

Prepare = Callable[..., Callable[[Any], Any]]
"""Called once in each process; what it gives answers one question after the other."""


def become_worker() -> None:
    """Set this process of a crew up as a run sets up the workers that dream on processors."""
    start_worker()
    disable_heap_trimming(max_memory("cpu"))


class Crew:
    """Processes that answer questions all at the same time; they are there inside a `with` block.

    Args:
        prepare: a function of a module; `Crew` waits until every process has called it.
        arguments: what it is called with.
        processes: how many.
        threads: of arithmetic in each process; None: as many as torch takes by itself.
    """

    def __init__(
        self, prepare: Prepare, arguments: Sequence[object], processes: int = 1, threads: int | None = 1
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, prepare, tuple(arguments), threads), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self._pipes.append(ours)
            self._processes.append(process)
        self.threads = int(self._hear()[0])
        """Of arithmetic, as each process says."""

    def ask(self, *questions: object) -> list[Any]:
        """The answers of as many processes as there are questions, each to its own; they work at the same time."""
        for pipe, question in zip(self._pipes, questions, strict=False):
            pipe.send((question,))
        return self._hear(len(questions))

    def _hear(self, count: int | None = None) -> list[Any]:
        try:
            return [pipe.recv() for pipe in self._pipes[:count]]
        except EOFError as error:
            raise RuntimeError("a process of the benchmark ended; standard error has the reason") from error

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
    if threads:
        torch.set_num_threads(threads)
    answer = prepare(*arguments)
    pipe.send(torch.get_num_threads())
    while True:
        try:
            (question,) = pipe.recv()
        except EOFError:
            return
        pipe.send(answer(question))
