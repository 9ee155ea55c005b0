"""Events are not needed: a run whose events do not reach the server completes."""

from collections.abc import Callable
from typing import Any

import pytest

from flows.local.stack import Stack
from flows.s3.storage import Storage
from tests.support.command import Command
from tests.support.faults import Fault, Proxy
from tests.support.kills import put_photographs


@pytest.mark.soak
def test_a_run_completes_without_the_event_system(
    stack: Stack,
    storage: Storage,
    source: str,
    destination: str,
    dreamgrid: Command,
    prefect_api: Callable[[str, dict[str, Any]], Any],
) -> None:
    put_photographs(storage, source, 3)
    job = ["--source", source, "--destination", destination, "--octaves", "1", "--steps", "1"]
    with Proxy(stack.prefect_url) as proxy:
        proxy.choose = lambda call: Fault.GONE if call.uri.endswith("/events/in") else None
        run = dreamgrid("run", *job, PREFECT_API_URL=f"http://127.0.0.1:{proxy.server_port}/api")
    assert run.returncode == 0, run.stderr
    assert "3 done" in run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert proxy.count(Fault.GONE)
    wanted = {"event": {"prefix": ["dreamgrid."]}, "resource": {"labels": {"dreamgrid.destination": destination}}}
    assert prefect_api("events/filter", {"filter": wanted})["events"] == []
