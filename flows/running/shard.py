"""Dream one shard: load, dream and deliver, overlapped; then write its part of the manifest.

Some threads read and decode photographs ahead of the ascent, and others encode and upload its dreams (`delivery`). The
photographs and the dreams that wait are limited by their pixels, so memory is limited for photographs of all sizes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby

from dreamcore.batch import Dream, DreamRequest, Limits, dream_photographs, observe_photographs
from dreamcore.errors import ImageError
from dreamcore.images import Photograph
from dreamcore.network import Network
from dreamcore.observation import Observation
from dreamcore.settings import DreamSettings, batch_key
from dreamcore.targets import Target
from flows.decoding import decoder
from flows.destination import manifest, sharing
from flows.destination.manifest import Row
from flows.destination.parts import find_merged
from flows.destination.run_record import Run, load_run
from flows.destination.run_rows import shard_rows
from flows.jobs.assets import load_guide_and_mask, network_for
from flows.jobs.noise_source import noise_size
from flows.jobs.work import PlannedSettings, ReplacedPart, Shard, Work
from flows.machine.machine import batch_size, choose_device, dreams_behind, io_threads, max_memory, prefetch_pixels
from flows.machine.prefetch import ordered_prefetch, thread_pool, weighted_prefetch
from flows.machine.worker_process import disable_heap_trimming, release_gpu_cache, trim_heap
from flows.running.delivery import Picture, failed_row, planned_row
from flows.running.frames import remove_frames
from flows.running.grouping import group_by_size
from flows.running.io_process import files_for
from flows.running.movie_shard import MovieDreamer
from flows.running.shard_files import Loaded
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["DreamFunction", "dream_shard"]

MAX_WAITING = 32_000_000
"""Pixels of the photographs that may wait until a batch of their size is full."""
MAX_AHEAD = 256
"""Photographs that are loaded ahead, however small they are."""
MANY_SIZES = 8
"""After a shard with more sizes of photographs, torch's cache of GPU memory is released, because most of its blocks fit
no other size. After other shards, the next shard uses the cache."""

DreamFunction = Callable[[Network, Sequence[DreamRequest], Limits], list[Dream | ImageError]]
"""Dreams one batch."""


def dream_shard(
    run: Run,
    shard: Shard,
    storage: Storage,
    dream: DreamFunction = dream_photographs,
    decode: Callable[..., Photograph] = decoder.decode,
    on_row: Callable[[Row], None] = lambda _row: None,
) -> dict[str, int]:
    """Dream one shard and write its part of the manifest, or replace the part that the shard names.

    The function is idempotent. It does nothing if the part exists or is replaced already, or if the shard has the hint
    of another process (see `flows.destination.sharing`). If a dream exists, its row is rebuilt from the metadata inside
    the image. If two attempts run at the same time, the first dream and the first part win.

    Args:
        run: the run that the shard belongs to.
        shard: the photographs and settings to dream.
        storage: access to S3.
        dream: dreams one batch.
        decode: decodes one photograph, as `flows.decoding.decoder.decode` does.
        on_row: called with the row of each dream that is delivered, and of each that failed, in several threads.

    Returns:
        The number of rows of the shard by status: done, failed and skipped. Empty if another process has begun the
        shard.

    Raises:
        Unavailable: S3 failed. Nothing is lost; run the shard again.
    """

    def dream_rows(owner: Run) -> list[Row]:
        if owner.job.zoom:
            return MovieDreamer(owner, shard, storage, decode).rows(on_row)
        return _Dreamer(owner, shard, storage, dream, decode).rows(on_row)

    if shard.replaces:
        return _replace_part(run, shard, shard.replaces, storage, dream_rows)
    uri = layout.part_uri(run.destination, run.run_id, shard.number)
    part = storage.read(uri)
    if part is None:
        if not sharing.begin_shard(run, shard, storage):
            return {}
        ours = manifest.to_parquet(dream_rows(run))
        is_ours = storage.write_if_absent(uri, ours, manifest.CONTENT_TYPE)
        part = ours if is_ours else storage.read(uri) or ours
        if is_ours:
            _remove_if_merged(run, uri, ours, storage)
        sharing.end_shard(run, shard, storage)
    if run.job.zoom:
        remove_frames(run, shard, storage)
    return manifest.count_statuses(part)


def _remove_if_merged(run: Run, uri: str, part: bytes, storage: Storage) -> None:
    """Remove the part that was just written, if another process finished the run and its parts were merged meanwhile.

    This process slept. The merged part has the rows of the shard already.
    """
    if storage.find(layout.success_uri(run.destination, run.run_id)) and find_merged(storage, uri):
        storage.delete_if_unchanged(uri, part)


def _replace_part(
    run: Run, shard: Shard, replaces: ReplacedPart, storage: Storage, dream_rows: Callable[[Run], list[Row]]
) -> dict[str, int]:
    """Dream the failed dreams of an earlier run's part again, and replace the part unless another process has done so.

    The new rows have the same photographs and settings as the old ones, so that a reader finds one row for each dream
    before and after. They keep the ids of the earlier run.
    """
    owner = load_run(run.destination, replaces.run_id, storage)
    measured = {"stage_scores": run.job.stage_scores, "labels": run.job.labels}
    owner = owner.model_copy(update={"job": owner.job.model_copy(update=measured)})
    uri = layout.part_uri(owner.destination, owner.run_id, shard.number, replaces.last)
    found, part = storage.find(uri), storage.read(uri)
    if found and part and found.etag == replaces.etag:
        if not sharing.begin_shard(run, shard, storage):
            return {}
        ours = manifest.replace_rows(part, dream_rows(owner))
        # If the part was replaced after it was found, its ETag differs now, and the store refuses this write.
        is_ours = storage.write_if_unchanged(uri, ours, manifest.CONTENT_TYPE, replaces.etag)
        part = ours if is_ours else storage.read(uri)
        sharing.end_shard(run, shard, storage)
    if owner.job.zoom:
        remove_frames(owner, shard, storage)
    rows = manifest.from_parquet(part or manifest.to_parquet([]), [*manifest.IDENTITY, "status"])
    return manifest.value_counts(shard_rows(rows, owner, shard)["status"])


@dataclass(frozen=True, eq=False)
class _Outcome:
    """A row of the manifest on its way through the stages."""

    row: Row
    planned: PlannedSettings
    loaded: Loaded | None = None
    """The photograph, until it is dreamt; None if there is nothing to dream."""
    observations: dict[tuple[object, ...], Observation] = field(default_factory=dict)
    """What the networks make of the photograph before it is dreamt, by `_observation_key`: one for all its settings."""
    picture: Picture | None = None
    """The dream, until it is delivered."""

    @property
    def size(self) -> int:
        """The number of pixels to write; 0 if there is no dream to write."""
        return self.picture.pixels.size // 3 if self.picture else 0

    @property
    def photograph(self) -> Photograph:
        """The photograph to dream."""
        assert self.loaded is not None  # noqa: S101 - only outcomes that are to be dreamt get here
        return self.loaded.photographs[self.planned.settings.max_pixels]

    @property
    def original(self) -> Photograph | None:
        """The dream that the settings enlarge, if they enlarge one."""
        return self.loaded.originals.dreams.get(self.planned.settings_id) if self.loaded else None

    def failed(self, error: ImageError) -> "_Outcome":
        """Return the outcome of a photograph that cannot be dreamt."""
        return replace(self, row=failed_row(self.row, error), loaded=None)


class _Dreamer:
    """The three stages that the photographs of a shard pass through."""

    def __init__(
        self, run: Run, shard: Shard, storage: Storage, dream: DreamFunction, decode: Callable[..., Photograph]
    ) -> None:
        self.run, self.shard, self.dream_requests = run, shard, dream
        self.device = choose_device()
        self.files = files_for(self.device, run, storage, decode)
        memory = max_memory(self.device)
        if self.device == "cpu":
            disable_heap_trimming(memory)
        self.limits = Limits(memory, run.job.stage_scores)
        self.sizes = set[tuple[int, ...]]()  # shapes of the photographs that were dreamt
        self.prefetch = prefetch_pixels(self.device)

    def rows(self, on_row: Callable[[Row], None]) -> list[Row]:
        """Return one row for each photograph and setting of the shard, after all dreams were delivered."""

        def deliver(outcome: _Outcome) -> Row:
            row = self.deliver(outcome)
            on_row(row)
            return row

        def loaded_weight(loaded: Loaded) -> int:
            return max(loaded.size, self.prefetch // MAX_AHEAD)

        def dream_weight(outcome: _Outcome) -> int:
            return max(outcome.size, self.prefetch // dreams_behind(self.device))

        threads = io_threads(self.device)
        with thread_pool(threads) as readers, thread_pool(threads) as writers:
            loaded = weighted_prefetch(readers, threads, self.files.load, self.pictures(), self.prefetch, loaded_weight)
            rows = list(ordered_prefetch(writers, deliver, self.dream(loaded), self.prefetch, dream_weight))
        trim_heap()
        if len(self.sizes) > MANY_SIZES:
            release_gpu_cache(self.device)
        return rows

    def pictures(self) -> Iterator[Work]:
        """Yield the works of the shard, each with one picture: noise is another picture for each seed."""
        for work in self.shard.works:
            if noise_size(work.source.uri):
                for _, indices in groupby(work.settings, lambda index: self.run.settings[index].settings.seed):
                    yield replace(work, settings=tuple(indices))
            else:
                yield work

    def dream(self, loaded: Iterable[Loaded]) -> Iterator[_Outcome]:
        """Dream photographs under each of their settings, in batches of one size. A failed photograph fails alone."""
        outcomes = (outcome for photograph in loaded for outcome in self._outcomes(photograph))
        for batch in group_by_size(outcomes, _group_key, self._batch_size, MAX_WAITING, _pixels):
            yield from self._dream_batch(batch) if batch[0].loaded else batch

    def _outcomes(self, loaded: Loaded) -> Iterator[_Outcome]:
        """Yield what is known of a photograph before dreaming, as one outcome for each of its settings."""
        known: dict[tuple[object, ...], Observation] = {}
        for planned in (self.run.settings[index] for index in loaded.work.settings):
            row = planned_row(self.run, self.shard.number, loaded.work.source, planned)
            outcome = _Outcome(row, planned, loaded, known)
            if existing := loaded.existing.get(str(outcome.row.result_uri)):
                yield replace(outcome, row=replace(outcome.row, result_uri=existing), loaded=None)
            elif error := loaded.error or loaded.originals.errors.get(planned.settings_id):
                yield outcome.failed(error)
            else:
                yield outcome

    def _batch_size(self, outcome: _Outcome) -> int:
        return batch_size(self.device, _pixels(outcome))

    def _dream_batch(self, outcomes: Sequence[_Outcome]) -> Iterator[_Outcome]:
        """Dream photographs of one size under settings with one `batch_key`."""
        network = network_for(outcomes[0].planned.settings, self.device, self.run.job.labels)
        self.sizes.add(outcomes[0].photograph.pixels.shape)
        try:
            requests = self._requests(network, outcomes)
        except ImageError as error:  # images of this size cannot even be observed
            yield from (outcome.failed(error) for outcome in outcomes)
            return
        for outcome, result in zip(outcomes, self.dream_requests(network, requests, self.limits), strict=True):
            if isinstance(result, ImageError):
                yield outcome.failed(result)
            else:
                row = replace(outcome.row, **asdict(result.measurements))
                yield replace(outcome, row=row, loaded=None, picture=Picture(result.pixels, result.metadata()))

    def _requests(self, network: Network, outcomes: Sequence[_Outcome]) -> list[DreamRequest]:
        """Return the requests of a batch, each with the observation of its photograph before it is dreamt."""
        requests = [
            DreamRequest(
                outcome.photograph,
                outcome.planned.settings,
                *load_guide_and_mask(outcome.planned.settings),
                outcome.original,
            )
            for outcome in outcomes
        ]
        places = [(outcome.observations, _observation_key(outcome.planned.settings)) for outcome in outcomes]
        unseen = {(id(known), key): number for number, (known, key) in enumerate(places) if key not in known}
        if unseen:
            new = [requests[number] for number in unseen.values()]
            observed = observe_photographs(network, new, self._targets(requests[0].settings), self.limits)
            for number, observation in zip(unseen.values(), observed, strict=True):
                known, key = places[number]
                known[key] = observation
        return [replace(request, before=known[key]) for request, (known, key) in zip(requests, places, strict=True)]

    def _targets(self, settings: DreamSettings) -> list[Target]:
        """Return all targets that the run measures in the same way as these settings, each once."""
        key = _observation_key(settings)[:-1]  # whatever the guide is
        similar = (each.settings for each in self.run.settings if _observation_key(each.settings)[:-1] == key)
        return list({target.name: target for each in similar for target in each.layers}.values())

    def deliver(self, outcome: _Outcome) -> Row:
        """Write a dream if none exists, and return the row of the dream that exists then."""
        if outcome.row.status != "done":
            return outcome.row
        return self.files.deliver(outcome.row, outcome.picture, outcome.planned.settings.output)


def _group_key(outcome: _Outcome) -> tuple[object, ...] | None:
    """Outcomes with equal keys are dreamt in one batch; None if there is nothing to dream."""
    if outcome.loaded is None:
        return None
    return batch_key(outcome.planned.settings), outcome.photograph.pixels.shape


def _pixels(outcome: _Outcome) -> int:
    """Return the number of pixels of the photograph to dream."""
    return outcome.photograph.pixels.size // 3


def _observation_key(settings: DreamSettings) -> tuple[object, ...]:
    """Settings with equal keys measure an undreamt photograph in the same way."""
    return settings.model, settings.weights, settings.max_pixels, settings.measure, settings.guide
