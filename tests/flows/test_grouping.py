"""What streams past is grouped into batches: everything once, like with like, and nothing waits longer than it must."""

from collections import Counter
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from flows.shard import group_by_size

Item = tuple[str | None, int]
"""A key, and a number that tells items apart."""

streams = st.lists(st.sampled_from(["a", "b", "c", None])).map(
    lambda keys: list(zip(keys, range(len(keys)), strict=True))
)
ROOM = {"a": 1, "b": 3, "c": 4}


def grouped(items: Iterator[Item] | list[Item], most: int) -> Iterator[list[Item]]:
    return group_by_size(items, lambda item: item[0], lambda item: ROOM[item[0] or "a"], most)


@given(streams, st.integers(0, 8))
def test_everything_is_in_one_batch_with_its_like(items: list[Item], most: int) -> None:
    batches = list(grouped(items, most))
    assert sorted((item for batch in batches for item in batch), key=lambda item: item[1]) == items
    for batch in batches:
        assert len({key for key, _ in batch}) == 1
        assert len(batch) <= (ROOM[batch[0][0]] if batch[0][0] else 1)
        assert batch == sorted(batch, key=lambda item: item[1])


@given(streams)
def test_with_room_to_wait_only_the_last_batch_of_a_kind_is_not_full(items: list[Item]) -> None:
    short = Counter(
        batch[0][0] for batch in grouped(items, len(items)) if batch[0][0] and len(batch) < ROOM[batch[0][0]]
    )
    assert set(short.values()) <= {1}


@given(streams, st.integers(0, 8))
def test_no_more_wait_than_may(items: list[Item], most: int) -> None:
    read = 0

    def stream() -> Iterator[Item]:
        nonlocal read
        for read, item in enumerate(items, 1):  # noqa: B007 - read after the loop
            yield item

    gone = 0
    for batch in grouped(stream(), most):
        assert read - gone <= most + 1
        gone += len(batch)


def test_what_passes_by_itself_waits_for_nothing() -> None:
    assert next(grouped(iter([("c", 0), (None, 1), ("c", 2)]), 8)) == [(None, 1)]
