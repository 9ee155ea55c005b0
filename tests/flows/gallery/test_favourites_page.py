"""The page of the favourites and the filters by mark, over a real store."""

import re
from collections.abc import Iterator

import pytest

from flows.favourites import Mark, Marks
from flows.gallery.security import Access
from flows.gallery.server import create_app
from flows.local.stack import Stack
from flows.manifest import Row
from flows.storage import Storage
from tests.flows.gallery.test_server import Browser
from tests.support.gallery_pages import fill, served

SOURCE, DESTINATION = "s3://photos/gallery favourites/", "s3://dreams/gallery favourites/"
MARKS = (1, 5, -1, 3, 5, 0, 2)


@pytest.fixture(scope="module")
def rows(stack: Stack) -> list[Row]:
    """The rows of a destination with two photographs, whose dreams have `MARKS` from the third on."""
    storage = Storage(environment=stack.environment())
    storage.create_bucket("s3://photos")
    storage.create_bucket("s3://dreams")
    rows = fill(storage, SOURCE, DESTINATION, ("coffee.jpg", "tea.jpg"))
    marks = [Mark(str(row.result_id), mark) for row, mark in zip(rows[2:], MARKS, strict=False)]
    Marks(DESTINATION, storage).add(marks)
    return rows


@pytest.fixture(scope="module")
def browser(stack: Stack, rows: list[Row]) -> Iterator[Browser]:
    """A read-only gallery over the destination."""
    app = create_app([DESTINATION], Storage(environment=stack.environment()), Access(read_only=True))
    with served(app) as url:
        yield Browser(url, DESTINATION)


def shown(page: str) -> list[tuple[str, int]]:
    """Return the pictures of a page with their marks."""
    found = re.findall(r'class="cell"[^>]* data-id="([0-9a-f]+)" data-mark="(-?\d)"', page)
    return [(name, int(mark)) for name, mark in found]


@pytest.mark.parametrize(
    ("query", "marks"),
    [
        ("", [5, 5, 3, 2, 1]),
        ("?marks=3", [5, 5, 3]),
        ("?marks=5", [5, 5]),
        ("?rejected=1", [5, 5, 3, 2, 1, -1]),
        ("?marks=9&rejected=x", [5, 5, 3, 2, 1]),
    ],
)
def test_favourites_are_listed_by_mark(browser: Browser, rows: list[Row], query: str, marks: list[int]) -> None:
    page = browser.page(f"/favourites{query}")
    found = shown(page)
    assert [mark for _, mark in found] == marks
    assert [name for name, mark in found if mark == 5] == [rows[6].result_id, rows[3].result_id], "the newest first"
    assert 'id="favourite-count">5</span>' in page


def test_favourites_are_sent_in_pages(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.gallery.favourites_page.PER_PAGE", 2)
    path, found = "/favourites?rejected=1", list[tuple[str, int]]()
    while path:
        answer = browser.ask(browser.base + path, HX_Request="true")
        found += shown(answer.text)
        following = re.search(r'hx-get="/d/\w+(/favourites\?[^"]+)"', answer.text)
        path = following[1].replace("&amp;", "&") if following else ""
    assert [mark for _, mark in found] == [5, 5, 3, 2, 1, -1]
    assert len(set(found)) == 6


def test_without_marks_the_page_names_the_keys(stack: Stack, storage: Storage, source: str, destination: str) -> None:
    fill(storage, source, destination, ("coffee.jpg",), grid=[{"octaves": 1}])
    with served(create_app([destination], Storage(environment=stack.environment()))) as url:
        page = Browser(url, destination).page("/favourites")
    assert "No dream is marked yet" in page
    assert "<kbd>1 to 5</kbd></dt><dd>mark</dd>" in page


@pytest.mark.parametrize(
    ("query", "count"), [("marks=4", 1), ("marks=2", 2), ("marks=none", 2), ("hide=1&marks=1", 2), ("best=mark", 2)]
)
def test_the_library_is_filtered_by_mark(browser: Browser, rows: list[Row], query: str, count: int) -> None:
    found = shown(browser.page(f"/library?{query}"))
    assert len(found) == count
    if query == "best=mark":
        assert sorted(mark for _, mark in found) == [2, 5]


def test_the_best_dream_is_not_a_rejected_one(stack: Stack, storage: Storage, source: str, destination: str) -> None:
    dreams = fill(storage, source, destination, ("coffee.jpg",), grid=[{"octaves": 1}, {"octaves": 2}])
    Marks(destination, storage).add([Mark(str(dreams[1].result_id), -1)])
    with served(create_app([destination], Storage(environment=stack.environment()))) as url:
        browser = Browser(url, destination)
        assert shown(browser.page("/library")) == [(dreams[1].result_id, -1)], "the highest gain"
        assert shown(browser.page("/library?hide=1")) == [(dreams[0].result_id, 0)]
