"""Compare every row of a manifest with its object, and every object of a destination's dreams with the manifest.

A destination may have millions of objects. Only 16 bytes for each dream and 24 for each row stay in memory.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from dreamcore.errors import ImageError
from dreamcore.images import read_metadata
from dreamcore.settings import read_recorded
from dreamcore.targets import Frozen
from flows.decoding.decoder import Decoders
from flows.destination import manifest, run_record
from flows.destination.favourites import damaged_marks
from flows.destination.history import contains
from flows.destination.manifest import IDENTITY
from flows.destination.movie_metadata import read_movie_metadata
from flows.destination.parts import part_uris
from flows.destination.pruned import PrunedDreams, pruned_dreams, read_records
from flows.destination.run_record import Run
from flows.jobs.work import Keys, dream_key, uri_key
from flows.machine.machine import core_count
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.s3 import layout
from flows.s3.errors import CorruptObject, UnreadableObject
from flows.s3.listing import list_objects
from flows.s3.storage import Storage

__all__ = ["MAX_PROBLEMS", "Kind", "Problem", "VerifyReport", "verify"]

Kind = Literal[
    "missing",  # the row is done, but its object does not exist
    "unreadable",  # the store does not return the object, for example because it is archived
    "changed",  # the bytes of the object are not those of the row
    "damaged",  # an image cannot be decoded, or a part, marks or the record of a run cannot be read
    "other_dream",  # the metadata inside the image and the row differ
    "duplicate",  # an earlier row has the same photograph, version and settings
    "lost",  # a finished run planned the dream, but it has no row and was not pruned
    "orphan",  # neither a row nor the plan of the unfinished run names it; a thumbnail without a dream; an unused frame
]

MAX_PROBLEMS = 1000
"""Number of problems that a report lists. All problems are counted."""

_ROWS = 10_000
"""Rows of a part that exist as Python objects at one time."""
_COLUMNS = [*IDENTITY, "status", "settings", "result_uri", "result_bytes", "result_sha256", "width", "height"]
_COMPARED = ["source_etag", "settings_id", "settings", "width", "height"]
"""Fields that must agree between an image and its row. The address of the source is not among them: if two sources
have the same content, they share one dream, whose metadata names one of them."""


class Problem(Frozen):
    """One difference between the manifest, the objects and the records of runs."""

    kind: Kind
    uri: str
    """Address of the dream, the part, the photograph, or the folder of the run's record."""
    what: str
    """What is wrong, in words."""


class VerifyReport(Frozen):
    """The result of verifying a destination."""

    rows: int
    """Number of rows in the manifest."""
    objects: int
    """Number of objects below images/."""
    thumbnails: int
    """Number of objects below thumbs/. A dream may lack a thumbnail."""
    unfinished: str | None
    """The unfinished run of the destination. Images of its plan may have no row yet."""
    counts: dict[Kind, int]
    """Number of problems by kind; empty if there are none."""
    problems: list[Problem]
    """The first `MAX_PROBLEMS` problems."""


def verify(storage: Storage, destination: str, on_progress: Callable[[int, int], None]) -> VerifyReport:
    """Verify a destination. A run may work there at the same time.

    The objects are listed first, then the unfinished run is read, then the parts. Therefore every listed object either
    has a row by then, or is in the plan of the unfinished run, or is an orphan. Thumbnails are listed before dreams, so
    that each has its dream.

    Args:
        storage: access to S3.
        destination: folder of the results.
        on_progress: called with the number of verified rows and the approximate number of all rows.

    Raises:
        InvalidInput: access is refused, or the bucket does not exist.
        Unavailable: S3 failed.
    """
    thumbnails = _sorted(map(uri_key, _objects(storage, layout.thumbs_folder(destination))))
    verifier = _Verifier(storage, destination)
    listed = verifier.listed_dreams()
    unfinished = run_record.load_active_run(destination, storage)
    counts: Counter[Kind] = Counter()
    problems: list[Problem] = []
    with closing(verifier.decoders):
        for problem in verifier.problems(listed, thumbnails, unfinished, on_progress):
            counts[problem.kind] += 1
            if len(problems) < MAX_PROBLEMS:
                problems.append(problem)
    return VerifyReport(
        rows=len(verifier.dreams),
        objects=len(listed),
        thumbnails=len(thumbnails),
        unfinished=unfinished.run_id if unfinished else None,
        counts=dict(counts),
        problems=problems,
    )


class _Verifier:
    """One verification of a destination, and the keys of the rows that were read."""

    def __init__(self, storage: Storage, destination: str) -> None:
        self.storage, self.destination = storage, destination
        self.dreams = array("Q")  # `dream_key` of each row
        self.results = array("Q")  # `uri_key` of the dream of each row
        self.thumbnails = array("Q")  # `uri_key` of the thumbnail of each dream that exists or has a row
        self.decoders = Decoders(core_count())

    def listed_dreams(self) -> Keys:
        """Return the `uri_key` of each object below images/, sorted."""
        keys = array("Q")
        for uri in _objects(self.storage, layout.images_folder(self.destination)):
            keys.append(uri_key(uri))
            self.thumbnails.append(uri_key(layout.thumb_uri(self.destination, uri)))
        return np.unique(np.array(keys, np.uint64))

    def problems(
        self, listed: Keys, thumbnails: Keys, unfinished: Run | None, on_progress: Callable[[int, int], None]
    ) -> Iterator[Problem]:
        """Yield all problems, in several passes. The later passes read S3 again only if they have a problem to name."""
        threads = 2 * core_count()
        with thread_pool(threads) as readers:
            for problem in ordered_prefetch(readers, self.check, self.rows(), threads):
                on_progress(len(self.dreams), max(len(self.dreams), len(listed)))
                if problem:
                    yield problem
        dreams = np.sort(np.array(self.dreams, np.uint64))
        yield from self.duplicates({int(key) for key in dreams[1:][dreams[1:] == dreams[:-1]]})
        pruned = pruned_dreams(self.destination, self.storage).keys  # after the rows: see `pruned_dreams`
        yield from self.lost(np.union1d(dreams, pruned))
        results = run_record.planned_results(unfinished, self.storage) if unfinished else ()
        planned = _sorted(map(uri_key, results))
        named = np.concatenate([np.array(self.results, np.uint64), planned])
        images, thumbs = layout.images_folder(self.destination), layout.thumbs_folder(self.destination)
        yield from self.orphans(images, np.setdiff1d(listed, named), planned)
        for uri, what in damaged_marks(self.destination, self.storage):
            yield Problem(kind="damaged", uri=uri, what=what)
        yield from self.orphans(thumbs, np.setdiff1d(thumbnails, np.array(self.thumbnails, np.uint64)), planned)
        yield from self.unused_frames(planned)

    def rows(self) -> Iterator[dict[str, Any] | Problem]:
        """Yield every row, part by part, and keep its keys. A part that cannot be read yields a problem instead."""
        for _, part in self.parts(_COLUMNS):
            if isinstance(part, Problem):
                yield part
                continue
            for row in (row for batch in part.to_batches(_ROWS) for row in batch.to_pylist()):
                self.dreams.append(dream_key(*(row[name] for name in IDENTITY)))
                if row["result_uri"]:
                    self.results.append(uri_key(row["result_uri"]))
                    self.thumbnails.append(uri_key(layout.thumb_uri(self.destination, row["result_uri"])))
                yield row

    def parts(self, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table | Problem]]:
        """Yield the address of every part, with its rows or the reason why it cannot be read."""
        reader = manifest.PartReader(self.storage, columns)
        for uri in part_uris(self.storage, self.destination):
            try:
                yield uri, reader.read(uri)
            except (pa.ArrowException, OSError) as error:
                yield uri, Problem(kind="damaged", uri=uri, what=f"this part cannot be read: {error}")

    def check(self, row: dict[str, Any] | Problem) -> Problem | None:
        """Return the problem of one row. An object that the store does not return, or returns damaged, is one."""
        if isinstance(row, Problem):
            return row
        try:
            return self.check_row(row)
        except UnreadableObject as error:
            return Problem(kind="unreadable", uri=str(row["result_uri"]), what=str(error))
        except CorruptObject as error:
            return Problem(kind="damaged", uri=str(row["result_uri"]), what=str(error))

    def check_row(self, row: dict[str, Any]) -> Problem | None:
        """Compare one row with its object."""
        if row["status"] != "done":
            return None
        uri = str(row["result_uri"])
        data = self.storage.read(uri) if row["result_uri"] else None
        if data is None:
            what = f"the row of {row['source_uri']} is done, but the object does not exist"
            if command := self.stopped_prune(row):
                what = f"a prune was stopped after it deleted the object and before it deleted the row: run `{command}`"
            return Problem(kind="missing", uri=uri, what=what)
        if len(data) != row["result_bytes"]:
            what = f"the object has {len(data)} bytes, but its row says {row['result_bytes']}"
            return Problem(kind="changed", uri=uri, what=what)
        if (sha256 := hashlib.sha256(data).hexdigest()) != row["result_sha256"]:
            what = f"the object has the SHA-256 {sha256}, but its row says {row['result_sha256']}"
            return Problem(kind="changed", uri=uri, what=what)
        return self.check_image(uri, data, row)

    def stopped_prune(self, row: dict[str, Any]) -> str | None:
        """Return the command of a prune that was to delete this row; None if there is none."""
        key = dream_key(*(row[name] for name in IDENTITY))
        return next((record.command for record in self.records if contains(record.keys, key)), None)

    @cached_property
    def records(self) -> list[PrunedDreams]:
        """The records of all prunes. They are read only if an object is missing."""
        return list(read_records(self.destination, self.storage))

    def check_image(self, uri: str, data: bytes, row: dict[str, Any]) -> Problem | None:
        """Decode one image, and compare its size and its metadata with its row. A movie is not decoded."""
        try:
            if layout.is_movie(uri):
                inside = read_movie_metadata(data) or {}
                size = {}
            else:
                height, width, _ = self.decoders.decode(data).pixels.shape
                inside, size = read_metadata(data) or {}, {"width": width, "height": height}
        except ImageError as error:
            return Problem(kind="damaged", uri=uri, what=str(error))
        found = {**inside, **size, "settings": _comparable(inside.get("settings"))}
        expected = {**row, "settings": _comparable(json.loads(row["settings"]))}
        if differing := [name for name in _COMPARED if found.get(name) != expected[name]]:
            return Problem(kind="other_dream", uri=uri, what=f"the image and its row differ in {', '.join(differing)}")
        return None

    def duplicates(self, keys: set[int]) -> Iterator[Problem]:
        """Yield every row whose identity an earlier row has. `keys` are the `dream_key`s that occur more than once."""
        first: dict[tuple[str, ...], str] = {}
        for uri, part in self.parts(IDENTITY) if keys else ():
            for identity in () if isinstance(part, Problem) else zip(*part.to_pydict().values(), strict=True):
                if dream_key(*identity) not in keys:
                    continue
                if identity in first:
                    what = f"{first[identity]} and {uri} both have a row for it under the settings {identity[2]}"
                    yield Problem(kind="duplicate", uri=identity[0], what=what)
                first.setdefault(identity, uri)

    def lost(self, dreams: Keys) -> Iterator[Problem]:
        """Yield every dream that a finished run planned and that has no row.

        Args:
            dreams: the keys of all rows and of all pruned dreams, sorted.
        """
        for run_id in run_record.finished_run_ids(self.destination, self.storage):
            try:
                for source, settings_ids in run_record.planned_dreams(self.destination, run_id, self.storage):
                    for settings_id in settings_ids:
                        if not contains(dreams, dream_key(source.uri, source.etag, settings_id)):
                            what = f"the run {run_id} planned it under the settings {settings_id}, but it has no row"
                            yield Problem(kind="lost", uri=source.uri, what=what)
            except (pa.ArrowException, LookupError, OSError, TypeError, ValueError) as error:
                what = f"the record of this run cannot be read: {error}"
                yield Problem(kind="damaged", uri=layout.run_folder(self.destination, run_id), what=what)

    def unused_frames(self, planned: Keys) -> Iterator[Problem]:
        """Yield the frames of movies that the unfinished run does not make."""
        for uri in _objects(self.storage, layout.frames_folder(self.destination)):
            if not contains(planned, uri_key(f"{uri.rpartition('/')[0]}/")):
                yield Problem(kind="orphan", uri=uri, what="no unfinished run goes on with the movie of this frame")

    def orphans(self, folder: str, unnamed: Keys, planned: Keys) -> Iterator[Problem]:
        """Yield the objects below a folder that have these keys and are in no place that the unfinished run planned.

        Another version of Dreamgrid may have begun the run and have given its dreams other labels.
        """
        keys = set(unnamed.tolist())
        for uri in _objects(self.storage, folder) if keys else ():
            if uri_key(uri) in keys and not contains(planned, uri_key(layout.result_place(uri))):
                what = "neither a row nor the plan of an unfinished run names it"
                if folder == layout.thumbs_folder(self.destination):
                    what = "there is no dream to this thumbnail"
                yield Problem(kind="orphan", uri=uri, what=what)


def _objects(storage: Storage, folder: str) -> Iterator[str]:
    return (info.uri for info in list_objects(storage, folder) if not info.uri.endswith("/"))


def _sorted(keys: Iterable[int]) -> Keys:
    return np.unique(np.fromiter(keys, np.uint64))


def _comparable(settings: object) -> dict[str, Any] | None:
    """Return settings in the form of this version, with files by their SHA-256; None if they are not valid here."""
    try:
        fields = read_recorded(settings).model_dump(mode="json")
    except ValidationError:
        return None
    return fields | {name: fields[name]["sha256"] for name in ("guide", "mask", "weights") if fields[name]}
