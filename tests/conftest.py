"""The real servers of the suite, started once: SeaweedFS and Prefect, and an S3 prefix of its own for each test."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from flows.local import stack as embedded
from flows.local.stack import Stack
from flows.storage import Storage

REPOSITORY = Path(__file__).parents[1]
PHOTOS = REPOSITORY / "examples" / "photos"
DREAMGRID = Path(sys.executable).with_name("dreamgrid")

# Children stop at Ctrl-C, also where whoever runs the tests ignores it, as a shell's background does.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that stalls for a second has found no example that fails.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack, to which this process's environment points."""
    folder = tmp_path_factory.mktemp("stack") / ".dreamgrid"
    with pytest.MonkeyPatch.context() as patch:
        running = embedded.up(folder)
        for name, value in running.environment().items():
            patch.setenv(name, value)
        patch.setenv("DREAMGRID_WORKERS", "2")
        try:
            yield running
        finally:
            embedded.down(folder)


@pytest.fixture
def storage(stack: Stack) -> Storage:
    """The stack's S3."""
    return Storage(environment=stack.environment())


@pytest.fixture
def source(request: pytest.FixtureRequest, storage: Storage) -> str:
    """An empty source prefix of this test's own."""
    storage.create_bucket("s3://photos")
    return f"s3://photos/{request.node.name}/"


@pytest.fixture
def destination(request: pytest.FixtureRequest, storage: Storage) -> str:
    """An empty destination of this test's own."""
    storage.create_bucket("s3://dreams")
    return f"s3://dreams/{request.node.name}/"


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def dreamgrid(tmp_path: Path) -> Command:
    """The command, run in a folder of its own; the environment is the caller's, with `env` over it."""

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


@pytest.fixture
def prefect_api(stack: Stack) -> Callable[[str, dict[str, Any]], Any]:
    """A question to the Prefect server's API: a path and a filter, answered with what it found."""

    def ask(path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{stack.environment()['PREFECT_API_URL']}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    return ask
