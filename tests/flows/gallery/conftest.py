"""Fixtures of the gallery's tests in headless Chromium: one browser for all of them, and pages whose errors count."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
WIDE: "ViewportSize" = {"width": 1400, "height": 900}
NARROW: "ViewportSize" = {"width": 400, "height": 860}

Open = Callable[..., "Page"]


@pytest.fixture(scope="package")
def chromium() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url() -> str:
    """The address of the gallery that the pages of a module belong to. Modules with such a gallery replace this."""
    return ""


@pytest.fixture
def open_page(chromium: "Browser", url: str) -> Iterator[Open]:
    """Return a function that opens a page; errors in the page, dialogs and broken policies fail the test."""
    contexts, problems = [], []

    def listen(page: "Page") -> None:
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("console", lambda line: problems.append(line.text) if "Content Security Policy" in line.text else None)

    def start(
        path: str, size: "ViewportSize" = WIDE, theme: Literal["light", "dark"] = "light", base: str = url
    ) -> "Page":
        context = chromium.new_context(viewport=size, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        listen(page)
        page.goto(base + path)
        page.wait_for_selector("body[data-ready]")
        return page

    yield start
    for context in contexts:
        context.close()
    assert not problems


def check_accessibility(page: "Page") -> None:
    """Fail if axe finds something serious in a page."""
    axe = pytest.importorskip("axe_playwright_python")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
    found = page.evaluate("axe.run()")["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert not [(each["id"], each["nodes"][0]["target"]) for each in serious]
