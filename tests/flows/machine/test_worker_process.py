"""A pool whose processes were killed ends, although nobody reads the calls that were sent to them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import REPOSITORY

PROGRAM = """
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from flows.machine.worker_process import let_pool_end, stop_workers
from flows.running.process_pool import open_processes

def nap(_data):
    Path("napping").touch()
    time.sleep(600)

@contextmanager
def plain():
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        let_pool_end(pool)
        yield pool

@contextmanager
def of_a_run():
    with open_processes() as pool:
        yield pool.runner._executor

if __name__ == "__main__":
    with globals()[sys.argv[1]]() as pool:
        os.dup(pool._call_queue._reader.fileno())  # as a fork of this process has it
        for _ in range(3):
            pool.submit(nap, bytes(1 << 20))  # does not fit into a pipe
        while not Path("napping").exists():
            time.sleep(0.1)
        stop_workers()
    print("ended")
"""


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["plain", "of_a_run"])
def test_a_pool_ends_if_its_processes_were_killed_while_they_were_sent_calls(pool: str, tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "pool.py", pool],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "DREAMGRID_WORKERS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
