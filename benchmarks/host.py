"""The machine and the versions of a measurement."""

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from flows.machine.machine import core_count


def processor() -> str:
    """Return the name of the processor, as precisely as the system reports it."""
    information = Path("/proc/cpuinfo")
    found = (
        re.search(r"^model name\s*:\s*(.+)", information.read_text(), re.MULTILINE) if information.exists() else None
    )
    return found[1].strip() if found else platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """Return the machine, the versions, and the load at the time of the call."""
    return {
        "processor": processor(),
        "cores": core_count(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
