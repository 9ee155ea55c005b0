"""Section `collection`: a collection from S3 to S3 through the flow, against the time of the same dreams alone."""

import io
import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
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
from flows import manifest
from flows.local import stack as embedded
from flows.machine import batch_size, core_count, max_memory
from flows.storage import Storage

SIZE = (316, 474)
"""0.15 megapixels."""
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
            spans = run_flow(Path(folder), photographs)
        except InvalidInput as error:  # no S3 server for this platform
            return [Row("", "", note=f"not measured: {error}")]
        seconds += seconds_alone(group, range(sample, 2 * sample), processes)
    seconds *= count / (2 * sample)
    case = f"{count} photographs {SIZE[1]}x{SIZE[0]}, {processes} processes"
    share = {"engine_share": seconds / spans["dreaming"], "engine_share_of_command": seconds / sum(spans.values())}
    return [
        Row(case, "the dreams alone", seconds * 1000),
        Row(case, "the dreams in the flow", spans["dreaming"] * 1000, figures=share),
        Row(case, "start: command, Prefect, workers, torch", spans["before"] * 1000),
        Row(case, "end: counts and contact sheets", spans["after"] * 1000),
    ]


def run_flow(folder: Path, photographs: Sequence[bytes]) -> dict[str, float]:
    """Run `dreamgrid run` with default settings; return the seconds before, during and after dreaming.

    The servers run already. Dreaming begins when the first photograph is loaded and in turn, and ends when the last
    shard is written.

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
        command = [str(Path(sys.executable).with_name("dreamgrid")), "run", "--json"]
        started = time.time()
        done = subprocess.run(  # noqa: S603 - the command is constant
            [*command, "--source", SOURCE, "--destination", DESTINATION],
            cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        ended = time.time()
        if done.returncode or json.loads(done.stdout)["done"] != len(photographs):
            raise RuntimeError(f"the run did not dream all photographs: {done.stderr or done.stdout}")
        created = manifest.read(storage, DESTINATION, ["created_at"])["created_at"].to_pylist()
        first, last = min(created).timestamp(), last_shard_end(environment["PREFECT_API_URL"])
    finally:
        embedded.down(folder / ".dreamgrid")
    return {"before": first - started, "dreaming": last - first, "after": ended - last}


def last_shard_end(api: str) -> float:
    """Return when the last shard of all runs on Prefect's server ended, as a Unix timestamp.

    Raises:
        RuntimeError: the server does not know it after `TIMEOUT` seconds.
    """
    deadline = time.monotonic() + TIMEOUT
    while True:
        ends = [run["end_time"] for run in _fetch_all(f"{api}/task_runs/filter") if run["name"].startswith("shard ")]
        if ends and all(ends):
            return max(datetime.fromisoformat(end).timestamp() for end in ends)
        if time.monotonic() > deadline:
            raise RuntimeError(f"Prefect's server did not report the end of the shards within {TIMEOUT:.0f} s")
        time.sleep(0.5)


def _fetch_all(url: str) -> list[dict[str, Any]]:
    """Return everything from a filter endpoint of Prefect's API."""
    request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json"})  # noqa: S310 - local server
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310 - local server
        found: list[dict[str, Any]] = json.load(response)
    return found
