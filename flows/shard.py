"""AscentResult one shard: load | dream | deliver, overlapped, and one part of the manifest at the end."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from dreamcore.batch import Dream, DreamRequest, Limits, dream_photographs, observe_photographs
from dreamcore.errors import ImageError, InvalidInput, Unavailable
from dreamcore.images import Photograph, content_type, encode, read_metadata
from dreamcore.network import Network
from dreamcore.observation import Observation
from dreamcore.settings import ALGORITHM_VERSION, DreamSettings, batch_key
from dreamcore.targets import Target
from flows import decoder, layout, manifest
from flows.assets import load_guide_and_mask, network_for
from flows.machine import batch_size, choose_device, max_memory, prefetch_depth
from flows.manifest import Row
from flows.prefetch import ordered_prefetch, thread_pool
from flows.run_record import Run
from flows.storage import Storage
from flows.work import PlannedSettings, Shard, Source, Work
from flows.worker_process import disable_heap_trimming, trim_heap

_Item = TypeVar("_Item")

WAITING = 32
"""AscentResult that wait for others of their size to fill a batch."""


def dream_shard(run: Run, shard: Shard, storage: Storage) -> dict[str, int]:
    """Dream one shard and write its part of the manifest.

    Running it again, or twice at once, changes nothing: a dream that is there already is taken over with the scores
    inside it, and the first part that is written stays. Where that is there from the start, nothing is done.

    Returns:
        How many rows of the part are done, failed and skipped.

    Raises:
        Unavailable: the store is in trouble; nothing is lost, run it again.
    """
    uri = layout.part_uri(run.destination, run.run_id, shard.number)
    part = storage.read(uri)
    if part is None:
        ours = manifest.to_parquet(_Dreamer(run, shard, storage).rows())
        part = ours if storage.write_if_absent(uri, ours, manifest.CONTENT_TYPE) else storage.read(uri) or ours
    return manifest.count_statuses(part)


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A photograph ready to be dreamt, or the reason why it cannot be."""

    work: Work
    there: set[str]
    """Addresses of the dreams that an earlier attempt left."""
    photographs: dict[int, Photograph]
    """By `max_pixels`."""
    trouble: ImageError | None = None
    observations: dict[tuple[object, ...], Observation] = field(default_factory=dict)
    """What the networks see in it undreamt, by how it is measured: told once."""


@dataclass(frozen=True, eq=False)
class _Outcome:
    """A row, with the photograph that is still to be dreamt or the dream that is still to be delivered."""

    row: Row
    planned: PlannedSettings
    loaded: _Loaded | None = None
    dreamt: Dream | None = None

    @property
    def photograph(self) -> Photograph:
        """What is still to be dreamt."""
        assert self.loaded is not None  # noqa: S101 - of an outcome that is to be dreamt
        return self.loaded.photographs[self.planned.settings.max_pixels]

    @property
    def observations(self) -> dict[tuple[object, ...], Observation]:
        """What is known of what networks see in it."""
        assert self.loaded is not None  # noqa: S101 - of an outcome that is to be dreamt
        return self.loaded.observations

    def troubled(self, error: ImageError) -> "_Outcome":
        """The outcome of a photograph that could not be dreamt."""
        return replace(self, row=_troubled(self.row, error), loaded=None)


class _Dreamer:
    """The three stages that a shard's photographs pass through."""

    def __init__(self, run: Run, shard: Shard, storage: Storage) -> None:
        self.run, self.shard, self.storage = run, shard, storage
        self.device = choose_device()
        memory = max_memory(self.device)
        if self.device == "cpu":
            disable_heap_trimming(memory)
        self.limits = Limits(memory, run.job.stage_scores)
        self.ahead = prefetch_depth(self.device)

    def rows(self) -> list[Row]:
        """One row for each photograph and settings of the shard; the dreams are in the store."""
        with thread_pool(self.ahead) as readers, thread_pool(self.ahead) as writers:
            loaded = ordered_prefetch(readers, self.load, self.shard.works, self.ahead)
            rows = list(ordered_prefetch(writers, self.deliver, self.dream(loaded), self.ahead))
        trim_heap()
        return rows

    def load(self, work: Work) -> _Loaded:
        """Read and decode a photograph, unless all its dreams are there already."""
        results = {self.run.result_uri(work.source, self.run.settings[index]) for index in work.settings}
        folder = min(results).rpartition("/")[0] + "/"
        there = {found.uri for found in self.storage.list(folder)} & results
        if there == results:
            return _Loaded(work, there, {})
        limits = {self.run.settings[index].settings.max_pixels for index in work.settings}
        if work.source.size > decoder.MEMORY:  # read, it would take the memory of the worker
            large = ImageError("too_large", f"a file of {work.source.size} bytes: at most {decoder.MEMORY} are read")
            return _Loaded(work, there, {}, large)
        try:
            data = self.storage.read_version(work.source.uri, work.source.etag)
            return _Loaded(work, there, {limit: decoder.decode(data, max_pixels=limit) for limit in limits})
        except ImageError as error:
            return _Loaded(work, there, {}, error)

    def dream(self, loaded: Iterable[_Loaded]) -> Iterator[_Outcome]:
        """Dream photographs under each of their settings, in batches of one size; trouble with one becomes its rows."""
        outcomes = (outcome for photograph in loaded for outcome in self._outcomes(photograph))
        for batch in group_by_size(outcomes, _goes_with, self._at_once, WAITING):
            yield from self._dream_batch(batch) if batch[0].loaded else batch

    def _outcomes(self, loaded: _Loaded) -> Iterator[_Outcome]:
        """What is to become of a photograph under each of its settings, as far as it is known before it is dreamt."""
        for planned in (self.run.settings[index] for index in loaded.work.settings):
            outcome = _Outcome(self._row(loaded.work.source, planned), planned, loaded)
            if outcome.row.result_uri in loaded.there:
                yield replace(outcome, loaded=None)
            elif loaded.trouble:
                yield outcome.troubled(loaded.trouble)
            else:
                yield outcome

    def _at_once(self, outcome: _Outcome) -> int:
        height, width = outcome.photograph.pixels.shape[:2]
        return batch_size(self.device, height * width)

    def _dream_batch(self, outcomes: Sequence[_Outcome]) -> Iterator[_Outcome]:
        """Photographs of one size under settings that go together."""
        network = network_for(outcomes[0].planned.settings, self.device)
        try:
            requests = self._requests(network, outcomes)
        except ImageError as error:  # of this size they cannot even be looked at
            yield from (outcome.troubled(error) for outcome in outcomes)
            return
        for outcome, result in zip(outcomes, dream_photographs(network, requests, self.limits), strict=True):
            if isinstance(result, ImageError):
                yield outcome.troubled(result)
            else:
                yield replace(
                    outcome, row=replace(outcome.row, **asdict(result.measurements)), loaded=None, dreamt=result
                )

    def _requests(self, network: Network, outcomes: Sequence[_Outcome]) -> list[DreamRequest]:
        """The requests of a batch, with what the network sees in each photograph before it is dreamt."""
        requests = [
            DreamRequest(outcome.photograph, outcome.planned.settings, *load_guide_and_mask(outcome.planned.settings))
            for outcome in outcomes
        ]
        places = [(outcome.observations, _measured_alike(outcome.planned.settings)) for outcome in outcomes]
        unseen = {
            (id(observations), how): number
            for number, (observations, how) in enumerate(places)
            if how not in observations
        }
        if unseen:
            seen = observe_photographs(
                network,
                [requests[number] for number in unseen.values()],
                self._targets(requests[0].settings),
                self.limits,
            )
            for number, observation in zip(unseen.values(), seen, strict=True):
                observations, how = places[number]
                observations[how] = observation
        return [
            replace(order, before=observations[how])
            for order, (observations, how) in zip(requests, places, strict=True)
        ]

    def _targets(self, settings: DreamSettings) -> list[Target]:
        """All that the run measures in photographs as these settings do, but for their guide; each once."""
        alike = (
            other.settings
            for other in self.run.settings
            if _measured_alike(other.settings)[:-1] == _measured_alike(settings)[:-1]
        )
        return list({target.name: target for other in alike for target in other.layers}.values())

    def deliver(self, outcome: _Outcome) -> Row:
        """Put a dream into the store if none is there; the first writer wins, and the row is always the winner's."""
        row, output = outcome.row, outcome.planned.settings.output
        if row.status != "done" or row.result_uri is None:
            return row
        if outcome.dreamt is not None:
            description = outcome.dreamt.metadata() | {name: getattr(row, name) for name in _SOURCE}
            description["created_at"] = row.created_at.isoformat()
            try:
                data = encode(outcome.dreamt.pixels, output.format, output.quality, description)
            except ImageError as error:
                return _troubled(row, error)
            if self.storage.write_if_absent(row.result_uri, data, content_type(output.format)):
                return _with_result(row, data)
        return self._take_over(row)

    def _take_over(self, row: Row) -> Row:
        """The row of a dream that another attempt made, from what it wrote into the picture."""
        data = self.storage.read(str(row.result_uri))
        if data is None:
            raise Unavailable(f"{row.result_uri} was there and has gone: who removes dreams while they are made?")
        try:
            inside = read_metadata(data) or {}
        except ImageError:
            inside = {}
        if inside.get("settings_id") != row.settings_id:
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


def _goes_with(outcome: _Outcome) -> tuple[object, ...] | None:
    """Outcomes that agree in this are dreamt in one batch; None where there is nothing to dream."""
    if outcome.loaded is None:
        return None
    return batch_key(outcome.planned.settings), outcome.photograph.pixels.shape


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


def group_by_size(
    items: Iterable[_Item],
    goes_with: Callable[[_Item], Hashable | None],
    batch_size: Callable[[_Item], int],
    most: int,
) -> Iterator[list[_Item]]:
    """Group items into batches, none of which waits for the end of the stream longer than it must.

    Args:
        items: a stream of any length.
        goes_with: those with an equal key go into one batch; one with None passes by itself, and at once.
        batch_size: how many of its like fill a batch.
        most: so many items may wait; when more do, the batch that waits longest goes as it is.

    Returns:
        Every item exactly once, in batches of one key.
    """
    waiting: dict[Hashable, list[_Item]] = {}
    held = 0
    for item in items:
        key = goes_with(item)
        if key is None:
            yield [item]
            continue
        batch = waiting.setdefault(key, [])
        batch.append(item)
        held += 1
        if len(batch) < batch_size(item):
            if held <= most:
                continue
            key = next(iter(waiting))
        held -= len(waiting[key])
        yield waiting.pop(key)
    yield from waiting.values()
