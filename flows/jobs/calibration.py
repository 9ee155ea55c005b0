"""The speed of this machine: a few short dreams in a child process, kept in the user's cache for later estimates.

The child computes as a worker does: with one thread, and beside as many busy processes as there will be workers. It
counts CPU time, so that other work of the machine does not make it look slow. `python -m flows.jobs.calibration` is the
child.
"""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from dreamcore import user_cache
from flows.jobs.cost import reference_seconds, step_kind
from flows.jobs.work import PlannedSettings
from flows.machine.machine import choose_device, core_count, gpu_count, worker_count

__all__ = ["Calibration", "kept", "machine_name", "measure"]

_BUDGET_SECONDS = 2.0
"""No dream is started after this time, apart from the first one."""
_REFERENCE_SECONDS = {"cpu": 0.25, "cuda": 10.0}
"""Length of one dream on the reference core: its image and its number of steps are chosen for this."""
_MIN_PIXELS, _MAX_STEPS = 64**2, 4
_MAX_BUSY = 15
"""Busy processes beside the one that is measured, at most."""
_CHILD_SECONDS = 120
"""A child that takes longer is given up: it may wait for a download of weights."""


@dataclass(frozen=True)
class Calibration:
    """Measured speeds of one worker process of this machine."""

    start_seconds: float
    """CPU seconds until Python, torch and the first network are loaded."""
    speeds: Mapping[str, float] = field(default_factory=dict)
    """Speed relative to the reference core, by kind of step."""
    took_seconds: float = 0.0
    """Seconds of the measurement, without the start of its process."""


def machine_name() -> str:
    """Return a name of this machine's processor, GPUs, torch version and number of workers that share its cores.

    Measured speeds are valid for machines with the same name. Nothing slow is imported.
    """
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "none"
    cores = core_count()
    gpus = _gpu_names()[: gpu_count()] if gpu_count() else []
    return ", ".join([_processor(), f"{cores} cores", *gpus, f"torch {torch}", f"{worker_count()} workers"])


def _processor() -> str:
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace")
        fields = dict(re.findall(r"^(model name|cpu family|model|stepping)[ \t]*:[ \t]*(.*)$", lines, re.MULTILINE))
        if fields:
            return " ".join(fields.values())
    return platform.processor() or platform.machine()


def _gpu_names() -> list[str]:
    """Return the names of the NVIDIA GPUs, from the driver's files; empty if they cannot be read."""
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            names += re.findall(r"^Model:\s*(.*)$", file.read_text(errors="replace"), re.MULTILINE)
    return names


# --- the cache file: calibrations by the name of the machine

FILE = "speed.json"


def kept() -> Calibration | None:
    """Return the calibration of this machine that is kept in the user's cache; None if there is none."""
    return _read().get(machine_name())


def _read() -> dict[str, Calibration]:
    """Return what the file has. A file that is missing, unreadable or of another format counts as empty."""
    try:
        return {name: Calibration(**fields) for name, fields in json.loads(user_cache.read(FILE) or "{}").items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _keep(found: Calibration) -> None:
    """Write a calibration into the file. If that fails, the next estimate measures again."""
    entries = {**_read(), machine_name(): found}
    user_cache.keep(FILE, json.dumps({name: vars(each) for name, each in entries.items()}, indent=1))


# --- the measurement


def measure(settings: Sequence[tuple[PlannedSettings, int]]) -> Calibration | None:
    """Measure dreams of these settings in a child process, and keep the speeds; None if that is not possible.

    Args:
        settings: resolved settings, and the number of pixels of their dreams. If the time runs out, the last ones are
            not measured.
    """
    request = [{"planned": planned.model_dump(mode="json"), "pixels": pixels} for planned, pixels in settings]
    try:
        child = subprocess.run(  # noqa: S603 - this module
            [sys.executable, "-m", __name__],
            input=json.dumps(request),
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            encoding="utf-8",
            timeout=_CHILD_SECONDS,
            check=True,
        )
        found = Calibration(**json.loads(child.stdout.splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, IndexError):
        return None
    old = kept()
    found = replace(found, speeds={**(old.speeds if old else {}), **found.speeds})
    _keep(found)
    return found


def _measure(request: Sequence[Mapping[str, Any]]) -> Calibration:
    """Dream under each of the settings, in this process, until the time is over."""
    from flows.jobs.assets import network_for

    device = choose_device()
    speeds: dict[str, float] = {}
    start_seconds, started = 0.0, 0.0
    for each in request:
        planned = PlannedSettings.model_validate(each["planned"])
        network_for(planned.settings, device)
        start_seconds = start_seconds or time.process_time()
        started = started or time.perf_counter()
        if speeds and time.perf_counter() - started > _BUDGET_SECONDS:
            break
        with _busy_neighbours(planned, device):
            speeds[step_kind(planned)] = _speed(planned, each["pixels"], device)
    return Calibration(start_seconds, speeds, time.perf_counter() - started)


def _speed(planned: PlannedSettings, pixels: int, device: str) -> float:
    """Return the speed of this process for one kind of step: the faster of two dreams, after one to warm up."""
    sample, side = _sample(planned, pixels, device)
    _dream(sample, side, device)
    return reference_seconds(sample, side * side) / min(_dream(sample, side, device) for _ in range(2))


def _sample(planned: PlannedSettings, pixels: int, device: str) -> tuple[PlannedSettings, int]:
    """Return settings with few steps, and the side of an image, which take about `_REFERENCE_SECONDS` together."""
    changes: dict[str, Any] = dict.fromkeys(("guide", "mask", "stop_at", "movie"))
    changes["steps"] = min(planned.settings.steps, _MAX_STEPS)
    sample = planned.model_copy(update={"settings": planned.settings.model_copy(update=changes)})
    while pixels > _MIN_PIXELS and reference_seconds(sample, pixels) > _REFERENCE_SECONDS[device.partition(":")[0]]:
        pixels = pixels * 3 // 4
    return sample, max(int(pixels**0.5), 1)


def _dream(planned: PlannedSettings, side: int, device: str) -> float:
    """Return the seconds of a dream of a square of noise: of CPU time, or elapsed on a GPU."""
    import numpy as np

    from dreamcore.batch import DreamRequest, dream_photograph
    from dreamcore.images import Photograph, encode
    from flows.jobs.assets import network_for

    network = network_for(planned.settings, device)
    side = max(side, network.spec.min_size)
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    clock = time.process_time if device == "cpu" else time.perf_counter
    started = clock()
    dream = dream_photograph(network, DreamRequest(Photograph(noise, side, side), planned.settings))
    encode(dream.pixels, planned.settings.output.format, planned.settings.output.quality, {})
    return clock() - started


@contextmanager
def _busy_neighbours(planned: PlannedSettings, device: str) -> Iterator[None]:
    """Keep the other cores of the workers busy, because processes share memory and caches."""
    if device != "cpu" or sys.platform != "linux":
        yield
        return
    sample, side = _sample(planned, _MIN_PIXELS * 4, device)
    parent = os.getpid()
    _dream(sample, side, device)  # warm, so that the forks need no locks of the first dream
    neighbours = []
    try:
        for _ in range(min(worker_count(), core_count(), _MAX_BUSY + 1) - 1):
            neighbours.append(pid := os.fork())
            if pid == 0:
                _dream_until_orphaned(sample, side, parent)
        yield
    finally:
        for pid in neighbours:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _dream_until_orphaned(sample: PlannedSettings, side: int, parent: int) -> NoReturn:
    try:
        while os.getppid() == parent:
            _dream(sample, side, "cpu")
    finally:
        os._exit(0)  # a fork must not run what its parent does next


if __name__ == "__main__":
    print(json.dumps(vars(_measure(json.load(sys.stdin)))))
