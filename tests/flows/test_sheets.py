"""Contact sheets: layout, pages, labels and scores, for photographs and grids of many shapes."""

import io
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreamcore.errors import InvalidInput
from dreamcore.settings import DreamSettings, digest, settings_id
from flows import contact, layout, manifest
from flows.cli.main import cli
from flows.contact import Cell, arrange, render_pages, scores, text_width, wrap_text
from flows.local.stack import Stack
from flows.manifest import Row
from flows.s3_errors import CorruptObject, UnreadableObject
from flows.sheets import Sheet, distinguishing_settings, draw_sheets
from flows.storage import Storage
from tests.support.command import Command
from tests.support.tiny import pixels

STARTED = datetime(2026, 1, 1, tzinfo=UTC)


@cache
def as_png(height: int, width: int, seed: int = 0) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels(height, width, seed)).save(sink, "PNG")
    return sink.getvalue()


class Destination:
    """A destination with synthetic dreams of one photograph: test images and their rows."""

    def __init__(
        self, storage: Storage, source: str, destination: str, size: tuple[int, int], name: str = "cat.png"
    ) -> None:
        self.storage, self.destination, self.size, self.name = storage, destination, size, name
        storage.write(source + name, as_png(*size), "image/png")
        (self.photograph,) = (found for found in storage.list(source) if found.uri == source + name)
        self.runs = 0

    def run(self, settings: Sequence[DreamSettings]) -> None:
        """Add the dreams and the part of a run with these settings."""
        self.runs += 1
        rows = []
        for number, each in enumerate(settings):
            uri = f"{self.destination}images/{layout.safe_name(self.name)}/{self.runs}-{number}.png"
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
                    result_id=f"{digest(self.name)[:12]}{number:04}",
                    created_at=STARTED + timedelta(days=self.runs, seconds=number),
                )
            )  # fmt: skip
        part = layout.part_uri(self.destination, f"run{self.runs}", 0)
        self.storage.write(part, manifest.to_parquet(rows), manifest.CONTENT_TYPE)

    def sheets(self, storage: Storage | None = None) -> list[Sheet]:
        """Draw the sheets. If `SHEETS` names a folder, they are also saved there, to be inspected."""
        version = (self.photograph.uri, self.photograph.etag)
        drawn = list(draw_sheets(self.destination, storage or self.storage, [version], pytest.fail))
        if folder := os.environ.get("SHEETS"):
            for number, sheet in enumerate(drawn):
                name = f"{self.destination.rstrip('/').rpartition('/')[2]}-{number}.jpg"
                Path(folder, name).write_bytes(sheet.jpeg)
        return drawn


def test_sheets_of_names_in_other_scripts_differ_in_their_titles(
    storage: Storage, source: str, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed, decomposed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png", "cafe\N{COMBINING ACUTE ACCENT}.png"
    names = ("日本語/\N{CAT FACE} नमस्ते صورة Привет.png", "100% red.png", composed, decomposed, "cat.png")
    titles = []
    monkeypatch.setattr(contact, "_draw_title", lambda draw, title, width: titles.append(title))
    for name in names:
        made = Destination(storage, source, destination, (60, 90), name)
        made.run([settings(layers="blocks.3")])
        (sheet,) = made.sheets()
        assert (sheet.name, sheet.photograph) == (layout.safe_name(name), source + name)
    assert [title.name for title in titles] == list(names), "the names themselves, not those of keys"
    assert len({title.mark for title in titles}) == len(names)
    assert {title.note for title in titles} == {settings().model}


def test_a_cell_shows_the_result_id(
    storage: Storage, source: str, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Destination(storage, source, destination, (60, 90))
    made.run([settings(layers="blocks.3"), settings(layers="blocks.4")])
    lines: list[str] = []
    monkeypatch.setattr(contact, "draw_text", lambda draw, place, text, ink: lines.append(text))
    made.sheets()
    ids = manifest.read(storage, destination, ["result_id"])["result_id"].to_pylist()
    assert [line for line in lines if line in ids] == ids
    assert all(text_width(each) <= contact.CELL_WIDTHS.start for each in ids)


def size_of(sheet: Sheet) -> tuple[int, int]:
    with Image.open(io.BytesIO(sheet.jpeg)) as image:
        image.load()
        return image.size


def settings(**fields: object) -> DreamSettings:
    return DreamSettings.model_validate(fields)


def test_two_hundred_dreams_fit_on_one_page(storage: Storage, source: str, destination: str) -> None:
    made = Destination(storage, source, destination, (451, 300))
    made.run([settings(layers=f"blocks.4:{channel}") for channel in range(112)])
    made.run([settings(layers=f"blocks.5:{channel}") for channel in range(88)])
    (sheet,) = made.sheets()
    assert sheet.uri == f"{destination}sheets/cat.png.jpg"
    width, height = size_of(sheet)
    assert 1500 < width <= contact.MAX_WIDTH
    assert 26 * 280 < height < contact.MAX_HEIGHT, "201 cells, eight to a row"
    assert len(sheet.jpeg) < 10_000_000


def test_a_sheet_that_would_be_too_tall_has_several_pages(storage: Storage, source: str, destination: str) -> None:
    made = Destination(storage, source, destination, (120, 40))
    made.run([settings(layers="blocks.1", seed=seed) for seed in range(250)])
    drawn = made.sheets()
    assert [page.uri.removeprefix(f"{destination}sheets/") for page in drawn] == ["cat.png.jpg", "cat.png%2D2.jpg"]
    assert all(size_of(page)[1] <= contact.MAX_HEIGHT for page in drawn)
    assert {found.uri for found in storage.list(f"{destination}sheets/")} == {page.uri for page in drawn}


def test_a_very_narrow_photograph_has_a_sheet(storage: Storage, source: str, destination: str) -> None:
    made = Destination(storage, source, destination, (20_000, 10))
    made.run([settings()])
    (sheet,) = made.sheets()
    assert size_of(sheet)[1] < contact.MAX_HEIGHT


def test_a_wide_grid_is_a_table_and_its_scores_fit_into_the_cells(
    storage: Storage, source: str, destination: str
) -> None:
    made = Destination(storage, source, destination, (60, 90))
    layers = [f"blocks.{stage}" for stage in range(6)]
    made.run([settings(layers=layer, seed=seed) for layer in layers for seed in range(20)])
    (sheet,) = made.sheets()
    assert size_of(sheet)[0] <= contact.MAX_WIDTH, "the photograph and eight seeds side by side, in three rows a layer"
    written = scores([(3.30412, 4.12345), (-13.30412, -12.1)])
    assert written == ["score 3.3 to 4.1", "score -13.3 to -12.1"]
    assert all(text_width(text) <= contact.CELL_WIDTHS.start for text in written)


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


def test_dreams_of_earlier_runs_are_on_the_sheet(
    storage: Storage, source: str, destination: str, dreamgrid: Command
) -> None:
    made = Destination(storage, source, destination, (60, 90))
    made.run([settings(layers="blocks.3", seed=1)])
    alone = size_of(*made.sheets())
    made.run([settings(layers="blocks.4", seed=2), settings(layers="blocks.4", seed=3)])
    assert size_of(*made.sheets())[0] > alone[0]

    drawn = dreamgrid("sheet", destination)
    assert (drawn.returncode, drawn.stdout) == (0, f"{destination}sheets/cat.png.jpg\n"), drawn.stderr
    chosen = CliRunner().invoke(cli, ["sheet", destination, "cat", "--json"])
    assert json.loads(chosen.stdout) == {"sheets": [f"{destination}sheets/cat.png.jpg"]}
    none = CliRunner().invoke(cli, ["sheet", destination, "dog.png"])
    assert isinstance(none.exception, InvalidInput)
    assert f"{destination} has no dreams of a photograph with 'dog.png' in its address" in str(none.exception)


def test_labels_name_the_settings_that_vary_and_have_a_value(storage: Storage, source: str, destination: str) -> None:
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
    made = Destination(storage, source, destination, (60, 90))
    made.run(among + changed + same)
    assert len(made.sheets()) == 1


def test_dreams_form_a_table_only_if_layers_and_other_settings_vary() -> None:
    table = [(layer, seed) for layer in "ab" for seed in "123"]
    assert arrange(table) == ([(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1)], 4)
    assert arrange([("a", "1")]) == ([(1, 0)], 2)
    assert arrange([(layer, "") for layer in "abcde"]) == ([(1, 0), (2, 0), (3, 0), (0, 1), (1, 1)], 4)
    assert arrange([("a", "1"), ("b", "2"), ("c", "3")])[1] == 4, "most of the table would be empty"
    wide, across = arrange([(layer, str(seed)) for layer in "ab" for seed in range(10)])
    assert (wide[7:12], across) == ([(8, 0), (1, 1), (2, 1), (1, 2), (2, 2)], 9)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 30).map(str)), min_size=1, max_size=80))
def test_every_dream_and_the_photograph_have_different_places(labels: list[tuple[str, str]]) -> None:
    places, across = arrange(labels)
    assert len({(0, 0), *places}) == len(labels) + 1
    assert max(column for column, _ in places) < across <= 1 + contact.MAX_COLUMNS


def test_labels_are_wrapped_at_commas_and_control_characters_are_replaced() -> None:
    assert wrap_text("octaves 3, steps 10, seed 4", 160) == ["octaves 3, steps 10", "seed 4"]
    assert (wrap_text("", 160), wrap_text("one", 1)) == ([], ["one"])
    (page,) = render_pages("two\nlines", [Cell(0, 0, None, ("mask a\nb.png", "class"))], 160)
    assert page.width == 160 + 2 * contact.GAP


class DamagedStorage(Storage):
    """A storage in which one dream does not match its checksum."""

    def read(self, uri: str) -> bytes | None:
        if uri.endswith("1-2.png"):
            raise CorruptObject(f"{uri} is damaged in the store")
        if uri.endswith("1-3.png"):
            raise UnreadableObject(f"{uri} is archived")
        return super().read(uri)


def test_the_cell_of_a_damaged_dream_is_empty(stack: Stack, storage: Storage, source: str, destination: str) -> None:
    made = Destination(storage, source, destination, (60, 90))
    made.run([settings(seed=seed) for seed in range(4)])
    whole = made.sheets()[0].jpeg
    storage.write(f"{destination}images/cat.png/1-1.png", b"not an image", "image/png")
    (sheet,) = made.sheets(DamagedStorage(environment=stack.environment()))
    assert sheet.jpeg != whole
    with Image.open(io.BytesIO(sheet.jpeg)) as image:
        assert np.abs(np.asarray(image)[60, -200].astype(int) - contact.BACKGROUND).max() < 10


def test_no_page_is_empty_or_too_tall() -> None:
    image = Image.new("RGB", (100, 300))
    drawn = list(render_pages("title", [Cell(0, line, image, ("score", "class")) for line in range(80)], 100))
    assert [page.height <= contact.MAX_HEIGHT for page in drawn] == [True] * 3
