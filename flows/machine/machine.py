"""The capacity of this machine: worker processes, their devices, memory, batch size and prefetching."""

import math
import multiprocessing
import os
import re
import subprocess
import warnings
from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path

from dreamcore.errors import InvalidInput
from dreamcore.sizes import default_batch_size, parse_size
from flows.machine.cgroups import read_limits

__all__ = [
    "assign_gpu",
    "batch_size",
    "check_environment",
    "choose_device",
    "core_count",
    "cores_per_worker",
    "dreams_behind",
    "env_int",
    "gpu_count",
    "io_threads",
    "limit_threads",
    "max_memory",
    "prefetch_pixels",
    "set_up_gpu_allocator",
    "visible_gpus",
    "worker_count",
]

GPU_MEMORY_SHARE, RAM_SHARE = 0.8, 0.6
"""Shares of the memory of a GPU and of the machine that dreaming may use."""
UNUSABLE = (
    "torch cannot use the GPUs found here ({}): the driver may be too old, or this torch may be a CPU build. "
    "Dreaming continues on CPUs, with one process per GPU; set CUDA_VISIBLE_DEVICES= to get one process per core"
)
DEVICES = Path("/dev")
"""Folder of the device files of the GPUs."""
CAPABILITIES = Path("/proc/driver/nvidia/capabilities")
"""Folder in which NVIDIA's driver lists the MIG devices."""
NVIDIA_SMI_SECONDS = 60.0
"""Time limit of `nvidia-smi`, which may have to start the driver of several GPUs."""
ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Variables with options of torch's allocator for GPUs. torch 2.9 takes some options from the first one only."""


def env_int(name: str, what: str) -> int | None:
    """Return the positive number of `what` in the environment variable `name`; None if it is not set.

    Raises:
        InvalidInput: the value is not a positive integer.
    """
    value = os.environ.get(name)
    if value and not (value.isdecimal() and int(value)):
        raise InvalidInput(f"{name} is {value!r}: give a number of {what}, 1 or more")
    return int(value) if value else None


def check_environment() -> None:
    """Check the variables that workers read later, before a run starts.

    Raises:
        InvalidInput: `DREAMGRID_WORKERS`, `DREAMGRID_BATCH` or `DREAMGRID_MAX_MEMORY` is malformed.
    """
    worker_count()
    _env_batch_size()
    _env_max_memory()


def worker_count() -> int:
    """Return the number of worker processes: `DREAMGRID_WORKERS`, or one per GPU, or one per core.

    Raises:
        InvalidInput: `DREAMGRID_WORKERS` is not a positive integer.
    """
    return env_int("DREAMGRID_WORKERS", "processes") or gpu_count() or core_count()


def cores_per_worker() -> int:
    """Return the number of cores for each worker, at least 1. A worker that feeds a GPU often has several."""
    return max(1, core_count() // worker_count())


def gpu_count() -> int:
    """Return the number of GPUs that this process may use."""
    return len(visible_gpus())


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, each as an entry of `CUDA_VISIBLE_DEVICES`.

    An entry is a number, or the UUID of a GPU or of a MIG device. torch, which is slow to import, is not needed.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _mig_devices() or [str(number) for number in range(len(list(DEVICES.glob("nvidia[0-9]*"))))]
    # CUDA ignores every entry from the first one on that names no GPU, such as -1.
    named = takewhile(lambda gpu: gpu and not gpu.startswith("-"), map(str.strip, visible.split(",")))
    return list(dict.fromkeys(named))


@cache
def _mig_devices() -> list[str]:
    """Return the UUIDs of all MIG devices and of all undivided GPUs; empty if no GPU is divided into MIG devices.

    Without `CUDA_VISIBLE_DEVICES`, CUDA would show a process only one of the MIG devices.
    """
    if not any(CAPABILITIES.glob("gpu*/mig/gi*/ci*")):
        return []
    command = ["nvidia-smi", "-L"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    uuids: list[str] = []
    for uuid in re.findall(r"\(UUID: ([^)\s]+)\)", found.stdout):
        if uuid.startswith("MIG-") and uuids and uuids[-1].startswith("GPU-"):
            uuids.pop()  # a divided GPU cannot be used as a whole
        uuids.append(uuid)
    return uuids


def assign_gpu(gpus: Sequence[str], workers: int) -> None:
    """Let this worker process see only one of `gpus`, round-robin. For torch, this GPU is then `cuda:0`.

    Call this before torch is imported: CUDA reads the variable only once.

    Args:
        gpus: the `visible_gpus` of the process that starts the workers. Without GPUs, nothing is changed.
        workers: number of worker processes.
    """
    if not gpus:
        return
    # The last number counts the children of the process that starts the workers, which may be a child itself.
    number = (multiprocessing.current_process()._identity or (1,))[-1] - 1
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    os.environ["DREAMGRID_WORKERS"] = str(workers)
    os.environ["DREAMGRID_WORKERS_PER_GPU"] = str(math.ceil(workers / len(gpus)))


def set_up_gpu_allocator() -> None:
    """Let torch's allocator extend its blocks, so that images of many sizes leave fewer gaps in the memory of a GPU.

    Call this before torch is imported. The user's own options of the allocator stay. On MIG devices nothing is
    changed, because errors of this mode were reported there.
    """
    gpus = visible_gpus()
    if gpus and not gpus[0].startswith("MIG-") and not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        os.environ[ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"


def core_count() -> int:
    """Return the number of cores that this process may use: by its affinity and by the limits of its container.

    A CPU quota is rounded up, so a container with 1.5 CPUs has two cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, read_limits().cores or cores)


def limit_threads() -> None:
    """Let torch use as many threads as this process has cores, if a CPU quota allows fewer than the machine has.

    Call this before torch is imported. torch counts the cores of the machine, and its threads would use up the quota;
    then the kernel suspends all of them. `OMP_NUM_THREADS` overrides the number.
    """
    quota = read_limits().cores
    if quota and quota < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(quota))


def choose_device() -> str:
    """Return the device of this process: the first GPU that it sees, or the CPU. A worker process sees one GPU."""
    import torch  # slow to import, and not needed to count processes

    if torch.cuda.is_available():
        return "cuda:0"
    if gpus := visible_gpus():  # as many workers were started, and nobody else notices the mistake
        warnings.warn(UNUSABLE.format(", ".join(gpus)), stacklevel=2)
    return "cpu"


def max_memory(device: str) -> int:
    """Return the bytes that a worker may use for dreaming: `DREAMGRID_MAX_MEMORY`, or its share of the machine.

    The share is computed from the total memory of the machine or of its container, and not from the free memory. So the
    tiles, and with them the dreams, do not depend on what else the machine does.

    Raises:
        InvalidInput: `DREAMGRID_MAX_MEMORY` is not a size.
    """
    if limit := _env_max_memory():
        return limit
    if device.startswith("cuda"):
        import torch

        total: int = torch.cuda.get_device_properties(device).total_memory
        return int(total * GPU_MEMORY_SHARE / _workers_per_gpu())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(memory, read_limits().memory or memory) * RAM_SHARE / worker_count())


def batch_size(device: str, pixels: int) -> int:
    """Return how many dreams of one size a worker computes together, if memory allows: `DREAMGRID_BATCH`.

    The default is `default_batch_size`. The batch size does not change a dream beyond rounding, which the ascent
    amplifies. On CPUs most networks, including the bundled one, give identical bits.

    Args:
        device: the device of the worker.
        pixels: pixels of one image.

    Raises:
        InvalidInput: `DREAMGRID_BATCH` is not a positive integer.
    """
    if size := _env_batch_size():
        return size
    return default_batch_size(device, pixels)


def io_threads(device: str) -> int:
    """Return the number of threads with which a worker reads photographs, and with which it writes dreams."""
    return 16 if device.startswith("cuda") else 2


def dreams_behind(device: str) -> int:
    """Return how many dreams a worker writes behind at most. They are lost if it is killed."""
    return 256 if device.startswith("cuda") else 2


def prefetch_pixels(device: str) -> int:
    """Return how many pixels of photographs a worker loads ahead, and how many of dreams it writes behind.

    A GPU dreams a batch within a second, and the next batch must be ready then.
    """
    return 32_000_000 if device.startswith("cuda") else 2_400_000


def _workers_per_gpu() -> int:
    """Return how many workers share a GPU. A worker process sees only its own GPU, and a variable tells it."""
    given = env_int("DREAMGRID_WORKERS_PER_GPU", "processes")
    return given or math.ceil(worker_count() / max(1, gpu_count()))


def _env_batch_size() -> int | None:
    return env_int("DREAMGRID_BATCH", "dreams")


def _env_max_memory() -> int | None:
    value = os.environ.get("DREAMGRID_MAX_MEMORY")
    try:
        return parse_size(value) if value else None
    except InvalidInput as error:
        raise InvalidInput(f"DREAMGRID_MAX_MEMORY: {error}") from error
