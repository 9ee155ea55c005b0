"""Server processes of this machine, each told from every other process, and from whoever else took its port."""

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

HOST = "127.0.0.1"
STOP_SECONDS = 10.0  # after SIGTERM, and again after SIGKILL
GRPC_OFFSET = 10_000  # SeaweedFS's own: its maintenance worker looks for the admin server there, whatever it is told
PORTS = range(10_000, 20_000)  # neither these nor the gRPC ports are ephemeral: no outgoing connection takes one


@dataclass(frozen=True)
class Server:
    """One server: its ports by name, and its process."""

    name: str
    ports: dict[str, int]
    pid: int = 0
    birth: str = ""  # tells the process from a later one that got the same pid

    @property
    def alive(self) -> bool:
        """Whether the very process that was started is still there."""
        return self.pid > 0 and _birth(self.pid) == self.birth

    @property
    def url(self) -> str:
        """The address it serves: the first of its ports."""
        return f"http://{HOST}:{next(iter(self.ports.values()))}"

    @property
    def listens(self) -> bool:
        """Whether this very process holds its port: a stranger's answer there is never taken for its own."""
        mine = set()
        with suppress(OSError):
            for file in Path(f"/proc/{self.pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed in the meantime
                    mine.add(str(file.readlink()))
            port = f":{next(iter(self.ports.values())):04X}"
            for line in Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines():
                _, local, _, state, *rest = line.split()
                if local.endswith(port) and state == "0A" and f"socket:[{rest[5]}]" in mine:
                    return self.alive
        return False

    @property
    def could_listen(self) -> bool:
        """Whether nobody else holds any of its ports."""
        return all(map(_free, self.ports.values()))

    def with_free_ports(self) -> "Server":
        """The server with those ports replaced that are taken or were never chosen."""
        fresh = (port for port in secrets.SystemRandom().sample(PORTS, len(PORTS)) if port not in self.ports.values())
        ports = {name: port if _free(port) else next(filter(_free, fresh)) for name, port in self.ports.items()}
        return replace(self, ports=ports)

    def started(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> "Server":
        """The server with the process that `command` starts in `folder`; what it has to say goes into `log`."""
        with log.open("ab") as stream:
            # The shell starts the server and ends, so the server is nobody's child, and no zombie of a caller that
            # lives on. In a session of its own, Ctrl-C in the terminal does not reach it.
            shell = subprocess.run(  # noqa: S603 - the command is ours
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
    """Ends the processes of these servers and nothing else; whether there were any."""
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


def _free(port: int) -> bool:
    """Whether a server could listen on the port, and on the one for gRPC that goes with it."""
    try:
        for number in (port, port + GRPC_OFFSET):
            with socket.socket() as probe:
                # As servers do: connections that linger after their server has gone do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((HOST, number))
    except OSError:
        return False
    return port > 0


def _birth(pid: int) -> str | None:
    """What no other process has, not even one that gets this pid later; None when the process has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    threads, tick = fields[16], fields[18]  # `tick` of the clock when it was started
    # A zombie whose threads are still ending holds its ports until the last of them has gone.
    return None if state in "ZX" and int(threads) <= 1 else f"{boot}/{tick}"
