"""Dreams one shard: load | dream | deliver, overlapped, and one part of the manifest at the end."""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from dreamcore.dream import to_tensor
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.images import Photograph, content_type, decode, describe, encode
from dreamcore.models import load_network
from dreamcore.picture import Dreamt, dream_photograph
from dreamcore.scores import Sight, look
from dreamcore.settings import ALGORITHM_VERSION, result_id
from flows import manifest
from flows.machine import choose_device
from flows.manifest import Row
from flows.plan import PlannedSettings, Shard, Source, Work, result_name
from flows.runs import Run
from flows.storage import Found, Storage

AHEAD = 2
"""Photographs loaded ahead, and dreams encoded and uploaded behind, of the one being dreamt."""


def dream_shard(run: Run, shard: Shard, storage: Storage) -> dict[str, int]:
    """Dream one shard and write its part of the manifest.

    Running it again, or twice at once, changes nothing: a dream that is there already is taken over with the scores
    inside it, and the first part that is written stays.

    Returns:
        How many rows are done, failed and skipped.

    Raises:
        Unavailable: the store is in trouble; nothing is lost, run it again.
    """
    rows = _Dreamer(run, shard, storage).rows()
    part = manifest.part_uri(run.destination, run.run_id, shard.number)
    storage.write_new(part, manifest.to_parquet(rows), "application/vnd.apache.parquet")
    return dict(Counter(row.status for row in rows))


_In = TypeVar("_In")
_Out = TypeVar("_Out")


def _ahead(pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """`map` in a pool, in order, never more than `AHEAD` results ahead of the reader."""
    running: deque[Future[_Out]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) > AHEAD:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


@dataclass(frozen=True)
class _Loaded:
    """A photograph ready to be dreamt, or the reason why it cannot be."""

    work: Work
    there: set[str]
    """Addresses of the dreams that an earlier attempt left."""
    photographs: dict[int, Photograph]
    """By `max_pixels`."""
    trouble: ImageError | None = None


@dataclass(frozen=True)
class _Outcome:
    """A row, with the dream that is still to be delivered, if this attempt dreamt it."""

    row: Row
    planned: PlannedSettings
    dreamt: Dreamt | None = None


class _Dreamer:
    """The three stages that a shard's photographs pass through."""

    def __init__(self, run: Run, shard: Shard, storage: Storage) -> None:
        self.run, self.shard, self.storage = run, shard, storage
        self.device = choose_device()

    def rows(self) -> list[Row]:
        """One row for each photograph and settings of the shard; the dreams are in the store."""
        with ThreadPoolExecutor(AHEAD) as readers, ThreadPoolExecutor(AHEAD) as writers:
            loaded = _ahead(readers, self.load, self.shard.works)
            dreamt = (outcome for photograph in loaded for outcome in self.dream(photograph))
            return list(_ahead(writers, self.deliver, dreamt))

    def load(self, work: Work) -> _Loaded:
        """Read and decode a photograph, unless all its dreams are there already."""
        results = {self._result_uri(work.source, self.run.settings[index]) for index in work.settings}
        folder = min(results).rpartition("/")[0] + "/"
        there = {found.uri for found in self.storage.list(folder)} & results
        if there == results:
            return _Loaded(work, there, {})
        limits = {self.run.settings[index].settings.max_pixels for index in work.settings}
        try:
            data = self.storage.read_version(Found(work.source.uri, work.source.etag, work.source.size))
            return _Loaded(work, there, {limit: decode(data, max_pixels=limit) for limit in limits})
        except ImageError as error:
            return _Loaded(work, there, {}, error)

    def dream(self, loaded: _Loaded) -> Iterator[_Outcome]:
        """Dream a photograph under each of its settings; trouble with it becomes its rows."""
        before: dict[tuple[str, int, str], Sight] = {}
        for index in loaded.work.settings:
            planned = self.run.settings[index]
            row = self._row(loaded.work.source, planned)
            if row.result_uri in loaded.there:
                yield _Outcome(row, planned)
                continue
            try:
                if loaded.trouble:
                    raise loaded.trouble
                yield self._dream_once(loaded, planned, row, before)
            except ImageError as error:
                yield _Outcome(_troubled(row, error), planned)

    def _dream_once(
        self, loaded: _Loaded, planned: PlannedSettings, row: Row, before: dict[tuple[str, int, str], Sight]
    ) -> _Outcome:
        """One photograph under one point of the grid; `before` keeps what the network sees in it undreamt."""
        settings = planned.settings
        photograph = loaded.photographs[settings.max_pixels]
        network = load_network(settings.model, self.device)
        look_at = (settings.model, settings.max_pixels, settings.measure)
        if look_at not in before:
            every = [self.run.settings[index].settings for index in loaded.work.settings]
            alike = [other for other in every if (other.model, other.max_pixels, other.measure) == look_at]
            targets = [target for other in alike for target in other.layers]
            picture = to_tensor(photograph.pixels, self.device)
            before[look_at] = look(network, picture, targets, settings.measure)[0]
        dreamt = dream_photograph(network, photograph, settings, before[look_at])
        return _Outcome(replace(row, **dreamt.measures()), planned, dreamt)

    def deliver(self, outcome: _Outcome) -> Row:
        """Put a dream into the store if none is there; the first writer wins, and the row is always the winner's."""
        row, output = outcome.row, outcome.planned.settings.output
        if row.status != "done" or row.result_uri is None:
            return row
        if outcome.dreamt is not None:
            description = outcome.dreamt.description() | {name: getattr(row, name) for name in _SOURCE}
            description["created_at"] = row.created_at.isoformat()
            try:
                data = encode(outcome.dreamt.pixels, output.format, output.quality, description)
            except ImageError as error:
                return _troubled(row, error)
            if self.storage.write_new(row.result_uri, data, content_type(output.format)):
                return _with_result(row, data)
        return self._take_over(row)

    def _take_over(self, row: Row) -> Row:
        """The row of a dream that another attempt made, from what it wrote into the picture."""
        data = self.storage.read(str(row.result_uri)) or b""
        inside = describe(data)
        if inside is None or inside.get("settings_id") != row.settings_id:
            raise InvalidInput(f"{row.result_uri} is there but is no dream of this kind: move it away")
        columns = {field.name for field in fields(Row)} - {"settings", *_SOURCE}
        measured: dict[str, Any] = {name: value for name, value in inside.items() if name in columns}
        measured["created_at"] = datetime.fromisoformat(measured["created_at"])
        return _with_result(replace(row, **measured), data)

    def _result_uri(self, source: Source, planned: PlannedSettings) -> str:
        identity = result_id(source.etag, planned.settings_id)
        return self.run.destination + result_name(source, planned, identity)

    def _row(self, source: Source, planned: PlannedSettings) -> Row:
        """The row of one dream before anything is measured."""
        settings = planned.settings
        return Row(
            run_id=self.run.run_id,
            job_id=self.run.job.job_id,
            shard=self.shard.number,
            status="done",
            source_uri=source.uri,
            source_etag=source.etag,
            source_bytes=source.size,
            settings_id=planned.settings_id,
            model=settings.model,
            weights_sha256=planned.weights,
            layers=[{"name": t.layer, "channels": list(t.channels), "weight": t.weight} for t in settings.layers],
            octaves=settings.octaves,
            octave_scale=settings.octave_scale,
            steps=settings.steps,
            step_size=settings.step_size,
            jitter=settings.jitter,
            seed=settings.seed,
            settings=settings.canonical_json(),
            result_uri=self._result_uri(source, planned),
            algorithm_version=ALGORITHM_VERSION,
            created_at=datetime.now(UTC),
        )


_SOURCE = ("source_uri", "source_etag")


def _troubled(row: Row, error: ImageError) -> Row:
    """The row of a photograph that could not be dreamt, or was gone before its turn came."""
    gone = error.kind in ("source_missing", "source_changed")
    status: Literal["skipped", "failed"] = "skipped" if gone else "failed"
    return replace(row, status=status, error_kind=error.kind, error=str(error), result_uri=None)


def _with_result(row: Row, data: bytes) -> Row:
    return replace(row, result_bytes=len(data), result_sha256=hashlib.sha256(data).hexdigest())
