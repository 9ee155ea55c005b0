"""Delete dreams: their objects, their thumbnails, their contact sheets and their rows.

`preview` selects rows and changes nothing. `prune` deletes what a preview shows:

1. The mark `_runs/prune.json` excludes other prunes, compactions, and runs that try failed dreams again.
2. A record in `_runs/pruned/` names every dream that goes, so that no later run dreams it again (see
   `flows.destination.pruned`).
3. The contact sheets of photographs without any other dream are deleted.
4. For each part, the objects of its rows and their thumbnails are deleted. Then the part is replaced by one without
   these rows, by a write that succeeds only if the part has not changed. An empty part stays: a frozen process of its
   run cannot write it again.
5. The indices of the runs are built again, and the mark is removed.

If a prune is stopped, a row may be left whose object is deleted. The same command continues the prune and deletes the
row. A prune may work beside a run: the parts of an unfinished run are never changed.
"""

import io
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dreamcore.errors import DreamgridError, InvalidInput, Unavailable
from flows.destination import history, manifest, run_record
from flows.destination.favourites import Marks, read_marks
from flows.destination.manifest import IDENTITY
from flows.destination.parts import Part, list_parts
from flows.destination.pruned import PrunedDreams, read_mark, remove_mark, write_mark, write_record
from flows.destination.selection import Selection
from flows.destination.summary import main_settings
from flows.jobs.work import Keys, dream_key, uri_key
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["OnProgress", "Preview", "preview", "prune"]

_WRITERS = 8
_COLUMNS = (*IDENTITY, "status", "result_uri", "result_bytes")
_SETTINGS = ("model", "layers", "octaves", "steps")

OnProgress = Callable[[int, int], None]
"""Called with the number of finished parts and of all parts."""


@dataclass(frozen=True, eq=False)
class Preview:
    """What a prune would delete."""

    destination: str
    selection: Selection
    is_stopped: bool
    """Whether this prune was begun and stopped before."""
    runs: frozenset[str]
    """The finished runs of the destination."""
    parts: tuple[Part, ...]
    """The parts that have selected rows."""
    dreams: PrunedDreams
    """The selected rows."""
    named_elsewhere: Keys
    """The `uri_key` of the objects that other rows name, sorted. These objects stay."""
    sheets: tuple[str, ...]
    """Addresses of the contact sheets that go."""
    summary: Mapping[str, Any]
    """Counts for people, as `dreamgrid prune --json` prints them."""


def preview(storage: Storage, destination: str, selection: Selection) -> Preview:
    """Return what a prune would delete. Nothing is changed.

    Args:
        storage: access to S3.
        destination: folder of the results.
        selection: which rows are meant. Rows of an unfinished run are left out.

    Raises:
        InvalidInput: a retry holds the destination, another prune is unfinished, or the selection is ambiguous.
    """
    command = selection.command(destination)
    if (stopped := read_mark(destination, storage)) not in (command, None):
        raise InvalidInput(f"another prune of {destination} is unfinished: finish it with `{stopped}`")
    listed = list_parts(storage, destination)
    unfinished = _unfinished_run(destination, storage)  # after the listing: no part of a later run is listed
    runs = {part.run_id for part in listed} - {unfinished}
    search = _Search(selection, read_marks(destination, storage))
    columns = list(dict.fromkeys([*_COLUMNS, *_SETTINGS, *selection.columns]))
    tables = manifest.read_parts(storage, [part.uri for part in listed], columns)
    for part, table in zip(listed, tables, strict=True):
        search.add(part, table, is_finished=part.run_id in runs)
    selection.check_settings(search.settings_ids)
    sheets = tuple(search.unused_sheets(destination, storage))
    return Preview(
        destination=destination,
        selection=selection,
        is_stopped=stopped is not None,
        runs=frozenset(runs),
        parts=tuple(search.parts),
        dreams=PrunedDreams(_numbers(search.keys), _numbers(search.sources), command),
        named_elsewhere=np.unique(_numbers(search.other_results)),
        sheets=sheets,
        summary=search.summary(len(sheets)),
    )


def _unfinished_run(destination: str, storage: Storage) -> str | None:
    """Return the unfinished run of a destination.

    Raises:
        InvalidInput: it is a retry, or a compaction is unfinished. Both replace parts of other runs.
    """
    if storage.find(layout.compaction_uri(destination)):
        raise InvalidInput(
            f"parts of the manifest of {destination} are being merged: wait for the compaction, or finish it with "
            f"`dreamgrid manifest compact {destination}`, then prune"
        )
    mark = run_record.read_mark_of_no_retry(destination, storage, "prune")
    return mark["run_id"] if mark else None


@dataclass(eq=False)
class _Search:
    """The selected rows, and what the other rows need. Each row takes 8 to 40 bytes."""

    selection: Selection
    marks: Mapping[str, int]
    kept_favourites: int = 0
    """Rows that stay only because their dream is a favourite."""
    parts: list[Part] = field(default_factory=list)
    keys: "array[int]" = field(default_factory=lambda: array("Q"))
    sources: "array[int]" = field(default_factory=lambda: array("Q"))
    results: "array[int]" = field(default_factory=lambda: array("Q"))
    sizes: "array[int]" = field(default_factory=lambda: array("Q"))
    """Bytes of each object in `results`."""
    other_results: "array[int]" = field(default_factory=lambda: array("Q"))
    folders: set[int] = field(default_factory=set)
    """The `uri_key` of the folder of each selected object: one folder for each photograph."""
    other_folders: set[int] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    settings_ids: set[str] = field(default_factory=set)
    """Settings of all rows, selected or not."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Counts of the selected rows by `settings_id`."""

    def add(self, part: Part, rows: pa.Table, *, is_finished: bool) -> None:
        """Add the rows of a part. Only rows of a finished run may be selected."""
        self.settings_ids.update(rows["settings_id"].unique().to_pylist())
        chosen = self.selection.mask(rows, self.marks) if is_finished else np.zeros(len(rows), np.bool_)
        self.kept_favourites += self.selection.kept_favourites(rows, self.marks) if is_finished else 0
        for uri in rows["result_uri"].filter(pa.array(~chosen)).drop_null().to_pylist():
            self.other_results.append(uri_key(uri))
            self.other_folders.add(uri_key(uri.rpartition("/")[0]))
        if chosen.any():
            self.parts.append(part)
            self.runs.add(part.run_id)
            for row in rows.filter(pa.array(chosen)).to_pylist():
                self.add_selected(row)

    def add_selected(self, row: Mapping[str, Any]) -> None:
        """Add one selected row."""
        self.keys.append(dream_key(*(row[name] for name in IDENTITY)))
        self.sources.append(history.source_key(row["source_uri"]))
        self.statuses[row["status"]] += 1
        if row["settings_id"] not in self.settings:
            self.settings[row["settings_id"]] = _described_settings(row)
        counts = self.settings[row["settings_id"]]
        counts["rows"] += 1
        if row["result_uri"]:
            self.results.append(uri_key(row["result_uri"]))
            self.sizes.append(row["result_bytes"] or 0)
            self.folders.add(uri_key(row["result_uri"].rpartition("/")[0]))
            counts["bytes"] += row["result_bytes"] or 0

    def unused_sheets(self, destination: str, storage: Storage) -> Iterator[str]:
        """Yield the contact sheets of photographs whose dreams are all selected."""
        unused = self.folders - self.other_folders
        images = layout.images_folder(destination)
        for found in storage.list(layout.sheets_folder(destination)) if unused else ():
            keys = {uri_key(f"{images}{name}") for name in layout.sheet_names(destination, found.uri)}
            if keys & unused and not keys & self.other_folders:
                yield found.uri

    def summary(self, sheets: int) -> dict[str, Any]:
        """Return counts of what goes."""
        results, first = np.unique(_numbers(self.results), return_index=True)
        goes = ~np.isin(results, _numbers(self.other_results))
        return {
            "rows": len(self.keys),
            "statuses": dict(self.statuses),
            "photographs": len(np.unique(_numbers(self.sources))),
            "runs": len(self.runs),
            "objects": int(goes.sum()),
            "bytes": int(_numbers(self.sizes)[first][goes].sum()),
            "sheets": sheets,
            "kept_favourites": self.kept_favourites,
            "settings": sorted(self.settings.values(), key=lambda each: -each["rows"]),
        }


def _described_settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the main settings of a row, with counts of zero."""
    return {"settings_id": row["settings_id"], **main_settings(row), "rows": 0, "bytes": 0}


def prune(storage: Storage, shown: Preview, on_progress: OnProgress) -> str | None:
    """Delete what a preview shows.

    A row goes only if the selection is still true for it. A row that was changed meanwhile may stay.

    Args:
        storage: access to S3.
        shown: the preview.
        on_progress: called after each part.

    Returns:
        The address of the record; None if only the end of a stopped prune was left.

    Raises:
        InvalidInput: a retry or another prune holds the destination, or access is refused. Nothing was deleted.
        Unavailable: the prune was stopped. The same prune finishes it.
    """
    destination, command = shown.destination, shown.dreams.command
    is_new = write_mark(destination, command, storage)
    try:
        planned = _planned_keys(destination, storage)  # after the mark: a retry writes its mark and then looks for ours
        _check_permission(destination, storage)
        record = write_record(destination, shown.dreams, storage) if shown.parts else None
    except DreamgridError:
        if is_new:
            remove_mark(destination, command, storage)
        raise
    with _repeatable(command):
        storage.delete_many(shown.sheets)
        pruner = _Pruner(storage, shown, planned)
        with thread_pool(_WRITERS) as writers:
            for number, _ in enumerate(ordered_prefetch(writers, pruner.prune_part, shown.parts, _WRITERS), start=1):
                on_progress(number, len(shown.parts))
        history.repair_indices(destination, shown.runs, storage)
        remove_mark(destination, command, storage)
    return record


def _check_permission(destination: str, storage: Storage) -> None:
    """Raise `InvalidInput` if the credentials may not delete dreams, thumbnails or contact sheets."""
    folders = (each(destination) for each in (layout.images_folder, layout.thumbs_folder, layout.sheets_folder))
    storage.delete_many(f"{folder}probe-{uuid4().hex}" for folder in folders)  # these objects do not exist


@contextmanager
def _repeatable(command: str) -> Iterator[None]:
    """Let a prune that has begun stop with an error that says how to finish it."""
    try:
        yield
    except (InvalidInput, Unavailable) as error:
        raise Unavailable(
            f"{error}. The prune was stopped after it had begun to delete: to finish it, run `{command}`"
        ) from error


def _planned_keys(destination: str, storage: Storage) -> Keys:
    """Return the `uri_key` of every dream, and of its `result_place`, that the unfinished run planned, sorted.

    The unfinished run may find such an object and write a row for it.
    """
    if _unfinished_run(destination, storage) is None:
        return np.empty(0, np.uint64)
    run = run_record.load_active_run(destination, storage)
    return np.unique(np.fromiter(map(uri_key, run_record.planned_results(run, storage) if run else ()), np.uint64))


class _Pruner:
    """Deletes the selected rows of parts and their objects."""

    def __init__(self, storage: Storage, shown: Preview, planned: Keys) -> None:
        self.storage, self.shown, self.planned = storage, shown, planned
        self.keys = np.sort(shown.dreams.keys)
        self.marks = Marks(shown.destination, storage)

    def prune_part(self, part: Part) -> None:
        """Delete the objects of the selected rows of a part, then the rows."""
        etag = part.etag
        while data := self.storage.read(part.uri):
            chosen, results = self.selected(data)
            if not chosen.any():
                return
            unused = [uri for uri in results if not self.is_used(uri)]
            thumbnails = (layout.thumb_uri(self.shown.destination, uri) for uri in unused)
            self.storage.delete_many([*unused, *thumbnails, *self.frames(unused)])
            kept = _without(data, chosen)
            if self.storage.write_if_unchanged(part.uri, kept, manifest.CONTENT_TYPE, etag):
                return
            found = self.storage.find(part.uri)  # before the part is read again: a later version is refused then
            if found is None:
                return
            etag = found.etag

    def selected(self, data: bytes) -> tuple[NDArray[np.bool_], list[str]]:
        """Return which rows of a part go, and the addresses of their objects."""
        columns = dict.fromkeys([*IDENTITY, "result_uri", *self.shown.selection.columns])
        rows = manifest.from_parquet(data, list(columns))
        chosen = self.shown.selection.mask(rows, self.marks.read())  # a dream may have been rated meanwhile
        places = np.flatnonzero(chosen)
        identities = zip(*(rows[name].take(pa.array(places)).to_pylist() for name in IDENTITY), strict=True)
        shown = [history.contains(self.keys, dream_key(*identity)) for identity in identities]
        chosen[places] = shown
        return chosen, rows["result_uri"].filter(pa.array(chosen)).drop_null().to_pylist()

    def frames(self, results: Iterable[str]) -> Iterator[str]:
        """Yield the frames that killed processes have left of movies."""
        for uri in filter(layout.is_movie, results):
            folder = layout.frames_folder(self.shown.destination, uri)
            yield from (info.uri for info in self.storage.list(folder))

    def is_used(self, uri: str) -> bool:
        """Return whether another row names the object, or the unfinished run may write a row that does."""
        if history.contains(self.shown.named_elsewhere, uri_key(uri)):
            return True
        return any(history.contains(self.planned, uri_key(each)) for each in (uri, layout.result_place(uri)))


def _without(part: bytes, chosen: NDArray[np.bool_]) -> bytes:
    """Return a part without the chosen rows. All other rows keep all columns, also those of a later version."""
    table = pq.ParquetFile(io.BytesIO(part)).read().filter(pa.array(~chosen))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _numbers(numbers: Iterable[int]) -> Keys:
    return np.array(numbers, np.uint64)
