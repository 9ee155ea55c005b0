"""Secrets appear in no output, object or log, even if everything is logged and requests fail."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest

from flows.local.stack import Stack
from flows.s3.storage import Storage
from tests.support.command import Command
from tests.support.shards import put_photograph

EVERYTHING = {
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "boto3,botocore,urllib3,flows,dreamcore",  # also into Prefect's database
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG",
    "PREFECT_LOGGING_LOGGERS_PREFECT_LEVEL": "DEBUG",
}


def places(stack: Stack, storage: Storage, destination: str, *printed: str) -> Iterator[tuple[str, bytes]]:
    """Yield all places that a secret could leak into: the output, objects, and the files of Prefect's server."""
    yield from (("printed", text.encode()) for text in printed)
    yield from ((found.uri, storage.read(found.uri) or b"") for found in storage.list(destination))
    prefect = stack.data(stack.servers[1])
    yield from (
        (str(path), path.read_bytes()) for path in [*prefect.rglob("*"), stack.log(stack.servers[1])] if path.is_file()
    )


def test_no_secret_is_printed_logged_or_stored(
    stack: Stack, storage: Storage, source: str, destination: str, dreamgrid: Command
) -> None:
    """Check the random secret key of the stack, a wrong key, a session token and the password of another program."""
    wrong, token, password = (f"canary{secrets.token_hex(16)}" for _ in range(3))
    put_photograph(storage, source + "cat.png")
    storage.write(source + "broken.png", b"<html>", "image/png")
    job = ["--source", source, "--destination", destination, "--layers", "blocks.0", "--octaves", "1", "--steps", "1"]
    verbose = {**EVERYTHING, "DATABASE_PASSWORD": password, "DREAMGRID_WORKERS": "1"}

    good = dreamgrid("run", *job, **verbose)
    assert good.returncode == 0, good.stderr
    storage.write(f"{destination}manifest/run=torn/shard-000000.parquet", b"torn", "application/octet-stream")
    put_photograph(storage, source + "dog.png", 1)
    crashed = dreamgrid("run", *job, **verbose)
    assert crashed.returncode == 3, crashed.stderr
    wrong_key = dreamgrid("run", *job, **verbose, AWS_SECRET_ACCESS_KEY=wrong)
    wrong_token = dreamgrid("run", *job, **verbose, AWS_SESSION_TOKEN=token)
    no_bucket = dreamgrid("run", *job, "--source", "s3://nowhere/", **verbose)
    assert [done.returncode for done in (wrong_key, wrong_token, no_bucket)] == [2, 2, 2]

    printed = [
        text for done in (good, crashed, wrong_key, wrong_token, no_bucket) for text in (done.stdout, done.stderr)
    ]
    searched = list(places(stack, storage, destination, *printed))
    assert sum(b"DEBUG" in data for _, data in searched) >= 2, "DEBUG messages must be logged for this test"
    for secret in (stack.secret_key, wrong, token, password):
        assert [place for place, data in searched if secret.encode() in data] == []


@pytest.mark.slow
def test_the_token_of_a_request_is_not_logged() -> None:
    """At DEBUG botocore would log it, and Prefect would store it in its database."""
    token = f"canary{secrets.token_hex(16)}"
    program = """
import logging
logging.basicConfig(level=logging.DEBUG)
from flows.s3.storage import FAIL_FAST, Storage
try:
    Storage(FAIL_FAST).check_bucket("s3://photos/")
except Exception:
    logging.exception("failed as expected")
"""
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": f"{token}-key", "AWS_SESSION_TOKEN": token}
    unreachable = {**keys, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_DEFAULT_REGION": "us-east-1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **unreachable}, capture_output=True, text=True, check=True
    )
    assert "failed as expected" in done.stderr
    assert "DEBUG:urllib3" in done.stderr
    assert token not in done.stderr
