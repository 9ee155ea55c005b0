"""Marks and favourites in headless Chromium, over a real store."""

import time
import zipfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from flows.destination.favourites import Mark, Marks
from flows.destination.manifest import Row
from flows.gallery.server import create_app
from flows.gallery.site import slug_of
from flows.local.stack import Stack
from flows.s3.storage import RetryPolicy, Storage
from tests.flows.gallery.conftest import NARROW, Open, check_accessibility
from tests.flows.gallery.test_browser import shown
from tests.support.faults import Fault, Proxy
from tests.support.gallery_pages import fill, served

if TYPE_CHECKING:
    from playwright.sync_api import Page

SOURCE, DESTINATION = "s3://photos/gallery marks/", "s3://dreams/gallery marks/"


@pytest.fixture(scope="module")
def rows(stack: Stack) -> list[Row]:
    storage = Storage(environment=stack.environment())
    storage.create_bucket("s3://photos")
    storage.create_bucket("s3://dreams")
    return fill(storage, SOURCE, DESTINATION, ("coffee.jpg", "tea.jpg"))


@pytest.fixture(scope="module")
def marks(stack: Stack) -> Marks:
    return Marks(DESTINATION, Storage(environment=stack.environment()))


@pytest.fixture(scope="module")
def url(stack: Stack, rows: list[Row]) -> Iterator[str]:
    """The address of a gallery over the destination."""
    with served(create_app([DESTINATION], Storage(environment=stack.environment()))) as address:
        yield f"{address}/d/{slug_of(DESTINATION)}"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def marks_in(page: "Page") -> list[str]:
    """Return the marks that the pictures in a page show."""
    return page.eval_on_selector_all(".cells .cell", "cells => cells.map(cell => cell.dataset.mark)")  # type: ignore[no-any-return]


def test_favourites_are_rated_by_keyboard(open_page: Open, marks: Marks) -> None:
    page = open_page("/favourites")
    assert "No dream is marked yet" in page.inner_text("#results")
    page.goto(page.url.replace("favourites", f"grid?photo={quote(SOURCE)}coffee.jpg"))
    page.wait_for_selector("body[data-ready]")
    first, second, third, fourth = shown(page)
    for key in ("Shift+Digit2", "Shift+Digit5", "Shift+KeyX", "4"):
        page.keyboard.press(key)
    wait_until(lambda: marks.read() == {first: 2, second: 5, third: -1, fourth: 4})
    page.reload()
    assert marks_in(page) == ["2", "5", "-1", "4"]
    page.keyboard.press("g")
    page.keyboard.press("f")
    page.wait_for_selector("body[data-view=favourites][data-ready]")
    assert shown(page) == [second, fourth, first]
    assert page.inner_text("#favourite-count") == "3"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-view=loupe][data-ready]")
    page.keyboard.press("Escape")
    page.wait_for_selector(f"body[data-view=favourites][data-ready] .cell[aria-current][data-id='{fourth}']")
    with page.expect_download() as started:
        page.click("text=Originals")
    assert started.value.suggested_filename == "dreams-gallery-marks-favourites.zip"
    assert zipfile.is_zipfile(started.value.path())
    page.check("[name=marks][value='4']")
    page.wait_for_selector("h1:has-text('2 favourites')")
    page.check("[name=rejected]")
    page.wait_for_selector(f".cell[data-id='{third}']")
    page.focus(f".cell[data-id='{second}']")
    page.keyboard.press("0")
    wait_until(lambda: second not in marks.read())
    page.reload()
    assert shown(page) == [fourth, third]
    check_accessibility(page)
    page.set_viewport_size(NARROW)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


def test_marks_of_others_appear(open_page: Open, marks: Marks) -> None:
    page = open_page(f"/grid?photo={quote(SOURCE)}tea.jpg")
    first, second, *_ = shown(page)
    marks.add([Mark(second, 3)])
    page.wait_for_selector(f".cell[data-id='{second}'][data-mark='3']")
    page.keyboard.press("1")
    wait_until(lambda: marks.read().get(first) == 1)
    assert marks_in(page)[:2] == ["1", "3"]
    page.select_option("select[name=marks]", "2")
    hidden = page.eval_on_selector_all(".cell .pic", "pics => pics.map(pic => getComputedStyle(pic).visibility)")
    assert hidden[:3] == ["hidden", "visible", "hidden"]
    assert page.url.endswith("&marks=2")


def test_a_mark_that_the_store_refuses_is_taken_back(
    open_page: Open, stack: Stack, rows: list[Row], proxy: Proxy
) -> None:
    storage = Storage(RetryPolicy(0.2, 1), proxy.environment(stack.environment()))
    with served(create_app([DESTINATION], storage)) as address:
        page = open_page(f"/grid?photo={quote(SOURCE)}tea.jpg&at.seed=1", base=f"{address}/d/{slug_of(DESTINATION)}")
        proxy.choose = lambda call: Fault.RESET if call.method == "PUT" else None
        page.keyboard.press("3")
        page.keyboard.press("5")
        page.wait_for_selector("#toast:has-text('The mark was not stored: ')")
        page.wait_for_selector(".cell[data-mark='0'] >> nth=0")
        wait_until(lambda: marks_in(page)[0] == "0")
        proxy.choose = lambda _: None
        page.keyboard.press("2")
        page.wait_for_selector("body:not([data-sending])")
        page.reload()
        page.wait_for_selector(".cell[data-mark='2']")
