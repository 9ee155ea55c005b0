"""The limits of control groups, read from trees of files as the kernel shows them."""

import os
from pathlib import Path

import pytest

from flows.machine import machine
from flows.machine.cgroups import CgroupLimits, read_limits

GIB = 2**30
UNLIMITED = str(2**63 - 4096)
V1 = ("cpu,cpuacct", "cpuset", "memory")

Tree = dict[str, str]
"""Text by path, below the folder where control groups are mounted."""


def process_of(folder: Path, groups: str, mounts: list[tuple[str, str, str]], tree: Tree) -> Path:
    """Write a process and its control groups, and return the folder of the process.

    Args:
        folder: where to write.
        groups: the file `cgroup` of the process.
        mounts: root, mount point below `cgroup/` and controllers of each hierarchy; version 2 has no controllers.
        tree: the files of the control groups.
    """
    for name, text in tree.items():
        file = folder / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    process = folder / "proc"
    process.mkdir()
    (process / "cgroup").write_text(groups)
    lines = ["22 1 254:0 / / rw - ext4 /dev/root rw"]
    for root, place, controllers in mounts:
        kind = "cgroup" if controllers else "cgroup2"
        point = str(folder / "cgroup" / place).replace(" ", "\\040")
        lines.append(f"30 22 0:26 {root} {point} rw,nosuid shared:9 - {kind} {kind} rw,{controllers or 'nsdelegate'}")
    (process / "mountinfo").write_text("\n".join(lines) + "\n")
    return process


@pytest.mark.parametrize(
    ("path", "tree", "cores", "memory"),
    [
        ("/", {"cpu.max": "200000 100000", "memory.max": str(GIB)}, 2, GIB),
        ("/", {"cpu.max": "150000 100000"}, 2, None),
        ("/", {"cpu.max": "10000 100000"}, 1, None),
        ("/", {"cpu.max": "max 100000", "memory.max": "max"}, None, None),
        ("/", {}, None, None),
        ("/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "max 100000"}, 3, None),
        ("/a/b", {"a/b/memory.max": str(2 * GIB), "a/memory.max": str(GIB), "c/memory.max": "1"}, None, GIB),
        ("/a/b", {"a/b/cpu.max": "400000 100000", "a/b/cpuset.cpus.effective": "0-1,7"}, 3, None),
        ("/a/b", {"a/b/cpuset.cpus.effective": "5", "cpuset.cpus.effective": "0-63"}, 1, None),
        ("/../other", {"cpu.max": "200000 100000"}, 2, None),
        ("/not/mounted/here", {"cpu.max": "200000 100000"}, 2, None),
    ],
)
def test_the_tightest_limit_from_the_own_group_up_to_the_root_of_version_2(
    path: str, tree: Tree, cores: int | None, memory: int | None, tmp_path: Path
) -> None:
    assert read_limits(process_of(tmp_path, f"0::{path}\n", [("/", "", "")], tree)) == CgroupLimits(cores, memory)


@pytest.mark.parametrize(
    ("root", "path", "tree", "cores", "memory"),
    [
        ("/", "/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "memory/memory.limit_in_bytes": UNLIMITED}, None, None),
        (
            "/",
            "/kubepods/pod1/c",
            {
                "cpu,cpuacct/kubepods/pod1/c/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/kubepods/pod1/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/kubepods/pod1/cpu.cfs_period_us": "100000",
                "memory/kubepods/pod1/memory.limit_in_bytes": str(GIB),
                "memory/kubepods/pod1/c/memory.limit_in_bytes": UNLIMITED,
            },
            2,
            GIB,
        ),
        (  # a container that sees only its own group, with the path of the host
            "/docker/c",
            "/docker/c/inner",
            {
                "cpu,cpuacct/inner/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/inner/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": str(GIB),
                "cpuset/inner/cpuset.cpus": "0-3",
            },
            3,
            GIB,
        ),
        ("/docker/c", "/", {"cpuset/cpuset.effective_cpus": "2-3"}, 2, None),
    ],
    ids=["unlimited", "pod", "container", "namespace"],
)  # fmt: skip
def test_limits_of_version_1(
    root: str, path: str, tree: Tree, cores: int | None, memory: int | None, tmp_path: Path
) -> None:
    groups = "".join(f"{number}:{names}:{path}\n" for number, names in enumerate(V1, 2)) + f"1:name=systemd:{path}\n"
    process = process_of(tmp_path, groups, [(root, names, names) for names in V1], tree)
    assert read_limits(process) == CgroupLimits(cores, memory)


def test_limits_of_a_machine_that_mounts_both_versions(tmp_path: Path) -> None:
    tree = {"memory v1/x/memory.limit_in_bytes": str(GIB), "unified/y/cpu.max": "100000 100000"}
    mounts = [("/", "memory v1", "memory"), ("/", "unified", "")]
    process = process_of(tmp_path, "4:memory:/x\n0::/y\n", mounts, tree)
    assert read_limits(process) == CgroupLimits(1, GIB)


def test_a_process_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == CgroupLimits(None, None)
    assert read_limits() == read_limits(Path("/proc/self"))


def test_a_pod_of_two_cpus_on_64_cores_starts_two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"pod/cpu.max": "200000 100000", "pod/memory.max": str(4 * GIB)}
    process = process_of(tmp_path, "0::/pod/container\n", [("/", "", "")], tree)
    monkeypatch.setattr(machine, "read_limits", lambda: read_limits(process))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)))
    monkeypatch.setattr(os, "environ", {"CUDA_VISIBLE_DEVICES": ""})
    assert machine.worker_count() == 2
    assert machine.max_memory("cpu") == pytest.approx(4 * GIB * machine.RAM_SHARE / 2, rel=1e-6)
    machine.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    assert machine.worker_count() == 1
