"""Groups what is to be dreamt so that batches fill, while it streams past; pure, and sees only keys and sizes."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")


def in_batches(
    items: Iterable[_Item],
    goes_with: Callable[[_Item], Hashable | None],
    at_once: Callable[[_Item], int],
    most: int,
) -> Iterator[list[_Item]]:
    """Group items into batches, none of which waits for the end of the stream longer than it must.

    Args:
        items: a stream of any length.
        goes_with: those with an equal key go into one batch; one with None passes by itself, and at once.
        at_once: how many of its like fill a batch.
        most: so many items may wait; when more do, the batch that waits longest goes as it is.

    Returns:
        Every item exactly once, in batches of one key.
    """
    waiting: dict[Hashable, list[_Item]] = {}
    held = 0
    for item in items:
        key = goes_with(item)
        if key is None:
            yield [item]
            continue
        batch = waiting.setdefault(key, [])
        batch.append(item)
        held += 1
        if len(batch) < at_once(item):
            if held <= most:
                continue
            key = next(iter(waiting))
        held -= len(waiting[key])
        yield waiting.pop(key)
    yield from waiting.values()
