"""The memory of this process, as Linux counts it."""

import re
from pathlib import Path

__all__ = ["STATUS", "resident"]

STATUS = Path("/proc/self/status")


def resident(field: str) -> float:
    """Return the resident memory of this process in MiB: now (`VmRSS`) or its peak (`VmHWM`)."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found, f"{STATUS} has no {field}"
    return int(found[1]) / 1024
