"""The automations in deployments/automations: a real Prefect server posts to a webhook on loopback."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Completed, Crashed, Failed, Running, Scheduled

from flows.destination.run_report import Report
from flows.dream_collection import dream_collection, final_state
from flows.form import dream_from_form
from flows.jobs.job import DreamJob
from flows.local.stack import Stack
from flows.s3.storage import Storage
from tests.support.command import DREAMGRID, Command, await_end_of_group
from tests.support.kills import put_photographs
from tests.support.relay import relay

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
) -> Iterator[Path]:
    """Apply the automations twice, with short waiting times, yield their file, and delete them afterwards."""
    automations = yaml.safe_load((AUTOMATIONS / "alerts.yaml").read_bytes())
    for automation in automations["automations"]:
        if "within" in automation["trigger"]:
            automation["trigger"]["within"] = SOON
    file = tmp_path_factory.mktemp("alerts") / "alerts.yaml"
    file.write_text(yaml.safe_dump(automations))
    with applied(client, receiver, file) as count:
        assert count == len(automations["automations"])
        assert apply(receiver.url, file).count("updated") == count
        yield file


@contextmanager
def applied(client: SyncPrefectClient, receiver: Receiver, file: Path) -> Iterator[int]:
    """Apply the automations of a file, yield their number, and delete them afterwards."""
    before = {automation.id for automation in client.read_automations()}
    try:
        yield apply(receiver.url, file).count("created")
    finally:
        for automation in client.read_automations():
            if automation.id not in before:
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
    """Create a run and give it a final state."""
    run = client.create_flow_run(dream_collection, parameters={}, state=Running())
    client.set_flow_run_state(run.id, state)
    return run


def test_every_alert_names_the_run_its_state_a_message_and_a_link(
    stack: Stack,
    client: SyncPrefectClient,
    alerts: Path,
    receiver: Receiver,
    pool: str,
    storage: Storage,
    source: str,
    destination: str,
    tmp_path: Path,
) -> None:
    # A worker reports once and then never again.
    client.send_worker_heartbeat(pool, "worker", heartbeat_interval_seconds=1)
    expected = {pool: ("State: not ready\nMessage: No Prefect worker reports", f"/work-pools/work-pool/{pool}")}

    states: list[State[Any]] = [
        ended(done=0, failed=3),
        Failed(name="TimedOut", message="too slow"),
        Crashed(message="stopped by a signal"),
        ended(done=4, failed=2),
    ]
    for state in states:
        run = flow_run(client, state)
        expected[run.name] = (f"State: {state.name}\nMessage: {state.message}\n", f"/runs/flow-run/{run.id}")

    # No worker starts a run at its time.
    deployment = client.create_deployment(client.create_flow(dream_from_form), "late", work_pool_name=pool)
    late = client.create_flow_run_from_deployment(deployment, state=Scheduled(scheduled_time=datetime.now(UTC)))
    expected[late.name] = ("State: Late\n", f"/runs/flow-run/{late.id}")

    fine = flow_run(client, Completed(message="3 done"))
    other = client.create_flow_run(flow(name="another-flow")(lambda: None), state=Failed(message="another flow"))

    # All processes of a run are killed after it has sent a heartbeat.
    put_photographs(storage, source, 4)
    with long_run(source, destination, tmp_path):
        lost = await_heartbeat(stack, client, destination)
    expected[lost.name] = ("State: Crashed\nMessage: No heartbeat for 90 seconds.", f"/runs/flow-run/{lost.id}")

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
    assert client.read_flow_run(lost.id).state_type is StateType.CRASHED
    client.delete_deployment(deployment)


@pytest.mark.soak
def test_a_lost_run_is_crashed_within_two_minutes_and_a_healthy_one_is_not(
    stack: Stack,
    client: SyncPrefectClient,
    receiver: Receiver,
    storage: Storage,
    source: str,
    destination: str,
    tmp_path: Path,
) -> None:
    """All processes of one run are killed. At the same time the network of another run is down for 30 seconds."""
    put_photographs(storage, source, 40)
    places = {name: f"{destination}{name}/" for name in ("lost", "healthy")}
    with (
        applied(client, receiver, AUTOMATIONS / "alerts.yaml"),
        relay(stack.servers[1].ports["http"]) as network,
        long_run(source, places["healthy"], tmp_path, f"http://127.0.0.1:{network.port}/api") as command,
    ):
        with long_run(source, places["lost"], tmp_path):
            lost, healthy = (await_heartbeat(stack, client, place) for place in places.values())
            time.sleep(75)  # more heartbeats
        killed = time.monotonic()
        network.pause()
        time.sleep(30)
        network.resume()
        while client.read_flow_run(lost.id).state_type is not StateType.CRASHED:
            assert time.monotonic() < killed + 120
            time.sleep(0.5)
        print(f"Crashed {time.monotonic() - killed:.0f} s after kill -9")
        time.sleep(120)
        assert command.poll() is None
        assert client.read_flow_run(healthy.id).state_type is StateType.RUNNING
        assert [state.type for state in client.read_flow_run_states(healthy.id)].count(StateType.CRASHED) == 0


@contextmanager
def long_run(source: str, destination: str, folder: Path, api: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command with one worker process for minutes of work. At the end, kill all its processes with -9."""
    job = ["--source", source, "--destination", destination, "--layers", "blocks.4", "--steps", "2000"]
    environment = os.environ | {"DREAMGRID_WORKERS": "1"} | ({"PREFECT_API_URL": api} if api else {})
    command = subprocess.Popen(
        [DREAMGRID, "run", *job], cwd=folder, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield command
    finally:
        os.killpg(command.pid, signal.SIGKILL)
        command.wait()
        await_end_of_group(command.pid, 60)


def await_heartbeat(stack: Stack, client: SyncPrefectClient, destination: str) -> FlowRun:
    """Return the run of a destination after the server has received a heartbeat of it."""
    tags = FlowRunFilter.model_validate({"tags": {"all_": [destination.rstrip("/")]}})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.2)
        for run in client.read_flow_runs(flow_run_filter=tags):
            wanted = {
                "event": {"name": ["prefect.flow-run.heartbeat"]},
                "resource": {"id": [f"prefect.flow-run.{run.id}"]},
            }
            found = httpx.post(f"{stack.prefect_url}/api/events/filter", json={"filter": wanted}, trust_env=False)
            if found.json()["events"]:
                return run
    raise AssertionError("no heartbeat")


def test_automations_get_the_events_of_a_run(
    client: SyncPrefectClient,
    receiver: Receiver,
    storage: Storage,
    source: str,
    destination: str,
    dreamgrid: Command,
) -> None:
    put_photographs(storage, source, 1)
    for name in ("a", "b", "c"):
        storage.write(f"{source}{name}.jpg", b"<html>no photograph</html>", "image/jpeg")
    job = ["--source", source, "--destination", destination, "--max-failures", "1", "--octaves", "1", "--steps", "1"]
    with applied(client, receiver, AUTOMATIONS / "events.yaml") as count:
        assert count == 2
        report = json.loads(dreamgrid("run", *job, "--json", DREAMGRID_WORKERS="1").stdout)
        deadline = time.monotonic() + 60
        while len(texts := receiver.about(report["run_id"])) < 2:
            assert time.monotonic() < deadline, receiver.texts
            time.sleep(0.2)
    failures, finished = sorted(texts, key=lambda text: "finished" in text)
    assert finished.startswith(f"Dreamgrid: finished: {report['run_id']}\nDestination: {destination}\n")
    assert "State: Completed with failures\nDreams: 1 done, 3 failed: 3 not_an_image\n" in finished
    assert f"Contact sheets: {report['sheets']}\n" in finished
    assert failures.startswith(f"Dreamgrid: many failures: {report['run_id']}\nDestination: {destination}\n")
    assert '"not_an_image": ' in failures
    assert "/runs/flow-run/" in finished.splitlines()[-1]
    assert "/runs/flow-run/" in failures.splitlines()[-1]


def test_deployments_with_slow_heartbeats_are_named(
    client: SyncPrefectClient, alerts: Path, receiver: Receiver, pool: str
) -> None:
    flow_id = client.create_flow(dream_from_form)
    variables: dict[str, dict[str, Any]] = {"slow": {}, "fast": {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}}}
    deployments = [
        client.create_deployment(flow_id, name, work_pool_name=pool, job_variables=each)
        for name, each in variables.items()
    ]
    try:
        printed = apply(receiver.url, alerts)
    finally:
        for deployment in deployments:
            client.delete_deployment(deployment)
    assert "dream-collection/slow: its job variables do not set" in printed
    assert "dream-collection/fast" not in printed
