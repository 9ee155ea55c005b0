"""Contact sheets: whatever a photograph was dreamt under, there is one to choose from, and the scores can be read."""

import io
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from dreamcore.settings import DreamSettings, settings_id
from flows import contact, layout, manifest
from flows.contact import Cell, arrange, render_pages, scores, wrap_text
from flows.manifest import Row
from flows.s3_errors import CorruptObject
from flows.sheets import Sheet, distinguishing_settings, draw_sheets
from flows.storage import Storage
from tests.conftest import Command
from tests.support.tiny import pixels

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def as_png(height: int, width: int, seed: int = 0) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels(height, width, seed)).save(sink, "PNG")
    return sink.getvalue()


class Dream:
    """A destination with dreams of one photograph that nobody dreamt: pictures of noise, and their rows."""

    def __init__(self, storage: Storage, source: str, destination: str, size: tuple[int, int]) -> None:
        self.storage, self.destination, self.size = storage, destination, size
        photograph = as_png(*size)
        storage.write(source + "cat.png", photograph, "image/png")
        (self.photograph,) = storage.list(source)
        self.runs = 0

    def run(self, settings: Sequence[DreamSettings]) -> None:
        """Add what a run would leave."""
        self.runs += 1
        rows = []
        for number, each in enumerate(settings):
            uri = f"{self.destination}images/cat.png/{self.runs}-{number}.png"
            self.storage.write(uri, as_png(*self.size, number % 9), "image/png")
            rows.append(
                Row(
                    run_id=f"run{self.runs}", job_id="job", shard=0, status="done", source_uri=self.photograph.uri,
                    source_etag=self.photograph.etag, source_bytes=self.photograph.size,
                    settings_id=settings_id(each, "weights"), model=each.model, weights_sha256="weights", layers=[],
                    octaves=each.octaves, octave_scale=each.octave_scale, steps=each.steps, step_size=each.step_size,
                    jitter=each.jitter, seed=each.seed, settings=each.canonical_json(), score_before=3.3,
                    score_after=4 + number / 100, classes_before=[{"label": "tabby", "p": 0.5}],
                    classes_after=[{"label": "Egyptian cat", "p": 0.25}], result_uri=uri, algorithm_version=2,
                    created_at=BEGAN + timedelta(days=self.runs, seconds=number),
                )
            )  # fmt: skip
        part = layout.part_uri(self.destination, f"run{self.runs}", 0)
        self.storage.write(part, manifest.to_parquet(rows), manifest.CONTENT_TYPE)

    def sheets(self, photograph: str | None = None) -> list[Sheet]:
        """What is drawn of them; to be looked at where `SHEETS` names a folder."""
        version = (self.photograph.uri, self.photograph.etag)
        drawn = list(draw_sheets(self.destination, self.storage, [version], pytest.fail))
        if folder := os.environ.get("SHEETS"):
            for number, sheet in enumerate(drawn):
                name = f"{self.destination.rstrip('/').rpartition('/')[2]}-{number}.jpg"
                Path(folder, name).write_bytes(sheet.jpeg)
        return drawn


def size_of(sheet: Sheet) -> tuple[int, int]:
    with Image.open(io.BytesIO(sheet.jpeg)) as picture:
        picture.load()
        return picture.size


def settings(**fields: object) -> DreamSettings:
    return DreamSettings.model_validate(fields)


def test_two_hundred_dreams_of_a_portrait_are_one_sheet_that_opens_anywhere(
    storage: Storage, source: str, destination: str
) -> None:
    dreamt = Dream(storage, source, destination, (451, 300))
    dreamt.run([settings(layers=f"blocks.4:{channel}") for channel in range(112)])
    dreamt.run([settings(layers=f"blocks.5:{channel}") for channel in range(88)])
    (sheet,) = dreamt.sheets()
    assert sheet.uri == f"{destination}sheets/cat.png.jpg"
    width, height = size_of(sheet)
    assert 1500 < width <= contact.WIDTH
    assert 26 * 280 < height < contact.TALLEST, "201 cells, eight to a row"
    assert len(sheet.jpeg) < 10_000_000


def test_a_sheet_that_would_be_too_tall_has_pages(storage: Storage, source: str, destination: str) -> None:
    dreamt = Dream(storage, source, destination, (120, 40))
    dreamt.run([settings(layers="blocks.1", seed=seed) for seed in range(250)])
    drawn = dreamt.sheets()
    assert [page.uri.removeprefix(f"{destination}sheets/") for page in drawn] == ["cat.png.jpg", "cat.png%2D2.jpg"]
    assert all(size_of(page)[1] <= contact.TALLEST for page in drawn)
    assert {found.uri for found in storage.list(f"{destination}sheets/")} == {page.uri for page in drawn}


def test_a_strip_of_pixels_has_a_sheet(storage: Storage, source: str, destination: str) -> None:
    dreamt = Dream(storage, source, destination, (20_000, 10))
    dreamt.run([settings()])
    (sheet,) = dreamt.sheets()
    assert size_of(sheet)[1] < contact.TALLEST


def test_a_wide_grid_is_a_table_whose_scores_can_be_read(storage: Storage, source: str, destination: str) -> None:
    dreamt = Dream(storage, source, destination, (60, 90))
    layers = [f"blocks.{stage}" for stage in range(6)]
    dreamt.run([settings(layers=layer, seed=seed) for layer in layers for seed in range(20)])
    (sheet,) = dreamt.sheets()
    assert size_of(sheet)[0] <= contact.WIDTH, "the photograph and eight seeds side by side, in three rows a layer"
    pen = contact._Pen(ImageDraw.Draw(Image.new("RGB", (1, 1))))
    written = scores([(3.30412, 4.12345), (-13.30412, -12.1)])
    assert written == ["score 3.3 to 4.1", "score -13.3 to -12.1"]
    assert all(pen.draw.textlength(text, pen.font) <= contact.CELL.start for text in written)


@pytest.mark.parametrize(
    ("pairs", "written"),
    [
        ([(3.304, 4.716), (3.304, 4.7)], ["score 3.30 to 4.72", "score 3.30 to 4.70"]),
        ([(0.01234, 0.5)], ["score 0.012 to 0.500"]),
        ([(404_600.0, 512_000.5)], ["score 404,600 to 512,000"]),
        ([(0.0, 0.0)], ["score 0.00 to 0.00"]),
    ],
)
def test_scores_of_a_sheet_have_the_same_decimals(pairs: list[tuple[float, float]], written: list[str]) -> None:
    assert scores(pairs) == written


def test_dreams_of_earlier_runs_are_on_the_sheet_too(
    storage: Storage, source: str, destination: str, dreamgrid: Command
) -> None:
    dreamt = Dream(storage, source, destination, (60, 90))
    dreamt.run([settings(layers="blocks.3", seed=1)])
    alone = size_of(*dreamt.sheets())
    dreamt.run([settings(layers="blocks.4", seed=2), settings(layers="blocks.4", seed=3)])
    assert size_of(*dreamt.sheets())[0] > alone[0]

    drawn = dreamgrid("sheet", destination)
    assert (drawn.returncode, drawn.stdout) == (0, f"{destination}sheets/cat.png.jpg\n"), drawn.stderr
    told = dreamgrid("sheet", destination, "--json")
    assert json.loads(told.stdout) == {"sheets": [f"{destination}sheets/cat.png.jpg"]}
    assert dreamgrid("sheet", destination, "cat").stdout == drawn.stdout
    none = dreamgrid("sheet", destination, "dog.png")
    assert (none.returncode, none.stdout) == (2, "")
    assert f"{destination} has no dreams of a photograph with 'dog.png' in its address" in none.stderr


def test_what_varies_is_told_and_what_is_not_there_is_not(storage: Storage, source: str, destination: str) -> None:
    guided = {"uri": "s3://photos/flowers.jpg", "sha256": "0" * 64}
    among = [settings(guide=guided), settings(octaves=3)]
    assert distinguishing_settings(among, ["layers"]) == ["guide flowers.jpg, octaves 6", "octaves 3"]
    changed = [settings(preset="tf2", steps=2), settings(preset="gordic", steps=2), settings(preset="tf2", steps=3)]
    assert distinguishing_settings(changed, ["layers"]) == ["tf2, steps 2", "gordic, steps 2", "tf2, steps 3"]
    folders = ("red", "blue/red", "2")
    twins = [settings(guide={"uri": f"s3://photos/{folder}/1.jpg", "sha256": "0" * 64}) for folder in folders]
    assert distinguishing_settings(twins, ["layers"]) == [
        "guide photos/red/1.jpg",
        "guide blue/red/1.jpg",
        "guide 2/1.jpg",
    ]
    nested = [settings(guide={"uri": uri, "sha256": "0" * 64}) for uri in ("s3://b/1", "s3://b/s3://b/1")]
    assert distinguishing_settings(nested, ["layers"]) == ["guide s3://b/1", "guide b/s3://b/1"]
    same = [settings(layers="blocks.1"), settings(layers="blocks.2")]
    assert distinguishing_settings(same, ["layers"]) == ["", ""]
    dreamt = Dream(storage, source, destination, (60, 90))
    dreamt.run(among + changed + same)
    assert len(dreamt.sheets()) == 1


def test_tables_are_for_two_things_that_vary_and_rows_for_everything_else() -> None:
    table = [(layer, seed) for layer in "ab" for seed in "123"]
    assert arrange(table) == ([(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1)], 4)
    assert arrange([("a", "1")]) == ([(1, 0)], 2)
    assert arrange([(layer, "") for layer in "abcde"]) == ([(1, 0), (2, 0), (3, 0), (0, 1), (1, 1)], 4)
    assert arrange([("a", "1"), ("b", "2"), ("c", "3")])[1] == 4, "most of the table would be empty"
    wide, across = arrange([(layer, str(seed)) for layer in "ab" for seed in range(10)])
    assert (wide[7:12], across) == ([(8, 0), (1, 1), (2, 1), (1, 2), (2, 2)], 9)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 30).map(str)), min_size=1, max_size=80))
def test_every_dream_has_a_place_of_its_own_beside_the_photograph(labels: list[tuple[str, str]]) -> None:
    places, across = arrange(labels)
    assert len({(0, 0), *places}) == len(labels) + 1
    assert max(column for column, _ in places) < across <= 1 + contact.MANY_ACROSS


def test_labels_break_at_their_commas_and_odd_names_break_nothing() -> None:
    assert wrap_text("octaves 3, steps 10, seed 4", 160) == ["octaves 3, steps 10", "seed 4"]
    assert (wrap_text("", 160), wrap_text("one", 1)) == ([], ["one"])
    (page,) = render_pages("two\nlines", [Cell(0, 0, None, ("mask a\nb.png", "sees"))], 160)
    assert page.width == 160 + 2 * contact.GAP


def test_a_dream_that_is_damaged_leaves_its_place_empty(
    storage: Storage, source: str, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dreamt = Dream(storage, source, destination, (60, 90))
    dreamt.run([settings(seed=seed) for seed in range(3)])
    whole = dreamt.sheets()[0].jpeg
    storage.write(f"{destination}images/cat.png/1-1.png", b"no picture", "image/png")
    read = Storage.read

    def rotten(self: Storage, uri: str) -> bytes | None:
        if uri.endswith("1-2.png"):
            raise CorruptObject(f"{uri} is damaged in the store")
        return read(self, uri)

    monkeypatch.setattr(Storage, "read", rotten)
    (sheet,) = dreamt.sheets()
    assert sheet.jpeg != whole
    with Image.open(io.BytesIO(sheet.jpeg)) as picture:
        assert np.abs(np.asarray(picture)[60, -200].astype(int) - contact.BACKGROUND).max() < 10


def test_no_page_is_empty_and_none_too_tall() -> None:
    picture = Image.new("RGB", (100, 300))
    drawn = list(render_pages("title", [Cell(0, line, picture, ("score", "sees")) for line in range(80)], 100))
    assert [page.height <= contact.TALLEST for page in drawn] == [True] * 3
