"""Section `pipeline`: reading, decoding, encoding and writing, beside a device that sleeps instead of dreaming.

One worker process feeds the device, as on a machine with one GPU. Its I/O process reads and writes. The S3 server
shares the cores of this machine, but its CPU time is counted apart.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

from benchmarks.collection import DESTINATION, SOURCE, photograph, servers
from benchmarks.contenders import pixels
from benchmarks.timing import Row
from dreamcore.batch import Dream, DreamRequest, Limits, dream_photograph
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.images import Array, Photograph
from dreamcore.models import load_network
from dreamcore.network import Network
from dreamcore.observation import Observation
from dreamcore.settings import BUNDLED, DreamSettings
from flows.destination.run_record import Run
from flows.jobs.job import DreamJob
from flows.jobs.work import Shard, Work
from flows.local import stack as embedded
from flows.planning.scan import plan_settings, scan
from flows.running.io_process import files_for
from flows.running.shard import dream_shard
from flows.s3.storage import Storage

__all__ = ["measure_pipeline"]

SIZE = (816, 1224)
"""A megapixel."""
WANTED = 25
"""Dreams a second of the device that sleeps."""
LAUNCHES = 1500
"""Operations that the device launches for a dream. A dream has about 60 steps of 400 operations in a batch of 16."""
TICK = 0.001
"""Seconds. After its launches, the device wakes up this often, and counts how late it is."""


@dataclass
class Device:
    """A device that sleeps. Its thread launches operations as that of a GPU does, and then wakes up every millisecond.

    Args:
        seconds: the time of a dream. 0: the device returns immediately.
        picture: the pixels of every dream.
    """

    seconds: float
    picture: Array
    launch_seconds: list[float] = field(default_factory=list)
    """The time of `LAUNCHES` operations, by batch."""
    delays: list[float] = field(default_factory=list)
    """How late each tick was, in seconds."""

    def dream(self, _network: Network, requests: Sequence[DreamRequest], _limits: Limits) -> list[Dream | ImageError]:
        """Take the time of the dreams of a batch, and return them."""
        self.work(len(requests))
        return [
            Dream(
                pixels=self.picture,
                request=each,
                weights="none",
                before=OBSERVATION,
                after=OBSERVATION,
                octave_scores=[0.0],
                skipped_octaves=0,
                device="none",
                precision="none",
                batch=len(requests),
                tile=None,
                seconds=self.seconds,
            )
            for each in requests
        ]

    def work(self, count: int) -> None:
        """Take the time of `count` dreams."""
        if not self.seconds:
            return
        started = time.perf_counter()
        number = torch.zeros(1)
        for _ in range(LAUNCHES * count):
            number = number.add(1)
        self.launch_seconds.append((time.perf_counter() - started) / count)
        while (now := time.perf_counter()) < started + self.seconds * count:
            time.sleep(TICK)
            self.delays.append(time.perf_counter() - now - TICK)


OBSERVATION = Observation(scores={"blocks.4": 0.0}, classes=[])


def measure_pipeline(*, quick: bool) -> list[Row]:
    """Measure the section `pipeline`."""
    count = 32 if quick else 192
    photographs = [photograph(SIZE, seed) for seed in range(16)]
    alone = Device(1 / WANTED, dreamt_pixels())
    alone.work(16)
    alone.work(count - 16)
    rows = [_delays("the device alone", alone)]
    with TemporaryDirectory() as folder:
        try:
            with servers(Path(folder), [photographs[number % 16] for number in range(count)]) as environment:
                stack = embedded.find(Path(folder) / ".dreamgrid")
                assert stack is not None
                for name, seconds in (("a device of 0 s", 0.0), (f"a device of {WANTED} dreams/s", 1 / WANTED)):
                    device = Device(seconds, alone.picture)
                    rows.append(_measure(name, device, count, environment, stack.servers[0].pid))
                    if seconds:
                        rows.append(_delays(name, device, alone))
        except InvalidInput as error:  # no S3 server for this platform
            return [Row("", "", note=f"not measured: {error}")]
    return rows


def dreamt_pixels() -> Array:
    """Return pixels of `SIZE` that compress as a dream does."""
    height, width = SIZE
    request = DreamRequest(Photograph(pixels(SIZE), width, height), DreamSettings(octaves=1, steps=3))
    return dream_photograph(load_network(BUNDLED), request).pixels


def _measure(name: str, device: Device, count: int, environment: Mapping[str, str], server: int) -> Row:
    """Send the photographs of the servers through one shard, and return the dreams a second and the CPU time."""
    storage = Storage(environment=environment)
    job = DreamJob.model_validate(
        {"source": SOURCE, "destination": f"{DESTINATION}{device.seconds:g}/", "grid": {"layers": ["blocks.4"]}}
    )
    run = Run(run_id="pipeline", job=job, settings=plan_settings(job))
    shard = Shard(0, tuple(Work(source, (0,)) for source in scan(job, storage).sources))
    with fake_gpu():
        files_for("cuda:0", run, storage)  # starts the process, which stays for all shards
        io = io_process()
        before = _cpu_times(server, io)
        started = time.perf_counter()
        done = dream_shard(run, shard, storage, dream=device.dream)
        wall = time.perf_counter() - started
        after = _cpu_times(server, io)
    assert done == {"done": count}, done
    of_server, own, of_io, decoding = (later - earlier for earlier, later in zip(before, after, strict=True))
    figures = {
        "dreams_per_second": count / wall,
        "worker_cpu": own / count * 1000,
        "io_cpu": of_io / count * 1000,
        "decoder_cpu": decoding / count * 1000,
        "server_cpu": of_server / count * 1000,
        "cores_wanted": (own + of_io + decoding) / count * WANTED,
    }
    return Row(f"{count} photographs {SIZE[1]}x{SIZE[0]}", name, wall * 1000, cpu_ms=own * 1000, figures=figures)


def _delays(name: str, device: Device, alone: Device | None = None) -> Row:
    """Return how long launches take and how late ticks are."""
    launching = sum(device.launch_seconds) / len(device.launch_seconds)
    late = quantiles(device.delays, n=100)
    figures = {"launch_ms": launching * 1000}
    if alone:
        figures["times_alone"] = launching * len(alone.launch_seconds) / sum(alone.launch_seconds)
    figures |= {"late_median": late[49] * 1000, "late_99": late[98] * 1000}
    return Row("the thread that launches", name, figures=figures)


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Let shards of this process find a GPU without a network."""
    replaced: dict[str, Any] = {
        "choose_device": lambda: "cuda:0",
        "max_memory": lambda _device: 2**40,
        "network_for": lambda *_: None,
        "observe_photographs": lambda _network, requests, *_: [OBSERVATION] * len(requests),
    }
    with ExitStack() as patches:
        for name, function in replaced.items():
            patches.enter_context(mock.patch(f"flows.running.shard.{name}", function))
        yield


def _cpu_times(server: int, io: int) -> list[float]:
    """Return the CPU time in seconds of the S3 server, of this process, of the I/O process and of the decoders."""
    return [cpu_seconds(server), time.process_time(), cpu_seconds(io), sum(map(cpu_seconds, children(io)))]


def io_process() -> int:
    """Return the process id of the I/O process of this process."""
    (found,) = multiprocessing.active_children()
    assert found.pid is not None
    return found.pid


def children(process: int) -> list[int]:
    """Return the child processes of another process, on Linux."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def cpu_seconds(process: int) -> float:
    """Return the CPU time of another process in seconds, on Linux."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
