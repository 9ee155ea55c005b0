"""The static gallery: exported from a real store, served by a plain file server, and used in headless Chromium."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dreamcore.errors import InvalidInput, Unavailable
from flows.destination.favourites import Mark, Marks
from flows.destination.manifest import Row
from flows.gallery import export as exports
from flows.gallery.export import export
from flows.gallery.export_target import FolderTarget, open_target
from flows.gallery.records import Filters
from flows.local.stack import Stack
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.flows.gallery.conftest import Open
from tests.support.command import Command
from tests.support.gallery_pages import fill

if TYPE_CHECKING:
    from playwright.sync_api import Page

SOURCE, DESTINATION = "s3://photos/gallery export/", "s3://dreams/gallery export/"
HOSTILE = '"><img src=x onerror=alert(1)></script>.jpg'
TURNED = "\u202egpj.exe \u0645.jpg"


@pytest.fixture(scope="module")
def store(stack: Stack) -> Storage:
    storage = Storage(environment=stack.environment())
    storage.create_bucket("s3://photos")
    storage.create_bucket("s3://dreams")
    return storage


@pytest.fixture(scope="module")
def rows(store: Storage) -> list[Row]:
    """The rows of a destination with hostile names, a photograph that failed, and a mark."""
    found = fill(store, SOURCE, DESTINATION, ("coffee.jpg", HOSTILE, TURNED), ("broken.jpg",))
    Marks(DESTINATION, store).add([Mark(str(found[0].result_id), 4)])
    return found


@pytest.fixture(scope="module")
def site(store: Storage, rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export of all dreams."""
    folder = tmp_path_factory.mktemp("site")
    found = export(DESTINATION, store, FolderTarget(folder), Filters())
    assert (found.dreams, found.photographs, found.missing) == (24, 3, 0)
    return folder


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder, and return its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def page(site: Path, open_page: Open) -> Iterator["Page"]:
    """The exported page; missing files and requests to other hosts fail the test, too."""
    problems: list[str] = []
    with served(site) as url:
        page = open_page("", base=url)
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        page.on("request", lambda each: None if each.url.startswith(url) else problems.append(each.url))
        page.on("response", lambda each: problems.append(each.url) if each.status >= 400 else None)
        page.reload()
        yield page
    assert not problems


def shown(page: "Page") -> list[str]:
    return page.eval_on_selector_all("#sheet .cell", "cells => cells.map(cell => cell.dataset.id)")  # type: ignore[no-any-return]


def test_the_exported_pages_work_as_files(page: "Page", rows: list[Row]) -> None:
    assert page.inner_text("h1") == "3 photographs"
    names = page.eval_on_selector_all(".cap bdi:only-child", "names => names.map(name => name.textContent)")
    assert HOSTILE in names
    assert "\ufffdgpj.exe \u0645.jpg" in names, "the mark that turns the text around is shown as a sign"
    page.keyboard.press("/")
    page.keyboard.type("coffee")
    page.wait_for_selector("h1:text-is('1 photograph')")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-view=grid][data-ready]")
    coffee = [row for row in rows if row.source_uri.endswith("coffee.jpg")]
    page.locator("[data-flip]").fill("0")
    page.wait_for_selector(f".cell[data-id='{coffee[0].result_id}']")
    assert shown(page) == [row.result_id for row in coffee if row.seed == 0]
    assert page.eval_on_selector(f"[data-id='{coffee[0].result_id}'] .badge", "mark => mark.textContent") == "4"
    page.keyboard.press("p")
    page.wait_for_selector(f".cell[data-id='{coffee[1].result_id}']")
    assert shown(page) == [row.result_id for row in coffee if row.seed == 1]
    page.keyboard.press("p")
    page.keyboard.press("t")
    page.wait_for_selector("thead th:text-is('blocks.2')")
    page.locator("#sheet .cell >> nth=1").click()
    page.keyboard.down("s")
    page.wait_for_selector("#sheet .cell[aria-current] .peek")
    page.keyboard.up("s")
    assert not page.query_selector(".peek")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-view=loupe][data-ready]")
    page.click("text=Photograph | dream")
    page.wait_for_selector("[data-wipe]")
    page.locator("[data-wipe]").fill("0.2")
    page.wait_for_load_state("networkidle")
    widths = page.eval_on_selector_all("#stage .full", "images => images.map(image => image.naturalWidth)")
    assert widths == [240, 240]
    page.click("text=Four")
    page.wait_for_selector("#stage.panes-4")
    assert page.eval_on_selector_all(".versus thead th", "letters => letters.length") == 4
    page.mouse.move(400, 300)
    page.mouse.wheel(0, -277)
    matrices = page.eval_on_selector_all(
        "#stage .full", "images => images.map(image => getComputedStyle(image).transform)"
    )
    assert len(set(matrices)) == 1
    assert matrices[0].startswith("matrix(2,") or matrices[0].startswith("matrix(1.99")
    alike = page.inner_text("#chosen h2")
    page.keyboard.press("PageDown")
    page.wait_for_selector("body[data-view=loupe][data-ready] h1 bdi:not(:text-is('coffee.jpg'))")
    assert page.inner_text("#chosen h2") == alike
    page.keyboard.press("PageUp")
    page.wait_for_selector("body[data-view=loupe][data-ready] h1 bdi:text-is('coffee.jpg')")
    page.keyboard.press("Escape")
    page.wait_for_selector("thead th:text-is('blocks.2')")
    page.keyboard.press("Escape")
    page.wait_for_selector("h1:text-is('1 photograph')")
    assert page.input_value("#find") == "coffee", "Esc goes back to the search"


def test_an_export_below_the_destination_links_to_its_dreams(store: Storage, rows: list[Row]) -> None:
    target = open_target("", DESTINATION, store)
    export(DESTINATION, store, target, Filters(layers=("blocks.2",)))
    names = target.names()
    (data,) = (name for name in names if name.startswith("data-"))
    dreams = json.loads((target.read(data) or b"").removeprefix(b"window.DREAMS = ").rstrip(b";\n"))["dreams"]
    assert len(dreams) == 12
    assert dreams[0]["full"].startswith("../images/")
    assert dreams[0]["small"].startswith("../thumbs/")
    assert sum(name.startswith("pictures/") for name in names) == 6, "two of each photograph, none of a dream"
    thumb = layout.thumb_uri(DESTINATION, str(rows[0].result_uri))
    assert (store.read(thumb) or b"").startswith(b"RIFF")


def test_an_export_elsewhere_in_s3_has_copies_and_leaves_out_what_is_missing(store: Storage, destination: str) -> None:
    first, second = fill(store, SOURCE, destination, ("coffee.jpg",), grid=[{"seed": 0}, {"seed": 1}])
    store.delete(str(second.result_uri))
    target = open_target("s3://dreams/gallery elsewhere/", destination, store)
    found = export(destination, store, target, Filters())
    assert (found.dreams, found.missing) == (1, 1)
    assert target.read(f"pictures/{first.result_id}.png") == store.read(str(first.result_uri))


def test_looks_stand_in_one_row_of_the_export(store: Storage, destination: str, tmp_path: Path) -> None:
    looks = [{"look": "creatures"}, {"look": "neon"}, {}, {"look": "filigree"}]
    fill(store, SOURCE, destination, ("coffee.jpg",), grid=looks)
    export(destination, store, FolderTarget(tmp_path), Filters())
    (data,) = tmp_path.glob("data-*.js")
    shown = json.loads(data.read_bytes().removeprefix(b"window.DREAMS = ").rstrip(b";\n"))
    assert shown["photographs"][0]["axes"] == [
        {"name": "settings", "values": ["creatures", "neon", "default", "filigree"]}
    ]
    assert {dream["at"]["settings"] for dream in shown["dreams"]} == {"creatures", "neon", "default", "filigree"}


def test_a_stopped_export_changes_no_earlier_one_and_goes_on(
    store: Storage, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = FolderTarget(tmp_path / "site")
    export(DESTINATION, store, target, Filters(text="coffee"))
    before = target.read("index.html")
    calls = []

    def stop(done: int, _: int) -> None:
        calls.append(done)
        if done == 20:
            raise Unavailable("stopped")

    with pytest.raises(Unavailable):
        export(DESTINATION, store, target, Filters(), stop)
    assert target.read("index.html") == before
    assert len([name for name in target.names() if name.startswith("pictures/")]) > 18
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "site" / "pictures").iterdir()}
    export(DESTINATION, store, target, Filters())
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert len([name for name in target.names() if name.startswith("data-")]) == 1
    export(DESTINATION, store, target, Filters(text="coffee"))
    assert len([name for name in target.names() if name.startswith("pictures/")]) == 18, "the others are deleted"


def test_what_cannot_be_exported_is_named(
    store: Storage, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.html").write_text("<h1>My site</h1>")
    with pytest.raises(InvalidInput, match="no export wrote"):
        export(DESTINATION, store, FolderTarget(tmp_path), Filters())
    with pytest.raises(InvalidInput, match="inside the results"):
        open_target(f"{DESTINATION}images/", DESTINATION, store)
    with pytest.raises(InvalidInput, match="nothing to export"):
        export(DESTINATION, store, FolderTarget(tmp_path / "new"), Filters(text="nowhere"))
    monkeypatch.setattr(exports, "MAX_DREAMS", 23)
    with pytest.raises(InvalidInput, match=r"24 dreams .* 23 at most.*--filter"):
        export(DESTINATION, store, FolderTarget(tmp_path / "new"), Filters())


def test_the_command_exports_filtered_dreams(dreamgrid: Command, rows: list[Row], tmp_path: Path) -> None:
    result = dreamgrid("gallery", DESTINATION, "--export", str(tmp_path / "site"), "--filter", "marks=3", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["dreams"] == 1
    assert "onerror" not in (tmp_path / "site" / "index.html").read_text()
