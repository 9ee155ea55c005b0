"""Work elsewhere that stays a little ahead of whoever wants its results, and never far."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class _Ends(Protocol):
    """A future, of Python or of Prefect."""

    def add_done_callback(self, fn: Callable[[Any], None], /) -> None: ...


_Future = TypeVar("_Future", bound=_Ends)


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


def as_they_end(submit: Callable[[_In], _Future], items: Iterable[_In], count: int) -> Iterator[_Future]:
    """The futures of items in the order in which they end, never more than `count` submitted ahead of the reader."""
    ended: SimpleQueue[_Future] = SimpleQueue()
    running = 0
    for item in items:
        if running == count:
            yield ended.get()
            running -= 1
        submit(item).add_done_callback(ended.put)
        running += 1
    for _ in range(running):
        yield ended.get()
