"""More dreams like one, from the grid in headless Chromium to a real run through Prefect and back to the grid."""

import shutil
from pathlib import Path
from urllib.parse import quote

import pytest

from flows.gallery.server import create_app
from flows.gallery.site import slug_of
from flows.local.stack import Stack
from flows.storage import Storage
from tests.support.gallery_pages import fill, served

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")


def test_more_like_several_dreams_runs_through_prefect_and_appears(
    stack: Stack, storage: Storage, source: str, destination: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("DREAMGRID_WORKERS", "1")
    grid = [{"layers": layers, "octaves": 1, "steps": 1} for layers in ("blocks.0", "blocks.1")]
    rows = fill(storage, source, destination, ["a.jpg"], grid=grid)

    app = create_app([destination], Storage(environment=stack.environment()))
    with served(app) as address, playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)

        page.goto(f"{address}/d/{slug_of(destination)}/grid?photo={quote(source)}a.jpg")
        page.wait_for_selector("body[data-ready]")
        page.keyboard.press("v")
        page.wait_for_selector(".cell[data-chosen]")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("v")
        page.click("text=Make a job of 2 dreams")
        page.wait_for_selector("h1:has-text('A job of 2 dreams')")
        assert {row.result_id for row in rows} == set(page.url.partition("ids=")[2].split(","))

        page.fill("[name=seeds]", "0")
        page.fill("[name=mixes]", "1")
        page.uncheck("[name=half][type=checkbox]")
        page.wait_for_url("**mixes=1*")
        page.wait_for_selector("#price .cost div:has(dt:text-is('dream')) dd:text-is('1')")
        page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
        found = page.evaluate("axe.run()")["violations"]
        assert not [each["id"] for each in found if each["impact"] in ("serious", "critical")]
        page.click("#start")
        page.wait_for_selector("#job-run h2:text-is('Running')")
        page.reload()
        page.wait_for_selector("#job-run h2:text-is('Completed')", timeout=300_000)
        assert page.inner_text("#job-run [role=status]") == "1 done"
        page.wait_for_selector("#price:has-text('exists already')")
        page.click("text=Show its dreams")
        page.wait_for_selector(".cell[data-id] >> nth=2")
        assert page.query_selector("text=blocks.0=0.5+blocks.1=0.5")
        browser.close()
    assert not problems
