"""Server processes of this machine.

A server is identified by its process and the time when the process started. So a later process with the same number,
or another process on the same port, is never taken for it.
"""

import http.client
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["GRPC_OFFSET", "HOST", "START_SECONDS", "Server", "check_health", "stop"]

HOST = "127.0.0.1"
START_SECONDS = 120.0
"""Prefect needs 5 s on an idle machine, and far more while networks load on every core."""
STOP_SECONDS = 10.0
"""How long to wait after SIGTERM, and again after SIGKILL."""
PORT_SECONDS = 5.0
"""How long to wait for the ports that a server had before: the kernel may close them after its process has ended."""
GRPC_OFFSET = 10_000
"""Fixed by SeaweedFS: its maintenance worker expects the admin server there, even if another port is configured."""
PORTS = range(10_000, 20_000)
"""Neither these ports nor their gRPC ports are ephemeral, so no outgoing connection takes one."""


@dataclass(frozen=True)
class Server:
    """A server: its ports by name, and its process."""

    name: str
    ports: dict[str, int]
    pid: int = 0
    birth: str = ""
    """When the process was started. It distinguishes the process from a later one with the same number."""

    @property
    def alive(self) -> bool:
        """Whether the process that was started still runs."""
        return self.pid > 0 and _birth(self.pid) == self.birth

    @property
    def url(self) -> str:
        """Address of the first of its ports."""
        return f"http://{HOST}:{next(iter(self.ports.values()))}"

    @property
    def listens(self) -> bool:
        """Whether this process listens on its first port. Another process on the same port does not count."""
        sockets = set()
        with suppress(OSError):
            for file in Path(f"/proc/{self.pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed since the folder was listed
                    sockets.add(str(file.readlink()))
            port = f":{next(iter(self.ports.values())):04X}"
            for line in Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines():
                _, local, _, state, *rest = line.split()
                if local.endswith(port) and state == "0A" and f"socket:[{rest[5]}]" in sockets:
                    return self.alive
        return False

    def runs_in(self, folder: Path) -> bool:
        """Return whether the process was started in this folder."""
        try:
            return Path(f"/proc/{self.pid}/cwd").samefile(folder)
        except OSError:
            return False

    @property
    def could_listen(self) -> bool:
        """Whether all its ports are free."""
        return all(map(_free, self.ports.values()))

    def with_free_ports(self) -> "Server":
        """Return the server with new ports in place of those that stay taken or are not chosen yet."""
        deadline = time.monotonic() + PORT_SECONDS
        while all(self.ports.values()) and not self.could_listen and time.monotonic() < deadline:
            time.sleep(0.05)
        fresh = (port for port in secrets.SystemRandom().sample(PORTS, len(PORTS)) if port not in self.ports.values())
        ports = {name: port if _free(port) else next(filter(_free, fresh)) for name, port in self.ports.items()}
        return replace(self, ports=ports)

    def started(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> "Server":
        """Start the process of the server, and return the server with its process.

        Args:
            command: the command to run.
            folder: the folder to run it in.
            environment: its environment variables.
            log: the file that its output is appended to.
        """
        with log.open("ab") as stream:
            # The shell starts the server and ends. So the server is not a child of the caller, and does not become its
            # zombie. The new session keeps Ctrl-C in the terminal away from it.
            shell = subprocess.run(  # noqa: S603 - the command is built in `stack`
                ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                start_new_session=True,
                check=True,
            )
        pid = int(shell.stdout)
        return replace(self, pid=pid, birth=_birth(pid) or "ended")


def stop(servers: Iterable[Server]) -> bool:
    """End the processes of these servers and no others. Return whether any of them ran."""
    groups = []
    for server in servers:
        with suppress(ProcessLookupError):
            if server.alive:
                groups.append((server, os.getpgid(server.pid)))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for server, group in groups:
            with suppress(ProcessLookupError):
                if server.alive:
                    os.killpg(group, number)
        deadline = time.monotonic() + STOP_SECONDS
        while any(server.alive for server, _ in groups) and time.monotonic() < deadline:
            time.sleep(0.05)
    return bool(groups)


def check_health(port: int) -> str:
    """Return why the Prefect server at this port is not ready; an empty text if it is. No proxy is used."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/api/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"http://{HOST}:{port}/api/health does not respond: {error!r}"
    finally:
        connection.close()
    return "" if status == http.HTTPStatus.OK else f"http://{HOST}:{port}/api/health responds with {status}"


def _free(port: int) -> bool:
    """Return whether a server could listen on this port and on its gRPC port."""
    try:
        for number in (port, port + GRPC_OFFSET):
            with socket.socket() as probe:
                # Servers set this too. Without it, connections in TIME_WAIT of an ended server make the port busy.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((HOST, number))
    except OSError:
        return False
    return port > 0


def _birth(pid: int) -> str | None:
    """Return boot and start time of a process, which no later process with this number has; None if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    threads, tick = fields[16], fields[18]  # clock ticks from boot to the start of the process
    # A zombie keeps its ports until the last of its threads has ended.
    return None if state in "ZX" and int(threads) <= 1 else f"{boot}/{tick}"
