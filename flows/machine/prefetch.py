"""Work in threads or tasks that runs ahead of its reader, by a bounded number of items or by their bounded weight."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar, overload

__all__ = ["AnyFuture", "bounded_as_completed", "ordered_prefetch", "thread_pool", "weighted_prefetch"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class AnyFuture(Protocol):
    """A future of `concurrent.futures` or of Prefect."""

    def add_done_callback(self, fn: Callable[[Any], None], /) -> None:
        """Call `fn` with this future when it is done."""

    def result(self) -> Any:
        """Wait for the result and return it, or raise the error."""


_Future = TypeVar("_Future", bound=AnyFuture)


@contextmanager
def thread_pool(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `count` threads. On exit, also after an error, calls that have not started are cancelled."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def ordered_prefetch(
    pool: ThreadPoolExecutor,
    function: Callable[[_In], _Out],
    items: Iterable[_In],
    count: int,
    weight: Callable[[_In], int] = lambda _item: 1,
) -> Iterator[_Out]:
    """Map `function` over `items` in a pool and yield the results in order, at most `count` ahead of the reader.

    Args:
        pool: the threads.
        function: called with each item.
        items: read in the thread of the reader.
        count: the largest total weight of the items ahead of the reader. A heavier item is alone.
        weight: returns the weight of an item, such as its pixels; by default 1.
    """
    running: deque[tuple[int, Future[_Out]]] = deque()
    total = 0
    for item in items:
        running.append((weight(item), pool.submit(function, item)))
        total += running[-1][0]
        while total > count:
            heavy, future = running.popleft()
            total -= heavy
            yield future.result()
    while running:
        yield running.popleft()[1].result()


def weighted_prefetch(
    pool: ThreadPoolExecutor,
    threads: int,
    function: Callable[[_In], _Out],
    items: Iterable[_In],
    limit: int,
    weight: Callable[[_Out], int],
) -> Iterator[_Out]:
    """Map `function` over `items` in a pool and yield the results in order, by a bounded weight ahead of the reader.

    The pool goes on while the reader is busy. The weight of a result is known only when the call has ended. So the
    results that wait for the reader weigh less than `limit` and `threads` results together.

    Args:
        pool: the threads.
        threads: the number of calls that run at the same time.
        function: called with each item.
        items: read in threads of the pool, by one at a time.
        limit: no call starts while the results that wait weigh this much.
        weight: returns the weight of a result, such as its pixels.
    """
    source, lock = iter(items), threading.Lock()
    ahead: deque[Future[_Out]] = deque()
    running = waiting = 0

    def start() -> None:
        nonlocal running
        with lock:
            while running < threads and waiting < limit:
                try:
                    item = next(source)
                except StopIteration:
                    return
                ahead.append(pool.submit(call, item))
                running += 1

    def call(item: _In) -> _Out:
        nonlocal running, waiting
        result = function(item)
        with lock:
            running -= 1
            waiting += weight(result)
        start()
        return result

    start()
    while ahead:
        result = ahead.popleft().result()
        with lock:
            waiting -= weight(result)
        start()
        yield result


@overload
def bounded_as_completed(
    submit: Callable[[_In], _Future], items: Iterable[_In], count: int | Callable[[], int]
) -> Iterator[_Future]: ...


@overload
def bounded_as_completed(
    submit: Callable[[_In], _Future], items: Iterable[_In], count: int | Callable[[], int], tick: float
) -> Iterator[_Future | None]: ...


def bounded_as_completed(
    submit: Callable[[_In], _Future], items: Iterable[_In], count: int | Callable[[], int], tick: float | None = None
) -> Iterator[_Future | None]:
    """Submit `items` and yield their futures as they complete, with at most `count` unfinished at any time.

    Args:
        submit: starts the work on one item.
        items: read only when they are submitted.
        count: the number of unfinished futures, or a function that returns it and is called before each submission.
        tick: if no future completes within this many seconds, None is yielded. By default only futures are yielded.
    """
    completed: SimpleQueue[_Future] = SimpleQueue()

    def wait() -> Iterator[_Future | None]:
        while True:
            try:
                yield completed.get(timeout=tick)
            except Empty:
                yield None
            else:
                return

    running = 0
    for item in items:
        while running >= (count() if callable(count) else count):
            yield from wait()
            running -= 1
        submit(item).add_done_callback(completed.put)
        running += 1
    for _ in range(running):
        yield from wait()
