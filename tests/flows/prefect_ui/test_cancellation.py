"""A flow whose processes get SIGTERM, as from Cancel in the Prefect UI, leaves no process and no semaphore behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from flows.local.stack import Stack
from tests.support.command import REPOSITORY, await_end_of_group

FLOW = """
import time
from prefect import flow, task
from flows.prefect_ui.cancellation import clean_termination
from flows.running.process_pool import open_processes

@task
def nap():
    print("working", flush=True)
    time.sleep(120)

@flow
def naps():
    with clean_termination(), open_processes() as pool:
        futures = [pool.submit(nap, {}) for _ in range(3)]
        try:
            futures[0].result()
        finally:
            pool.stop()

if __name__ == "__main__":
    naps()
"""


def test_a_terminated_flow_leaves_nothing_behind(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "naps.py").write_text(FLOW)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "naps.py")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PREFECT_LOGGING_LEVEL": "INFO"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "working\n":
                break
        assert lines[-1] == "working\n", lines
        os.killpg(process.pid, signal.SIGTERM)  # as Prefect's process worker does
        rest, _ = process.communicate(timeout=60)  # the semaphore tracker ends last, and closes the pipe
    assert "leaked" not in rest
    assert "Finished in state Running()" not in rest
    await_end_of_group(process.pid, 10)
