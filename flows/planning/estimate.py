"""What a run of a job would do, how long it would take, and what it would cost. Nothing is written to S3."""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, islice
from random import Random
from statistics import median
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import ValidationError

from dreamcore.catalog import network_spec
from dreamcore.errors import DreamgridError, InvalidInput
from dreamcore.settings import batch_key, read_recorded
from dreamcore.sizes import default_batch_size
from flows.destination import manifest, run_record, sharing
from flows.destination.history import finished_dreams
from flows.destination.parts import list_parts
from flows.destination.run_record import Run
from flows.jobs import calibration
from flows.jobs.calibration import Calibration, machine_name
from flows.jobs.cost import (
    CORE,
    GPU,
    START_SECONDS,
    Throughput,
    bits_per_pixel,
    decoding_seconds,
    dreamt_pixels,
    reference_seconds,
    step_kind,
    step_seconds,
)
from flows.jobs.job import DreamJob
from flows.jobs.noise_source import noise_size
from flows.jobs.plan import Plan, Sources, make_plan
from flows.jobs.work import PlannedSettings, Shard, Source
from flows.machine.machine import core_count, gpu_count, worker_count
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.planning.channels import unwanted_dreams, without
from flows.planning.dimensions import HEAD_BYTES, image_size
from flows.planning.retry import plan_retry
from flows.planning.scan import check_access, plan_settings, scan
from flows.s3 import layout
from flows.s3.listing import OnListed
from flows.s3.storage import Storage, storage

__all__ = ["estimate", "throughput"]

SHORT_SECONDS = 3.0
"""Seconds of the reference core for each process, below which nothing is measured: the start takes longer."""
_MEASURED_KINDS = 6
_SIMILAR_COST = 1.2
"""The speed of a kind of step is used for another one if their costs differ by at most this factor."""
_OPENED = 12
"""Photographs whose first bytes are read."""
_ROW_SECONDS = 1.0
"""Seconds of the reference core that the rows of a kind must have: the first dream of a worker is slow."""
_RUNS, _PARTS, _ROWS = 10, 16, 10_000
"""Earlier runs whose reports are read; of one run, shards whose parts are read, and rows, at most."""
_ROW_COLUMNS = ("status", "settings_id", "weights_sha256", "settings", "width", "height", "batch", "seconds")


def throughput(settings: Sequence[PlannedSettings] = ()) -> Throughput:
    """Return the speed of this machine, for which a plan is cut: as measured by an earlier estimate, else a guess.

    Raises:
        InvalidInput: `DREAMGRID_WORKERS` is not a positive integer.
    """
    return _throughput(settings, calibration.kept(), {})


def _throughput(
    settings: Sequence[PlannedSettings], measured: Calibration | None, earlier: Mapping[str, float]
) -> Throughput:
    """Combine the speeds of a calibration and of an earlier run, which are more exact."""
    speeds = {**(measured.speeds if measured else {}), **earlier}
    found = {step_kind(planned): _similar(planned, speeds) for planned in settings}
    by_kind = {kind: speed for kind, speed in found.items() if speed}
    usual = median(speeds.values()) if speeds else GPU if gpu_count() else CORE
    # Prefect and the search for the work take about as long as torch.
    start = 2 * measured.start_seconds if measured else START_SECONDS
    return Throughput(worker_count(), usual, by_kind, start)


def _similar(planned: PlannedSettings, speeds: Mapping[str, float]) -> float | None:
    """Return the speed of the kind of these settings, or of the kind that is most like it; None if there is none."""
    if exact := speeds.get(step_kind(planned)):
        return exact
    rest, _, cost = step_kind(planned).rpartition("|")
    ratios: list[tuple[float, float | None]] = []
    for kind, speed in speeds.items():
        if kind.rpartition("|")[0] == rest:
            low, high = sorted((int(cost), int(kind.rpartition("|")[2])))
            ratios.append((high / max(low, 1), speed))
    ratio, nearest = min(ratios, default=(_SIMILAR_COST + 1, None))
    return nearest if ratio <= _SIMILAR_COST else None


# --- what earlier runs took


class _Earlier(NamedTuple):
    run_id: str
    speeds: dict[str, float]
    """Speed of one process relative to the reference core, by kind of step."""


def _earlier_run(destination: str, settings: Sequence[PlannedSettings], store: Storage) -> _Earlier | None:
    """Return the speeds of the newest finished run of this destination on a machine like this one."""
    newest = sorted(run_record.finished_run_ids(destination, store), reverse=True)
    for run_id in islice(newest, _RUNS):
        report = json.loads(store.read(layout.success_uri(destination, run_id)) or b"{}")
        if report.get("machine") == machine_name() and (speeds := _speeds_of(run_id, destination, settings, store)):
            return _Earlier(run_id, speeds)
    return None


def _speeds_of(run_id: str, destination: str, settings: Sequence[PlannedSettings], store: Storage) -> dict[str, float]:
    """Return the speed of each kind of step in some parts of a run; the wait for a shared core does not count."""
    table = manifest.read_rows(store, _drawn_parts(run_id, destination, store), _ROW_COLUMNS)
    rows = table.take(pa.array(range(0, len(table), len(table) // _ROWS + 1), pa.int64())).to_pylist()
    expected: dict[str, float] = defaultdict(float)
    needed: dict[str, float] = defaultdict(float)
    known: dict[str, PlannedSettings | None] = {planned.settings_id: planned for planned in settings}
    models = {planned.settings.model for planned in settings}
    for row in rows:
        if row["status"] != "done" or not row["seconds"]:
            continue
        if row["settings_id"] not in known:
            known[row["settings_id"]] = _planned_of(row, models)
        if planned := known[row["settings_id"]]:
            kind = step_kind(planned)
            expected[kind] += step_seconds(planned, row["width"] * row["height"], row["batch"] or 1)
            needed[kind] += row["seconds"]
    sharing = 1.0 if gpu_count() else max(1.0, worker_count() / core_count())
    return {kind: sharing * seconds / needed[kind] for kind, seconds in expected.items() if seconds >= _ROW_SECONDS}


def _drawn_parts(run_id: str, destination: str, store: Storage) -> list[str]:
    """Return some parts of a run, drawn because neighbouring parts may have the same settings."""
    parts = list_parts(store, destination, run_id)
    drawn = Random(run_id).sample(parts, min(len(parts), _PARTS))  # noqa: S311 - not a secret
    shards = list(accumulate(len(part.shards) for part in drawn))  # one merged part may be enough
    return [part.uri for part, before in zip(drawn, [0, *shards], strict=False) if before < _PARTS]


def _planned_of(row: Mapping[str, Any], models: Iterable[str]) -> PlannedSettings | None:
    """Return the settings of a row; None if they are of another version or network, whose costs are not known here."""
    with suppress(ValidationError, InvalidInput):
        settings = read_recorded(json.loads(row["settings"]))
        if settings.model in models:
            cost = max(network_spec(settings.model).layer(layer).cost for layer in settings.layer_names)
            weights = row["weights_sha256"]
            return PlannedSettings(settings=settings, settings_id=row["settings_id"], weights=weights, cost=cost)
    return None


# --- photographs


@dataclass(frozen=True)
class _Pixels:
    """The number of pixels of photographs: read from some files, and estimated from the file size of the others."""

    opened: dict[str, tuple[int, int]]
    """Width and height by address."""
    bits: dict[str, float] = field(default_factory=dict)
    """Bits of a file for each pixel, by suffix."""

    @property
    def are_equal(self) -> bool:
        """Whether all opened photographs have the same size."""
        return len(set(self.opened.values())) == 1

    def of(self, source: Source) -> int:
        """Return about how many pixels a photograph has."""
        if size := self.opened.get(source.uri) or noise_size(source.uri):
            return size[0] * size[1]
        return max(1, round(source.size * 8 / self.bits.get(_suffix(source), bits_per_pixel(source))))


def _suffix(source: Source) -> str:
    return source.name.rpartition(".")[2].lower()


def _open_some(sources: Sources, store: Storage) -> _Pixels:
    """Read the sizes of some photographs from their first bytes. An unreadable photograph is left out."""
    some = list(islice(sources, 0, None, max(1, -(-len(sources) // _OPENED))))

    def size_of(source: Source) -> tuple[int, int] | None:
        if size := noise_size(source.uri):
            return size
        with suppress(DreamgridError):
            return image_size(store.read_start(source.uri, HEAD_BYTES) or b"")
        return None

    with thread_pool(_OPENED) as readers:
        sizes = list(ordered_prefetch(readers, size_of, some, _OPENED))
    opened = {source.uri: size for source, size in zip(some, sizes, strict=True) if size}
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for source in some:
        if size := opened.get(source.uri):
            totals[_suffix(source)][0] += 8 * source.size
            totals[_suffix(source)][1] += size[0] * size[1]
    return _Pixels(opened, {suffix: bits / pixels for suffix, (bits, pixels) in totals.items() if bits})


# --- the work, its time and its requests


@dataclass
class _Work:
    """What is to be done, added up over shards."""

    pixels: _Pixels
    sheets: int
    """Photographs that get a contact sheet."""
    shards: int = 0
    works: int = 0
    """Pairs of a shard and a photograph in it."""
    noise_works: int = 0
    """Those of them whose photograph is noise, which is not read."""
    dreams: int = 0
    frames: int = 0
    """Frames of movies."""
    seconds: list[dict[str, float]] = field(default_factory=list)
    """Seconds of the reference core for each shard, by `settings_id`; an empty one stands for decoding."""
    points: dict[str, tuple[PlannedSettings, int]] = field(default_factory=dict)
    """All settings with the pixels of one of their dreams, by `settings_id`."""
    sheet_dreams: int = 0
    sheet_shards: int = 0
    sheet_sources: set[str] = field(default_factory=set)

    def add(self, shard: Shard, settings: Sequence[PlannedSettings]) -> None:
        """Count one shard, whose indices refer to `settings`."""
        self.shards, self.works = self.shards + 1, self.works + len(shard.works)
        self.noise_works += sum(noise_size(work.source.uri) is not None for work in shard.works)
        on_sheets = 0
        entries = []
        seconds: dict[str, float] = defaultdict(float)
        keys = {index: batch_key(settings[index].settings) for work in shard.works for index in work.settings}
        for work in shard.works:
            pixels = self.pixels.of(work.source)
            seconds[""] += decoding_seconds(pixels)
            known = self.pixels.are_equal or work.source.uri in self.pixels.opened
            for index in work.settings:
                dreamt = dreamt_pixels(settings[index], pixels)
                entries.append((settings[index], dreamt, (keys[index], dreamt if known else work)))
            if len(self.sheet_sources) < self.sheets or work.source.uri in self.sheet_sources:
                self.sheet_sources.add(work.source.uri)
                on_sheets += len(work.settings)
        alike = Counter(group for *_, group in entries)
        device = "cuda" if gpu_count() else "cpu"
        for planned, dreamt, group in entries:
            movie = planned.settings.movie
            batch = 1 if movie else min(alike[group], default_batch_size(device, dreamt))
            self.frames += movie.frames if movie else 0
            seconds[planned.settings_id] += reference_seconds(planned, dreamt, batch)
            self.points.setdefault(planned.settings_id, (planned, dreamt))
        self.dreams += len(entries)
        self.seconds.append(seconds)
        self.sheet_dreams, self.sheet_shards = self.sheet_dreams + on_sheets, self.sheet_shards + bool(on_sheets)

    @property
    def reference_seconds(self) -> float:
        """Seconds that the reference core would take for everything."""
        return sum(sum(seconds.values()) for seconds in self.seconds)

    def seconds_of_shards(self, machine: Throughput) -> Iterator[float]:
        """Yield the seconds of each shard on one process of a machine."""
        speeds = {identity: machine.speed_of(planned) for identity, (planned, _) in self.points.items()}
        speeds[""] = min(CORE, machine.speed)  # photographs are never decoded on a GPU
        for seconds in self.seconds:
            yield sum(each / speeds[identity] for identity, each in seconds.items())

    def elapsed_seconds(self, machine: Throughput) -> float:
        """Return the seconds until the last shard is finished, with the start of the worker processes."""
        if not self.seconds:
            return 0.0
        cores = core_count()
        ends = [0.0] * (machine.processes if gpu_count() else min(machine.processes, cores))
        for seconds in self.seconds_of_shards(machine):
            heapq.heapreplace(ends, ends[0] + seconds)
        return machine.start_seconds * max(1.0, min(machine.processes, self.shards) / cores) + max(ends)

    def requests(self, objects: int, earlier_runs: int, processes: int, sources: Sequence[str] = ()) -> dict[str, int]:
        """Return the number of requests to S3 of a run without failures, by method.

        Args:
            objects: objects below the source.
            earlier_runs: runs in the destination whose index is read.
            processes: number of worker processes.
            sources: the list of sources, if the job has one. Each photograph is looked up twice.
        """
        photographs = sum(not uri.endswith("/") for uri in sources)
        lists = 8 + max(0, -(-objects // 1000) - 1, len(sources) - photographs - 1)
        heads = 1 + 2 * photographs
        if not self.shards:
            return {"get": 6 + earlier_runs, "head": heads, "put": 5, "list": lists - 3}
        lists += self.shards // sharing.LOOK_AGAIN
        get = 5 + earlier_runs + min(processes, self.shards) + self.works - self.noise_works + 2 * self.shards
        put = 7 + 2 * self.dreams + 2 * self.shards  # a dream has a thumbnail
        get, put = get + self.frames, put + self.frames
        if drawn := len(self.sheet_sources):
            noise = sum(noise_size(uri) is not None for uri in self.sheet_sources)
            get += 1 + earlier_runs + self.sheet_shards + drawn - noise + self.sheet_dreams
            put, lists = put + drawn, lists + 1
        return {"get": get, "head": heads + self.shards, "put": put, "list": lists + self.works}


def estimate(
    job: DreamJob, price_per_hour: float | None = None, on_listed: OnListed = lambda _count: None
) -> dict[str, Any]:
    """Return what a run of the job would do, and an estimate of its duration and cost. Nothing is written to S3.

    The estimate is for this machine. It uses the speed of an earlier run in the destination on the same kind of
    machine. If there is none, the speed is measured and kept in the user's cache.

    Args:
        job: the job.
        price_per_hour: what an hour of this machine costs, in any currency.
        on_listed: called with the number of objects of the source listed so far.

    Returns:
        The fields that `dreamgrid plan --json` prints: counts of photographs, grid points, shards and dreams, the run
        that would be resumed, the reason why a run would be refused, estimated seconds and where their speed comes
        from, requests to S3 by method, and the cost.

    Raises:
        InvalidInput: the job cannot run.
    """
    settings, store = plan_settings(job), storage()
    check_access(job)
    found = scan(job, store, on_listed)
    finished = finished_dreams(job.destination, store)
    run, frozen, refusal = _resumable(job, settings)
    pixels = _open_some(found.sources, store)
    is_new_plan = not (run and frozen) and not job.retry_failed
    unwanted = unwanted_dreams(found.sources, settings if is_new_plan else (), store)

    def planned_work() -> tuple[int, _Work]:
        work = _Work(pixels, job.sheets)
        if run and frozen:
            total, todo = frozen.dreams, run_record.unfinished_shards(job.destination, run.run_id, frozen, store)
        elif job.retry_failed:
            again = plan_retry(job, store)
            total, todo = again.dreams, iter(again)
        else:
            total = len(found.sources) * len(settings) - len(unwanted)
            todo = iter(make_plan(found.sources, settings, without(unwanted, finished), throughput(settings)))
        for shard in todo:
            work.add(shard, _settings_of(job, shard, settings))
        return total, work

    total, work = planned_work()
    earlier = _earlier_run(job.destination, settings, store) if work.dreams else None
    machine, origin, is_new = _speed(work, earlier)
    if is_new and not frozen:
        total, work = planned_work()  # a run cuts its shards by the speed that is now kept
    seconds = work.elapsed_seconds(machine)
    runs = sum(1 for _ in run_record.finished_run_ids(job.destination, store))
    return {
        "source": job.source_in_words,
        "destination": job.destination,
        "resumes": run.run_id if run else None,
        "refused": refusal,
        "photographs": len(found.sources),
        **found.with_warnings(finished).report(),
        "grid_points": len(settings),
        "planned": work.dreams,
        "movie_frames": work.frames or None,
        "done": total - work.dreams,
        "failed_earlier": finished.failures(found.sources, settings).dreams,
        "shards": work.shards,
        "processes": machine.processes,
        "estimated_seconds_of_one_process": round(sum(work.seconds_of_shards(machine)), 1),
        "estimated_seconds": round(seconds, 1),
        "estimated_from": origin,
        "estimated_requests": work.requests(
            len(found.sources) + found.ignored, runs, machine.processes, job.s3_addresses if job.sources else ()
        ),
        "price_per_hour": price_per_hour,
        "estimated_cost": None if price_per_hour is None else round(seconds / 3600 * price_per_hour, 4),
    }


def _speed(work: _Work, earlier: _Earlier | None) -> tuple[Throughput, str, bool]:
    """Return the speed of this machine for the work, where it comes from, and whether it was measured just now."""
    settings, kept = [planned for planned, _ in work.points.values()], calibration.kept()
    if earlier:
        machine = _throughput(settings, kept, earlier.speeds)
        if _knows(machine, settings):
            return machine, f"the run {earlier.run_id}", False
    speeds = earlier.speeds if earlier else {}
    machine = _throughput(settings, kept, speeds)
    if _knows(machine, settings):
        return machine, "an earlier measurement on this machine", False
    if work.reference_seconds < SHORT_SECONDS * machine.processes:
        return machine, "typical figures, because the work is short", False
    if measured := calibration.measure(_to_measure(work, machine)):
        machine = _throughput(settings, measured, speeds)
        return machine, f"measured on this machine in {measured.took_seconds:.1f} s", True
    return machine, "typical figures, because this machine could not be measured", False


def _knows(machine: Throughput, settings: Iterable[PlannedSettings]) -> bool:
    return all(step_kind(planned) in machine.by_kind for planned in settings)


def _to_measure(work: _Work, machine: Throughput) -> list[tuple[PlannedSettings, int]]:
    """Return one point for each kind of step whose speed is not known: the costliest first, then the others evenly."""
    unknown: dict[str, tuple[PlannedSettings, int]] = {}
    for planned, pixels in work.points.values():
        if (kind := step_kind(planned)) not in machine.by_kind:
            unknown.setdefault(kind, (planned, pixels))
    by_cost = sorted(unknown.values(), key=lambda each: -each[0].cost)
    return by_cost[:: -(-len(by_cost) // _MEASURED_KINDS)]


def _settings_of(job: DreamJob, shard: Shard, settings: Sequence[PlannedSettings]) -> Sequence[PlannedSettings]:
    """Return the settings that a shard refers to: `settings`, or those of the earlier run whose part it replaces."""
    if shard.replaces is None:
        return settings
    return run_record.load_run(job.destination, shard.replaces.run_id, storage()).settings


def _resumable(job: DreamJob, settings: Sequence[PlannedSettings]) -> tuple[Run | None, Plan | None, str | None]:
    """Return the run that would be resumed, its plan if it is frozen, and the reason why a run would be refused."""
    try:
        run, plan = run_record.resumable_run(job, settings, storage()) or (None, None)
    except InvalidInput as error:
        return None, None, str(error)
    return run, plan, None
