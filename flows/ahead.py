"""Work in threads that stays a little ahead of whoever wants its results, and never far."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that begins nothing more once something went wrong: where one request fails for good, others would."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In], count: int
) -> Iterator[_Out]:
    """`map` in a pool, in order, never more than `count` results ahead of the reader."""
    running: deque[Future[_Out]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) > count:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
