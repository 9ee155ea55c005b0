"""Dreams one shard: load | dream | deliver, overlapped, and one part of the manifest at the end."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal

from dreamcore.errors import ImageError, InvalidInput
from dreamcore.images import Photograph, content_type, decode, describe, encode
from dreamcore.picture import Dreamt, Limits, Order, dream_photographs, see
from dreamcore.scores import Sight
from dreamcore.settings import ALGORITHM_VERSION, DreamSettings, batch_key
from flows import manifest
from flows.ahead import ahead
from flows.assets import network_of, pictures
from flows.machine import at_once, choose_device, max_memory
from flows.manifest import Row
from flows.plan import PlannedSettings, Shard, Source, Work
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
        self.at_once = at_once(self.device)
        self.limits = Limits(max_memory(self.device), run.job.stage_scores)

    def rows(self) -> list[Row]:
        """One row for each photograph and settings of the shard; the dreams are in the store."""
        with ThreadPoolExecutor(AHEAD) as readers, ThreadPoolExecutor(AHEAD) as writers:
            loaded = ahead(readers, self.load, self.shard.works, AHEAD)
            dreamt = (outcome for photograph in loaded for outcome in self.dream(photograph))
            return list(ahead(writers, self.deliver, dreamt, AHEAD))

    def load(self, work: Work) -> _Loaded:
        """Read and decode a photograph, unless all its dreams are there already."""
        results = {self.run.result_uri(work.source, self.run.settings[index]) for index in work.settings}
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
        todo: dict[tuple[object, ...], list[_Outcome]] = {}
        for planned in (self.run.settings[index] for index in loaded.work.settings):
            outcome = _Outcome(self._row(loaded.work.source, planned), planned)
            if outcome.row.result_uri in loaded.there:
                yield outcome
            elif loaded.trouble:
                yield replace(outcome, row=_troubled(outcome.row, loaded.trouble))
            else:
                todo.setdefault(batch_key(planned.settings), []).append(outcome)
        everything = [outcome.planned.settings for outcomes in todo.values() for outcome in outcomes]
        before: dict[tuple[object, ...], Sight] = {}
        for outcomes in todo.values():
            for first in range(0, len(outcomes), self.at_once):
                some = outcomes[first : first + self.at_once]
                try:
                    yield from self._dream_batch(loaded, some, everything, before)
                except ImageError as error:  # it cannot even be looked at
                    yield from (replace(outcome, row=_troubled(outcome.row, error)) for outcome in some)

    def _dream_batch(
        self,
        loaded: _Loaded,
        outcomes: list[_Outcome],
        everything: list[DreamSettings],
        before: dict[tuple[object, ...], Sight],
    ) -> list[_Outcome]:
        """One photograph under some points of the grid that go together.

        `before` keeps what the networks see in it undreamt: for `everything` that is measured alike it is told once.
        """
        network = network_of(outcomes[0].planned.settings, self.device)
        orders = []
        for settings in (outcome.planned.settings for outcome in outcomes):
            order = Order(loaded.photographs[settings.max_pixels], settings, *pictures(settings))
            if _measured_alike(settings) not in before:
                alike = [other for other in everything if _measured_alike(other) == _measured_alike(settings)]
                targets = {target.name: target for other in alike for target in other.layers}
                before[_measured_alike(settings)] = see(network, order, list(targets.values()), self.limits)
            orders.append(replace(order, before=before[_measured_alike(settings)]))
        dreamt = dream_photographs(network, orders, self.limits)
        return [
            replace(outcome, row=_troubled(outcome.row, result))
            if isinstance(result, ImageError)
            else replace(outcome, row=replace(outcome.row, **result.measures()), dreamt=result)
            for outcome, result in zip(outcomes, dreamt, strict=True)
        ]

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
            result_uri=self.run.result_uri(source, planned),
            algorithm_version=ALGORITHM_VERSION,
            created_at=datetime.now(UTC),
        )


def _measured_alike(settings: DreamSettings) -> tuple[object, ...]:
    """Settings that agree in this measure an undreamt photograph alike."""
    return settings.model, settings.weights, settings.max_pixels, settings.measure, settings.guide


_SOURCE = ("source_uri", "source_etag")


def _troubled(row: Row, error: ImageError) -> Row:
    """The row of a photograph that could not be dreamt, or was gone before its turn came."""
    gone = error.kind in ("source_missing", "source_changed")
    status: Literal["skipped", "failed"] = "skipped" if gone else "failed"
    return replace(row, status=status, error_kind=error.kind, error=str(error), result_uri=None)


def _with_result(row: Row, data: bytes) -> Row:
    return replace(row, result_bytes=len(data), result_sha256=hashlib.sha256(data).hexdigest())
