"""The gallery in headless Chromium, over a real store: what a person sees and what the keys do."""

import io
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from dreamcore.errors import Unavailable
from flows.destination.favourites import Marks
from flows.destination.manifest import Row
from flows.gallery.server import create_app
from flows.gallery.site import slug_of
from flows.local.stack import Stack
from flows.s3.storage import Storage
from tests.flows.gallery.conftest import NARROW, WIDE, Open, check_accessibility
from tests.support.collections import Collection
from tests.support.gallery_pages import fill, served

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect, Page, ViewportSize

SOURCE, DESTINATION = "s3://photos/gallery browser/", "s3://dreams/gallery browser/"
HOSTILE = '"><img src=x onerror=alert(1)>.jpg'


@pytest.fixture(scope="module")
def rows(stack: Stack) -> list[Row]:
    storage = Storage(environment=stack.environment())
    storage.create_bucket("s3://photos")
    storage.create_bucket("s3://dreams")
    return fill(storage, SOURCE, DESTINATION, ("coffee.jpg", HOSTILE, "tea.jpg"), ("broken.jpg",))


@pytest.fixture(scope="module")
def marks(stack: Stack) -> Marks:
    return Marks(DESTINATION, Storage(environment=stack.environment()))


@pytest.fixture(scope="module")
def url(stack: Stack, rows: list[Row]) -> Iterator[str]:
    """The address of a gallery over the destination."""
    app = create_app([DESTINATION], Storage(environment=stack.environment()))
    with served(app) as address:
        yield f"{address}/d/{slug_of(DESTINATION)}"


def grid_of(name: str) -> str:
    return f"/grid?photo={quote(SOURCE + name)}"


def shown(page: "Page") -> list[str]:
    """Return the ids of the pictures in the page."""
    return page.eval_on_selector_all(".cells .cell", "cells => cells.map(cell => cell.dataset.id)")  # type: ignore[no-any-return]


def test_filters_change_the_list_and_the_address(open_page: Open) -> None:
    page = open_page("/library")
    assert page.inner_text("h1") == "3 photographs"
    page.keyboard.press("/")
    page.keyboard.type("tea")
    page.wait_for_selector("text=1 photograph")
    assert page.url.endswith("q=tea")
    page.reload()
    assert page.inner_text("h1") == "1 photograph"
    page.click("[aria-label='Remove the filter tea']")
    page.wait_for_selector("text=3 photographs")  # the click opens another page, which takes its time
    page.wait_for_load_state()  # its scripts listen from then on
    page.check("input[name=layers][value='blocks.3']")
    page.wait_for_url("**layers=blocks.3*")
    assert page.inner_text("h1") == "3 photographs"
    page.go_back()
    page.wait_for_selector(".chips", state="detached")


def test_sliders_and_axes_choose_the_cells(open_page: Open, rows: list[Row]) -> None:
    page = open_page(grid_of("coffee.jpg"))
    coffee = [row for row in rows if row.source_uri.endswith("coffee.jpg")]
    assert shown(page) == [row.result_id for row in coffee if row.seed == 0]
    page.keyboard.press("]")
    page.wait_for_selector(f".cell[data-id='{coffee[1].result_id}']")
    assert shown(page) == [row.result_id for row in coffee if row.seed == 1]
    page.keyboard.press("t")
    page.wait_for_selector("thead th:has-text('blocks.3')")
    assert "at.seed=1" in page.url
    page.select_option("[name=captions]", "classes")
    page.wait_for_selector(".cap:not(:has(.figure)):has-text('red fox')")
    before = shown(page)
    page.reload()
    assert shown(page) == before


def test_keys_move_mark_and_undo(open_page: Open, marks: Marks) -> None:
    page = open_page(grid_of("coffee.jpg"))
    first, second, third, _ = shown(page)
    page.keyboard.press("Shift+Digit4")
    page.keyboard.press("f")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("x")
    page.wait_for_selector(f"#chosen [data-marks='{third}'] [aria-label=Reject][aria-pressed=true]")
    page.keyboard.press("3")
    page.keyboard.press("z")
    page.wait_for_selector("#toast:has-text('Undone')")
    page.wait_for_selector("body:not([data-sending])")
    page.reload()
    found = page.eval_on_selector_all(".cells .cell", "cells => cells.slice(0, 3).map(cell => cell.dataset.mark)")
    assert found == ["4", "5", "-1"]
    assert [marks.read().get(identity) for identity in (first, second, third)] == [4, 5, -1]


def test_marks_are_stored_although_the_page_is_left_at_once(open_page: Open, marks: Marks) -> None:
    page = open_page(grid_of("tea.jpg"))
    ids = shown(page)
    page.evaluate(
        """() => {
            const press = (key, code) =>
                document.body.dispatchEvent(new KeyboardEvent("keydown", {key, code, bubbles: true}));
            for (const digit of "1234") {
                press(digit, `Digit${digit}`);
                press("ArrowRight", "ArrowRight");
            }
            press("Enter", "Enter");
        }"""
    )
    page.wait_for_url("**/loupe?id=*")
    deadline = time.monotonic() + 30
    while any(identity not in marks.read() for identity in ids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [marks.read().get(identity) for identity in ids] == [1, 2, 3, 4]


def test_two_dreams_are_compared_with_one_zoom(open_page: Open) -> None:
    page = open_page(grid_of("coffee.jpg"))
    first, second, *_ = shown(page)
    page.keyboard.press("c")
    page.wait_for_selector(".picked:has-text('A')")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("c")
    page.wait_for_selector("body[data-view=loupe][data-ready] #stage.panes-2")
    assert f"id={first}&id={second}" in page.url
    assert page.inner_text("tr.differs th") == "octaves"
    page.keyboard.press("+")
    page.mouse.move(300, 400)
    page.mouse.down()
    page.mouse.move(340, 430)
    page.mouse.up()
    matrices = page.eval_on_selector_all(
        "#stage .full", "images => images.map(image => getComputedStyle(image).transform)"
    )
    assert matrices == ["matrix(2, 0, 0, 2, 40, 30)"] * 2
    page.keyboard.press("o")
    page.wait_for_selector(f"#chosen [data-about='{second}']")
    page.wait_for_url("**zoom=2.000*")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.eval_on_selector("#stage .full", "image => getComputedStyle(image).transform") == matrices[0]


def test_a_slider_wipes_between_photograph_and_dream(open_page: Open, rows: list[Row]) -> None:
    page = open_page(f"/loupe?id={rows[0].result_id}&mode=split")
    page.wait_for_load_state("networkidle")
    assert page.eval_on_selector_all("#stage .full", "images => images.map(image => image.naturalWidth)") == [240, 240]
    box = page.locator("#stage .pane").bounding_box()
    assert box is not None

    def brightness(x: float) -> float:
        clip: FloatRect = {
            "x": box["x"] + x * box["width"],
            "y": box["y"] + box["height"] / 2,
            "width": 40,
            "height": 40,
        }
        return float(np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("L")).mean())

    photograph = brightness(0.3)
    page.locator("[data-wipe]").fill("0.1")
    assert brightness(0.3) < 0.7 * photograph, "the dream is half as bright"
    assert "wipe=0.1" in page.url
    page.keyboard.press("PageDown")
    page.wait_for_selector("body[data-view=loupe][data-ready] h1 bdi:text-is('tea.jpg')")
    (alike,) = [row for row in rows if row.source_uri.endswith("tea.jpg") and row.settings_id == rows[0].settings_id]
    assert page.get_attribute("#stage .pane", "data-id") == alike.result_id
    assert page.query_selector("[data-wipe]"), "the photograph stays beside the dream"
    page.keyboard.press("PageUp")
    page.wait_for_selector("body[data-view=loupe][data-ready] h1 bdi:text-is('coffee.jpg')")


def test_a_run_fills_the_grid_while_it_is_open(
    open_page: Open, stack: Stack, storage: Storage, source: str, destination: str
) -> None:
    fill(storage, source, destination, ["a.jpg"], grid=[{"layers": "blocks.0", "octaves": 1, "steps": 1}])
    runs = Collection(storage, source, destination)

    def stop(*_: object) -> Iterator[dict[str, int]]:
        raise Unavailable("stopped")
        yield {}

    with pytest.raises(Unavailable):
        runs.run_job(runs.job("blocks.0", "blocks.1"), stop)  # type: ignore[arg-type]
    with served(create_app([destination], Storage(environment=stack.environment()))) as address:
        page = open_page(f"/grid?photo={quote(source)}a.jpg", base=f"{address}/d/{slug_of(destination)}")
        assert page.inner_text(".hole") == "planned"
        settings = [{"layers": name, "octaves": 1, "steps": 1} for name in ("blocks.0", "blocks.1")]
        fill(storage, source, destination, ["a.jpg"], grid=settings)
        page.wait_for_selector(".cell >> nth=1")
        assert not page.query_selector(".hole")
        page.wait_for_selector("#counts:has-text('2 dreams')")


def test_scores_are_charts_that_lead_to_their_pictures(open_page: Open) -> None:
    page = open_page("/library?layers=blocks.2")
    page.click("text=Scores >> nth=0")
    page.wait_for_selector("body[data-view=scores][data-drawn]")
    page.keyboard.press("g")
    page.keyboard.press("s")
    page.wait_for_url("**/scores")
    page.wait_for_selector("body[data-drawn]")
    assert page.eval_on_selector_all(".chart", "charts => charts.length") == 4
    drawn = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    assert page.eval_on_selector("[data-chart=map] canvas", drawn)
    page.select_option("[name='with.objective']", index=1)
    page.wait_for_url("**with.objective=*")
    page.wait_for_selector("body[data-drawn]")
    page.focus("[data-chart=map] canvas")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#spoken:has-text('octaves 2, seed 1')", state="attached")
    page.keyboard.press("Enter")
    page.wait_for_url("**/library?*with.seed=1*")
    assert page.inner_text(".head .sub").startswith("the best of each, from 3 dreams")
    page.keyboard.press("Escape")
    page.wait_for_selector("body[data-view=scores][data-drawn]")
    last = page.locator("[data-chart=distribution] canvas")
    box = last.bounding_box()
    assert box is not None
    last.click(position={"x": box["width"] - 12, "y": box["height"] - 40})
    page.wait_for_url("**/library?*gain_min=*")


def test_names_run_no_scripts_and_store_no_pictures_of_others(open_page: Open) -> None:
    page = open_page("/library?sort=name")
    assert page.inner_text(".cell:has-text('onerror') .cap") == HOSTILE
    page.click(".cell:has-text('onerror')")
    page.wait_for_selector("#chosen small:has-text('onerror')")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('onerror')")


def check_page(page: "Page", size: "ViewportSize") -> None:
    """Fail if axe finds something serious in a page, or if the page is wider than the screen."""
    check_accessibility(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_the_grid_is_accessible_and_fits_a_phone(open_page: Open) -> None:
    check_page(open_page(grid_of("coffee.jpg"), NARROW, "dark"), NARROW)


@pytest.mark.soak
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize(
    "path", ["/library", grid_of("coffee.jpg"), "/loupe?mode=split", "/loupe?mode=several", "/failures", "/scores"]
)
def test_pages_are_accessible_and_fit(
    open_page: Open, rows: list[Row], path: str, size: "ViewportSize", theme: Literal["light", "dark"]
) -> None:
    query = f"&id={rows[0].result_id}" if path.startswith("/loupe") else ""
    check_page(open_page(path + query, size, theme), size)
