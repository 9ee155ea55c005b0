"""Ray nodes on this machine, each with an address on loopback of its own, as a small cluster to try out.

The nodes share no files. All processes of a node are in one session, so that the node can be killed as a whole, as a
machine that loses its power. `python -m flows.local.ray_nodes` is the first process of a node. It ends the node when
its standard input is closed, which also happens if the process that started it is killed.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dreamcore.errors import Unavailable
from flows.local.servers import Server

__all__ = ["RayNode", "RayNodes", "ray_nodes"]

OBJECT_STORE_BYTES = 80_000_000  # Ray's minimum is 75 MiB; shards need none of it
START_SECONDS = 120.0


@dataclass(frozen=True)
class RayNode:
    """One node, by its first process, which leads the session of all processes of the node."""

    process: "subprocess.Popen[bytes]"
    host: str
    output: Path
    """The file with the output of `ray start`."""

    def wait_until_ready(self) -> None:
        """Wait until the node belongs to the cluster.

        Raises:
            Unavailable: the node ended or was not ready in time; the message contains the end of its output.
        """
        deadline = time.monotonic() + START_SECONDS
        while b"--block" not in self.output.read_bytes():  # printed when the node is ready
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise Unavailable(f"a Ray node did not start: {self.output.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def processes(self) -> list[int]:
        """Return the numbers of all processes of the node."""
        return _session(self.process.pid)

    def kill(self) -> None:
        """Kill every process of the node at once, as if its machine had lost its power."""
        while found := self.processes():
            _kill(found)
        self.process.communicate()


def _session(leader: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in "ZX":
                found.append(int(folder.name))
    return found


def _kill(processes: list[int]) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclass
class RayNodes:
    """The nodes of a cluster."""

    folder: Path
    port: int
    cpus: int
    nodes: list[RayNode] = field(default_factory=list)
    """The head, then the others in the order of their start."""
    _started: int = 0

    @property
    def address(self) -> str:
        """The address of the head."""
        return f"127.0.0.1:{self.port}"

    def add(self, count: int = 1) -> None:
        """Start nodes at the same time, and wait until they belong to the cluster. The first one is the head.

        Raises:
            Unavailable: a node ended or was not ready in time; the message contains the end of its output.
        """
        new = [self._start() for _ in range(count)]
        self.nodes += new
        for node in new:
            node.wait_until_ready()

    def _start(self) -> RayNode:
        first = ["--head", f"--port={self.port}", "--include-dashboard=false"]
        self._started += 1
        role = first if self._started == 1 else [f"--address={self.address}"]
        host, output = f"127.0.0.{self._started}", self.folder / f"node-{self._started}.txt"
        options = {
            "node-ip-address": host,
            "num-cpus": self.cpus,
            "num-gpus": 0,
            "temp-dir": self.folder / str(self._started),
            "object-store-memory": OBJECT_STORE_BYTES,
            "min-worker-port": 0,  # any port, because the nodes share the ports of this machine
            "max-worker-port": 0,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        with output.open("wb") as stream:
            process = subprocess.Popen(  # noqa: S603 - a fixed command
                [sys.executable, "-P", "-m", __name__, *role, *flags],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        return RayNode(process, host, output)

    def stop(self) -> None:
        """Kill all nodes. The head is the last one."""
        for node in reversed(self.nodes):
            node.kill()


@contextmanager
def ray_nodes(count: int, cpus: int = 1) -> Iterator[RayNodes]:
    """Start a cluster of this many nodes, and stop it at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="dg-ray-"))  # short, because the names of sockets have at most 107 bytes
    port = Server("ray", {"port": 0}).with_free_ports().ports["port"]
    nodes = RayNodes(folder, port, cpus)
    try:
        nodes.add()
        if count > 1:
            nodes.add(count - 1)
        yield nodes
    finally:
        nodes.stop()
        shutil.rmtree(folder, ignore_errors=True)


# --- inside the first process of a node


def _run(arguments: list[str]) -> None:
    """Run `ray start`, and kill the node when it ends or when standard input is closed."""
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    process = subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL)  # noqa: S603 - a fixed command
    threading.Thread(target=_end_with_parent, daemon=True).start()
    process.wait()
    _end()


def _end_with_parent() -> None:
    os.read(0, 1)
    _end()


def _end() -> None:
    me = os.getpid()
    while others := [pid for pid in _session(me) if pid != me]:
        _kill(others)
    os._exit(1)


if __name__ == "__main__":
    _run(sys.argv[1:])
