"""Commands that do not end after a signal are ended by force, and say how to resume what they did."""

import subprocess
import sys

import pytest

PROGRAM = """
import os
import signal
import time
import weakref
import click
from flows.cli.main import main
from flows.cli.signals import resumable

def sleep(seconds):
    print("started", flush=True)
    time.sleep(seconds)

@click.command()
def ignoring():
    while True:
        try:
            sleep(60)
        except KeyboardInterrupt:
            pass

@click.command()
@resumable(what="the nap")
def resumable_ignoring():
    ignoring.callback()

@click.command()
@resumable(what="the nap")
def dropping():
    def raise_error(number, frame):
        raise InterruptedError
    signal.signal(signal.SIGTERM, raise_error)  # as Prefect does
    place = type("Place", (), {})()
    kept = weakref.ref(place, lambda _: sleep(60))
    del place  # Python drops what is raised in the callback
    time.sleep(60)

@click.command()
def forking():
    if not (child := os.fork()):
        sleep(60)
    time.sleep(1)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    time.sleep(3)

main([], command=globals()[os.environ["COMMAND"]], stop_seconds=1)
"""
BY_FORCE = "dreamgrid: stopped by force: the command did not end within 1 seconds\n"
RESUME = "Nothing is lost. Give the same command to resume the nap.\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "message"),
    [("ignoring", ""), ("resumable_ignoring", BY_FORCE + RESUME), ("dropping", BY_FORCE + RESUME)],
)
def test_a_command_that_does_not_stop_is_ended_by_force(command: str, message: str) -> None:
    with start(command) as process:
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert errors.endswith(message)
    assert ("Nothing is lost" in errors) == bool(message)


@pytest.mark.slow
def test_the_signal_of_a_fork_does_not_stop_its_parent() -> None:
    with start("forking") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def start(command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["/usr/bin/env", f"COMMAND={command}", sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
