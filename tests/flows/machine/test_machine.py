"""How many processes dream at once, in how much memory, and how many dreams each makes at once."""

import multiprocessing
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from dreamcore.errors import InvalidInput
from dreamcore.sizes import parse_size
from flows.jobs.cost import CORE, GPU, Throughput
from flows.machine import machine
from flows.machine.machine import batch_size, choose_device, core_count, max_memory, visible_gpus, worker_count
from flows.machine.worker_process import release_gpu_cache
from flows.planning.speed import throughput
from flows.running.process_pool import open_processes
from tests.support.command import REPOSITORY
from tests.support.gpus import report_gpus


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # without a measured speed
    monkeypatch.setattr(machine, "DEVICES", tmp_path)  # without GPUs
    machine._mig_devices.cache_clear()
    for name in ("DREAMGRID_WORKERS", "DREAMGRID_MAX_MEMORY", "DREAMGRID_BATCH", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("visible", "gpu_count"), [("0", 1), ("0,1, 2", 3), ("GPU-5f,GPU-6a", 2), ("1,-1,2", 1)])
def test_there_is_one_worker_per_visible_gpu(monkeypatch: pytest.MonkeyPatch, visible: str, gpu_count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert worker_count() == gpu_count
    assert throughput() == Throughput(gpu_count, GPU)


def test_gpus_are_counted_by_their_device_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a container, the files keep the numbers of the machine. CUDA numbers the GPUs of the container from 0."""
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus() == ["0", "1"]
    assert worker_count() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert visible_gpus() == ["3"]


LISTING = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0a)
  MIG 3g.20gb     Device  0: (UUID: MIG-1b)
  MIG 1c.3g.20gb  Device  1: (UUID: MIG-GPU-0a/2/0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-2c)
"""


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        (f"#!/bin/sh\n[ $1 = -L ] && cat <<END\n{LISTING}END\n", ["MIG-1b", "MIG-GPU-0a/2/0", "GPU-2c"]),
        ("#!/bin/sh\nexit 9\n", ["0", "1"]),
        ("", ["0", "1"]),
    ],
    ids=["MIG", "failed", "missing"],
)
def test_each_mig_device_counts_as_a_gpu(
    script: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidia1").touch()
    monkeypatch.setattr(machine, "CAPABILITIES", tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if script else str(tmp_path))
    if script:
        (tmp_path / "nvidia-smi").write_text(script)
        (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_gpus() == ["0", "1"], "no GPU is divided"
    machine._mig_devices.cache_clear()
    (tmp_path / "gpu0" / "mig" / "gi1" / "ci0").mkdir(parents=True)
    assert visible_gpus() == gpus
    assert worker_count() == len(gpus)


@pytest.mark.slow
def test_each_worker_sees_its_own_gpu_also_if_the_flow_runs_in_a_child_process(tmp_path: Path) -> None:
    gpus, context = ["2", "GPU-5f", "MIG-1b"], multiprocessing.get_context("spawn")
    flow = context.Process(target=report_gpus, args=(tmp_path, gpus, 4))
    flow.start()
    flow.join(120)
    reports = sorted(file.read_text() for file in tmp_path.glob("*.txt"))
    assert reports == sorted(f"{gpu} 4 2 torch:False" for gpu in [*gpus, "2"])


def test_the_pool_of_a_run_hands_out_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,MIG-1b")
    monkeypatch.setenv("DREAMGRID_WORKERS", "3")
    with open_processes() as pool:
        assert pool.runner._initargs == (["1", "MIG-1b"], 3)


@pytest.mark.parametrize(
    ("visible", "given", "expected"),
    [
        ("0", {}, "expandable_segments:True"),
        ("0", {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}, "backend:cudaMallocAsync"),
        ("0", {"PYTORCH_ALLOC_CONF": "backend:native"}, None),
        ("MIG-1b", {}, None),
        ("", {}, None),
    ],
)
def test_the_allocator_of_a_gpu_extends_its_blocks_unless_the_user_says_otherwise(
    visible: str, given: dict[str, str], expected: str | None
) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in machine.ALLOCATOR_VARIABLES}
    with mock.patch.dict(os.environ, {**kept, **given, "CUDA_VISIBLE_DEVICES": visible}, clear=True):
        machine.set_up_gpu_allocator()
        assert os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == expected


def test_only_a_gpu_has_a_cache_to_release(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(True))
    release_gpu_cache("cpu")
    assert not released
    release_gpu_cache("cuda:0")
    assert released


def test_gpus_that_torch_cannot_use_give_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise nobody would notice that only two CPU workers run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.warns(UserWarning, match=r"the GPUs found here \(0, 1\): .* set CUDA_VISIBLE_DEVICES= to get"):
        assert choose_device() == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device() == "cpu"


@pytest.mark.parametrize("hidden", ["", "-1", "-1,0"])
def test_there_is_one_worker_per_core_without_gpus(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert worker_count() == core_count() <= len(os.sched_getaffinity(0))
    assert throughput() == Throughput(worker_count(), CORE)


def test_the_environment_sets_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMGRID_WORKERS", "7")
    assert worker_count() == 7


@pytest.mark.parametrize("nonsense", ["0", "-1", "two", "1.5"])
def test_a_malformed_number_of_workers_is_refused(monkeypatch: pytest.MonkeyPatch, nonsense: str) -> None:
    monkeypatch.setenv("DREAMGRID_WORKERS", nonsense)
    with pytest.raises(InvalidInput, match=f"DREAMGRID_WORKERS is '{nonsense}'"):
        worker_count()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000000", 10**6),
        ("500MB", 500 * 10**6),
        ("500 MB", 500 * 10**6),
        (" 2GiB ", 2 * 2**30),
        ("2 gib", 2 * 2**30),
        ("64KiB", 64 * 2**10),
        ("1.5g", 1_500_000_000),
        ("0.5MiB", 2**19),
        ("3T", 3 * 10**12),
    ],
)
def test_sizes_are_parsed_in_common_spellings(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "nonsense", ["", "much", "GiB", "-1GB", "0", "0GiB", "0.5", "1e9", "1,5GB", "2GiBs", "2PB", "1.GB", "nan", "inf"]
)
def test_malformed_sizes_are_refused(nonsense: str) -> None:
    with pytest.raises(
        InvalidInput, match=f"^{nonsense!r} is not an amount of memory: write for example 2GiB or 500MB$"
    ):
        parse_size(nonsense)


@pytest.mark.parametrize(
    ("asked", "gpu_count", "share"),
    [("1", 1, 0.8), ("2", 2, 0.8), ("4", 2, 0.4), ("3", 2, 0.4), ("1", 2, 0.8), ("5", 1, 0.16)],
)
def test_workers_that_share_a_gpu_share_its_memory(
    monkeypatch: pytest.MonkeyPatch, asked: str, gpu_count: int, share: float
) -> None:
    monkeypatch.setenv("DREAMGRID_WORKERS", asked)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpu_count))))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=10**9))
    assert max_memory("cuda:0") == pytest.approx(share * 10**9, rel=1e-6)


def test_a_worker_of_a_cluster_sees_one_gpu_and_knows_who_shares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMGRID_WORKERS", "16")
    monkeypatch.setenv("DREAMGRID_WORKERS_PER_GPU", "2")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=10**9))
    assert max_memory("cuda:0") == pytest.approx(0.4 * 10**9, rel=1e-6)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_environment_sets_the_memory_limit(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setenv("DREAMGRID_MAX_MEMORY", "1.5GiB")
    assert max_memory(device) == 3 * 2**29
    monkeypatch.setenv("DREAMGRID_MAX_MEMORY", "plenty")
    with pytest.raises(InvalidInput, match="'plenty' is not an amount of memory"):
        max_memory(device)


def test_workers_share_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMGRID_WORKERS", "1")
    alone = max_memory("cpu")
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < alone < physical
    monkeypatch.setenv("DREAMGRID_WORKERS", "4")
    assert max_memory("cpu") == pytest.approx(alone / 4, rel=1e-6)


def test_a_batch_has_a_limited_number_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (1, 20_000, 150_000, 300_001, 10**6, 10**8)
    assert [batch_size("cpu", pixels) for pixels in sizes] == [16, 16, 4, 1, 1, 1]
    assert [batch_size("cuda:0", pixels) for pixels in sizes] == [256, 256, 106, 53, 16, 1]
    monkeypatch.setenv("DREAMGRID_BATCH", "5")
    assert [batch_size(device, 10**6) for device in ("cpu", "cuda:0")] == [5, 5]


@pytest.mark.parametrize("nonsense", ["0", "-1", "two", "1.5"])
def test_a_malformed_batch_size_is_refused(monkeypatch: pytest.MonkeyPatch, nonsense: str) -> None:
    monkeypatch.setenv("DREAMGRID_BATCH", nonsense)
    with pytest.raises(InvalidInput, match=f"DREAMGRID_BATCH is '{nonsense}': give a number of dreams"):
        batch_size("cpu", 1)


@pytest.mark.parametrize(("asked", "found"), [({}, "1 256"), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}, "1 64")])
def test_a_worker_has_one_thread_and_a_small_onednn_cache(asked: dict[str, str], found: str) -> None:
    code = "import os; from flows.machine.worker_process import start_worker; start_worker(); "
    code += "print(os.environ['OMP_NUM_THREADS'], os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    env = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN")} | asked
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == found


STEPS = """
import resource, sys
from flows.machine.worker_process import disable_heap_trimming
if sys.argv[1] == "kept":
    disable_heap_trimming(8 * 2**30)  # the largest tensor has 59 MB, less than 1/64 of this
import torch
from dreamcore.models import load_network
torch.set_num_threads(1)
network, faults = load_network("efficientnet_lite0"), []
for _ in range(6):
    picture = torch.rand(1, 3, 640, 960, requires_grad=True)
    network.activations(picture, ["blocks.1"])["blocks.1"].square().mean().backward()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(min(after - before for before, after in zip(faults, faults[1:])))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_a_step_reuses_the_memory_of_the_previous_step() -> None:
    def page_faults(how: str) -> int:
        command = [sys.executable, "-c", STEPS, how]
        run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True)
        return int(run.stdout)

    assert 10 * page_faults("kept") < page_faults("returned") > 20_000


HOLES = """
from pathlib import Path
from flows.machine.worker_process import trim_heap, disable_heap_trimming

def resident():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])

disable_heap_trimming(2**40)
blocks = [bytearray(2**20) for _ in range(200)]
last = bytearray(2**20)  # lies above the blocks, so that they leave holes
full = resident()
del blocks
kept = resident()
trim_heap()
print(full - kept, kept - resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_unused_memory_is_returned_after_a_shard() -> None:
    command = [sys.executable, "-c", HOLES]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    freed_immediately, freed_by_trim = map(int, run.stdout.split())
    assert freed_immediately < 50_000, "KiB; the memory is kept until trim_heap"
    assert freed_by_trim > 150_000
