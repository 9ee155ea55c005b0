"""Several listings at a time find the objects of the plain listing, whatever the keys and the order of the store."""

import random
from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flows.s3 import listing
from flows.s3.listing import list_objects
from flows.s3.storage import ObjectInfo, Page, Storage

PARTS = st.sampled_from(["", ".", "..", "a", "b", "a.jpg", "-", "0", "%2F", "ä", "a\u0308", "🐱", " "]) | st.text(
    st.characters(exclude_characters="/", exclude_categories=["Cs"]), max_size=3
)
KEYS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


class Shelf:
    """A store with small pages that lists in an order of its own. It counts the requests."""

    def __init__(self, keys: Sequence[str], page: int = 2, seed: int = 0) -> None:
        self.uris = [f"s3://photos/{key}" for key in keys]
        self.page, self.requests = page, 0
        random.Random(seed).shuffle(self.uris)

    def list_page(self, prefix: str, *, token: str | None = None, by_folder: bool = False) -> Page:
        self.requests += 1
        entries: dict[str, bool] = {}  # whether an entry is an object
        for uri in self.uris:
            if uri.startswith(prefix):
                first, slash, _ = uri[len(prefix) :].partition("/")
                is_object = not (by_folder and slash)
                entries[uri if is_object else f"{prefix}{first}/"] = is_object
        start = int(token or 0)
        end = start + self.page
        page = list(entries.items())[start:end]
        return Page(
            [ObjectInfo(uri, "e", 1) for uri, is_object in page if is_object],
            [uri for uri, is_object in page if not is_object],
            str(end) if end < len(entries) else None,
        )


def listed(shelf: Shelf, prefix: str) -> list[str]:
    return sorted(info.uri for info in list_objects(cast("Storage", shelf), prefix))


@given(st.sets(KEYS, max_size=30), st.integers(1, 8), st.integers(0, 3), st.integers(1, 6))
@example({"in/", "in/a/", "in/a", "in//", "in//b", "in/a/b", "in/a//", "in/./c", "in/.", "in/../d"}, 3, 0, 4)
def test_the_objects_are_those_of_the_plain_listing(keys: set[str], page: int, seed: int, enough: int) -> None:
    for prefix in ("", "in/", "a/"):
        everything = sorted({f"{prefix}{key}" for key in keys} | {f"in/{key}" for key in keys})
        shelf = Shelf(everything, page, seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(listing, "_PAGES_BEFORE", 1)
            patch.setattr(listing, "_ENOUGH", enough)
            expected = sorted(f"s3://photos/{key}" for key in everything if key.startswith(prefix))
            assert listed(shelf, f"s3://photos/{prefix}") == expected


def test_a_small_source_needs_the_requests_of_the_plain_listing() -> None:
    shelf = Shelf([f"in/{n}/{m}.jpg" for n in range(10) for m in range(10)], page=5)
    assert len(listed(shelf, "s3://photos/in/")) == 100
    assert shelf.requests == 100 / 5


def test_a_large_source_is_divided_until_there_are_enough_prefixes() -> None:
    shelf = Shelf([f"in/{year}/{month}/{n}.jpg" for year in range(9) for month in range(12) for n in range(8)], page=16)
    assert len(listed(shelf, "s3://photos/in/")) == 9 * 12 * 8
    before, divided = listing._PAGES_BEFORE, 1 + 5  # years are divided until there are 64 prefixes
    assert shelf.requests == before + divided + 5 * 12 + 4 * 12 * 8 / 16


def test_a_source_with_too_many_folders_is_not_divided() -> None:
    """Each folder would need a request of its own."""
    shelf = Shelf([f"in/{n}/a.jpg" for n in range(1000)], page=20)
    assert len(listed(shelf, "s3://photos/in/")) == 1000
    assert shelf.requests == listing._PAGES_BEFORE + 1 + 1000 / 20


def test_the_number_of_listed_objects_is_reported() -> None:
    shelf, counts = Shelf([f"in/{n % 7}/{n}.jpg" for n in range(1000)], page=10), list[int]()
    assert len(list(list_objects(cast("Storage", shelf), "s3://photos/in/", counts.append))) == 1000
    assert counts == sorted(counts)
    assert counts[-1] == 1000
    assert len(counts) >= 1000 / 10


def test_an_error_of_one_listing_ends_all() -> None:
    shelf = Shelf([f"in/{n % 7}/{n}.jpg" for n in range(1000)], page=10)
    page = shelf.list_page

    def fail_at(prefix: str, *, token: str | None = None, by_folder: bool = False) -> Page:
        if token == "40" and prefix.endswith("/3/"):
            raise ValueError("refused")
        return page(prefix, token=token, by_folder=by_folder)

    shelf.list_page = fail_at  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="refused"):
        listed(shelf, "s3://photos/in/")
