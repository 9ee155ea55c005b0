"""Contact sheets: all dreams of one photograph on one image, with layers as rows and another setting as columns."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from pydantic import ValidationError

from dreamcore.errors import ImageError
from dreamcore.settings import DreamSettings, digest, read_recorded
from flows.contact_sheets.contact import Cell, Title, arrange, cell_width, render_pages, scores, thumbnail, wrap_text
from flows.contact_sheets.sheet_axes import (
    NO_CHOICE,
    Choice,
    SheetPage,
    common_settings,
    distinguishing_settings,
    pages_of,
    row_label,
)
from flows.contact_sheets.sheet_rows import latest_photographs, rows_by_photograph, short_ids
from flows.decoding.decoder import decode
from flows.jobs.noise_source import noise_size, shown_noise
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.s3 import layout
from flows.s3.errors import CorruptObject, UnreadableObject
from flows.s3.storage import Storage

__all__ = [
    "Sheet",
    "distinguishing_settings",
    "draw_sheets",
    "latest_photographs",
    "read_settings",
    "remove_further_pages",
    "top_classes",
]

_READERS = 4
_COLUMNS = [
    "settings", "result_uri", "score_before", "score_after", "classes_before", "classes_after", "result_id",
]  # fmt: skip


@dataclass(frozen=True)
class Sheet:
    """One page of a contact sheet."""

    name: str
    """The safe name of the photograph, as in the keys of its dreams."""
    photograph: str
    """Address of the photograph."""
    uri: str
    """Address of the page."""
    jpeg: bytes
    """The page as a JPEG file."""


@dataclass(frozen=True)
class _Entry:
    """One dream of a photograph."""

    row: dict[str, Any]
    settings: DreamSettings
    label: str
    """The number of the dream on the sheet, and the first digits of its `result_id`."""
    picture: str
    """Address of the picture of the dream; of a movie, of its thumbnail."""


def draw_sheets(
    destination: str,
    storage: Storage,
    photographs: Sequence[tuple[str, str]],
    warn: Callable[[str], None],
    choice: Choice = NO_CHOICE,
) -> Iterator[Sheet]:
    """Draw a contact sheet of all dreams of each photograph, and write it to the destination.

    A photograph that was changed or removed since it was dreamt gets no sheet.

    Args:
        destination: folder of the results.
        storage: access to S3.
        photographs: address and ETag of each photograph.
        warn: called with the reason why a sheet is not drawn.
        choice: the rows, the columns and the title that a user chose.

    Yields:
        Every page as soon as it is written. Most sheets have one page.

    Raises:
        Unavailable: S3 failed.
    """
    if not photographs:
        return
    dreams = rows_by_photograph(destination, storage, photographs, _COLUMNS)
    for uri, etag in photographs:
        entries = list(_entries(destination, dreams.get((uri, etag), [])))
        if not entries:
            continue
        name = entries[0].row["result_uri"].removeprefix(layout.images_folder(destination)).rpartition("/")[0]
        try:
            photograph = uri if noise_size(uri) else storage.read_version(uri, etag)
            pages = list(_draw(_title(uri, name, entries, choice), photograph, entries, storage, choice))
        except (ImageError, OSError) as error:  # errors of this photograph; infrastructure failures have other types
            warn(f"no contact sheet of {uri}: {error}")
            continue
        for number, jpeg in enumerate(pages, start=1):
            sheet = Sheet(name, uri, layout.sheet_uri(destination, name, number), jpeg)
            storage.write(sheet.uri, jpeg, "image/jpeg")
            yield sheet


def _entries(destination: str, rows: Sequence[dict[str, Any]]) -> Iterator[_Entry]:
    """Yield the dreams with their numbers. A dream of another version of Dreamgrid has a number, but is not shown."""
    for number, (row, digits) in enumerate(
        zip(rows, short_ids([row["result_id"] or "" for row in rows]), strict=True), 1
    ):
        if settings := read_settings(json.loads(row["settings"])):
            uri = row["result_uri"]
            picture = layout.thumb_uri(destination, uri) if layout.is_movie(uri) else uri
            yield _Entry(row, settings, f"#{number} {digits}", picture)


def read_settings(fields: dict[str, Any]) -> DreamSettings | None:
    """Return the settings of a manifest row; None if another version of Dreamgrid wrote them with other fields."""
    try:
        return read_recorded(fields)
    except ValidationError:
        return None


def _title(uri: str, safe_name: str, entries: Sequence[_Entry], choice: Choice) -> Title:
    """Return the title of a sheet: the name of the photograph below its source, and the networks."""
    steps = uri.split("/")
    names = ("/".join(steps[first:]) for first in reversed(range(len(steps))))
    name = next((name for name in names if layout.safe_name(name) == safe_name), safe_name)
    models = ", ".join(dict.fromkeys(entry.settings.model for entry in entries))
    return Title(choice.title or name, models, f"photograph {digest(uri)[:8]}")


def _draw(
    title: Title, photograph: bytes | str, entries: Sequence[_Entry], storage: Storage, choice: Choice
) -> Iterator[bytes]:
    """Yield the pages of the sheet of one photograph, or of noise that is named, as JPEG files."""
    pages = pages_of([entry.settings for entry in entries], choice)
    arranged = [arrange(page.places or None, len(page.dreams)) for page in pages]
    width = cell_width(max(columns for _, columns in arranged))
    captions = _captions(entries, width)

    def shrink(data: bytes) -> Image.Image:
        return thumbnail(decode(data, max_pixels=4 * width * width).pixels, width)

    def read(index: int) -> Image.Image | None:
        try:
            data = storage.read(entries[index].picture)
            return shrink(data) if data else None
        except (ImageError, CorruptObject, UnreadableObject):  # the cell of a damaged or archived dream stays empty
            return None

    seen = (top_classes(entries[0].row["classes_before"]),)
    if isinstance(photograph, str):
        seed = entries[0].settings.seed
        source = Cell(0, 0, _noise(photograph, seed, width), (f"the noise with seed {seed}",), seen)
    else:
        source = Cell(0, 0, shrink(photograph), ("the photograph",), seen)
    for page, (places, _) in zip(pages, arranged, strict=True):
        cells = [source]
        with thread_pool(_READERS) as readers:
            images = ordered_prefetch(readers, read, page.dreams, _READERS)
            for index, (column, line), image in zip(page.dreams, places, images, strict=True):
                cells.append(Cell(column, line, image, *captions[index]))
        for drawn in render_pages(title, cells, width, _legend(page, entries) if page.places else ()):
            sink = io.BytesIO()
            drawn.save(sink, "JPEG", quality=85)
            yield sink.getvalue()


def _noise(uri: str, seed: int, width: int) -> Image.Image | None:
    """Return a picture of noise; None if it is too large to be made only for a sheet."""
    try:
        return thumbnail(shown_noise(uri, seed).pixels, width)
    except ImageError:
        return None


def _captions(entries: Sequence[_Entry], width: int) -> list[tuple[list[str], list[str]]]:
    """Return the lines of text below each dream, and the fainter lines below them."""
    settings = [entry.settings for entry in entries]
    several_models = len({each.model for each in settings}) > 1
    labels = distinguishing_settings(settings, ("model", "layers"))
    score_lines = scores([(entry.row["score_before"], entry.row["score_after"]) for entry in entries])
    return [
        (
            [entry.label, row_label(entry.settings, several_models), *wrap_text(label, width), score],
            list(filter(None, [top_classes(entry.row["classes_after"])])),
        )
        for entry, label, score in zip(entries, labels, score_lines, strict=True)
    ]


def _legend(page: SheetPage, entries: Sequence[_Entry]) -> list[str]:
    """Return what a table shows, for the space beside the photograph."""
    common = common_settings([entry.settings for entry in entries])
    named = {"rows": page.rows, "columns": page.columns, "this page": page.values, "all dreams": common}
    return [f"{what}: {value}" for what, value in named.items() if value]


def remove_further_pages(destination: str, storage: Storage, name: str, pages: int) -> None:
    """Delete the pages that the sheet of a photograph had before it had only this many pages.

    Args:
        destination: folder of the results.
        storage: access to S3.
        name: the safe name of the photograph.
        pages: the number of pages that were drawn.
    """
    while storage.find(old := layout.sheet_uri(destination, name, pages + 1)):
        storage.delete(old)
        pages += 1


def top_classes(classes: list[dict[str, Any]] | None) -> str:
    """Return the most likely class and its probability as a line of a contact sheet; empty if there are no classes."""
    return f"class {classes[0]['label']}, {classes[0]['p']:.0%}" if classes else ""
