"""The page of a grid: windows on long axes, and enlarged dreams beside the table."""

import re
from collections.abc import Iterator
from html import unescape
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from dreamcore.settings import DreamSettings
from flows.destination.manifest import Row
from flows.gallery.address import Params
from flows.gallery.points import read_point
from flows.gallery.records import Axis
from flows.gallery.server import create_app
from flows.gallery.site import slug_of
from flows.gallery.whole import look_of, names_of
from flows.gallery.windows import window
from flows.s3.storage import Storage
from tests.support.gallery import make_row, write_part

SEEDS = 30


class Page:
    """The grid of one photograph."""

    def __init__(self, client: TestClient, base: str, row: Row) -> None:
        self._client, self._base = client, base
        self._grid = f"{base}/grid?photo={quote(row.source_uri)}"

    def read(self, more: str) -> str:
        """Return the text of the grid with more parameters, or of another page."""
        path = more if more.startswith("/d/") else f"{self._base if more.startswith('/') else self._grid}{more}"
        answer = self._client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text


@pytest.fixture
def rows(storage: Storage, destination: str) -> list[Row]:
    """Two layers with many seeds, and an enlarged dream."""
    settings = [DreamSettings(layers=layers, seed=seed) for layers in ("blocks.2", "blocks.3") for seed in range(SEEDS)]
    found = [make_row(destination, settings=each, gain=1.0 + each.seed) for each in settings]
    enlarge = {"uri": found[5].result_uri, "sha256": "a" * 64, "strength": 0.5}
    larger = DreamSettings(layers="blocks.2", seed=5, max_pixels=12_000_000, enlarge=enlarge)
    found.append(make_row(destination, settings=larger, original=found[5].result_id, second=1))
    write_part(storage, destination, found)
    return found


@pytest.fixture
def page(storage: Storage, destination: str, rows: list[Row]) -> Iterator[Page]:
    app = create_app([destination], storage)
    yield Page(TestClient(app, base_url="http://127.0.0.1"), f"/d/{slug_of(destination)}", rows[0])
    app.state.site.close()


def ids(text: str) -> set[str]:
    return set(re.findall(r'<a class="cell"[^>]* data-id="(\w+)"', text))


def test_a_long_axis_is_paged_and_says_what_is_shown(page: Page, rows: list[Row]) -> None:
    first = page.read("")
    assert "Columns 1 to 24 of 30" in first
    assert len(ids(first)) == 2 * 24 + 1
    assert ">mean " not in first
    (following,) = re.findall(r'id="columns-next" data-window href="([^"]+)"', first)
    second = page.read(unescape(following))
    assert "Columns 25 to 30 of 30" in second
    assert ids(first) | ids(second) == {str(row.result_id) for row in rows}
    assert "Columns 25 to 30 of 30" in page.read(f"&chosen={rows[29].result_id}"), "the window has the chosen dream"


def test_enlarged_dreams_stand_below_the_table_and_lead_to_their_originals(page: Page, rows: list[Row]) -> None:
    small, large = str(rows[5].result_id), str(rows[-1].result_id)
    text = page.read(f"&chosen={large}")
    table, _, enlarged = text.partition('id="enlarged"')
    assert large in ids(enlarged)
    assert large not in ids(table)
    assert "<option>max_pixels" not in text, "an enlarged dream does not change the axes"
    assert f"id={large}&amp;id={small}" in text
    assert "Enlarged from" in text
    assert "Enlarged to" in page.read(f"/dream/{small}")
    assert "blocks.2, 6 octaves × 10, seed 5, enlarged" in enlarged
    two = page.read(f"/loupe?mode=several&id={large}")
    assert re.findall(r'data-pane="\d" data-id="(\w+)"', two) == [large, small], "Two compares it with its original"


def test_an_enlarged_dream_has_the_name_of_its_original() -> None:
    enlarge = {"uri": "s3://dreams/images/a.png", "sha256": "a" * 64, "strength": 0.5}
    small, large = {"max_pixels": 250_000}, {"max_pixels": 600_000, "enlarge": enlarge}
    fields: list[dict[str, Any]] = [
        {"look": "architecture", **small},
        {"look": "neon", **small},
        {"look": "neon", "seed": 2, **small},
        {"layers": "blocks.2", "steps": 4, **small},
        {"look": "architecture", **large},
        {"look": "neon", "seed": 2, **large},
        {"layers": "blocks.2", "steps": 4, **large},
    ]
    texts = [DreamSettings.model_validate(each).canonical_json() for each in fields]
    points = [read_point(f"{number:016x}", text) for number, text in enumerate(texts)]
    originals = ["architecture", "neon", "neon, seed 2", "blocks.2, steps 4"]
    enlarged = ["architecture, enlarged", "neon, seed 2, enlarged", "blocks.2, steps 4, enlarged"]
    assert list(names_of(points[:4]).values()) == originals
    assert list(names_of(points).values()) == originals + enlarged, "the others do not change"
    assert [look_of(point) for point in points] == [*originals[:3], "", *enlarged[:2], ""]


@pytest.mark.parametrize(
    ("query", "value", "shown"),
    [
        ("", "", (1, 4)),
        ("first=4", "", (5, 8)),
        ("first=6", "9", (5, 8)),
        ("", "9", (9, 10)),
        ("first=99", "", (9, 10)),
        ("first=-1", "", (1, 4)),
        ("first=\u0665", "", (1, 4)),
    ],
)
def test_a_window_is_aligned_and_within_the_axis(query: str, value: str, shown: tuple[int, int]) -> None:
    axis = Axis("seed", tuple(map(str, range(10))))
    part, found = window(axis, 4, "first", Params([tuple(query.split("="))] if query else []), value)  # type: ignore[list-item]
    assert found is not None
    assert (found.first, found.last, found.total) == (*shown, 10)
    assert part.values == axis.values[shown[0] - 1 : shown[1]]
    assert (found.before == "") == (shown[0] == 1)
    assert (found.after == "") == (shown[1] == 10)
