"""A run on a Ray cluster of three nodes: killed workers, machines, coordinators and heads, and stopped runs."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from ray.exceptions import RayTaskError, WorkerCrashedError

from dreamcore.errors import InvalidInput, Unavailable
from flows.jobs.job import DreamJob
from flows.jobs.job_options import ExecutorOptions
from flows.local.ray_nodes import RayNodes, ray_nodes
from flows.local.stack import Stack
from flows.running import executors
from flows.running.ray_cluster import RayCluster
from flows.running.ray_worker import TaskResources
from flows.s3.storage import Storage
from tests.support.command import DREAMGRID, Command
from tests.support.decoding import wait_until
from tests.support.kills import Observer, put_photographs

GRID = {"layers": ["blocks.0", "blocks.1"], "octaves": [2], "steps": [60]}
REMOTE_SECONDS = 30
"""A stopped run leaves no process on the cluster after this time."""

FROZEN_SECONDS = 150
"""A run of some seconds ends after this time if one of its machines is frozen."""

LOST = "dreamgrid: the head of the Ray cluster does not answer: start the cluster again"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def nodes(stack: Stack) -> Iterator[RayNodes]:
    """Three nodes with one CPU each. They share nothing with the tests but S3, the Prefect API and Ray's port."""
    with ray_nodes(3) as running:
        yield running


@pytest.fixture
def start(nodes: RayNodes, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts `dreamgrid run` as the leader of a process group, which ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def popen(*arguments: str) -> subprocess.Popen[str]:
        command = [str(DREAMGRID), "run", *arguments]
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        )
        return started[-1]

    yield popen
    for command in started:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
        command.communicate()


def workers(nodes: RayNodes) -> list[int]:
    """Return the processes of all nodes that run a shard, or have run one."""
    found = []
    for pid in [pid for node in nodes.nodes for pid in node.processes()]:
        with suppress(OSError):  # it ended
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith((b"ray::run_shard", b"ray::IDLE")):
                found.append(pid)
    return found


def await_more(observer: Observer, command: subprocess.Popen[str]) -> None:
    """Wait until there are more dreams."""
    observer.look()
    before = len(observer.dreams)
    while len(observer.dreams) == before:
        assert command.poll() is None, command.communicate()
        time.sleep(0.1)
        observer.look()


def write_job(folder: Path, source: str, destination: str, **grid: object) -> DreamJob:
    job = DreamJob.model_validate({"source": source, "destination": destination, "grid": GRID | grid})
    (folder / "job.yaml").write_text(job.model_dump_json(exclude={"executor"}))
    return job


def check_completed(command: subprocess.Popen[str], observer: Observer, job: DreamJob, *, timeout: float = 300) -> None:
    """Wait until the command has finished the run, and check that each dream is there once."""
    output, errors = command.communicate(timeout=timeout)
    assert command.returncode == 0, errors
    report = json.loads(output)  # Ray prints nothing on standard output
    assert report["failed"] == report["skipped"] == 0
    observer.check_finished(job)


def test_lost_workers_and_machines_lose_no_dream(
    stack: Stack, storage: Storage, source: str, destination: str, nodes: RayNodes, start: Start, tmp_path: Path
) -> None:
    put_photographs(storage, source, 16)
    job = write_job(tmp_path, source, destination)
    observer = Observer(storage, job.destination)
    command = start("job.yaml", "--ray", nodes.address, "--json")
    await_more(observer, command)
    os.kill(workers(nodes)[0], signal.SIGKILL)
    await_more(observer, command)
    nodes.nodes.pop().kill()
    nodes.add()
    check_completed(command, observer, job)


@pytest.mark.soak
def test_twenty_random_losses(
    stack: Stack, storage: Storage, source: str, destination: str, nodes: RayNodes, start: Start, tmp_path: Path
) -> None:
    put_photographs(storage, source, 100)
    # Long dreams, so that the run is not finished before the last loss.
    job = write_job(tmp_path, source, destination, layers=["blocks.0", "blocks.1", "blocks.2"], steps=[1000])
    observer, draw = Observer(storage, job.destination), Random(13)
    on_cluster = ("job.yaml", "--ray", nodes.address, "--json")
    command = start(*on_cluster)
    for _ in range(20):
        await_more(observer, command)
        match draw.choice(("worker", "worker", "node", "coordinator")):
            case "worker":
                while not (found := workers(nodes)):  # Ray may be starting new ones
                    assert command.poll() is None, command.communicate()
                    time.sleep(0.1)
                with suppress(ProcessLookupError):
                    os.kill(draw.choice(found), signal.SIGKILL)
            case "node":
                nodes.nodes.pop().kill()
                nodes.add()
            case _:
                os.killpg(command.pid, signal.SIGKILL)
                command.communicate(timeout=60)
                command = start(*on_cluster)
    check_completed(command, observer, job, timeout=1800)


@pytest.mark.soak
def test_the_shard_of_a_frozen_machine_runs_again(
    stack: Stack, storage: Storage, source: str, destination: str, nodes: RayNodes, start: Start, tmp_path: Path
) -> None:
    put_photographs(storage, source, 16)
    job = write_job(tmp_path, source, destination)
    observer = Observer(storage, job.destination)
    command = start("job.yaml", "--ray", nodes.address, "--json")
    await_more(observer, command)
    frozen = nodes.nodes[-1].processes()
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        check_completed(command, observer, job, timeout=FROZEN_SECONDS)
    finally:
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


MISSING = ModuleNotFoundError("No module named 'flows'")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (WorkerCrashedError(), "the Ray cluster failed: The worker died unexpectedly"),
        (
            RayTaskError("run_shard", "a traceback", MISSING, "worker", 1, "::1"),  # type: ignore[no-untyped-call]
            "a process of the Ray cluster failed (ModuleNotFoundError: No module named 'flows'): correct",
        ),
        (KeyboardInterrupt(), None),
        (Unavailable("S3 failed"), None),
    ],
)
def test_errors_of_ray_become_one_line(error: BaseException, message: str | None) -> None:
    explained = RayCluster(TaskResources(1, 0)).explain(error)
    assert (explained is None) if message is None else str(explained).startswith(message)
    assert "\n" not in str(explained)


def test_without_the_extra_the_message_names_it(dreamgrid_inprocess: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "find_spec", lambda _: None)
    run = dreamgrid_inprocess("run", "--source=s3://a/", "--destination=s3://b/", "--ray=auto")
    assert run.returncode == 2
    assert "Ray is not installed: run `pip install 'dreamgrid[ray]'`" in run.stderr


def test_an_address_without_a_cluster_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"no Ray cluster at 127.0.0.1:1 \(.*refused\): start one"):
        executors.check_executor(ExecutorOptions(name="ray", address="127.0.0.1:1"))


def test_a_run_on_ray_has_no_number_of_workers(dreamgrid_inprocess: Command) -> None:
    run = dreamgrid_inprocess("run", "--source=s3://a/", "--destination=s3://b/", "--ray=auto", "--workers=2")
    assert run.returncode == 2
    assert "--workers sets the processes of this machine" in run.stderr


@pytest.mark.parametrize(
    ("cpus", "gpus", "node", "tasks"),
    [
        (1, 0, {"CPU": 8.0}, 8),
        (3, 0, {"CPU": 8.0}, 2),
        (0.1, 0, {"CPU": 1.0}, 10),
        (1, 1, {"CPU": 8.0, "GPU": 2.0}, 2),
        (1, 1, {"CPU": 1.0, "GPU": 2.0}, 1),
        (1, 0.5, {"CPU": 8.0, "GPU": 2.0}, 4),
        (1, 0.4, {"CPU": 8.0, "GPU": 2.0}, 4),
        (1, 1, {"CPU": 8.0}, 0),
        (1, 0, {"memory": 1.0}, 0),
    ],
)
def test_a_node_runs_as_many_tasks_as_its_resources_allow(
    cpus: float, gpus: float, node: dict[str, float], tasks: int
) -> None:
    assert TaskResources(cpus, gpus).tasks_on(node) == tasks


def stop_on_cluster(
    start: Start, nodes: RayNodes, observer: Observer, stop: Callable[[int, int], None], number: int, code: int
) -> None:
    """Start the job of `write_job` on the cluster, stop it by a signal, and check what it leaves."""
    command = start("job.yaml", "--ray", nodes.address)
    await_more(observer, command)
    stop(command.pid, number)
    errors = command.communicate(timeout=60)[1]
    assert command.returncode == code, errors
    assert code < 0 or "to resume the run" in errors
    wait_until(lambda: not workers(nodes), REMOTE_SECONDS)


def finish_on_this_machine(start: Start, observer: Observer, job: DreamJob) -> None:
    """Resume the job in processes of this machine."""
    check_completed(start("job.yaml", "--json"), observer, job)


def test_stopped_runs_leave_nothing_on_the_cluster_and_are_resumed(
    stack: Stack, storage: Storage, source: str, destination: str, nodes: RayNodes, start: Start, tmp_path: Path
) -> None:
    put_photographs(storage, source, 16)
    job = write_job(tmp_path, source, destination)
    observer = Observer(storage, job.destination)
    stop_on_cluster(start, nodes, observer, os.killpg, signal.SIGKILL, -9)
    stop_on_cluster(start, nodes, observer, os.kill, signal.SIGINT, 3)
    finish_on_this_machine(start, observer, job)


@pytest.mark.soak
def test_a_terminated_run_and_a_run_without_its_head_are_resumed(
    stack: Stack, storage: Storage, source: str, destination: str, nodes: RayNodes, start: Start, tmp_path: Path
) -> None:
    """The last test of this file, because it kills the head."""
    put_photographs(storage, source, 16)
    job = write_job(tmp_path, source, destination)
    observer = Observer(storage, job.destination)
    stop_on_cluster(start, nodes, observer, os.killpg, signal.SIGTERM, 3)
    command = start("job.yaml", "--ray", nodes.address)
    await_more(observer, command)
    nodes.nodes[0].kill()
    errors = command.communicate(timeout=120)[1]
    assert command.returncode == 3, errors
    assert [line for line in errors.splitlines() if "Ray" in line] == [LOST]
    finish_on_this_machine(start, observer, job)
