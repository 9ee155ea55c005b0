"""No command shows a traceback, whatever the environment: it works, or ends with exit code 2 or 3 and one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.local.stack import Stack
from flows.machine.proxies import exempt_loopback
from flows.s3.storage import Storage
from tests.support.command import PHOTOS, REPOSITORY, Command

NOWHERE = "http://127.0.0.1:9"
DESTINATION = "s3://dreams/猫/"
JOB = ("--source", "s3://photos/猫/", "--destination", DESTINATION)
CAT = str(PHOTOS / "chelsea.png")
KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "eu-west-1"}
PROXY = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)
ROLE = {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x", "AWS_DEFAULT_REGION": "eu-west-1"}
PROFILES = """
[profile crt]
region = eu-west-1
login_session = arn:aws:iam::123456789012:user/x
[profile program]
region = eu-west-1
credential_process = /nowhere/program
[profile sso]
region = eu-west-1
sso_session = none
sso_account_id = 123456789012
sso_role_name = x
[sso-session none]
sso_region = eu-west-1
sso_start_url = https://example.invalid
"""

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "socks proxy": {"ALL_PROXY": "socks://127.0.0.1:9", **KEYS, "AWS_ENDPOINT_URL": NOWHERE},
    "socks5 proxy": {"ALL_PROXY": "socks5://127.0.0.1:9", **KEYS, "AWS_ENDPOINT_URL": NOWHERE},
    "socks5 proxy for https": {"HTTPS_PROXY": "socks5://127.0.0.1:9", **KEYS},
    "malformed proxy": {"HTTPS_PROXY": "http://[::", **KEYS},
    "dead proxy": {**PROXY, **KEYS},
    "missing token file": {**ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere/token"},
    "unreadable token file": {**ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": "/"},
    "binary token file": {**ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": CAT},
    "profile that needs crt": {"AWS_PROFILE": "crt"},
    "profile without its program": {"AWS_PROFILE": "program"},
    "profile that is not logged in": {"AWS_PROFILE": "sso"},
    "missing profile": {"AWS_PROFILE": "nobody"},
    "broken AWS configuration": {"AWS_CONFIG_FILE": CAT},
    "malformed region": {**KEYS, "AWS_DEFAULT_REGION": "bad region!"},
    "malformed endpoint": {**KEYS, "AWS_ENDPOINT_URL": "http://["},
    "malformed port": {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:99999"},
    "no credentials": {"AWS_DEFAULT_REGION": "eu-west-1"},
    "odd numbers": {
        "DREAMGRID_RETRY_SECONDS": "soon",
        "DREAMGRID_WORKERS": "-1",
        "COLUMNS": "x",
        "OMP_NUM_THREADS": "x",
    },
}

COMMANDS = {
    "run": ("run", *JOB),
    "plan": ("plan", *JOB, "--json"),
    "resume": ("run", "--resume", DESTINATION),
    "redream": ("redream", f"{DESTINATION}images/cat.png/dream.png", "again.png"),
    "sheet": ("sheet", DESTINATION),
    "manifest": ("manifest", DESTINATION),
    "verify": ("manifest", "verify", DESTINATION),
    "failures": ("manifest", "failures", DESTINATION),
    "image with a guide in S3": ("image", CAT, "dream.png", "--guide", "s3://photos/guide.png"),
    "env": ("env",),
}
"""Commands that need a store or a stack, which these environments do not have."""

LOCAL_COMMANDS = {
    "help": ("--help",),
    "help of run": ("run", "--help"),
    "version": ("--version",),
    "models": ("models", "lite"),
    "layers": ("layers",),
    "layers of odd size": ("layers", "--size", "64x48", "--json"),
    "status": ("status", "--json"),
    "down": ("down",),
}
"""Commands that work without any store."""


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without AWS, Prefect and proxies, except a few profiles of AWS."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "PREFECT_", "DREAMGRID_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    (tmp_path / "aws-config").write_text(PROFILES)
    values = {
        "AWS_CONFIG_FILE": str(tmp_path / "aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "HOME": str(tmp_path),
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    # Retries are tested elsewhere, and would take seconds for each command.
    monkeypatch.setattr(Storage, "_retry_transient", lambda self, request: request(self._client))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.usefixtures("bare")
def test_every_command_ends_with_one_line(environment: str, dreamgrid_inprocess: Command) -> None:
    for arguments in COMMANDS.values():
        done = dreamgrid_inprocess(*arguments, **ENVIRONMENTS[environment])
        assert done.returncode in (2, 3), (arguments, done.stderr)
        lines = [line for line in done.stderr.splitlines() if line]
        assert len(lines) == 1, (arguments, done.stderr)
        assert lines[0].startswith("dreamgrid: "), (arguments, done.stderr)
        assert "unexpected error" not in lines[0]


@pytest.mark.parametrize("environment", ["socks5 proxy", "broken AWS configuration", "odd numbers"])
@pytest.mark.usefixtures("bare")
def test_commands_without_a_store_work(environment: str, dreamgrid_inprocess: Command) -> None:
    for arguments in LOCAL_COMMANDS.values():
        done = dreamgrid_inprocess(*arguments, **ENVIRONMENTS[environment])
        assert (done.returncode, done.stderr) == (0, ""), arguments


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("profile that needs crt", "needs the AWS Common Runtime: pip install 'dreamgrid[crt]'"),
        ("profile that is not logged in", "log in again with `aws login` or `aws sso login`"),
        ("missing token file", "No such file or directory: '/nowhere/token'"),
        ("socks5 proxy for https", "HTTPS_PROXY"),
    ],
)
@pytest.mark.usefixtures("bare")
def test_the_line_names_the_remedy(environment: str, message: str, dreamgrid_inprocess: Command) -> None:
    assert message in dreamgrid_inprocess("manifest", DESTINATION, **ENVIRONMENTS[environment]).stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost"),
        ({"NO_PROXY": "a.example, localhost"}, "a.example,localhost,127.0.0.1"),
        ({"NO_PROXY": "ignored", "no_proxy": "b.example"}, "b.example,127.0.0.1,localhost"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_loopback_is_exempt_from_proxies(before: dict[str, str], after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", before)
    assert exempt_loopback() == {"NO_PROXY": after, "no_proxy": after}


def test_a_store_on_loopback_is_reached_without_the_proxy(
    dreamgrid_inprocess: Command, storage: Storage, source: str, destination: str
) -> None:
    storage.write(f"{source}猫.png", Path(CAT).read_bytes(), "image/png")
    for proxies in (PROXY, dict.fromkeys((*PROXY, "ALL_PROXY"), "socks5://127.0.0.1:9")):
        done = dreamgrid_inprocess("plan", "--source", source, "--destination", destination, "--json", **proxies)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["photographs"] == 1


# A process of its own is needed where the environment acts when Python starts.


def start(*arguments: str, **env: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-P", "-c", "from flows.cli.main import main; main()", *arguments]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **env}
    return subprocess.run(command, env=env, capture_output=True, timeout=300, check=False)


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.usefixtures("bare")
def test_names_are_printed_in_a_locale_that_does_not_have_their_characters() -> None:
    for arguments in (("manifest", DESTINATION), ("plan", *JOB)):
        done = start(*arguments, **C_LOCALE, **KEYS, AWS_ENDPOINT_URL=NOWHERE, DREAMGRID_RETRY_SECONDS="1")
        assert done.returncode in (2, 3)
        (line,) = done.stderr.decode("ascii").splitlines()
        assert "\\u732b" in line, "the escape of the character"


@pytest.mark.slow
@pytest.mark.usefixtures("bare")
def test_an_image_is_dreamt_without_a_home_a_locale_or_a_temporary_folder(tmp_path: Path) -> None:
    result = tmp_path / "träume 猫.png"
    small = ("--max-pixels", "4096", "--octaves", "1", "--steps", "1", "--layers", "blocks.0")
    done = start("image", CAT, str(result), *small, HOME="/sys", TMPDIR="/sys", **C_LOCALE, **PROXY)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert result.exists()


def test_a_reader_that_has_ended_is_no_failure() -> None:
    command = f"{sys.executable} -P -c 'from flows.cli.main import main; main()' run --help"
    for redirection in ("| true", ">&-", "2>&-", ">&- 2>&- <&-"):
        pipe = subprocess.run(
            ["/bin/bash", "-o", "pipefail", "-c", f"{command} {redirection}"],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert (pipe.returncode, pipe.stderr) == (0, b""), redirection


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    command = f"{sys.executable} -P -c 'from flows.cli.main import main; main()' run --help > /dev/full"
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(["/bin/sh", "-c", command], env=env, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (3, b"dreamgrid: input or output failed: No space left on device\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PREFECT_SERVER_API_PORT": "x"}, "the settings of Prefect cannot be used (port: "),
        ({"PREFECT_API_URL": "http://prefect.invalid/api", "ALL_PROXY": "socks5://127.0.0.1:9"}, "socksio"),
        ({"PREFECT_API_URL": "http://127.0.0.1:9/api", "ALL_PROXY": "socks://127.0.0.1:9"}, "refused"),
        (
            {"PREFECT_API_URL": "", "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////sys/x"},
            "the temporary Prefect server ended while it was starting",
        ),
    ],
    ids=["settings", "socks5", "loopback", "no database"],
)  # fmt: skip
def test_prefect_that_cannot_be_used_is_one_line(
    variables: dict[str, str], message: str, storage: Storage, stack: Stack, source: str, destination: str
) -> None:
    storage.write(f"{source}cat.png", Path(CAT).read_bytes(), "image/png")
    job = ("run", "--source", source, "--destination", destination)
    done = start(*job, **(stack.environment() | variables))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.decode().splitlines()
    assert message in line


@pytest.mark.slow
def test_a_run_works_with_a_home_that_cannot_be_written_and_proxies_for_everything(
    storage: Storage, stack: Stack, source: str, destination: str
) -> None:
    """Prefect's server is a temporary one, and the locale has no name for the photograph."""
    storage.write(f"{source}猫.png", Path(CAT).read_bytes(), "image/png")
    small = ("--max-pixels", "4096", "--octaves", "1", "--steps", "1", "--layers", "blocks.0")
    job = ("run", "--source", f"{source}猫.png", "--destination", destination, *small, "--json")
    hostile = {"HOME": "/sys", "ALL_PROXY": "socks://127.0.0.1:9", "DREAMGRID_WORKERS": "1", **PROXY, **C_LOCALE}
    done = start(*job, **(stack.environment() | {"PREFECT_API_URL": "", "PREFECT_HOME": ""} | hostile))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 1
