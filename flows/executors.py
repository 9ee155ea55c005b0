"""Where the shards of a run are computed: as tasks of a pool of worker processes."""

from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from dreamcore.errors import Unavailable
from flows.machine import worker_count
from flows.prefetch import AnyFuture, bounded_as_completed
from flows.protocol import Executor
from flows.run_record import Run
from flows.work import Shard, ShardResult
from flows.worker_process import stop_workers

__all__ = ["submitted"]

MIN_SUBMITTED = 64
"""Submitted and unfinished shards, at least. Prefect holds about ten KiB and the list of photographs for each."""
TICK_SECONDS = 2.0
"""Without a finished shard for this long, no rows are yielded, so that the progress within shards is shown."""
SUBMITTED_PER_WORKER = 4
"""Submitted and unfinished shards for each worker, if there are many workers, so that none becomes idle."""


def submitted(
    submit: Callable[[Run, Shard], AnyFuture], on_result: Callable[[ShardResult], None] = lambda _result: None
) -> Executor:
    """Return an executor that submits shards to worker processes, such as Prefect tasks.

    Args:
        submit: submits one shard and returns the future of its `ShardResult`.
        on_result: called with the result of each shard, before its rows are yielded.
    """

    def execute(run: Run, shards: Iterator[Shard]) -> Generator[Mapping[str, int], None, None]:
        window = max(MIN_SUBMITTED, SUBMITTED_PER_WORKER * worker_count())
        try:
            for future in bounded_as_completed(partial(submit, run), shards, window, TICK_SECONDS):
                if future is None:
                    yield {}
                    continue
                result: ShardResult = future.result()
                on_result(result)
                yield result.rows
        except BaseException as error:
            stop_workers()  # otherwise the pool would finish everything that was submitted
            if isinstance(error, BrokenProcessPool):
                raise Unavailable("a worker process died, perhaps for lack of memory: try fewer (--workers)") from error
            raise

    return execute
