"""Worker processes that report which GPU they see. No GPU is needed."""

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from flows.machine.worker_process import start_worker


def report_gpus(folder: Path, gpus: list[str], workers: int) -> None:
    """Start workers. Each one writes a file with the variables that it was given."""
    with ProcessPoolExecutor(workers, get_context("spawn"), start_worker, (gpus, workers)) as pool:
        list(pool.map(partial(_report, folder, workers), range(workers)))


def _report(folder: Path, workers: int, number: int) -> None:
    """Write one file, and wait for those of the other workers, so that each worker writes one."""
    variables = ("CUDA_VISIBLE_DEVICES", "DREAMGRID_WORKERS", "DREAMGRID_WORKERS_PER_GPU")
    values = " ".join(os.environ[name] for name in variables)
    (folder / f"{number}.txt").write_text(f"{values} torch:{'torch' in sys.modules}")
    while len(list(folder.glob("*.txt"))) < workers:
        time.sleep(0.01)
