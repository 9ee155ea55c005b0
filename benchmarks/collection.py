"""Section `collection`: a collection from S3 to S3 through the flow, against the time of the same dreams alone."""

import io
import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from PIL import Image

from benchmarks.contenders import Size, pixels
from benchmarks.processes import ProcessGroup, become_worker
from benchmarks.timing import Row
from dreamcore.batch import DreamRequest, Limits, dream_photographs
from dreamcore.errors import InvalidInput
from dreamcore.images import decode
from dreamcore.models import load_network
from dreamcore.settings import BUNDLED, DreamSettings
from flows.destination import manifest
from flows.local import stack as embedded
from flows.machine.machine import batch_size, core_count, max_memory
from flows.s3.storage import Storage

SIZE = (316, 474)
"""0.15 megapixels."""
__all__ = ["SIZE", "Times", "photograph", "run_flow", "servers"]

SOURCE, DESTINATION = "s3://photos/", "s3://dreams/"
TIMEOUT = 30.0
"""Seconds until Prefect's server must know when the shards ended."""


def photograph(size: Size, seed: int) -> bytes:
    """Return a synthetic photograph as a JPEG."""
    sink = io.BytesIO()
    Image.fromarray(pixels(size, seed)).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def prepare_dreams(photographs: Sequence[bytes]) -> Callable[[Sequence[int]], None]:
    """Decode the photographs and warm up the network; return a function that dreams some of them in batches."""
    become_worker()
    network, settings, limits = load_network(BUNDLED), DreamSettings(), Limits(max_memory("cpu"))
    requests = [DreamRequest(decode(data, max_pixels=settings.max_pixels), settings) for data in photographs]
    size = batch_size("cpu", math.prod(SIZE))
    dream_photographs(network, requests[:size], limits)

    def dream(numbers: Sequence[int]) -> None:
        for first in range(0, len(numbers), size):
            batch = [requests[number % len(requests)] for number in numbers[first : first + size]]
            dream_photographs(network, batch, limits)

    return dream


def seconds_alone(group: ProcessGroup, numbers: Sequence[int], processes: int) -> float:
    """Return the seconds in which the processes dream the photographs with these numbers, shared evenly."""
    started = time.perf_counter()
    group.ask(*(numbers[first::processes] for first in range(processes)))
    return time.perf_counter() - started


def measure_collection(*, quick: bool) -> list[Row]:
    """Measure the section `collection`, on CPUs.

    A quarter of the dreams is made alone before the run of the flow, and as many after it, with the same number in
    each process. The time of all dreams is extrapolated from them.
    """
    processes = core_count()
    count = 12 if quick else 200
    photographs = [photograph(SIZE, seed) for seed in range(count)]
    sample = math.ceil(count / 4 / processes) * processes
    with (
        mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES="", DREAMGRID_WORKERS=str(processes)),
        TemporaryDirectory() as folder,
        ProcessGroup(prepare_dreams, (photographs,), processes) as group,
    ):
        seconds = seconds_alone(group, range(sample), processes)
        try:
            with servers(Path(folder), photographs) as environment:
                times = run_flow(environment, count)
        except InvalidInput as error:  # no S3 server for this platform
            return [Row("", "", note=f"not measured: {error}")]
        seconds += seconds_alone(group, range(sample, 2 * sample), processes)
    seconds *= count / (2 * sample)
    case = f"{count} photographs {SIZE[1]}x{SIZE[0]}, {processes} processes"
    dreaming = times.last_shard - times.first_dream
    share = {"engine_share": seconds / dreaming, "engine_share_of_command": seconds / (times.ended - times.started)}
    return [
        Row(case, "the dreams alone", seconds * 1000),
        Row(case, "the dreams in the flow", dreaming * 1000, figures=share),
        Row(case, "start: command, Prefect, workers, torch", (times.first_dream - times.started) * 1000),
        Row(case, "end: counts and contact sheets", (times.ended - times.last_shard) * 1000),
    ]


@dataclass(frozen=True)
class Times:
    """When what happened in a run, as Unix timestamps."""

    started: float
    """The start of the command."""
    first_dream: float
    """The first photograph is loaded and in turn."""
    shards: Sequence[tuple[float, float]]
    """The start and the end of each shard."""
    ended: float
    """The end of the command."""

    @property
    def last_shard(self) -> float:
        """The last shard is written."""
        return max(end for _, end in self.shards)


@contextmanager
def servers(folder: Path, photographs: Sequence[bytes]) -> Iterator[Mapping[str, str]]:
    """Start S3 and Prefect, upload the photographs and yield the environment of the servers.

    Raises:
        InvalidInput: there is no S3 server for this platform.
    """
    stack = embedded.up(folder / ".dreamgrid")
    try:
        environment = stack.environment()
        storage = Storage(environment=environment)
        for uri in (SOURCE, DESTINATION):
            storage.create_bucket(uri)
        for number, data in enumerate(photographs):
            storage.write(f"{SOURCE}{number:04}.jpg", data, "image/jpeg")
        yield environment
    finally:
        embedded.down(folder / ".dreamgrid")


def run_flow(environment: Mapping[str, str], count: int, *options: str) -> Times:
    """Run `dreamgrid run` with default settings for all photographs of the servers, and return its times."""
    command = [str(Path(sys.executable).with_name("dreamgrid")), "run", "--json", *options]
    started = time.time()
    done = subprocess.run(  # noqa: S603 - the command is constant
        [*command, "--source", SOURCE, "--destination", DESTINATION],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    ended = time.time()
    if done.returncode or json.loads(done.stdout)["done"] != count:
        raise RuntimeError(f"the run did not dream all photographs: {done.stderr or done.stdout}")
    created = manifest.read(Storage(environment=environment), DESTINATION, ["created_at"])["created_at"].to_pylist()
    return Times(started, min(created).timestamp(), shard_times(environment["PREFECT_API_URL"]), ended)


def shard_times(api: str) -> list[tuple[float, float]]:
    """Return when each shard of all runs on Prefect's server started and ended, as Unix timestamps.

    Raises:
        RuntimeError: the server does not know it after `TIMEOUT` seconds.
    """
    deadline = time.monotonic() + TIMEOUT
    while True:
        shards = [run for run in _fetch_all(f"{api}/task_runs/filter") if run["name"].startswith("shard ")]
        times = [(run["start_time"], run["end_time"]) for run in shards]
        if times and all(end for _, end in times):
            return [(_timestamp(start), _timestamp(end)) for start, end in times]
        if time.monotonic() > deadline:
            raise RuntimeError(f"Prefect's server did not report the end of the shards within {TIMEOUT:.0f} s")
        time.sleep(0.5)


def _timestamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _fetch_all(url: str) -> list[dict[str, Any]]:
    """Return everything from a filter endpoint of Prefect's API."""
    request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json"})  # noqa: S310 - local server
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310 - local server
        found: list[dict[str, Any]] = json.load(response)
    return found
