"""A gallery as plain files, which open from any web server without Python.

The files of the page are `index.html`, scripts and styles, and `data-<digest>.js` with what is known of the dreams. The
index page is written last and names the data by its digest, so that an export that was stopped changes no earlier one.
Pictures have names that stand for their content; a repeated export writes only those that are missing.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dreamcore.errors import ImageError, InvalidInput
from dreamcore.settings import digest
from flows.gallery.axes import axes_of
from flows.gallery.context import FOLDER, point_of, text_of
from flows.gallery.export_target import Target
from flows.gallery.formats import describe, figure, gain, plain, redream_command, settings_text
from flows.gallery.points import WHOLE, defaults
from flows.gallery.ratios import ratio_class, stylesheet
from flows.gallery.records import Axis, DreamRow, Filters
from flows.gallery.site import Place, Site
from flows.gallery.thumbnails import Missing, pixels_of
from flows.gallery.whole import is_sparse, names_of
from flows.layout import images_folder, is_movie, thumb_uri
from flows.noise_source import noise_size
from flows.prefetch import ordered_prefetch, thread_pool
from flows.storage import Storage

__all__ = ["MAX_DREAMS", "Exported", "export"]

MAX_DREAMS = 2000
_THREADS = 8
_GENERATOR = b'<meta name="generator" content="Dreamgrid">'
_SCRIPTS = ("script/theme.js", "export/export.js", "export/loupe.js")
_STYLES = ("style/frame.css", "style/pictures.css", "style/panels.css", "export/export.css")
_OWN_FILE = re.compile(r"data-[0-9a-f]{16}\.js|pictures/[0-9a-f]{16}(-small|-photograph)?\.(webp|png|jpg|mp4)")
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
        InvalidInput: there are no dreams or too many; or the target has the page of somebody else, or cannot be
            written.
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
    used = {f"data-{sha256(text).hexdigest()[:16]}.js", *_names(data)}
    _write_page(work, data["title"], text)
    work.target.delete(name for name in work.known - used if _OWN_FILE.fullmatch(name))
    return Exported(work.target.address, len(dreams), len(data["photographs"]), len(rows) - len(dreams))


def _write_page(work: _Export, title: str, data: bytes) -> None:
    """Write the files of the page, and the index last. Each is named with its version, which caches need."""
    versions = {}
    files = {name: (FOLDER / "static" / name).read_bytes() for name in ("icon.svg", *_SCRIPTS, *_STYLES)}
    files |= {"style/ratios.css": stylesheet().encode(), f"data-{sha256(data).hexdigest()[:16]}.js": data}
    for name, content in files.items():
        work.target.write(Path(name).name, content)
        versions[Path(name).name] = f"{Path(name).name}?{sha256(content).hexdigest()[:8]}"
    styles = [versions[Path(name).name] for name in ("style/ratios.css", *_STYLES)]
    theme, *scripts = [versions[Path(name).name] for name in _SCRIPTS]
    scripts.insert(0, next(name for name in versions.values() if name.startswith("data-")))
    values = {"title": title, "styles": styles, "theme": theme, "scripts": scripts, "icon": versions["icon.svg"]}
    work.target.write("index.html", text_of("export.html", values).encode())


def _names(data: Mapping[str, Any]) -> set[str]:
    """Return the pictures that the data names."""
    entries = [*data["dreams"], *data["photographs"]]
    return {entry[kind] for entry in entries for kind in ("small", "full", "file") if kind in entry}


def _dream(work: _Export, row: DreamRow) -> dict[str, Any] | None:
    """Provide the pictures of a dream; return their relative addresses, or None if the dream is missing."""
    place, uri = work.place, row.result_uri or ""
    if not uri.startswith(images_folder(place.destination)):  # a manifest may name anything
        return None
    small = f"pictures/{row.result_id}-small.webp"
    full = f"pictures/{row.result_id}.{uri.rpartition('.')[2]}"
    read_small = partial(place.thumbnails.of_dream, uri, row.result_id)
    try:
        if work.up is None:
            read_full = partial(place.thumbnails.full, uri)
            return _files(work.write(small, read_small), work.write(full, read_full))
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
    name = f"pictures/{digest(row.source_uri, row.source_etag, str(row.width), str(row.height))[:16]}"
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
        rows = [dreams[number][0] for number in numbers]
        points = [point_of(row) for row in rows]
        axes = axes_of(points)
        if is_sparse(axes, len(points)):
            names = names_of(points)
            axes = [Axis(WHOLE, tuple(names.values()))]
            at |= {number: {WHOLE: names[point.settings_id]} for number, point in zip(numbers, points, strict=True)}
        else:
            at |= {
                number: {axis.name: point.value(axis.name) for axis in axes}
                for number, point in zip(numbers, points, strict=True)
            }
        files = pictures.get((rows[0].source_uri, rows[0].source_etag)) or {"small": "", "full": ""}
        best = max(numbers, key=lambda number: dreams[number][0].gain_rank or 0.0)
        photographs.append(
            {
                "name": plain(rows[0].source_name), "dreams": numbers, "best": best, **files,
                "axes": [{"name": axis.name, "values": axis.values} for axis in axes],
            }
        )  # fmt: skip
    return {
        "title": plain(work.place.destination.rstrip("/").rpartition("/")[2]),
        "photographs": photographs,
        "dreams": [_entry(row, files) | {"at": at[number]} for number, (row, files) in enumerate(dreams)],
    }


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
        "text": plain(settings_text(row)),
        "gain": gain(row.gain),
        "scores": [figure(row.score_before), figure(row.score_after)] if row.gain is not None else None,
        "objective": row.objective,
        "before": [[seen.label, round(100 * seen.p)] for seen in row.classes_before[:4]],
        "after": [[seen.label, round(100 * seen.p)] for seen in row.classes_after[:4]],
        "facts": {name: plain(value) for name, value in facts.items()},
        "command": redream_command(row),
        "mark": row.mark or 0,
    }
