"""A collection from S3 to S3 through the flow, against the time that the same dreams take alone."""

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

from benchmarks.crew import Crew, become_worker
from benchmarks.subjects import Size, pixels
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
PATIENCE = 30.0
"""Seconds in which Prefect's server must have heard how the shards ended."""


def photograph(size: Size, seed: int) -> bytes:
    """A synthetic photograph as a JPEG."""
    sink = io.BytesIO()
    Image.fromarray(pixels(size, seed)).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def prepare_dreams(photographs: Sequence[bytes]) -> Callable[[Sequence[int]], None]:
    """In a process of a crew: decoded photographs and a warm network; dreams what is asked in a run's batches."""
    become_worker()
    network, settings, limits = load_network(BUNDLED), DreamSettings(), Limits(max_memory("cpu"))
    orders = [DreamRequest(decode(data, max_pixels=settings.max_pixels), settings) for data in photographs]
    together = batch_size("cpu", math.prod(SIZE))
    dream_photographs(network, orders[:together], limits)

    def dream(numbers: Sequence[int]) -> None:
        for first in range(0, len(numbers), together):
            batch = [orders[number % len(orders)] for number in numbers[first : first + together]]
            dream_photographs(network, batch, limits)

    return dream


def alone(crew: Crew, numbers: Sequence[int], processes: int) -> float:
    """Seconds in which the crew dreams the photographs with these numbers, shared out evenly."""
    started = time.perf_counter()
    crew.ask(*(numbers[first::processes] for first in range(processes)))
    return time.perf_counter() - started


def measure_collection(*, quick: bool) -> list[Row]:
    """The section `collection`, on processors.

    About a quarter of the dreams are dreamt alone before the flow's run and as many after it, as many in each process;
    the time of all of them follows.
    """
    processes = core_count()
    count = 12 if quick else 200
    photographs = [photograph(SIZE, seed) for seed in range(count)]
    sample = math.ceil(count / 4 / processes) * processes
    with (
        mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES="", DREAMGRID_WORKERS=str(processes)),
        TemporaryDirectory() as folder,
        Crew(prepare_dreams, (photographs,), processes) as crew,
    ):
        seconds = alone(crew, range(sample), processes)
        try:
            spans = through_the_flow(Path(folder), photographs)
        except InvalidInput as error:  # no S3 server for this platform
            return [Row("", "", note=f"not measured: {error}")]
        seconds += alone(crew, range(sample, 2 * sample), processes)
    seconds *= count / (2 * sample)
    case = f"{count} photographs {SIZE[1]}x{SIZE[0]}, {processes} processes"
    share = {"engine_share": seconds / spans["dreaming"], "engine_share_of_command": seconds / sum(spans.values())}
    rows = [Row(case, "the dreams alone", seconds * 1000), Row(case, "in the flow", spans["dreaming"] * 1000)]
    rows[1].figures.update(share)
    rows.append(Row(case, "before: the command, Prefect, workers, torch", spans["before"] * 1000))
    rows.append(Row(case, "after: counts and contact sheets", spans["after"] * 1000))
    return rows


def through_the_flow(folder: Path, photographs: Sequence[bytes]) -> dict[str, float]:
    """Seconds of `dreamgrid run` with default settings before, while and after it dreams; the servers run already.

    It dreams from the moment when the first photograph is there and has its turn until the last shard is delivered.

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
        done = subprocess.run(  # noqa: S603 - the command is ours
            [*command, "--source", SOURCE, "--destination", DESTINATION],
            cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        ended = time.time()
        if done.returncode or json.loads(done.stdout)["done"] != len(photographs):
            raise RuntimeError(f"the run did not dream all photographs: {done.stderr or done.stdout}")
        turns = manifest.read(storage, DESTINATION, ["created_at"])["created_at"].to_pylist()
        first, last = min(turns).timestamp(), last_shard(environment["PREFECT_API_URL"])
    finally:
        embedded.down(folder / ".dreamgrid")
    return {"before": first - started, "dreaming": last - first, "after": ended - last}


def last_shard(api: str) -> float:
    """When the last shard of all runs that Prefect's server knows was delivered, in seconds of the clock."""
    deadline = time.monotonic() + PATIENCE
    while True:
        ends = [run["end_time"] for run in _ask(f"{api}/task_runs/filter") if run["name"].startswith("shard ")]
        if ends and all(ends):
            return max(datetime.fromisoformat(end).timestamp() for end in ends)
        if time.monotonic() > deadline:
            raise RuntimeError("Prefect's server does not tell when the shards ended")
        time.sleep(0.5)


def _ask(address: str) -> list[dict[str, Any]]:
    """What Prefect's API answers to a filter that lets everything through."""
    request = urllib.request.Request(address, b"{}", {"Content-Type": "application/json"})  # noqa: S310 - ours
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310 - ours
        found: list[dict[str, Any]] = json.load(answer)
    return found
