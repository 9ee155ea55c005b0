"""Jobs from the page in headless Chromium: real runs through Prefect, whose dreams appear in the grid."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from flows.gallery.server import create_app
from flows.gallery.site import slug_of
from flows.local.stack import Stack
from flows.s3.storage import Storage
from tests.flows.gallery.conftest import Open, check_accessibility
from tests.support.gallery_pages import fill, served

if TYPE_CHECKING:
    from playwright.sync_api import Page


def run(page: "Page", done: str) -> None:
    """Start the job that a page shows, and wait until its run has made its only dream."""
    page.wait_for_selector("#price dl, #price .bad")
    assert page.inner_text("#price div:has(dt:text-is('dream')) dd") == "1", page.inner_text("#price")
    page.click("#start")
    page.wait_for_selector("#job-run h2:text-is('Running')")
    page.wait_for_selector("#job-run progress")
    page.wait_for_selector("#job-run h2:text-is('Completed')", timeout=300_000)
    assert page.inner_text("#job-run [role=status]") == done
    page.wait_for_selector("#price:has-text('The dream of this job exists already.')")
    assert not page.query_selector("#start")
    assert page.query_selector("#price >> text=Show it")
    assert bool(page.query_selector("text=Download your print")) == ("kind=enlarge" in page.url)
    page.click("text=Show its dreams")


def test_jobs_run_through_prefect_and_their_dreams_appear(
    open_page: Open,
    stack: Stack,
    storage: Storage,
    source: str,
    destination: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("DREAMGRID_WORKERS", "1")
    grid = [{"layers": layers, "octaves": 1, "steps": 1} for layers in ("blocks.0", "blocks.1")]
    rows = fill(storage, source, destination, ["a.jpg"], grid=grid)

    app = create_app([destination], Storage(environment=stack.environment()))
    with served(app) as address:
        page = open_page(f"/d/{slug_of(destination)}/grid?photo={quote(source)}a.jpg", base=address)
        page.keyboard.press("v")
        page.wait_for_selector(".cell[data-chosen]")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("v")
        page.click("text=Make a job of 2 dreams")
        page.wait_for_selector("body[data-ready] h1:has-text('A job of 2 dreams')")
        assert {row.result_id for row in rows} == set(page.url.partition("ids=")[2].split(","))

        page.fill("[name=seeds]", "0")
        page.fill("[name=mixes]", "1")
        page.uncheck("[name=half][type=checkbox]")
        page.wait_for_url("**mixes=1*")
        check_accessibility(page)
        run(page, "1 done")
        page.wait_for_selector("body[data-view=grid][data-ready] .cell[data-id] >> nth=2")
        assert page.query_selector("text=blocks.0=0.5+blocks.1=0.5")

        page.focus(f".cell[data-id='{rows[0].result_id}']")
        page.keyboard.press("5")
        page.wait_for_selector("body:not([data-sending])")
        page.keyboard.press("g")
        page.keyboard.press("f")
        page.wait_for_selector("h1:text-is('1 favourite')")
        # The cost of twelve megapixels, with which the form begins, would measure this machine for many seconds.
        page.route(lambda url: "/job/cost" in url and "megapixels=0.06" not in url, lambda route: route.abort())
        page.click("#actions >> text=Enlarge")
        page.wait_for_selector("body[data-view=job][data-ready]")
        page.fill("[name=megapixels]", "0.06")
        page.wait_for_url("**megapixels=0.06*")
        yaml = page.inner_text("#made pre")
        assert "max_pixels: 60000" in yaml
        assert str(rows[0].result_id) in yaml
        run(page, "1 done")
        page.wait_for_selector("#enlarged .cell[aria-current]:has-text('+')")
        assert page.inner_text("#enlarged .second").startswith("300 × 200")
        assert page.eval_on_selector_all("#sheet table .cell, #sheet > .plain-row .cell", "cells => cells.length") == 3
        page.click("text=Enlarged from 240 × 160")
        page.wait_for_selector("body[data-ready] #stage.panes-2")
        sides = page.eval_on_selector_all("#stage .pane", "panes => panes.map(pane => pane.dataset.width)")
        assert sides == ["300", "240"]
        page.keyboard.press("Escape")
        page.wait_for_selector("#enlarged .cell[aria-current]")
