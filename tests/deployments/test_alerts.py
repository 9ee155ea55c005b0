"""The automations in deployments/automations: a real Prefect server posts to a webhook on loopback."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Crashed, Failed, Running, Scheduled

from flows.dream_collection import dream_collection, final_state
from flows.form import dream_from_form
from flows.job import DreamJob
from flows.local.stack import Stack
from flows.run_record import Report

AUTOMATIONS = Path(__file__).parents[2] / "deployments" / "automations"
POOL = "dreamgrid-alerts"
PLACES = {
    "run_id": "run",
    "state": "completed",
    "source": "s3://photos/",
    "destination": "s3://dreams/",
    "manifest": "s3://dreams/manifest/",
}
SOON = 10
"""The shortest time in seconds that a trigger can wait for an event."""


class Receiver:
    """A webhook that keeps the texts posted to it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        texts = self.texts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                texts.append(json.loads(body)["text"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    def about(self, name: str) -> list[str]:
        return [text for text in self.texts if f": {name}\n" in text]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(stack.environment()["PREFECT_API_URL"], httpx_settings={"trust_env": False}) as client:
        yield client


@pytest.fixture(scope="module")
def pool(client: SyncPrefectClient) -> Iterator[str]:
    client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    try:
        yield POOL
    finally:
        client.delete_work_pool(POOL)


@pytest.fixture(scope="module")
def alerts(
    client: SyncPrefectClient, receiver: Receiver, pool: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Apply the automations twice, with short waiting times, and delete them afterwards."""
    automations = yaml.safe_load((AUTOMATIONS / "alerts.yaml").read_bytes())
    for automation in automations["automations"]:
        if "within" in automation["trigger"]:
            automation["trigger"]["within"] = SOON
    file = tmp_path_factory.mktemp("alerts") / "alerts.yaml"
    file.write_text(yaml.safe_dump(automations))
    try:
        assert apply(receiver.url, file).count("created") == len(automations["automations"])
        assert apply(receiver.url, file).count("updated") == len(automations["automations"])
        yield
    finally:
        for automation in client.read_automations():
            client.delete_automation(automation.id)


def apply(target: str, file: Path) -> str:
    command = [sys.executable, str(AUTOMATIONS / "apply.py"), target, "--file", str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def ended(done: int, failed: int) -> State[Any]:
    """Return the final state that the flow gives a run with these counts, without the report in it."""
    job = DreamJob(source="s3://photos/", destination="s3://dreams/")
    counts = {"planned": done + failed, "done": done, "failed": failed, "failures": {"damaged": failed}}
    report = Report.model_validate({**PLACES, **counts})
    return final_state(job, report).model_copy(update={"data": None})


def flow_run(client: SyncPrefectClient, state: State[Any]) -> FlowRun:
    """Create a run and give it a state."""
    run = client.create_flow_run(dream_collection, parameters={}, state=Running())
    if not state.is_running():
        client.set_flow_run_state(run.id, state)
    return run


def send_heartbeat(stack: Stack, run: FlowRun) -> None:
    """Send the event that the engine of Prefect sends from the process of a run."""
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name},
        "related": [
            {
                "prefect.resource.id": f"prefect.flow.{run.flow_id}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": dream_collection.name,
            }
        ],
    }
    httpx.post(f"{stack.prefect_url}/api/events", json=[event], trust_env=False).raise_for_status()


def test_every_alert_names_the_run_its_state_a_message_and_a_link(
    stack: Stack, client: SyncPrefectClient, alerts: None, receiver: Receiver, pool: str
) -> None:
    # A worker reports once and then never again.
    client.send_worker_heartbeat(pool, "worker", heartbeat_interval_seconds=1)

    expected: dict[str, tuple[str, str]] = {}
    states: list[State[Any]] = [
        ended(done=0, failed=3),
        Failed(name="TimedOut", message="too slow"),
        Crashed(message="stopped by a signal"),
        ended(done=4, failed=2),
    ]
    for state in states:
        run = flow_run(client, state)
        expected[run.name] = (f"State: {state.name}\nMessage: {state.message}\n", f"/runs/flow-run/{run.id}")

    # A run sends a heartbeat, and then its machine is lost.
    lost = flow_run(client, Running())
    send_heartbeat(stack, lost)
    expected[lost.name] = ("State: Crashed\nMessage: No heartbeat for ten minutes.", f"/runs/flow-run/{lost.id}")

    # No worker starts a run at its time.
    deployment = client.create_deployment(client.create_flow(dream_from_form), "late", work_pool_name=pool)
    late = client.create_flow_run_from_deployment(deployment, state=Scheduled(scheduled_time=datetime.now(UTC)))
    expected[late.name] = ("State: Late\n", f"/runs/flow-run/{late.id}")

    expected[pool] = ("State: not ready\nMessage: No Prefect worker reports", f"/work-pools/work-pool/{pool}")

    fine = flow_run(client, Completed(message="3 done"))
    other = client.create_flow_run(flow(name="another-flow")(lambda: None), state=Failed(message="another flow"))

    deadline = time.monotonic() + 180
    while missing := [name for name in expected if not receiver.about(name)]:
        assert time.monotonic() < deadline, f"no alert about {missing}; {receiver.texts}"
        time.sleep(0.5)

    for name, (words, link) in expected.items():
        text, *others = receiver.about(name)
        assert not others or name == pool, "a new work pool is not ready either"
        assert words in text
        assert f"Link: {stack.prefect_url}{link}" in text
    assert not receiver.about(fine.name)
    assert not receiver.about(other.name)
    client.delete_deployment(deployment)
