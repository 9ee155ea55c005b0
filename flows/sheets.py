"""Contact sheets: all dreams of one photograph on one picture, rows layers, columns the other settings that vary."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dreamcore.errors import ImageError
from dreamcore.objectives import objective_label
from dreamcore.settings import DreamSettings, Reference, preset_of
from flows import manifest
from flows.ahead import ahead, threads
from flows.decoder import decode
from flows.plan import Source, safe_name
from flows.runs import Run
from flows.storage import Found, Storage

WIDTH = 1600
"""Of a sheet, in pixels, where its columns allow."""
COLUMNS = 4
"""Of a sheet without rows and columns of settings."""
CELL = range(120, 361)
"""Widths that a cell may have."""
GAP, LINE, TEXT = 12, 18, 14
BACKGROUND, INK, FAINT = (20, 20, 24), (235, 235, 235), (160, 160, 170)
_READERS = 4
_COLUMNS = [
    "source_uri", "source_etag", "settings_id", "status", "result_uri", "score_before", "score_after",
    "classes_before", "classes_after",
]  # fmt: skip


@dataclass(frozen=True)
class Sheet:
    """One contact sheet."""

    name: str
    """The photograph's key below the source."""
    uri: str
    jpeg: bytes


def draw_sheets(run: Run, storage: Storage, sources: Sequence[Source]) -> Iterator[Sheet]:
    """Draw a sheet of each photograph that has dreams, and put it into the destination.

    A photograph that is no longer what was dreamt gets none.

    Args:
        run: the run, whose grid gives rows and columns.
        storage: where the dreams are.
        sources: the photographs.
    """
    if not sources:
        return
    chosen = pc.field("source_uri").isin([source.uri for source in sources]) & (pc.field("status") == "done")
    rows = manifest.read(storage, run.destination, _COLUMNS, where=chosen).to_pylist()
    for source in sources:
        version = (source.uri, source.etag)
        dreams = {row["settings_id"]: row for row in rows if (row["source_uri"], row["source_etag"]) == version}
        if not dreams:
            continue
        try:
            jpeg = _draw(run, source.name, storage.read_version(Found(*version, source.size)), dreams, storage)
        except ImageError:
            continue
        sheet = Sheet(source.name, f"{run.destination}sheets/{safe_name(source.name)}.jpg", jpeg)
        storage.write(sheet.uri, jpeg, "image/jpeg")
        yield sheet


def _draw(run: Run, name: str, source: bytes, dreams: dict[str, dict[str, Any]], storage: Storage) -> bytes:
    settings = {p.settings_id: p.settings for p in run.settings if p.settings_id in dreams}
    several_models = len({each.model for each in settings.values()}) > 1
    columns_of = _columns(list(settings.values()))
    labels = {key: (_line(each, several_models), columns_of(each)) for key, each in settings.items()}
    places, columns = _layout(list(labels.values()))
    width = cell_width(columns + 1)

    def small(data: bytes) -> Image.Image:
        return thumbnail(decode(data, max_pixels=4 * width * width).pixels, width)

    first = small(source)
    before = next(iter(dreams.values()))["classes_before"]
    cells = [Cell(0, 0, first, ("the photograph", sees(before)))]
    with threads(_READERS) as readers:
        pictures = ahead(readers, lambda entry: storage.read(dreams[entry]["result_uri"]), settings, _READERS)
        for settings_id, (column, line), data in zip(settings, places, pictures, strict=True):
            row = dreams[settings_id]
            score = f"score {row['score_before']:.4g} to {row['score_after']:.4g}"
            picture = small(data) if data else None
            text = ("   ".join(labels[settings_id]), score, sees(row["classes_after"]))
            cells.append(Cell(column, line, picture, text))
    sink = io.BytesIO()
    paint(f"{name}   {run.settings[0].settings.model}", cells, first.size).save(sink, "JPEG", quality=85)
    return sink.getvalue()


def _layout(labels: Sequence[tuple[str, str]]) -> tuple[list[tuple[int, int]], int]:
    """Column and line of each dream, the photograph being at (0, 0), and how many columns there are beside it.

    Where most places of a table of layers and other settings would be empty, as with presets, they stand in a row.
    """
    lines, columns = (list(dict.fromkeys(names)) for names in zip(*labels, strict=True))
    if len(set(labels)) == len(labels) > len(lines) * len(columns) / 2:
        return [(1 + columns.index(column), lines.index(line)) for line, column in labels], len(columns)
    across = min(len(labels) + 1, COLUMNS)
    return [((number + 1) % across, (number + 1) // across) for number in range(len(labels))], across - 1


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet, and what is written below it."""

    column: int
    line: int
    picture: Image.Image | None
    """As wide as every cell; none where it is gone."""
    text: Sequence[str]
    """Lines; the last one, what the network sees, is fainter."""


def thumbnail(pixels: NDArray[np.uint8], width: int) -> Image.Image:
    """A picture (H, W, 3) as wide as a cell."""
    picture = Image.fromarray(pixels)
    return picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)


def cell_width(columns: int) -> int:
    """Width in pixels of the cells of a sheet with so many columns."""
    return min(max((WIDTH - GAP) // columns - GAP, CELL.start), CELL.stop - 1)


def paint(title: str, cells: Sequence[Cell], size: tuple[int, int]) -> Image.Image:
    """A sheet of cells whose pictures have `size` (width, height)."""
    width, height = size
    step = (width + GAP, height + 3 * LINE + GAP)
    columns, lines = 1 + max(cell.column for cell in cells), 1 + max(cell.line for cell in cells)
    sheet = Image.new("RGB", (GAP + step[0] * columns, 2 * GAP + LINE + step[1] * lines), BACKGROUND)
    pen = _Pen(ImageDraw.Draw(sheet), width)
    pen.write((GAP, GAP), title, INK, wide=True)
    for cell in cells:
        left, top = GAP + step[0] * cell.column, 2 * GAP + LINE + step[1] * cell.line
        if cell.picture:
            sheet.paste(cell.picture, (left, top))
        for number, text in enumerate(cell.text):
            ink = FAINT if number + 1 == len(cell.text) else INK
            pen.write((left, top + height + 2 + LINE * number), text, ink)
    return sheet


class _Pen:
    """Writes text that fits below a cell."""

    def __init__(self, draw: ImageDraw.ImageDraw, width: int) -> None:
        self.draw, self.width = draw, width
        self.font = ImageFont.load_default(TEXT)

    def write(self, place: tuple[int, int], text: str, ink: tuple[int, int, int], *, wide: bool = False) -> None:
        while not wide and self.draw.textlength(text, self.font) > self.width:
            text = text[:-2] + "\N{HORIZONTAL ELLIPSIS}"
        self.draw.text(place, text, ink, self.font)


def _line(settings: DreamSettings, several_models: bool) -> str:
    label = objective_label(settings.layers)
    return f"{settings.model} {label}" if several_models else label


def _columns(among: Sequence[DreamSettings]) -> Callable[[DreamSettings], str]:
    """Tells what varies in a grid besides model and layers, by the names of presets where there are any."""
    names = [name for name in DreamSettings.model_fields if name not in ("model", "layers")]
    varying = [name for name in names if len({_value(entry, name) for entry in among}) > 1]
    if not any(map(preset_of, among)):
        return lambda settings: ", ".join(f"{name} {_value(settings, name)}" for name in varying or ["octaves"])

    def column(settings: DreamSettings) -> str:
        preset = preset_of(settings)
        usual = DreamSettings.model_validate({"preset": preset} if preset else {})
        unusual = [name for name in varying if _value(settings, name) != _value(usual, name)]
        return ", ".join([preset or "default", *(f"{name} {_value(settings, name)}" for name in unusual)])

    return column


def _value(settings: DreamSettings, name: str) -> str:
    """A setting for people to read; of a file, its name."""
    value = getattr(settings, name)
    return value.uri.rpartition("/")[2] if isinstance(value, Reference) else str(value)


def sees(classes: list[dict[str, Any]] | None) -> str:
    """The likeliest class, as it is written below a picture."""
    return f"sees {classes[0]['label']}, {classes[0]['p']:.0%}" if classes else ""
