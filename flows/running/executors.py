"""Where the shards of a run are dreamt: as tasks of a pool of worker processes, on this machine or on a cluster."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

from dreamcore.errors import InvalidInput, Unavailable
from flows.destination.run_record import Run
from flows.jobs.cost import Throughput
from flows.jobs.job_options import ExecutorOptions
from flows.jobs.work import Shard, ShardResult
from flows.machine.prefetch import AnyFuture, bounded_as_completed
from flows.running.protocol import Executor

__all__ = ["WorkerPool", "check_executor", "open_pool", "submitted"]

MIN_SUBMITTED = 64
"""Submitted and unfinished shards, if there are few workers. For each, Prefect holds about ten KiB and the list of its
photographs."""
TICK_SECONDS = 2.0
"""If no shard finishes for this long, an empty count is yielded, so that the progress within shards is shown."""
SUBMITTED_PER_WORKER = 4
"""Submitted and unfinished shards for each worker, if there are many workers, so that none becomes idle."""
RAY_VARIABLES = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # otherwise Ray's core prints errors of a lost cluster
    # If a machine freezes, its shards run again as soon as Ray gives up the connection: after the first time without
    # data and the second without an answer. Ray's default is 7 minutes. Its servers refuse pings every 60 s or faster.
    "RAY_grpc_client_keepalive_time_ms": "61000",
    "RAY_grpc_client_keepalive_timeout_ms": "20000",
}
"""Variables that Ray reads when it is imported."""


class WorkerPool(Protocol):
    """Processes that run tasks. A pool is open inside a `with` block of `open_pool`."""

    @property
    def throughput(self) -> Throughput | None:
        """The speed of the pool for which a plan is cut; None for that of this machine."""

    @property
    def is_remote(self) -> bool:
        """Whether processes may be on other machines, which share no files with this one."""

    def size(self) -> int:
        """Return how many tasks run at the same time at this moment."""

    def submit(self, task: Any, parameters: dict[str, Any], /) -> AnyFuture:
        """Submit a Prefect task and return the future of its result."""

    def check(self) -> None:
        """Check that the pool can go on. Called about every two seconds during a run.

        Raises:
            Unavailable: the pool is lost.
        """

    def stop(self) -> None:
        """Kill everything that runs. The next run repeats what was not delivered."""

    def explain(self, error: BaseException, /) -> Unavailable | None:
        """Return an error of the pool as an infrastructure failure with one line; None for any other error."""


def check_executor(options: ExecutorOptions) -> None:
    """Check that the executor is installed and answers, before anything is started.

    Raises:
        InvalidInput: the extra for Ray is not installed, or no cluster answers at the address.
    """
    if options.name == "ray":
        if not (find_spec("ray") and find_spec("prefect_ray")):
            raise InvalidInput("Ray is not installed: run `pip install 'dreamgrid[ray]'`, or leave out the executor")
        for name, value in RAY_VARIABLES.items():
            os.environ.setdefault(name, value)
        from flows.running.ray_cluster import check_address

        check_address(options.address)


def open_pool(options: ExecutorOptions) -> AbstractContextManager[WorkerPool]:
    """Return the pool of an executor as a context manager. Only the executor `ray` imports Ray.

    Raises:
        InvalidInput: as `check_executor`, or the cluster cannot be used.
    """
    check_executor(options)
    if options.name == "ray":
        from flows.running.ray_cluster import open_cluster

        return open_cluster(options)
    from flows.running.process_pool import open_processes

    return open_processes()


def submitted(
    pool: WorkerPool,
    submit: Callable[[Run, Shard], AnyFuture],
    on_result: Callable[[ShardResult], None] = lambda _result: None,
) -> Executor:
    """Return an executor that submits shards to a pool.

    Args:
        pool: the open pool.
        submit: submits one shard to the pool, and returns the future of its `ShardResult`.
        on_result: called with the result of each shard, before its rows are yielded.
    """

    def window() -> int:
        return max(MIN_SUBMITTED, SUBMITTED_PER_WORKER * pool.size())

    def execute(run: Run, shards: Iterator[Shard]) -> Generator[Mapping[str, int], None, None]:
        try:
            for future in bounded_as_completed(partial(submit, run), shards, window, TICK_SECONDS):
                pool.check()
                if future is None:
                    yield {}
                    continue
                result: ShardResult = future.result()
                on_result(result)
                yield result.rows
        except BaseException as error:
            pool.stop()  # otherwise the pool would finish everything that was submitted
            if explained := pool.explain(error):
                raise explained from error
            raise

    return execute
