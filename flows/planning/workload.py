"""The work of a plan: dreams, photographs, their pixels, and the time and the requests that they take."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from dreamcore.errors import DreamgridError
from dreamcore.settings import batch_key
from dreamcore.sizes import default_batch_size
from flows.destination import sharing
from flows.jobs.cost import CORE, Throughput, bits_per_pixel, decoding_seconds, dreamt_pixels, reference_seconds
from flows.jobs.noise_source import noise_size
from flows.jobs.plan import Sources
from flows.jobs.work import PlannedSettings, Shard, Source
from flows.machine.machine import core_count, gpu_count
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.planning.dimensions import HEAD_BYTES, image_size
from flows.s3.storage import Storage

__all__ = ["Pixels", "Workload", "open_some"]

_OPENED = 12
"""Photographs whose first bytes are read."""


@dataclass(frozen=True)
class Pixels:
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


def open_some(sources: Sources, store: Storage) -> Pixels:
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
    return Pixels(opened, {suffix: bits / pixels for suffix, (bits, pixels) in totals.items() if bits})


@dataclass
class Workload:
    """What is to be done, added up over shards."""

    pixels: Pixels
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
