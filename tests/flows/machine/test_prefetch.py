"""Prefetching keeps a bounded number or weight of items in flight and never idles while there is work."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from threading import Barrier, Lock, Semaphore

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.machine.prefetch import bounded_as_completed, ordered_prefetch, thread_pool, weighted_prefetch


@given(items=st.integers(0, 40), count=st.integers(1, 12), draw=st.data())
def test_submitted_items_stay_within_the_window_in_any_order_of_completion(
    items: int, count: int, draw: st.DataObject
) -> None:
    running: list[Future[int]] = []
    submitted = 0

    def submit(item: int) -> Future[int]:
        nonlocal submitted
        submitted += 1
        future = Future[int]()
        running.append(future)
        future.add_done_callback(running.remove)
        if len(running) == count or submitted == items:  # the window is full, and the reader waits
            for _ in range(draw.draw(st.integers(1, len(running)))) if submitted < items else running[:]:
                running[draw.draw(st.integers(0, len(running) - 1))].set_result(item)
        return future

    received = 0
    for future in bounded_as_completed(submit, range(items), count):
        assert future.done()
        received += 1
        assert submitted - received < count
    assert (received, submitted) == (items, items)


def test_items_are_read_only_when_needed() -> None:
    def shards() -> Iterator[int]:
        yield from range(4)  # two that are read, and two ahead
        yield from range(4)  # two that are read, and two ahead
        pytest.fail("more items were read than fit into the window")

    def submit(item: int) -> Future[int]:
        future = Future[int]()
        future.set_result(item)
        return future

    assert [future.result() for future in islice(bounded_as_completed(submit, shards(), 2), 2)] == [0, 1]


def test_no_worker_is_idle_while_there_are_items() -> None:
    together = Barrier(2, timeout=120)  # each task waits for another one; without concurrency the barrier breaks
    with ThreadPoolExecutor(2) as pool:
        futures = list(bounded_as_completed(lambda _: pool.submit(together.wait), range(20), 4))
    assert len({id(future) for future in futures}) == 20
    assert not together.broken


def test_the_window_may_grow() -> None:
    submitted: list[int] = []
    size = 1

    def submit(item: int) -> Future[int]:
        submitted.append(item)
        future = Future[int]()
        if item in (0, 3):
            future.set_result(item)
        return future

    futures = bounded_as_completed(submit, range(4), lambda: size)
    assert next(futures).result() == 0
    assert submitted == [0]
    size = 3  # a machine joins
    assert next(futures).result() == 3
    assert submitted == [0, 1, 2, 3]


def test_an_error_is_raised_by_its_future() -> None:
    with ThreadPoolExecutor(1) as pool:
        (future,) = bounded_as_completed(lambda item: pool.submit(divmod, item, 0), [1], 2)
    with pytest.raises(ZeroDivisionError):
        future.result()


@given(weights=st.lists(st.integers(0, 9), max_size=40), threads=st.integers(1, 4), limit=st.integers(1, 20))
def test_results_come_in_order_and_their_weight_is_bounded(weights: list[int], threads: int, limit: int) -> None:
    lock, ahead, most = Lock(), 0, 0

    def load(number: int) -> int:
        nonlocal ahead, most
        with lock:
            ahead += weights[number]
            most = max(most, ahead)
        return number

    received = []
    with thread_pool(threads) as pool:
        for number in weighted_prefetch(pool, threads, load, range(len(weights)), limit, weights.__getitem__):
            received.append(number)
            with lock:
                ahead -= weights[number]
    assert received == list(range(len(weights)))
    assert most < limit + (threads + 1) * max(weights, default=1) + 1  # the reader has one result more


def test_the_pool_goes_on_while_the_reader_is_busy() -> None:
    loaded = Semaphore(0)

    def load(item: int) -> int:
        loaded.release()
        return item

    with thread_pool(2) as pool:
        results = weighted_prefetch(pool, 2, load, range(100), 10, lambda _result: 1)
        assert next(results) == 0
        for _ in range(11):  # one that is read, and ten ahead, without another call of `next`
            assert loaded.acquire(timeout=60)
        assert list(results) == list(range(1, 100))


def test_a_failed_call_ends_weighted_prefetching_without_waiting_for_the_rest() -> None:
    def load(item: int) -> float:
        return 1 / (3 - item)

    with thread_pool(2) as pool, pytest.raises(ZeroDivisionError):
        list(weighted_prefetch(pool, 2, load, range(10**9), 2, lambda _result: 1))


@given(weights=st.lists(st.integers(0, 9), max_size=40), limit=st.integers(1, 20))
def test_items_ahead_of_the_reader_weigh_at_most_the_limit(weights: list[int], limit: int) -> None:
    ahead = 0

    def items() -> Iterator[int]:
        nonlocal ahead
        for number, weight in enumerate(weights):
            assert ahead <= limit
            ahead += weight
            yield number

    with thread_pool(2) as pool:
        for expected, number in enumerate(ordered_prefetch(pool, abs, items(), limit, weights.__getitem__)):
            assert number == expected
            ahead -= weights[number]
