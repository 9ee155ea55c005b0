"""The CPU and memory limits of this process's control groups (cgroups): the limits of a container, a pod or a service.

A limit may be set at any level, so every control group from the process's own up to the root is read. Versions 1 and 2
are supported, and machines that mount both. On other systems than Linux there are no limits.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["CgroupLimits", "read_limits"]

_SELF = Path("/proc/self")
_CONTROLLERS = {"cpu", "cpuset", "memory"}
_UNLIMITED = 2**60
"""Version 1 writes a number near 2**63 if memory is not limited."""


@dataclass(frozen=True)
class CgroupLimits:
    """The tightest limits of the control groups of a process. None means unlimited."""

    cores: int | None
    """Cores: the CPU quota, rounded up, or the size of the cpuset if it is smaller. At least 1."""
    memory: int | None
    """Memory in bytes."""


def read_limits(process: Path = _SELF) -> CgroupLimits:
    """Return the limits of a process.

    Args:
        process: the folder of the process in `/proc`. Its file `mountinfo` says where control groups are mounted.
    """
    groups = list(_groups(process))
    cores = [count for group in groups for count in (_quota(group), _cpuset(group)) if count]
    memory = [size for group in groups if (size := _memory(group))]
    return CgroupLimits(min(cores, default=None), min(memory, default=None))


def _groups(process: Path) -> Iterator[Path]:
    """Yield the folders of the control groups of a process, each followed by its parents up to the mount point."""
    try:
        memberships = _decode(process / "cgroup").splitlines()
        mounts = [line.split() for line in _decode(process / "mountinfo").splitlines()]
    except OSError:
        return
    for fields in mounts:
        # 36 35 98:0 ROOT MOUNT_POINT OPTIONS [TAGS] - TYPE SOURCE SUPER_OPTIONS
        root, mount_point = (_unescape(field) for field in fields[3:5])
        kind, *_, options = fields[fields.index("-") + 1 :]
        if kind not in ("cgroup", "cgroup2"):
            continue
        mounted = set(options.split(",")) & _CONTROLLERS if kind == "cgroup" else {""}
        for membership in memberships:
            _, controllers, path = membership.split(":", 2)
            if mounted & set(controllers.split(",")):
                yield from _up_to_mount_point(Path(mount_point), root, path)


def _up_to_mount_point(mount_point: Path, root: str, path: str) -> Iterator[Path]:
    """Yield the folder of a control group and of its parents.

    Args:
        mount_point: where the hierarchy is mounted.
        root: the control group that is at the mount point.
        path: the control group of the process. In a container, it may lie outside `root`.
    """
    inside = PurePosixPath(path)
    relative = inside.relative_to(root) if inside.is_relative_to(root) else PurePosixPath(path.lstrip("/"))
    folder = mount_point if ".." in relative.parts else mount_point / relative
    yield from (each for each in (folder, *folder.parents) if each.is_relative_to(mount_point))


def _quota(group: Path) -> int | None:
    """Return the CPU quota of one control group in cores, rounded up; None if it has none."""
    quota, *rest = _words(group / "cpu.max") or [_word(group / "cpu.cfs_quota_us"), _word(group / "cpu.cfs_period_us")]
    period = next(iter(rest), "")
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None  # "max" and "-1" mean no quota
    return math.ceil(int(quota) / int(period))


def _cpuset(group: Path) -> int | None:
    """Return the number of CPUs that one control group may use; None if it may use all."""
    for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
        if ranges := _word(group / name):
            bounds = re.findall(r"(\d+)(?:-(\d+))?", ranges)  # such as 0-3,7
            return sum(int(last or first) - int(first) + 1 for first, last in bounds) or None
    return None


def _memory(group: Path) -> int | None:
    """Return the memory limit of one control group in bytes; None if it has none."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        size = _word(group / name)
        if size.isdecimal() and 0 < int(size) < _UNLIMITED:
            return int(size)
    return None


def _words(file: Path) -> list[str]:
    """Return the words in a file; an empty list if it cannot be read."""
    try:
        return _decode(file).split()
    except OSError:
        return []


def _word(file: Path) -> str:
    return next(iter(_words(file)), "")


def _decode(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="surrogateescape")


def _unescape(field: str) -> str:
    """Return a path of `mountinfo`, in which spaces and backslashes are octal numbers."""
    for character in " \t\n\\":
        field = field.replace(f"\\{ord(character):03o}", character)
    return field
