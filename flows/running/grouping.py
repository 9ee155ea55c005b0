"""Group a stream of items into batches."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

__all__ = ["group_by_size"]

_Item = TypeVar("_Item")


def group_by_size(
    items: Iterable[_Item],
    group_key: Callable[[_Item], Hashable | None],
    batch_size: Callable[[_Item], int],
    max_waiting: int,
    weight: Callable[[_Item], int] = lambda _item: 1,
) -> Iterator[list[_Item]]:
    """Group a stream of items into batches, such as images of one size, without waiting for the end of the stream.

    Args:
        items: a stream of any length.
        group_key: items with equal keys go into one batch. An item with the key None passes immediately, alone.
        batch_size: the size of a full batch of items like this one.
        max_waiting: the total weight of the items that may wait. If it is more, the oldest batches go out incomplete.
        weight: returns the weight of an item, such as its pixels; by default 1.

    Returns:
        Every item exactly once, in batches of one key.
    """
    waiting: dict[Hashable, list[_Item]] = {}
    total = 0
    for item in items:
        key = group_key(item)
        if key is None:
            yield [item]
            continue
        batch = waiting.setdefault(key, [])
        batch.append(item)
        total += weight(item)
        if len(batch) >= batch_size(item):
            total -= sum(map(weight, batch))
            yield waiting.pop(key)
        while total > max_waiting:
            oldest = waiting.pop(next(iter(waiting)))
            total -= sum(map(weight, oldest))
            yield oldest
    yield from waiting.values()
