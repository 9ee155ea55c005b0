"""Contact sheets: all dreams of one photograph on one picture, rows layers, columns the other settings that vary."""

import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
from PIL import Image
from pydantic import ValidationError

from dreamcore.errors import ImageError
from dreamcore.settings import DreamSettings, Reference, nearest_preset
from dreamcore.targets import layers_label
from flows import history, manifest
from flows.contact import Cell, arrange, cell_width, render_pages, scores, thumbnail, wrap_text
from flows.decoder import decode
from flows.layout import sheet_uri
from flows.prefetch import ordered_prefetch, thread_pool
from flows.s3_errors import CorruptObject
from flows.storage import Storage

_READERS = 4
_COLUMNS = [
    "run_id", "shard", "created_at", "source_uri", "source_etag", "source_bytes", "settings", "status", "result_uri",
    "score_before", "score_after", "classes_before", "classes_after",
]  # fmt: skip


@dataclass(frozen=True)
class Sheet:
    """One page of a contact sheet."""

    name: str
    """The photograph's key below the source, as it is spelt in keys of dreams."""
    uri: str
    jpeg: bytes


@dataclass(frozen=True)
class _Entry:
    """One dream of a photograph."""

    row: dict[str, Any]
    settings: DreamSettings


def draw_sheets(
    destination: str, storage: Storage, photographs: Sequence[tuple[str, str]], warn: Callable[[str], None]
) -> Iterator[Sheet]:
    """Draw a sheet of all dreams that a destination has of each photograph, and put it there.

    A photograph that is no longer what was dreamt gets none.

    Args:
        destination: where the dreams are, and their manifest.
        storage: how to reach it.
        photographs: address and ETag of each.
        warn: called with what kept a sheet from being drawn, which is no trouble of the run's.

    Returns:
        The render_pages of all sheets as they are drawn; mostly a sheet is one page.
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
        name = entries[0].row["result_uri"].removeprefix(f"{destination}images/").rpartition("/")[0]
        try:
            photograph = storage.read_version(uri, etag)
            drawn = list(_draw(name, photograph, entries, storage))
        except (ImageError, OSError) as error:  # of one photograph; trouble of the world is told by other errors
            warn(f"no contact sheet of {uri}: {error}")
            continue
        for number, jpeg in enumerate(drawn, start=1):
            sheet = Sheet(name, sheet_uri(destination, name, number), jpeg)
            storage.write(sheet.uri, jpeg, "image/jpeg")
            yield sheet


def latest_photographs(destination: str, storage: Storage, count: int, part: str = "") -> list[tuple[str, str]]:
    """Address and ETag of the photographs that were dreamt last, at most `count`, each as it was dreamt last.

    Only of those with `part` in their address.
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
    """The rows of runs one after another, each in the order of its grid."""
    began: dict[str, Any] = {}
    for row in rows:
        began[row["run_id"]] = min(row["created_at"], began.get(row["run_id"], row["created_at"]))
    return sorted(rows, key=lambda row: (began[row["run_id"]], row["shard"], row["created_at"]))


def _entries(rows: Sequence[dict[str, Any]]) -> Iterator[_Entry]:
    for row in rows:
        if settings := read_settings(json.loads(row["settings"])):
            yield _Entry(row, settings)


def read_settings(written: dict[str, Any]) -> DreamSettings | None:
    """The settings of a row; None where another version of Dreamgrid, which had other settings, wrote them."""
    try:
        return DreamSettings.model_validate(written)
    except ValidationError:
        return None


def _draw(name: str, photograph: bytes, entries: Sequence[_Entry], storage: Storage) -> Iterator[bytes]:
    """The render_pages of the sheet of one photograph, as JPEGs."""
    settings = [entry.settings for entry in entries]
    several_models = len({each.model for each in settings}) > 1
    lines = [_line(each, several_models) for each in settings]
    labels = list(zip(lines, distinguishing_settings(settings, ("model", "layers")), strict=True))
    places, across = arrange(labels)
    width = cell_width(across)

    def small(data: bytes) -> Image.Image:
        return thumbnail(decode(data, max_pixels=4 * width * width).pixels, width)

    def read(uri: str) -> Image.Image | None:
        try:
            data = storage.read(uri)
            return small(data) if data else None
        except (ImageError, CorruptObject):  # a dream that is damaged leaves its place empty
            return None

    cells = [Cell(0, 0, small(photograph), ("the photograph", top_classes(entries[0].row["classes_before"])))]
    written = scores([(entry.row["score_before"], entry.row["score_after"]) for entry in entries])
    with thread_pool(_READERS) as readers:
        pictures = ordered_prefetch(readers, lambda entry: read(entry.row["result_uri"]), entries, _READERS)
        for entry, label, score, (column, line), picture in zip(
            entries, labels, written, places, pictures, strict=True
        ):
            text = (label[0], *wrap_text(label[1], width), score, top_classes(entry.row["classes_after"]))
            cells.append(Cell(column, line, picture, text))
    for page in render_pages(f"{name}   {settings[0].model}", cells, width):
        sink = io.BytesIO()
        page.save(sink, "JPEG", quality=85)
        yield sink.getvalue()


def _line(settings: DreamSettings, several_models: bool) -> str:
    label = layers_label(settings.layers)
    return f"{settings.model} {label}" if several_models else label


def distinguishing_settings(among: Sequence[DreamSettings], besides: Collection[str]) -> list[str]:
    """What varies among settings, but for the fields `besides`.

    Where a preset is followed or more than three fields vary, only what is not as usual, or as in the preset.
    """
    names = [name for name in DreamSettings.model_fields if name not in besides]
    files = {value.uri for each in among for name in names if isinstance(value := getattr(each, name), Reference)}

    def value_of(settings: DreamSettings, name: str) -> str:
        value = getattr(settings, name)
        return _shortest(value.uri, files) if isinstance(value, Reference) else str(value)

    varying = [name for name in names if len({value_of(entry, name) for entry in among}) > 1]
    any_preset = any(map(nearest_preset, among))
    in_full = not any_preset and len(varying) <= 3

    def told(settings: DreamSettings) -> str:
        preset = nearest_preset(settings)
        usual = DreamSettings.model_validate({"preset": preset} if preset else {})
        worth = [name for name in varying if in_full or value_of(settings, name) != value_of(usual, name)]
        values = [f"{name} {value}" for name in worth if (value := value_of(settings, name)) != "None"]
        return ", ".join([preset, *values] if preset else values) or ("default" if any_preset else "")

    return [told(settings) for settings in among]


def _shortest(uri: str, uris: Collection[str]) -> str:
    """The end of an address, mostly its file's name, by which it is told from others."""
    steps = uri.split("/")
    ends = ("/".join(steps[first:]) for first in reversed(range(len(steps))))
    own = (end for end in ends if all(other == uri or not f"/{other}".endswith(f"/{end}") for other in uris))
    return next(own, uri)


def top_classes(classes: list[dict[str, Any]] | None) -> str:
    """The likeliest class, as it is written below a picture."""
    return f"sees {classes[0]['label']}, {classes[0]['p']:.0%}" if classes else ""
