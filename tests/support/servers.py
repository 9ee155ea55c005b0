"""S3 servers for the tests, each started in its own folder."""

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dreamcore.errors import DreamgridError
from flows.local.servers import Server
from flows.local.stack import Stack
from flows.s3.storage import probe

KEY, SECRET = "dreamgrid", "dreams-of-electric-sheep"
CEPH = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool", "monmaptool")


@dataclass(frozen=True)
class Store:
    """A running S3 server."""

    environment: dict[str, str]
    conditional_writes: bool = True
    """Whether conditional writes are supported, not ignored."""
    checks_credentials: bool = True
    """Whether wrong credentials are refused."""


Start = Callable[[Path], AbstractContextManager[Store]]


def seaweedfs(stack: Stack) -> Store:
    """Return the SeaweedFS server of the embedded stack."""
    return Store(stack.environment())


@contextmanager
def moto(folder: Path) -> Iterator[Store]:
    """Run moto, which imitates AWS. It accepts any credentials."""
    with ExitStack() as running:
        port = _free_port()
        _start(running, folder, [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)])
        yield Store(_ready(port), checks_credentials=False)


@contextmanager
def rclone(folder: Path) -> Iterator[Store]:
    """Run rclone, which serves a folder. It ignores conditions."""
    with ExitStack() as running:
        port, data = _free_port(), folder / "data"
        data.mkdir()
        program = str(Path(sys.executable).with_name("rclone"))
        keys = ["--config", "", "--auth-key", f"{KEY},{SECRET}"]
        _start(running, folder, [program, "serve", "s3", *keys, "--addr", f"127.0.0.1:{port}", str(data)])
        yield Store(_ready(port), conditional_writes=False)


@contextmanager
def ceph(folder: Path) -> Iterator[Store]:
    """Run Ceph's gateway with one monitor and one OSD that keeps its data in memory."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    if missing := [name for name in CEPH if not shutil.which(name, path=path)]:
        pytest.skip(f"{', '.join(missing)} not found: apt-get install radosgw ceph-mon ceph-osd ceph-common")
    monitor, gateway, fsid, osd = _free_port(), _free_port(), str(uuid.uuid4()), str(uuid.uuid4())
    (folder / "osd").mkdir()
    (folder / "ceph.conf").write_text(_CEPH.format(folder=folder, monitor=monitor, gateway=gateway, fsid=fsid))
    environment = os.environ | {"CEPH_CONF": str(folder / "ceph.conf"), "PATH": path}

    def run(command: str) -> None:
        done = subprocess.run(
            command.split(), cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"

    for name, *caps in (("mon.", "mon"), ("client.admin", "mon", "osd", "mgr"), ("osd.0", "mon", "osd", "mgr")):
        create = "" if (folder / "keyring").exists() else "--create-keyring"
        words = [word for cap in caps for word in ("--cap", cap, "allow *")]
        subprocess.run(
            ["ceph-authtool", "keyring", *create.split(), "--gen-key", "-n", name, *words],
            cwd=folder, env=environment, capture_output=True, check=True,
        )  # fmt: skip
    with ExitStack() as running:
        run(f"monmaptool --create --addv a v2:127.0.0.1:{monitor} --fsid {fsid} monmap")
        run("ceph-mon --mkfs -i a --monmap monmap --keyring keyring")
        _start(running, folder, ["ceph-mon", "-i", "a", "-f"], environment)
        run(f"ceph --connect-timeout 60 osd new {osd} 0")
        run(f"ceph-osd -i 0 --mkfs --osd-uuid {osd}")
        _start(running, folder, ["ceph-osd", "-i", "0", "-f"], environment)
        run(f"radosgw-admin user create --uid dreamgrid --display-name dreamgrid --access-key {KEY} --secret {SECRET}")
        _start(running, folder, ["radosgw", "-n", "client.admin", "-f"], environment)
        yield Store(_ready(gateway))


_CEPH = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {folder}
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
mon allow pool size one = true
osd pool default size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
rgw frontends = beast endpoint=127.0.0.1:{gateway}
"""


def _start(running: ExitStack, folder: Path, command: list[str], environment: dict[str, str] | None = None) -> None:
    """Start a server that is killed when `running` closes."""
    with (folder / f"{Path(command[0]).name}.out").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    running.callback(process.wait)
    running.callback(process.kill)


def _free_port() -> int:
    """Return a port that outgoing connections do not use."""
    return Server("a server", {"port": 0}).with_free_ports().ports["port"]


def _ready(port: int) -> dict[str, str]:
    """Wait until the server at a port stores and returns an object. Return the variables that select it."""
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    deadline = time.monotonic() + 180
    while True:
        try:
            probe(environment)
        except DreamgridError:
            if time.monotonic() > deadline:
                raise
        else:
            return environment
