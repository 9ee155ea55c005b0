"""A run on a Ray cluster of three nodes: killed workers, machines and coordinators, and stopped runs."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows.job import DreamJob
from flows.local.ray_nodes import RayNode, RayNodes, ray_nodes
from flows.local.stack import Stack
from flows.storage import Storage
from tests.support.command import DREAMGRID
from tests.support.decoding import wait_until
from tests.support.kills import Observer, put_photographs

GRID = {"layers": ["blocks.0", "blocks.1"], "octaves": [2], "steps": [30]}


@pytest.fixture(scope="module")
def nodes(stack: Stack) -> Iterator[RayNodes]:
    """Three nodes with one CPU each. They share nothing with the tests but S3, the Prefect API and Ray's port."""
    with ray_nodes(3) as running:
        yield running


def workers_of(node: RayNode) -> list[int]:
    """Return the processes of a node that run or have run a shard."""
    found = []
    for pid in node.processes():
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
                found.append(pid)
    return found
