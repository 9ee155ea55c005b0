"""List a prefix with several listings at the same time.

S3 returns at most 1,000 objects for each request, and the next page can be requested only when the page before it has
come. Therefore the prefix is divided into folders, which are listed at the same time.

Stores list in different orders, so nothing here relies on an order. The objects are exactly those of `Storage.list`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from flows.machine.prefetch import thread_pool
from flows.s3.storage import ObjectInfo, Page, Storage

__all__ = ["OnListed", "list_objects"]

OnListed = Callable[[int], None]
"""Called with the number of objects that have been listed so far, after each page."""

_PAGES_BEFORE = 20
"""Pages of the plain listing before a prefix is divided. Most sources have no more and need no further requests."""
_LISTINGS = 16
"""Listings at the same time."""
_ENOUGH = 64
"""Prefixes are divided while there are fewer than this many, with one request for each."""


def list_objects(storage: Storage, prefix: str, on_listed: OnListed = lambda _count: None) -> Iterator[ObjectInfo]:
    """Yield every object whose address starts with `prefix`, in any order.

    Args:
        storage: access to S3.
        prefix: the beginning of the addresses. It should end with a slash.
        on_listed: called with the number of objects listed so far.
    """
    listed = 0
    for objects in _pages(storage, prefix):
        listed += len(objects)
        on_listed(listed)
        yield from objects


def _pages(storage: Storage, prefix: str) -> Iterator[Sequence[ObjectInfo]]:
    """Yield the objects in lists of about a page."""
    page = storage.list_page(prefix)
    first = [page.objects]
    while page.token and len(first) < _PAGES_BEFORE:
        page = storage.list_page(prefix, token=page.token)
        first.append(page.objects)
    if not page.token:
        yield from first
        return
    del first
    objects, prefixes = _divide(storage, prefix)
    yield objects
    yield from _list_all(storage, prefixes)


def _divide(storage: Storage, prefix: str) -> tuple[list[ObjectInfo], list[str]]:
    """Return prefixes without common objects, and the objects below `prefix` that none of these prefixes has.

    A prefix whose folders and direct objects need more than one page is not divided. A source with very many folders
    would otherwise need a request for each.
    """
    objects: list[ObjectInfo] = []
    whole: list[str] = []
    waiting = deque([prefix])
    for _ in range(_ENOUGH):
        if not waiting or len(waiting) + len(whole) >= _ENOUGH:
            break
        page = storage.list_page(waiting[0], by_folder=True)
        divided = waiting.popleft()
        if page.token:
            whole.append(divided)
        else:
            objects += page.objects
            waiting += page.folders
    return objects, [*whole, *waiting]


def _list_all(storage: Storage, prefixes: Iterable[str]) -> Iterator[Sequence[ObjectInfo]]:
    """Yield the objects of all prefixes page by page, as the pages come."""
    waiting: deque[tuple[str, str | None]] = deque((prefix, None) for prefix in prefixes)
    running: dict[Future[Page], str] = {}
    with thread_pool(_LISTINGS) as pool:
        while waiting or running:
            while waiting and len(running) < _LISTINGS:
                prefix, token = waiting.popleft()
                running[pool.submit(storage.list_page, prefix, token=token)] = prefix
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                prefix, page = running.pop(future), future.result()
                if page.token:
                    waiting.append((prefix, page.token))
                yield page.objects
