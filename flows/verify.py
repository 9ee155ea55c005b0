"""Holds every row of a manifest against its object, and every object below images/ against the manifest.

A destination may have millions: what stays in memory are 8 bytes for each object and 16 for each row.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from dreamcore.errors import ImageError
from dreamcore.images import read_metadata
from dreamcore.settings import DreamSettings
from dreamcore.targets import Frozen
from flows import layout, manifest, run_record
from flows.decoder import Decoders
from flows.history import contains
from flows.machine import core_count
from flows.manifest import IDENTITY
from flows.prefetch import ordered_prefetch, thread_pool
from flows.run_record import Run
from flows.storage import Storage
from flows.work import dream_key

Kind = Literal[
    "missing",  # a row says done, and its object is not there
    "changed",  # the object's bytes are not those of the row
    "damaged",  # it does not decode, or a part of the manifest or the record of a run cannot be read
    "other_dream",  # what the picture tells of itself is not what the row says
    "duplicate",  # an earlier row has the same photograph, version and settings
    "lost",  # a finished run planned it, and no row says what became of it
    "orphan",  # an object that no row names, nor the plan of the unfinished run
]

SHOWN = 1000
"""So many problems are kept to be shown; all are counted."""

_COLUMNS = [*IDENTITY, "status", "settings", "result_uri", "result_bytes", "result_sha256", "width", "height"]
_TOLD = ["source_etag", "settings_id", "settings", "width", "height"]
"""By a picture as by its row. Equal photographs of two sources have one dream, which tells of one of them."""
_Numbers = NDArray[np.uint64]


class Problem(Frozen):
    """One thing that is not as it should be."""

    kind: Kind
    uri: str
    """Of the dream, the part, or the photograph."""
    what: str


class VerifyReport(Frozen):
    """What became of looking at a destination."""

    rows: int
    objects: int
    """Below images/."""
    unfinished: str | None
    """The run that holds the destination: pictures of its plan need no row yet."""
    counts: dict[Kind, int]
    """Troubles of each kind; empty when all is well."""
    problems: list[Problem]
    """The first of them."""


def verify(storage: Storage, destination: str, watch: Callable[[int, int], None]) -> VerifyReport:
    """Look at everything in a destination, also while a run works there.

    The objects are listed first, then the unfinished run is looked up, then come the parts: so each object that was
    listed has its row by now, or is in the plan of that run, or is nobody's.

    Args:
        storage: where it is.
        destination: its folder.
        watch: called with the rows that were looked at, and about how many there are.

    Raises:
        InvalidInput: access is refused, or there is no such bucket.
        Unavailable: the store is in problem.
    """
    listed = _sorted(map(_number, _objects(storage, destination)))
    unfinished = run_record.load_active_run(destination, storage)
    look = _Verifier(storage, destination)
    counts: Counter[Kind] = Counter()
    shown: list[Problem] = []
    with closing(look.decoders):
        for problem in look.problems(listed, unfinished, watch):
            counts[problem.kind] += 1
            if len(shown) < SHOWN:
                shown.append(problem)
    return VerifyReport(
        rows=len(look.dreams),
        objects=len(listed),
        unfinished=unfinished.run_id if unfinished else None,
        counts=dict(counts),
        problems=shown,
    )


class _Verifier:
    """One look through a destination, and the numbers that it keeps of the rows that it saw."""

    def __init__(self, storage: Storage, destination: str) -> None:
        self.storage, self.destination = storage, destination
        self.dreams, self.named = array("Q"), array("Q")  # by `dream_key` of a row, and by `_number` of its object
        self.decoders = Decoders(core_count())

    def problems(
        self, listed: _Numbers, unfinished: Run | None, watch: Callable[[int, int], None]
    ) -> Iterator[Problem]:
        """All that is wrong, in several passes; the later ones read only where there is something to be named."""
        at_once = 2 * core_count()
        with thread_pool(at_once) as readers:
            for problem in ordered_prefetch(readers, self.look_at, self.rows(), at_once):
                watch(len(self.dreams), max(len(self.dreams), len(listed)))
                if problem:
                    yield problem
        dreams = np.sort(np.array(self.dreams, np.uint64))
        yield from self.duplicates({int(number) for number in dreams[1:][dreams[1:] == dreams[:-1]]})
        yield from self.lost(dreams)
        planned = _sorted(_number(uri) for uri in self.planned(unfinished))
        owned = np.concatenate([np.array(self.named, np.uint64), planned])
        yield from self.orphans({int(number) for number in np.setdiff1d(listed, owned)})

    def rows(self) -> Iterator[dict[str, Any] | Problem]:
        """Every row, part by part, its numbers noted; a part that cannot be read is a problem in its place."""
        for _, part in self.parts(_COLUMNS):
            if isinstance(part, Problem):
                yield part
                continue
            for row in part.to_pylist():
                self.dreams.append(dream_key(*(row[name] for name in IDENTITY)))
                if row["result_uri"]:
                    self.named.append(_number(row["result_uri"]))
                yield row

    def parts(self, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table | Problem]]:
        """Every part with its address."""
        for uri in manifest.part_uris(self.storage, self.destination):
            try:
                yield uri, manifest.from_parquet(self.storage.read(uri) or b"", columns)
            except (pa.ArrowException, OSError) as error:
                yield uri, Problem(kind="damaged", uri=uri, what=f"this part cannot be read: {error}")

    def look_at(self, row: dict[str, Any] | Problem) -> Problem | None:
        """Hold one row against its object."""
        if isinstance(row, Problem):
            return row
        if row["status"] != "done":
            return None
        uri = str(row["result_uri"])
        data = self.storage.read(uri) if row["result_uri"] else None
        if data is None:
            return Problem(kind="missing", uri=uri, what=f"the row of {row['source_uri']} says done; it is not there")
        if len(data) != row["result_bytes"]:
            return Problem(kind="changed", uri=uri, what=f"{len(data)} bytes; the row says {row['result_bytes']}")
        if (sha256 := hashlib.sha256(data).hexdigest()) != row["result_sha256"]:
            return Problem(kind="changed", uri=uri, what=f"SHA-256 {sha256}; the row says {row['result_sha256']}")
        try:
            height, width, _ = self.decoders.decode(data).pixels.shape
            inside = read_metadata(data) or {}
        except ImageError as error:
            return Problem(kind="damaged", uri=uri, what=str(error))
        told = {**inside, "width": width, "height": height, "settings": _known(inside.get("settings"))}
        said = {**row, "settings": _known(json.loads(row["settings"]))}
        differing = [name for name in _TOLD if told.get(name) != said[name]]
        what = f"the picture and its row tell of another {', '.join(differing)}"
        return Problem(kind="other_dream", uri=uri, what=what) if differing else None

    def duplicates(self, numbers: set[int]) -> Iterator[Problem]:
        """Rows that have their identity in common with an earlier one, as `numbers` says that some do."""
        first: dict[tuple[str, ...], str] = {}
        for uri, part in self.parts(IDENTITY) if numbers else ():
            for identity in () if isinstance(part, Problem) else zip(*part.to_pydict().values(), strict=True):
                if dream_key(*identity) not in numbers:
                    continue
                if identity in first:
                    what = f"{uri} has a row of it under settings {identity[2]}, as has {first[identity]}"
                    yield Problem(kind="duplicate", uri=identity[0], what=what)
                first.setdefault(identity, uri)

    def lost(self, dreams: _Numbers) -> Iterator[Problem]:
        """What finished runs planned, if no row tells of it."""
        for run_id in run_record.finished_run_ids(self.destination, self.storage):
            try:
                for source, identities in run_record.planned_dreams(self.destination, run_id, self.storage):
                    keys = [dream_key(source.uri, source.etag, each) for each in identities]
                    for identity in (
                        each for each, key in zip(identities, keys, strict=True) if not contains(dreams, key)
                    ):
                        what = f"run {run_id} planned it under settings {identity}, and no row tells of it"
                        yield Problem(kind="lost", uri=source.uri, what=what)
            except (pa.ArrowException, LookupError, OSError, TypeError, ValueError) as error:
                what = f"the record of this run cannot be read: {error}"
                yield Problem(kind="damaged", uri=layout.run_folder(self.destination, run_id), what=what)

    def planned(self, unfinished: Run | None) -> Iterator[str]:
        """Addresses of all the dreams of the unfinished run."""
        plan = run_record.read_plan(unfinished.destination, unfinished.run_id, self.storage) if unfinished else None
        if unfinished and plan:
            for work in plan.works():
                yield from (unfinished.result_uri(work.source, unfinished.settings[index]) for index in work.settings)

    def orphans(self, numbers: set[int]) -> Iterator[Problem]:
        """The objects of these numbers."""
        for uri in _objects(self.storage, self.destination) if numbers else ():
            if _number(uri) in numbers:
                yield Problem(kind="orphan", uri=uri, what="no row and no plan of an unfinished run names it")


def _objects(storage: Storage, destination: str) -> Iterator[str]:
    return (found.uri for found in storage.list(f"{destination}images/") if not found.uri.endswith("/"))


def _number(uri: str) -> int:
    """An address in 8 bytes."""
    return int.from_bytes(hashlib.sha256(uri.encode()).digest()[:8])


def _sorted(numbers: Iterable[int]) -> _Numbers:
    return np.unique(np.fromiter(numbers, np.uint64))


def _known(settings: object) -> dict[str, Any] | None:
    """Settings as this version writes them; of files what they hold, wherever they lie."""
    try:
        known = DreamSettings.model_validate(settings).model_dump(mode="json")
    except ValidationError:
        return None
    return known | {name: known[name]["sha256"] for name in ("guide", "mask", "weights") if known[name]}
