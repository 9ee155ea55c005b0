"""Contact sheets: layout, pages, labels and scores, for photographs and grids of many shapes."""

import io
import itertools
import json
import os
import re
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
from flows.cli.main import cli
from flows.contact_sheets import contact
from flows.contact_sheets.contact import Cell, arrange, render_pages, scores, text_width, wrap_text
from flows.contact_sheets.sheet_axes import NO_CHOICE, Choice, check_axis, pages_of
from flows.contact_sheets.sheet_rows import find_numbered, short_ids, split_number
from flows.contact_sheets.sheets import Sheet, distinguishing_settings, draw_sheets
from flows.destination import manifest
from flows.destination.manifest import Row
from flows.local.stack import Stack
from flows.results.redream import find_dream
from flows.s3 import layout
from flows.s3.errors import CorruptObject, UnreadableObject
from flows.s3.storage import Storage
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
    expected = [f"#{number} {each}" for number, each in enumerate(ids, start=1)]
    assert [line for line in lines if line in expected] == expected
    assert all(text_width(each) <= contact.CELL_WIDTHS.start for each in expected)


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
    assert size_of(sheet)[0] <= contact.MAX_WIDTH, "eight seeds side by side, in three lines a layer"
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


def grid(**axes: Sequence[object]) -> list[DreamSettings]:
    """Return the settings of every combination, in the order of the axes."""
    return [settings(**dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def tables(among: Sequence[DreamSettings], choice: Choice = NO_CHOICE) -> list[tuple[str | None, str | None, str, int]]:
    return [(page.rows, page.columns, page.values, len(page.dreams)) for page in pages_of(among, choice)]


def test_rows_columns_and_pages_are_the_settings_that_vary() -> None:
    layers, seeds = ["blocks.3", "blocks.4"], [1, 2, 3]
    assert tables(grid(layers=layers, seed=seeds)) == [("layers", "seed", "", 6)]
    places = pages_of(grid(layers=layers, seed=seeds))[0].places
    assert places == {index: (index % 3, index // 3) for index in range(6)}
    assert tables(grid(layers=layers)) == [(None, None, "", 2)], "one axis fills row after row"
    assert tables(grid(octaves=[3, 4], steps=[1, 2])) == [("octaves", "steps", "", 4)]
    pages = tables(grid(layers=layers, octaves=[3, 4], steps=[1, 2], seed=[5, 6]))
    assert pages == [
        ("layers", "octaves", f"steps {steps}, seed {seed}", 4) for steps, seed in ((1, 5), (1, 6), (2, 5), (2, 6))
    ]
    together = [settings(layers=layer, octaves=o, steps=o * 2) for layer in layers for o in (3, 4)]
    assert tables(together) == [("layers", "octaves", "", 4)], "octaves and steps vary together"
    diagonal = [settings(layers=f"blocks.{number}", seed=number % 2) for number in range(5)]
    assert tables(diagonal) == [(None, None, "", 5)], "the layers determine the seed"
    sparse = [settings(layers=f"blocks.{n % 5}", seed=n % 3, octaves=3 + n % 4) for n in range(5)]
    assert tables(sparse) == [(None, None, "", 5)]
    looks = grid(look=["neon", "ripple"], octaves=[3, 4])
    assert tables(looks) == [("look", "octaves", "", 4)], "a look determines its layers"


def test_a_user_chooses_rows_and_columns() -> None:
    among = grid(layers=["blocks.3", "blocks.4"], octaves=[3, 4], steps=[1, 2])
    assert tables(among, Choice("steps", "layers")) == [
        ("steps", "layers", f"octaves {octaves}", 4) for octaves in (3, 4)
    ]
    assert tables(among, Choice(columns="steps"))[0] == ("layers", "steps", "octaves 3", 4)
    assert tables(grid(layers=["blocks.3", "blocks.4"]), Choice("layers")) == [("layers", None, "", 2)]
    several = grid(model=["efficientnet_lite0", "resnet18"], layers=["60%"], seed=[1, 2])
    assert tables(several, Choice("model", "seed")) == [("model", "seed", "", 4)]
    assert check_axis("step-size") == "step_size"
    with pytest.raises(InvalidInput, match="'stepsize' is not a setting"):
        check_axis("stepsize")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["blocks.3", "blocks.4", "70%"]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2)
        ),
        min_size=1,
        max_size=30,
        unique=True,
    ),
    st.sampled_from([None, "layers", "seed", "look"]),
    st.sampled_from([None, "octaves", "steps"]),
)
def test_every_dream_and_the_photograph_have_different_places(
    points: list[tuple[str, int, int, int]], rows: str | None, columns: str | None
) -> None:
    names = ("layers", "octaves", "steps", "seed")
    pages = pages_of([settings(**dict(zip(names, point, strict=True))) for point in points], Choice(rows, columns))
    assert sorted(index for page in pages for index in page.dreams) == list(range(len(points)))
    for page in pages:
        places, across = arrange(page.places or None, len(page.dreams))
        assert len({(0, 0), *places}) == len(page.dreams) + 1
        assert max(column for column, _ in places) < across <= contact.MAX_COLUMNS
        assert {column for column, _ in places} | {0} == set(range(across)), "no column is empty"
        assert not page.places or min(line for _, line in places) == 1, "the photograph has a line of its own"


def test_a_wide_table_continues_its_rows() -> None:
    table = {index: (index % 10, index // 10) for index in range(20)}
    places, across = arrange(table, 20)
    assert (places[7:12], across) == ([(7, 1), (0, 2), (1, 2), (0, 3), (1, 3)], 8)
    assert arrange(None, 1) == ([(1, 0)], 2)
    assert arrange(None, 5) == ([(1, 0), (2, 0), (3, 0), (0, 1), (1, 1)], 4)


def test_a_number_on_a_sheet_names_a_dream(storage: Storage, source: str, destination: str) -> None:
    cats = Destination(storage, source, destination, (60, 90), "a/cat.png")
    cats.run(grid(layers=["blocks.3", "blocks.4"], seed=[1, 2]))
    cats.runs = 8
    dogs = Destination(storage, source, destination, (60, 90), "dog#2.png")
    dogs.runs = 1
    dogs.run([settings()])
    for name in ("a/cat.png", "cat.png", f"{source}a/cat.png"):
        assert find_numbered(destination, storage, name, 3) == f"{destination}images/a/cat.png/1-2.png"
    assert find_dream(destination, "dog#2.png#1") == f"{destination}images/dog#2.png/2-0.png"
    cats.run([settings(seed=7)])
    assert find_numbered(destination, storage, "cat.png", 3).endswith("1-2.png"), "later runs have larger numbers"
    assert find_numbered(destination, storage, "cat.png", 5).endswith("9-0.png")
    other = Destination(storage, source, destination, (60, 90), "cat.png")
    other.runs = 20
    other.run([settings()])
    assert find_numbered(destination, storage, "cat.png", 1).startswith(f"{destination}images/cat.png/"), (
        "the title of a sheet"
    )
    for text, message in (
        ("cat.png#0", "has the numbers 1 to 1, and no 0"),
        ("dog#2.png#2", "has the numbers 1 to 1, and no 2"),
        ("g#2.png#1", "has no dreams of a photograph g#2.png"),
        ("zebra.png#1", "has no dreams of a photograph zebra.png"),
    ):
        with pytest.raises(InvalidInput, match=re.escape(message)):
            find_numbered(destination, storage, *(split_number(text) or ("", 0)))


def test_ids_are_as_long_as_the_sheet_needs() -> None:
    assert short_ids(["0123456789abcdef", "f123456789abcdef"]) == ["01234567", "f1234567"]
    assert short_ids(["0123456789abcdef", "0123456789abcde0"]) == ["0123456789abcdef", "0123456789abcde0"]
    assert short_ids([]) == []


def test_the_command_draws_pages_as_chosen(
    storage: Storage, source: str, destination: str, dreamgrid_inprocess: Command
) -> None:
    made = Destination(storage, source, destination, (60, 90))
    made.run(grid(layers=["blocks.3", "blocks.4"], octaves=[3, 4], steps=[1, 2, 3]))
    first = [page.jpeg for page in made.sheets()]
    assert len(first) == 3
    assert [page.jpeg for page in made.sheets()] == first, "the same sheet each time"
    done = dreamgrid_inprocess("sheet", destination, "--rows", "octaves", "--columns", "steps", "--title", "My cat")
    names = [f"{destination}sheets/cat.png.jpg", f"{destination}sheets/cat.png%2D2.jpg"]
    assert done.stdout.splitlines() == names, done.stderr
    assert [found.uri for found in storage.list(f"{destination}sheets/")] == sorted(names), "no old page is left"
    wrong = dreamgrid_inprocess("sheet", destination, "--rows", "octave")
    assert (wrong.returncode, "'octave' is not a setting" in wrong.stderr) == (2, True)


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
