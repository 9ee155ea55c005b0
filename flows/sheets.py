"""Contact sheets: all dreams of one photograph on one image, with layers as rows and other settings as columns."""

import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
from PIL import Image
from pydantic import ValidationError

from dreamcore.errors import ImageError
from dreamcore.fields import Reference
from dreamcore.settings import DreamSettings, digest, nearest_name, read_recorded
from dreamcore.targets import layers_label
from flows import history, layout, manifest
from flows.contact import Cell, Title, arrange, cell_width, render_pages, scores, thumbnail, wrap_text
from flows.decoder import decode
from flows.prefetch import ordered_prefetch, thread_pool
from flows.s3_errors import CorruptObject, UnreadableObject
from flows.storage import Storage

__all__ = [
    "Sheet",
    "distinguishing_settings",
    "draw_sheets",
    "latest_photographs",
    "read_settings",
    "top_classes",
]

_READERS = 4
_COLUMNS = [
    "run_id", "shard", "created_at", "source_uri", "source_etag", "source_bytes", "settings", "status", "result_uri",
    "score_before", "score_after", "classes_before", "classes_after", "result_id",
]  # fmt: skip
_MAX_VARYING = 3
"""Up to this many varying settings are all named; of more, only those that are not at their default."""


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


def draw_sheets(
    destination: str, storage: Storage, photographs: Sequence[tuple[str, str]], warn: Callable[[str], None]
) -> Iterator[Sheet]:
    """Draw a contact sheet of all dreams of each photograph, and write it to the destination.

    A photograph that was changed or removed since it was dreamt gets no sheet.

    Args:
        destination: folder of the results.
        storage: access to S3.
        photographs: address and ETag of each photograph.
        warn: called with the reason why a sheet is not drawn.

    Yields:
        Every page as soon as it is written. Most sheets have one page.

    Raises:
        Unavailable: S3 failed.
    """
    if not photographs:
        return
    chosen = pc.field("source_uri").isin([uri for uri, _ in photographs]) & (pc.field("status") == "done")
    dreams: dict[tuple[str, str], list[dict[str, Any]]] = {}
    parts = history.parts_with((uri for uri, _ in photographs), destination, storage)
    for row in _in_order(manifest.read_rows(storage, parts, _COLUMNS, chosen).to_pylist()):
        dreams.setdefault((row["source_uri"], row["source_etag"]), []).append(row)
    for uri, etag in photographs:
        entries = list(_entries(dreams.get((uri, etag), [])))
        if not entries:
            continue
        name = entries[0].row["result_uri"].removeprefix(layout.images_folder(destination)).rpartition("/")[0]
        try:
            photograph = storage.read_version(uri, etag)
            pages = list(_draw(_title(uri, name, entries[0]), photograph, entries, storage))
        except (ImageError, OSError) as error:  # errors of this photograph; infrastructure failures have other types
            warn(f"no contact sheet of {uri}: {error}")
            continue
        for number, jpeg in enumerate(pages, start=1):
            sheet = Sheet(name, uri, layout.sheet_uri(destination, name, number), jpeg)
            storage.write(sheet.uri, jpeg, "image/jpeg")
            yield sheet


def latest_photographs(destination: str, storage: Storage, count: int, part: str = "") -> list[tuple[str, str]]:
    """Return address and ETag of the photographs that were dreamt last, the latest first.

    Args:
        destination: folder of the results.
        storage: access to S3.
        count: the largest number of photographs to return.
        part: return only photographs with this text in their address.

    Returns:
        Each photograph once, in the version that was dreamt last.
    """
    columns = ["source_uri", "source_etag", "created_at", "status"]
    rows = manifest.read(storage, destination, columns, where=pc.field("status") == "done")
    last = rows.group_by(["source_uri", "source_etag"]).aggregate([("created_at", "max")])
    versions: dict[str, str] = {}
    for row in last.sort_by([("created_at_max", "descending")]).to_pylist():
        if part in row["source_uri"]:
            versions.setdefault(row["source_uri"], row["source_etag"])
    return list(versions.items())[:count]


def _in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows run by run, each run in the order of its grid."""
    started: dict[str, Any] = {}
    for row in rows:
        started[row["run_id"]] = min(row["created_at"], started.get(row["run_id"], row["created_at"]))
    return sorted(rows, key=lambda row: (started[row["run_id"]], row["shard"], row["created_at"]))


def _entries(rows: Sequence[dict[str, Any]]) -> Iterator[_Entry]:
    for row in rows:
        if settings := read_settings(json.loads(row["settings"])):
            yield _Entry(row, settings)


def read_settings(fields: dict[str, Any]) -> DreamSettings | None:
    """Return the settings of a manifest row; None if another version of Dreamgrid wrote them with other fields."""
    try:
        return read_recorded(fields)
    except ValidationError:
        return None


def _title(uri: str, safe_name: str, entry: _Entry) -> Title:
    """Return the title of a sheet: the name of the photograph below its source, and the network."""
    steps = uri.split("/")
    names = ("/".join(steps[first:]) for first in reversed(range(len(steps))))
    name = next((name for name in names if layout.safe_name(name) == safe_name), safe_name)
    return Title(name, entry.settings.model, f"photograph {digest(uri)[:8]}")


def _draw(title: Title, photograph: bytes, entries: Sequence[_Entry], storage: Storage) -> Iterator[bytes]:
    """Yield the pages of the sheet of one photograph as JPEG files."""
    settings = [entry.settings for entry in entries]
    several_models = len({each.model for each in settings}) > 1
    rows = [_row_label(each, several_models) for each in settings]
    labels = list(zip(rows, distinguishing_settings(settings, ("model", "layers")), strict=True))
    places, columns = arrange(labels)
    width = cell_width(columns)

    def shrink(data: bytes) -> Image.Image:
        return thumbnail(decode(data, max_pixels=4 * width * width).pixels, width)

    def read(uri: str) -> Image.Image | None:
        try:
            data = storage.read(uri)
            return shrink(data) if data else None
        except (ImageError, CorruptObject, UnreadableObject):  # the cell of a damaged or archived dream stays empty
            return None

    cells = [Cell(0, 0, shrink(photograph), ("the photograph",), (top_classes(entries[0].row["classes_before"]),))]
    score_lines = scores([(entry.row["score_before"], entry.row["score_after"]) for entry in entries])
    with thread_pool(_READERS) as readers:
        images = ordered_prefetch(readers, lambda entry: read(entry.row["result_uri"]), entries, _READERS)
        for entry, label, score, (column, line), image in zip(
            entries, labels, score_lines, places, images, strict=True
        ):
            text = (label[0], *wrap_text(label[1], width), score)
            notes = list(filter(None, (top_classes(entry.row["classes_after"]), entry.row["result_id"])))
            cells.append(Cell(column, line, image, text, notes))
    for page in render_pages(title, cells, width):
        sink = io.BytesIO()
        page.save(sink, "JPEG", quality=85)
        yield sink.getvalue()


def _row_label(settings: DreamSettings, several_models: bool) -> str:
    label = layers_label(settings.layers)
    return f"{settings.model} {label}" if several_models else label


def distinguishing_settings(among: Sequence[DreamSettings], excluded: Collection[str]) -> list[str]:
    """Return a label for each of several settings, made of the fields that vary among them.

    If any of them follows a preset or look, or if more than three fields vary, a label names only the values that
    differ from the defaults, or from the preset or look.

    Args:
        among: the settings.
        excluded: fields that the labels leave out.
    """
    names = [name for name in DreamSettings.model_fields if name not in excluded]
    files = {value.uri for each in among for name in names if isinstance(value := getattr(each, name), Reference)}

    def value_of(settings: DreamSettings, name: str) -> str:
        value = getattr(settings, name)
        return _shortest_suffix(value.uri, files) if isinstance(value, Reference) else str(value)

    varying = [name for name in names if len({value_of(entry, name) for entry in among}) > 1]
    any_name = any(map(nearest_name, among))
    name_all = not any_name and len(varying) <= _MAX_VARYING

    def label(settings: DreamSettings) -> str:
        named = nearest_name(settings)
        base = DreamSettings.model_validate(named)
        shown = [name for name in varying if name_all or value_of(settings, name) != value_of(base, name)]
        values = [f"{name} {value}" for name in shown if (value := value_of(settings, name)) != "None"]
        return ", ".join([*named.values(), *values]) or ("default" if any_name else "")

    return [label(settings) for settings in among]


def _shortest_suffix(uri: str, uris: Collection[str]) -> str:
    """Return the shortest end of an address, usually the file name, that no other address has."""
    steps = uri.split("/")
    suffixes = ("/".join(steps[first:]) for first in reversed(range(len(steps))))
    unique = (end for end in suffixes if all(other == uri or not f"/{other}".endswith(f"/{end}") for other in uris))
    return next(unique, uri)


def top_classes(classes: list[dict[str, Any]] | None) -> str:
    """Return the most likely class and its probability as a line of a contact sheet; empty if there are no classes."""
    return f"class {classes[0]['label']}, {classes[0]['p']:.0%}" if classes else ""
