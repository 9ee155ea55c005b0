"""Fixtures of the whole suite: the real servers, started once, and S3 prefixes for each test.

Markers: tests that need the servers or start the command are marked `servers` automatically. `slow` is set by hand on
other tests that take seconds. `make check` leaves out both.
"""

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from flows.local import stack as embedded
from flows.local.stack import Stack
from flows.results.redream import threads
from flows.s3.storage import Storage
from tests.support.command import DREAMGRID, Command

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker of pytest-xdist has a core. Threads of several processes that share cores wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Children stop at Ctrl-C even if the process that runs the tests ignores it, as background jobs of a shell do.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A pause of the machine must not count as a slow example.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


LONGEST = (
    *("test_stops", "test_kills", "test_ray", "test_prune_kills", "test_compact_kills", "test_collection"),
    *("test_alerts", "test_deployments", "test_old_destination", "test_faults", "test_counts", "test_estimate"),
)
"""Files with the longest tests. They start first, so that no process is idle while another one ends with them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the servers or the command, and put the longest tests first."""
    for item in items:
        if {"stack", "dreamgrid"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.servers)
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache for the tests of this process, so that they neither read nor write the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack; the environment of this process points to it."""
    folder = tmp_path_factory.mktemp("stack") / ".dreamgrid"
    with pytest.MonkeyPatch.context() as patch:
        running = embedded.up(folder)
        for name, value in running.environment().items():
            patch.setenv(name, value)
        patch.setenv("DREAMGRID_WORKERS", "1")  # in short runs, a second worker starts too slowly to help
        try:
            yield running
        finally:
            embedded.down(folder)


@pytest.fixture
def storage(stack: Stack) -> Storage:
    """Access to the S3 server of the stack."""
    return Storage(environment=stack.environment())


@pytest.fixture
def source(request: pytest.FixtureRequest, storage: Storage) -> str:
    """An empty source prefix for this test alone."""
    storage.create_bucket("s3://photos")
    return f"s3://photos/{request.node.name}/"


@pytest.fixture
def destination(request: pytest.FixtureRequest, storage: Storage) -> str:
    """An empty destination for this test alone."""
    storage.create_bucket("s3://dreams")
    return f"s3://dreams/{request.node.name}/"


@pytest.fixture
def dreamgrid(tmp_path: Path) -> Command:
    """Return a function that runs the command in a folder of its own, with `env` over this process's environment."""

    def run(*arguments: str, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [DREAMGRID, *arguments],
            cwd=tmp_path,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch use one thread. On a busy machine, several threads need up to ten times longer for a small image."""
    with threads(1):
        yield


@pytest.fixture
def prefect_api(stack: Stack) -> Callable[[str, dict[str, Any]], Any]:
    """Return a function that sends a filter to a path of the Prefect server's API and returns what was found."""

    def ask(path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{stack.environment()['PREFECT_API_URL']}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    return ask
