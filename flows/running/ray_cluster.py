"""A Ray cluster that dreams the shards of a run, through the task runner of prefect-ray."""

import atexit
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import ray
import ray._private.worker
from prefect.context import serialize_context
from prefect.settings import PREFECT_API_URL
from prefect_ray import RayTaskRunner
from prefect_ray.task_runners import PrefectRayFuture
from ray.exceptions import RayError, RayTaskError

from dreamcore.errors import InvalidInput, Unavailable
from flows.jobs.cost import CORE, GPU, Throughput
from flows.jobs.job_options import AUTO, ExecutorOptions
from flows.machine.prefetch import AnyFuture
from flows.machine.proxies import is_loopback
from flows.machine.terminal import one_line
from flows.running.ray_worker import PASSED_ON, TaskResources, run_shard

__all__ = ["RayCluster", "check_address", "open_cluster"]

CONNECT_SECONDS = 5.0
"""How long a connection to the address may take."""
WATCH_SECONDS = 2.0
LOST_SECONDS = 40.0
"""If the head does not answer for this long, the run stops. Ray would end this process after 60 s without a message."""
DISCONNECT_SECONDS = 5.0
"""How long to wait for Ray at the end of a run."""
MAX_RETRIES = 100
"""How often Ray repeats a shard whose process or machine dies. A shard that ends every process must not run forever."""


def check_address(address: str) -> None:
    """Check that something answers at the address of a cluster.

    Raises:
        InvalidInput: nothing answers.
    """
    if address == AUTO:  # Ray finds the address when it connects
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InvalidInput(_unreachable(address, error)) from error


def _unreachable(address: str, error: Exception) -> str:
    where = "on this machine" if address == AUTO else f"at {address}"
    return f"no Ray cluster {where} ({one_line(str(error))}): start one with `ray start`, or correct the address"


@contextmanager
def open_cluster(options: ExecutorOptions) -> Iterator["RayCluster"]:
    """Connect to a Ray cluster, and disconnect at the end of this block. Ray then ends what still runs there.

    Raises:
        InvalidInput: no cluster answers, or its machines cannot reach the Prefect server.
    """
    _connect(options.address)
    try:
        nodes = _alive_nodes()
        _check_prefect_url(nodes)
        cluster = RayCluster(_resources(options, nodes))
    except BaseException:
        _disconnect()
        raise
    with cluster:
        yield cluster


def _connect(address: str) -> None:
    """Connect this process to a cluster. Ray replaces the handler of SIGTERM, so all handlers are set again."""
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if is_main else {}
    try:
        with _without_native_messages():
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
        # Without this, Ray prints on standard output when a process or a machine dies.
        ray._private.worker.print_to_stdstream = _log_message
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InvalidInput(_unreachable(address, error)) from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _without_native_messages() -> Iterator[None]:
    """Drop what is written to file descriptor 2: Ray's core reports there that it has read RAY_BACKEND_LOG_LEVEL."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _disconnect() -> None:
    """Disconnect this process from its cluster. Ray waits forever for a head that is frozen, and is then left alone."""
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(DISCONNECT_SECONDS)
    if thread.is_alive():
        atexit.unregister(ray.shutdown)


def _log_message(data: Any, ignore_prefix: bool) -> None:  # noqa: ARG001 - the signature of Ray
    logging.getLogger(__name__).debug("%s", one_line(" ".join(data["lines"])))


def _alive_nodes() -> list[Mapping[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _check_prefect_url(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Check that the address of the Prefect server means the same server on every machine.

    Raises:
        InvalidInput: the server is on loopback, and the cluster has other machines.
    """
    url, here = PREFECT_API_URL.value(), ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    others = [host for node in nodes if (host := node["NodeManagerAddress"]) != here and not host.startswith("127.")]
    if url and others and is_loopback(httpx.URL(url).host):
        raise InvalidInput(
            "the other machines of the Ray cluster cannot reach a Prefect server on loopback: set PREFECT_API_URL to a "
            "server that all of them reach"
        )


def _resources(options: ExecutorOptions, nodes: Sequence[Mapping[str, Any]]) -> TaskResources:
    """Return what each task gets. By default it gets a GPU if the cluster has one."""
    gpus = options.gpus
    if gpus is None:
        gpus = 1.0 if any(node["Resources"].get("GPU") for node in nodes) else 0.0
    variables = tuple((name, os.environ[name]) for name in PASSED_ON if os.environ.get(name))
    return TaskResources(options.cpus, gpus, variables)


class RayCluster(RayTaskRunner[Any]):  # type: ignore[misc]  # prefect-ray has no types
    """The cluster to which this process is connected; see `flows.running.executors.WorkerPool`.

    Args:
        resources: what each task gets.
    """

    is_remote = True

    def __init__(self, resources: TaskResources) -> None:
        super().__init__()
        self._resources = resources
        self._watch = _Watch(resources)
        self._context: dict[str, Any] = {}
        # prefect-ray makes a remote function for each task, and the cluster keeps all of them in memory. By default,
        # Ray ends a process with a GPU after one task. With max_calls=0 it goes on, and the network stays loaded.
        make_remote = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=MAX_RETRIES, max_calls=0)
        self._run_shard = make_remote(run_shard)

    def __enter__(self) -> "RayCluster":
        super().__enter__()
        self._context = serialize_context()
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        super().__exit__(*error)

    @property
    def throughput(self) -> Throughput:
        """The speed of the cluster as it is now. Nothing was measured on it, so the speeds are typical ones."""
        return Throughput(max(1, self.size()), GPU if self._resources.gpus else CORE)

    def size(self) -> int:
        """Return how many tasks run at the same time on the nodes that are alive."""
        return self._watch.size

    def submit(self, task: Any, parameters: dict[str, Any], *_: Any) -> AnyFuture:
        """Submit a Prefect task."""
        task_run_id = uuid4()
        reference = self._run_shard.remote(task, task_run_id, parameters, self._context, self._resources)
        future: AnyFuture = PrefectRayFuture(task_run_id=task_run_id, wrapped_future=reference)
        return future

    def check(self) -> None:
        """Check that the head of the cluster answers.

        Raises:
            Unavailable: it has not answered for some time.
        """
        if self._watch.silence > LOST_SECONDS:
            raise Unavailable("the head of the Ray cluster does not answer: start the cluster again")

    def stop(self) -> None:
        """Disconnect from the cluster. Ray kills all processes of this run."""
        if self._watch.stop():
            _disconnect()

    def explain(self, error: BaseException) -> Unavailable | None:
        """Return an error of Ray as an infrastructure failure."""
        if isinstance(error, RayTaskError):
            reason = f"{type(error.cause).__name__}: {error.cause}"
            return Unavailable(f"a process of the Ray cluster failed ({one_line(reason)}): correct its environment")
        if isinstance(error, RayError):
            return Unavailable(f"the Ray cluster failed: {one_line(str(error))}")
        return None


class _Watch:
    """Asks the head of the cluster for its nodes every two seconds, in a thread, because an answer may never come."""

    def __init__(self, resources: TaskResources) -> None:
        self._resources, self._ended = resources, threading.Event()
        self._answered = time.monotonic()
        self.size = 0
        """How many tasks run at the same time."""

    @property
    def silence(self) -> float:
        """Seconds since the last answer."""
        return time.monotonic() - self._answered

    def start(self) -> None:
        self._ask()
        threading.Thread(target=self._run, daemon=True, name="ray-watch").start()

    def stop(self) -> bool:
        """End the thread. Return whether this is the first call."""
        is_first = not self._ended.is_set()
        self._ended.set()
        return is_first

    def _run(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            with suppress(Exception):  # Ray has many errors for a head that does not answer
                self._ask()

    def _ask(self) -> None:
        self.size = sum(self._resources.tasks_on(node["Resources"]) for node in _alive_nodes())
        self._answered = time.monotonic()
