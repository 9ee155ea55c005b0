"""Contact sheets: all dreams of one photograph on one picture, rows layers, columns the other settings that vary."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from dreamcore.images import decode
from dreamcore.settings import DreamSettings, objective_label
from flows import manifest
from flows.plan import safe_name
from flows.runs import Run
from flows.storage import Storage

WIDTH = 1600
"""Of a sheet, in pixels, where its columns allow."""
CELL = range(120, 361)
"""Widths that a cell may have."""
GAP, LINE, TEXT = 12, 18, 14
BACKGROUND, INK, FAINT = (20, 20, 24), (235, 235, 235), (160, 160, 170)
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


def draw_sheets(run: Run, storage: Storage, sources: Sequence[tuple[str, str]]) -> Iterator[Sheet]:
    """Draw a sheet of each photograph that has dreams, and put it into the destination.

    Args:
        run: the run, whose grid gives rows and columns.
        storage: where the dreams are.
        sources: address and name of the photographs.
    """
    chosen = pc.field("source_uri").isin([uri for uri, _ in sources]) & (pc.field("status") == "done")
    rows = manifest.read(storage, run.destination, _COLUMNS, where=chosen).to_pylist()
    for uri, name in sources:
        dreams = {row["settings_id"]: row for row in rows if row["source_uri"] == uri}
        if not dreams:
            continue
        source = storage.read(uri)
        if source is None:
            continue  # deleted since it was dreamt
        jpeg = _draw(run, name, source, dreams, storage)
        sheet = Sheet(name, f"{run.destination}sheets/{safe_name(name)}.jpg", jpeg)
        storage.write(sheet.uri, jpeg, "image/jpeg")
        yield sheet


def _draw(run: Run, name: str, source: bytes, dreams: dict[str, dict[str, Any]], storage: Storage) -> bytes:
    settings = {p.settings_id: p.settings for p in run.settings if p.settings_id in dreams}
    columns = list(dict.fromkeys(_column(entry, settings.values()) for entry in settings.values()))
    lines = list(dict.fromkeys(_line(entry, settings.values()) for entry in settings.values()))
    width = min(max((WIDTH - GAP) // (len(columns) + 1) - GAP, CELL.start), CELL.stop - 1)

    def thumbnail(data: bytes) -> Image.Image:
        picture = Image.fromarray(decode(data, max_pixels=4 * width * width).pixels)
        return picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)

    first = thumbnail(source)
    step = (width + GAP, first.height + 3 * LINE + GAP)
    size = (GAP + step[0] * (len(columns) + 1), 2 * GAP + LINE + step[1] * len(lines))
    sheet = Image.new("RGB", size, BACKGROUND)
    pen = _Pen(ImageDraw.Draw(sheet), width)
    pen.write((GAP, GAP), f"{name}   {run.settings[0].settings.model}", INK, wide=True)
    corner = (GAP, 2 * GAP + LINE)
    sheet.paste(first, corner)
    before = next(iter(dreams.values()))["classes_before"]
    pen.write((corner[0], corner[1] + first.height + 2), "the photograph", INK)
    pen.write((corner[0], corner[1] + first.height + 2 + LINE), _class(before), FAINT)
    with ThreadPoolExecutor(4) as readers:
        pictures = readers.map(lambda entry: storage.read(dreams[entry]["result_uri"]), settings)
        for (settings_id, entry), data in zip(settings.items(), pictures, strict=True):
            column, line = _column(entry, settings.values()), _line(entry, settings.values())
            left = corner[0] + step[0] * (1 + columns.index(column))
            top = corner[1] + step[1] * lines.index(line)
            if data:
                sheet.paste(thumbnail(data), (left, top))
            row = dreams[settings_id]
            score = f"score {row['score_before']:.2f} to {row['score_after']:.2f}"
            pen.write((left, top + first.height + 2), f"{line}   {column}", INK)
            pen.write((left, top + first.height + 2 + LINE), score, INK)
            pen.write((left, top + first.height + 2 + 2 * LINE), _class(row["classes_after"]), FAINT)
    sink = io.BytesIO()
    sheet.save(sink, "JPEG", quality=85)
    return sink.getvalue()


class _Pen:
    """Writes text that fits below a cell."""

    def __init__(self, draw: ImageDraw.ImageDraw, width: int) -> None:
        self.draw, self.width = draw, width
        self.font = ImageFont.load_default(TEXT)

    def write(self, place: tuple[int, int], text: str, ink: tuple[int, int, int], *, wide: bool = False) -> None:
        while not wide and self.draw.textlength(text, self.font) > self.width:
            text = text[:-2] + "\N{HORIZONTAL ELLIPSIS}"
        self.draw.text(place, text, ink, self.font)


def _line(settings: DreamSettings, among: Any) -> str:
    label = objective_label(settings.layers)
    return f"{settings.model} {label}" if len({entry.model for entry in among}) > 1 else label


def _column(settings: DreamSettings, among: Any) -> str:
    """The settings besides model and layers that vary in this grid; the octaves where nothing does."""
    names = [name for name in DreamSettings.model_fields if name not in ("model", "layers")]
    varying = [name for name in names if len({repr(getattr(entry, name)) for entry in among}) > 1] or ["octaves"]
    return ", ".join(f"{name} {getattr(settings, name)}" for name in varying)


def _class(classes: list[dict[str, Any]] | None) -> str:
    return f"sees {classes[0]['label']}, {classes[0]['p']:.0%}" if classes else ""
