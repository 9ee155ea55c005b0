"""`group_by_size` puts every item of a stream into one batch of its key, and holds back a bounded number of items."""

from collections import Counter
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from flows.running.grouping import group_by_size

Item = tuple[str | None, int]
"""A key, and a number that is different for each item."""

streams = st.lists(st.sampled_from(["a", "b", "c", None])).map(
    lambda keys: list(zip(keys, range(len(keys)), strict=True))
)
BATCH_SIZES = {"a": 1, "b": 3, "c": 4}


def grouped(items: Iterator[Item] | list[Item], max_waiting: int) -> Iterator[list[Item]]:
    return group_by_size(items, lambda item: item[0], lambda item: BATCH_SIZES[item[0] or "a"], max_waiting)


@given(streams, st.integers(0, 8))
def test_every_item_is_in_one_batch_of_its_key(items: list[Item], max_waiting: int) -> None:
    batches = list(grouped(items, max_waiting))
    assert sorted((item for batch in batches for item in batch), key=lambda item: item[1]) == items
    for batch in batches:
        assert len({key for key, _ in batch}) == 1
        assert len(batch) <= (BATCH_SIZES[batch[0][0]] if batch[0][0] else 1)
        assert batch == sorted(batch, key=lambda item: item[1])


@given(streams)
def test_only_the_last_batch_of_a_key_is_incomplete_if_all_may_wait(items: list[Item]) -> None:
    short = Counter(
        batch[0][0] for batch in grouped(items, len(items)) if batch[0][0] and len(batch) < BATCH_SIZES[batch[0][0]]
    )
    assert set(short.values()) <= {1}


@given(streams, st.integers(0, 8))
def test_a_bounded_number_of_items_waits(items: list[Item], max_waiting: int) -> None:
    read = 0

    def stream() -> Iterator[Item]:
        nonlocal read
        for read, item in enumerate(items, 1):  # noqa: B007 - read after the loop
            yield item

    emitted = 0
    for batch in grouped(stream(), max_waiting):
        assert read - emitted <= max_waiting + 1
        emitted += len(batch)


@given(streams, st.integers(0, 20))
def test_the_weight_of_the_items_that_wait_is_bounded(items: list[Item], max_waiting: int) -> None:
    weights = {"a": 1, "b": 5, "c": 2, None: 0}
    waiting = 0

    def stream() -> Iterator[Item]:
        nonlocal waiting
        for item in items:
            assert waiting <= max_waiting
            waiting += weights[item[0]]
            yield item

    key_of, batch_size = (lambda item: item[0]), (lambda item: BATCH_SIZES[item[0] or "a"])
    for batch in group_by_size(stream(), key_of, batch_size, max_waiting, lambda item: weights[item[0]]):
        waiting -= sum(weights[key] for key, _ in batch)


def test_an_item_without_a_key_passes_immediately() -> None:
    assert next(grouped(iter([("c", 0), (None, 1), ("c", 2)]), 8)) == [(None, 1)]
