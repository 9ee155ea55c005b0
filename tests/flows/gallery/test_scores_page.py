"""The page of scores: its tables, and that each link leads to the dreams that it counts."""

import re
from collections.abc import Callable, Iterator
from html import unescape

import httpx
import pytest

from dreamcore.settings import DreamSettings
from flows.gallery.address import Params
from flows.gallery.points import read_point
from flows.gallery.records import CostPoint
from flows.gallery.scores_page import _cost_rows
from flows.gallery.server import create_app
from flows.gallery.site import slug_of
from flows.local.stack import Stack
from flows.s3.storage import Storage
from tests.support.gallery_pages import SETTINGS, fill, served

SOURCE, DESTINATION = "s3://photos/gallery scores/", "s3://dreams/gallery scores/"


@pytest.fixture(scope="module")
def page(stack: Stack) -> Iterator[Callable[[str], str]]:
    """Return the text of a page of a destination with two objectives."""
    storage = Storage(environment=stack.environment())
    storage.create_bucket("s3://photos")
    storage.create_bucket("s3://dreams")
    fill(storage, SOURCE, DESTINATION, ("a.jpg", "b.jpg"), ("broken.jpg",))
    with served(create_app([DESTINATION], storage)) as url, httpx.Client(base_url=url, timeout=60) as client:

        def read(path: str) -> str:
            answer = client.get(path if path.startswith("/d/") else f"/d/{slug_of(DESTINATION)}{path}")
            assert answer.status_code == 200, answer.text
            return answer.text

        yield read


def links(text: str) -> list[tuple[int, str]]:
    """Return the number of dreams and the address of each value of the tables."""
    found = re.findall(r'data-value="[^"]+" data-dreams="(\d+)">(?:<th[^>]*>)?<a href="([^"]+)">', text)
    return [(int(dreams), unescape(href)) for dreams, href in found]


def count(text: str) -> int:
    """Return the number of dreams in the library."""
    (found,) = re.findall(r"the best of each, from (\d+) dreams?", text)
    return int(found)


@pytest.mark.parametrize("query", ["", "?x=seed&y=octaves", "?layers=blocks.2", "?with.octaves=4"])
def test_every_value_leads_to_the_dreams_that_it_counts(page: Callable[[str], str], query: str) -> None:
    found = links(page(f"/scores{query}"))
    assert len(found) > 8
    for dreams, href in found:
        assert count(page(href)) == dreams, href


def test_several_objectives_are_compared_by_rank_and_one_by_gain(page: Callable[[str], str]) -> None:
    every = page("/scores?x=seed&y=octaves")
    assert "Mean rank of the gain: seed across, octaves down" in every
    assert "cannot be compared" in every
    values = [float(value) for value in re.findall(r'<td data-value="([^"]+)"', every)]
    assert all(0 <= value <= 100 for value in values)
    (option,) = re.findall(r'<option value="([^"]+blocks.2[^"]+)">', every)
    one = page(f"/scores?x=seed&y=octaves&with.objective={option.replace(' ', '+')}")
    assert "Mean gain: seed across, octaves down" in one
    assert "cannot be compared" not in one
    places = [at for at, fields in enumerate(SETTINGS) if fields["layers"] == "blocks.2"]
    assert [float(value) for value in re.findall(r'<td data-value="([^"]+)"', one)] == pytest.approx(
        [0.1 * (place + 1) for place in places]
    ), "the fixture gives the n-th point a gain of n tenths"


@pytest.mark.parametrize("query", ["?q=nowhere", "?with.octaves=9", "?gain_min=nan&q=nowhere", "?x=none&y=seed"])
def test_any_address_is_a_page(page: Callable[[str], str], query: str) -> None:
    text = page(f"/scores{query}")
    assert "Mean" in text or "No dream within these filters has a gain." in text


def test_gains_filter_the_library(page: Callable[[str], str]) -> None:
    gains = [0.1 * (at + 1) for at in range(len(SETTINGS))]
    wanted = 2 * sum(0.25 <= gain <= 0.65 for gain in gains)
    text = page("/library?gain_min=0.25&gain_max=0.65")
    assert count(text) == wanted
    assert "gain from 0.25" in text
    assert count(page("/library?gain_min=inf")) == 16, "what is malformed is ignored"


def test_the_table_of_costs_names_looks() -> None:
    settings = [
        DreamSettings.model_validate({"look": look, "seed": seed}) for look in ("ripple", "neon") for seed in (0, 1)
    ]
    points = [read_point(f"{number:016x}", each.canonical_json()) for number, each in enumerate(settings)]
    costs = [CostPoint(point, 1.0, 0.5, rank, 1) for rank, point in enumerate(points)]
    rows = _cost_rows(costs, Params([]), by_rank=True)
    assert [row.name for row in rows] == ["neon, seed 1", "neon", "ripple, seed 1", "ripple"]
