"""The page of the favourites and the filters by mark, over a real store."""

import csv
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace

import pytest
from PIL import Image

from flows.destination import manifest
from flows.destination.favourites import Mark, Marks
from flows.destination.manifest import Row
from flows.gallery.security import Access
from flows.gallery.server import create_app
from flows.gallery.site import slug_of
from flows.local.stack import Stack
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.flows.gallery.test_server import Browser
from tests.support.gallery import make_row, write_part
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
        assert [mark for _, mark in found] == [5, 2], "the highest mark first"
    if query == "marks=2":
        assert [mark for _, mark in found] == [5, 2], "the best one is the one with the highest mark"


def test_the_best_dream_is_not_a_rejected_one(stack: Stack, storage: Storage, source: str, destination: str) -> None:
    dreams = fill(storage, source, destination, ("coffee.jpg",), grid=[{"octaves": 1}, {"octaves": 2}])
    Marks(destination, storage).add([Mark(str(dreams[1].result_id), -1)])
    with served(create_app([destination], Storage(environment=stack.environment()))) as url:
        browser = Browser(url, destination)
        assert shown(browser.page("/library")) == [(dreams[1].result_id, -1)], "the highest gain"
        assert shown(browser.page("/library?hide=1")) == [(dreams[0].result_id, 0)]


def test_of_equal_photographs_one_picture_is_chosen(stack: Stack, storage: Storage, destination: str) -> None:
    row = make_row(destination)
    write_part(storage, destination, [row, replace(row, source_uri="s3://photos/in/copy.jpg")])
    Marks(destination, storage).add([Mark(str(row.result_id), 5)])
    with served(create_app([destination], Storage(environment=stack.environment()))) as url:
        for path in ("/library", "/favourites"):
            page = Browser(url, destination).page(path)
            assert len(shown(page)) == 2
            assert len(re.findall(r'class="cell"[^>]* aria-current="true"', page)) == 1


def unzip(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as pack:
        assert pack.testzip() is None
        return {name: pack.read(name) for name in pack.namelist()}


def test_favourites_are_downloaded_as_they_are(browser: Browser, storage: Storage, rows: list[Row]) -> None:
    answer = browser.ask(f"{browser.base}/favourites.zip?marks=3", Accept_Encoding="gzip")
    found = unzip(answer.body)
    best = (rows[6], rows[3], rows[5])
    assert [name[-20:-4] for name in found] == [row.result_id for row in best]
    assert list(found.values()) == [storage.read(str(row.result_uri)) for row in best]
    assert answer.headers["Content-Type"] == "application/zip"
    name = 'filename="dreams-gallery-favourites-favourites.zip"'
    assert answer.headers["Content-Disposition"] == f"attachment; {name}"
    assert f'href="{browser.base}/favourites.zip?marks=3"' in browser.page("/favourites?marks=3")


def test_a_share_pack_has_jpegs_and_captions(browser: Browser) -> None:
    found = unzip(browser.ask(f"{browser.base}/share.zip").body)
    table = found.pop("captions.csv").decode("utf-8-sig")
    captions = list(csv.DictReader(io.StringIO(table)))
    assert [each["file"] for each in captions] == list(found)
    assert [each["mark"] for each in captions] == ["5", "5", "3", "2", "1"]
    assert captions[0]["caption"] == "coffee.jpg: blocks.3 of efficientnet_lite0, 4 octaves of 10 steps"
    assert [Image.open(io.BytesIO(data)).format for data in found.values()] == ["JPEG"] * 5
    assert b"s3://" not in b"".join(found.values())
    assert "s3://" not in table


def test_a_download_without_favourites_or_of_others_is_refused(
    stack: Stack, storage: Storage, destination: str, rows: list[Row]
) -> None:
    """A manifest may come from other people and name any object."""
    storage.write("s3://photos/private.png", b"private", "image/png")
    row = replace(rows[0], result_uri="s3://photos/private.png")
    storage.write(layout.part_uri(destination, row.run_id, 0), manifest.to_parquet([row]), manifest.CONTENT_TYPE)
    Marks(destination, storage).add([Mark(str(row.result_id), 4)])
    with served(create_app([destination], Storage(environment=stack.environment()))) as url:
        for path in ("favourites.zip", "share.zip", "favourites.zip?marks=5"):
            answer = Browser(url, destination).ask(f"/d/{slug_of(destination)}/{path}")
            assert answer.code == 404
            assert b"private" not in answer.body
