"""A gallery as plain files, which open from any web server without Python.

The files of the page are `index.html`, styles, the scripts of the served gallery in `script-<digest>/`, and
`data-<digest>.js` with what is known of the dreams: `export_pages.js` draws the pages that a server would send. The
index page is written last and names the data by its digest, so that an export that was stopped changes no earlier one.
Pictures have names that stand for their content; a repeated export writes only those that are missing.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from dreamcore.errors import ImageError, InvalidInput
from dreamcore.settings import digest
from flows.gallery.axes import axes_of
from flows.gallery.context import FOLDER, KEYMAP, point_of, text_of
from flows.gallery.enlarged import apart
from flows.gallery.export_target import DATA, PICTURES, SCRIPTS, Target
from flows.gallery.formats import describe, dream_name, figure, gain, plain, redream_command, setting, settings_text
from flows.gallery.points import WHOLE, defaults
from flows.gallery.ratios import ratio_class, stylesheet
from flows.gallery.records import Axis, DreamRow, Filters
from flows.gallery.site import Place, Site
from flows.gallery.thumbnails import Missing, pixels_of
from flows.gallery.whole import is_sparse, names_of
from flows.jobs.noise_source import noise_size
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.s3.layout import images_folder, is_movie, thumb_uri
from flows.s3.storage import Storage

__all__ = ["MAX_DREAMS", "Exported", "export"]

MAX_DREAMS = 2000
_THREADS = 8
_GENERATOR = b'<meta name="generator" content="Dreamgrid">'
_SCRIPTS = (
    "theme", "page", "trail", "cells", "forms", "loupe", "keys", "start", "export_parts", "export_pages", "export",
)  # fmt: skip
"""The scripts of the page. All but those named after the export are scripts of the served gallery, too."""
_STYLES = ("frame", "pictures", "panels", "export")
_NOT_HERE = ("1 to 5", "f", "x", "0", "shift with a mark", "z", "m", "v", "g then l, f, s, e, r")
"""Keys of the served gallery that mark dreams, make jobs or go to other views."""
_OWN_FILE = re.compile(
    rf"{DATA}[0-9a-f]{{16}}\.js|{PICTURES}[0-9a-f]{{16}}(-small|-photograph)?\.(webp|png|jpg|mp4)"
    rf"|{SCRIPTS}[0-9a-f]{{16}}/\w+\.js"
)
"""Files that only an export writes; those of an earlier one that are not used any more are deleted."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    folder: str
    """The address of the folder with `index.html`."""
    dreams: int
    photographs: int
    missing: int
    """Dreams that are left out, because their object does not exist or is not an image."""


@dataclass(frozen=True)
class _Export:
    """One export: the destination, the target and the files that the target has."""

    place: Place
    target: Target
    known: frozenset[str]

    @property
    def up(self) -> str | None:
        """The relative address of the destination from the page; None if the page is elsewhere."""
        inside = self.target.address.removeprefix(self.place.destination)
        return "../" * inside.count("/") if inside != self.target.address else None

    def write(self, name: str, read: Callable[[], bytes]) -> str:
        """Write a picture unless the target has it; return its name."""
        if name not in self.known:
            self.target.write(name, read())
        return name

    def copy(self, name: str, uri: str) -> str:
        """Write a whole dream unless the target has it; return the name of the file."""
        if name not in self.known and not self.target.copy(name, uri, self.place.storage):
            raise Missing(f"{uri} does not exist")
        return name


def export(
    destination: str,
    storage: Storage,
    target: Target,
    filters: Filters,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Exported:
    """Write the dreams within the filters as a static gallery.

    Args:
        destination: folder of the results.
        storage: access to S3.
        target: where the files are written.
        filters: which dreams are shown, up to `MAX_DREAMS`.
        on_progress: called with the number of finished pictures and of all.

    Raises:
        InvalidInput: there are no dreams or too many; or the target has an `index.html` that no export wrote, or
            cannot be written.
        Unavailable: S3 failed.
    """
    index = target.read("index.html")
    if index is not None and _GENERATOR not in index:
        raise InvalidInput(f"{target.address} has an index.html that no export wrote: choose another folder")
    site = Site([destination], storage, read_only=True)
    try:
        (slug,) = site.destinations
        place = site.place(slug)
        assert place is not None  # noqa: S101 - the only destination of the site
        place.refresh()
        rows = _rows(place, replace(filters, status="done"))
        return _write(_Export(place, target, frozenset(target.names())), rows, on_progress)
    finally:
        site.close()


def _rows(place: Place, filters: Filters) -> list[DreamRow]:
    rows = place.queries.within(filters, MAX_DREAMS + 1)
    if not rows:
        raise InvalidInput(f"{place.destination} has no dreams with these filters: there is nothing to export")
    if len(rows) > MAX_DREAMS:
        count = place.queries.counts(filters).dreams
        raise InvalidInput(
            f"{place.destination} has {count:,} dreams with these filters. An export has {MAX_DREAMS:,} at most: "
            "filter the library, and give the part of the page's address behind the question mark, such as "
            "--filter 'marks=3' or --filter 'layers=blocks.3&q=tea'"
        )
    return rows


def _write(work: _Export, rows: Sequence[DreamRow], on_progress: Callable[[int, int], None]) -> Exported:
    """Write the pictures, then the page, then delete what an earlier export left."""
    photographs: dict[tuple[str, str], DreamRow] = {}
    for row in rows:
        largest = photographs.setdefault((row.source_uri, row.source_etag), row)
        if pixels_of(row.width, row.height) > pixels_of(largest.width, largest.height):
            photographs[row.source_uri, row.source_etag] = row
    tasks = [partial(_dream, work, row) for row in rows]
    tasks += [partial(_photograph, work, row) for row in photographs.values()]
    found: list[dict[str, Any] | None] = []
    with thread_pool(_THREADS) as pool:
        for value in ordered_prefetch(pool, lambda task: task(), tasks, 2 * _THREADS):
            found.append(value)
            on_progress(len(found), len(tasks))
    dreams = [(row, value) for row, value in zip(rows, found, strict=False) if value]
    pictures = dict(zip(photographs, found[len(rows) :], strict=True))
    data = _data(work, dreams, pictures)
    text = f"window.DREAMS = {json.dumps(data, separators=(',', ':'))};\n".encode()
    used = {*_write_page(work, data["title"], text), *_names(data)}
    work.target.delete(name for name in work.known - used if _OWN_FILE.fullmatch(name))
    return Exported(work.target.address, len(dreams), len(data["photographs"]), len(rows) - len(dreams))


def _write_page(work: _Export, title: str, data: bytes) -> set[str]:
    """Write the files of the page, and the index last; return their names.

    Caches may keep every file, because its address names its version. Scripts import each other by their names, so the
    version is that of their folder.
    """
    static = FOLDER / "static"
    scripts = {f"{name}.js": (static / "script" / f"{name}.js").read_bytes() for name in _SCRIPTS}
    folder = f"{SCRIPTS}{sha256(b''.join(scripts.values())).hexdigest()[:16]}/"
    data_file = f"{DATA}{sha256(data).hexdigest()[:16]}.js"
    styles = {"ratios.css": stylesheet().encode()}
    styles |= {f"{name}.css": (static / "style" / f"{name}.css").read_bytes() for name in _STYLES}
    files = {data_file: data, "icon.svg": (static / "icon.svg").read_bytes(), **styles}
    files |= {folder + name: content for name, content in scripts.items()}
    for name, content in files.items():
        work.target.write(name, content)
    values = {
        "title": title,
        "styles": [f"{name}?{sha256(content).hexdigest()[:8]}" for name, content in styles.items()],
        "data": data_file,
        "scripts": folder,
        "keymap": [each for each in KEYMAP if each[0] not in _NOT_HERE],
    }
    work.target.write("index.html", text_of("export.html", values).encode())
    return set(files)


def _names(data: Mapping[str, Any]) -> set[str]:
    """Return the pictures that the data names."""
    entries = [*data["dreams"], *data["photographs"]]
    return {entry[kind] for entry in entries for kind in ("small", "full", "file") if kind in entry}


def _dream(work: _Export, row: DreamRow) -> dict[str, Any] | None:
    """Provide the pictures of a dream; return their relative addresses, or None if the dream is missing."""
    place, uri = work.place, row.result_uri or ""
    if not uri.startswith(images_folder(place.destination)):  # a manifest may name anything
        return None
    small = f"{PICTURES}{row.result_id}-small.webp"
    full = f"{PICTURES}{row.result_id}.{uri.rpartition('.')[2]}"
    read_small = partial(place.thumbnails.of_dream, uri, row.result_id)
    try:
        if work.up is None:
            return _files(work.write(small, read_small), work.copy(full, uri))
        if place.storage.find(uri) is None:
            return None
        thumb = thumb_uri(place.destination, uri)  # deleted with the dream by `dreamgrid prune`
        if place.storage.find(thumb) is None:
            place.storage.write_if_absent(thumb, read_small(), "image/webp")
        return _files(_link(work, thumb), _link(work, uri))
    except (Missing, ImageError):
        return None


def _files(small: str, full: str) -> dict[str, str]:
    """Return the addresses of a dream's pictures, and of its file. A movie is shown by its thumbnail."""
    return {"small": small, "full": small if is_movie(full) else full, "file": full}


def _link(work: _Export, uri: str) -> str:
    return f"{work.up}{quote(uri.removeprefix(work.place.destination))}"


def _photograph(work: _Export, row: DreamRow) -> dict[str, Any] | None:
    """Write a photograph as small and as large as its largest dream; None if it is missing or was replaced.

    Noise has no picture here, because it is another one for each seed.
    """
    if noise_size(row.source_uri):
        return None
    name = f"{PICTURES}{digest(row.source_uri, row.source_etag, str(row.width), str(row.height))[:16]}"
    thumbnails, version = work.place.thumbnails, (row.source_uri, row.source_etag)
    pixels = pixels_of(row.width, row.height)
    try:
        small = work.write(f"{name}-small.webp", lambda: thumbnails.of_photograph(*version))
        full = work.write(f"{name}-photograph.webp", lambda: thumbnails.photograph(*version, pixels))
    except (ImageError, InvalidInput):
        return None  # the dreams are shown without it
    return {"small": small, "full": full}


def _data(
    work: _Export,
    dreams: Sequence[tuple[DreamRow, Mapping[str, Any]]],
    pictures: Mapping[tuple[str, str], dict[str, Any] | None],
) -> dict[str, Any]:
    """Return what the script of the page shows. All of it is data: the script writes text, never markup."""
    groups: dict[str, list[int]] = {}
    for number, (row, _) in enumerate(dreams):
        groups.setdefault(row.source_uri, []).append(number)
    photographs: list[dict[str, Any]] = []
    at: dict[int, dict[str, str]] = {}
    for numbers in groups.values():
        grid, enlarged = apart([dreams[number][0] for number in numbers])
        position = {dreams[number][0].result_id: number for number in numbers}
        axes, values = _places(grid)
        at |= {position[result_id]: each for result_id, each in values.items()}
        files = pictures.get((grid[0].source_uri, grid[0].source_etag)) or {"small": "", "full": ""}
        best = max(grid, key=lambda row: row.gain_rank or 0.0)
        photographs.append(
            {
                "name": plain(grid[0].source_name),
                "dreams": [position[row.result_id] for row in grid],
                "enlarged": [position[row.result_id] for row in enlarged],
                "best": position[best.result_id],
                "axes": [{"name": axis.name, "values": axis.values} for axis in axes],
                **files,
            }
        )
    return {
        "title": plain(work.place.destination.rstrip("/").rpartition("/")[2]),
        "photographs": photographs,
        "dreams": [_entry(row, files) | {"at": at.get(number, {})} for number, (row, files) in enumerate(dreams)],
    }


def _places(grid: Sequence[DreamRow]) -> tuple[Sequence[Axis], dict[str, dict[str, str]]]:
    """Return the axes of a photograph, and the values of each dream on them by its `result_id`."""
    points = {row.result_id: point_of(row) for row in grid}
    axes = axes_of(points.values())
    if is_sparse(axes, len(points)):
        names = names_of(list(points.values()))
        return [Axis(WHOLE, tuple(names.values()))], {
            each: {WHOLE: names[point.settings_id]} for each, point in points.items()
        }
    return axes, {each: {axis.name: point.value(axis.name) for axis in axes} for each, point in points.items()}


def _entry(row: DreamRow, files: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is shown of one dream."""
    shown = dict.fromkeys(("octaves", "steps", "step_size", "seed", *row.settings))
    values = {name: row.settings.get(name, defaults().get(name, "")) for name in shown}
    facts = {"layers": row.layers, "model": row.model, **values, "size": f"{row.width} × {row.height}"}
    return {
        **files,
        "id": row.result_id,
        "shape": ratio_class(row.width, row.height),
        "width": row.width,
        "height": row.height,
        "label": describe(row),
        "name": plain(dream_name(row)),
        "text": plain(settings_text(row)),
        "gain": gain(row.gain),
        "scores": [figure(row.score_before), figure(row.score_after)] if row.gain is not None else None,
        "objective": row.objective,
        "before": [[seen.label, round(100 * seen.p)] for seen in row.classes_before[:4]],
        "after": [[seen.label, round(100 * seen.p)] for seen in row.classes_after[:4]],
        "facts": {name: plain(setting(value, name)) for name, value in facts.items()},
        "command": redream_command(row),
        "enlarged_from": row.enlarged_from,
        "mark": row.mark or 0,
    }
