"""A pool of worker processes on this machine."""

from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefect.task_runners import ProcessPoolTaskRunner

from dreamcore.errors import Unavailable
from flows.machine.machine import visible_gpus, worker_count
from flows.machine.prefetch import AnyFuture
from flows.machine.worker_process import let_pool_end, start_worker, stop_workers

__all__ = ["ProcessPool", "open_processes"]


@contextmanager
def open_processes() -> Iterator["ProcessPool"]:
    """Open the pool of this machine. Its processes start when they are needed, and end with this block.

    Raises:
        InvalidInput: `DREAMGRID_WORKERS` is not a positive integer.
    """
    workers = worker_count()
    with ProcessPoolTaskRunner(workers, initializer=start_worker, initargs=(visible_gpus(), workers)) as runner:
        if runner._executor:
            let_pool_end(runner._executor)
        yield ProcessPool(runner)


@dataclass(frozen=True)
class ProcessPool:
    """Worker processes of this machine; see `flows.running.executors.WorkerPool`."""

    runner: ProcessPoolTaskRunner
    throughput: None = None
    is_remote: bool = False

    def size(self) -> int:
        """Return the number of processes."""
        return worker_count()

    def submit(self, task: Any, parameters: dict[str, Any]) -> AnyFuture:
        """Submit a Prefect task."""
        return self.runner.submit(task, parameters)

    def check(self) -> None:
        """Do nothing: if a process dies, the futures of its tasks raise an error."""

    def stop(self) -> None:
        """Kill the processes."""
        stop_workers()

    def explain(self, error: BaseException) -> Unavailable | None:
        """Return the death of a process as an infrastructure failure."""
        if isinstance(error, BrokenProcessPool):
            return Unavailable("a worker process died, perhaps for lack of memory: try fewer (--workers)")
        return None
