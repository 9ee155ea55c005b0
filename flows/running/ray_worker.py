"""What runs in a worker process of a Ray cluster: its set-up, and one shard after another.

Ray starts these processes, chooses their GPUs, and ends them together with the run.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

import ray
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.task_engine import run_task_sync

from flows.machine.worker_process import set_up_compute

__all__ = ["TaskResources", "run_shard"]

PASSED_ON = ("DREAMGRID_MAX_MEMORY", "DREAMGRID_BATCH", "DREAMGRID_RETRY_SECONDS", "DREAMGRID_PATIENCE")
"""Variables of the coordinating process that its workers use, too."""
DELIVERY_SECONDS = 5.0
"""Time limit for sending the logs and events of a shard to Prefect."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class TaskResources:
    """What Ray reserves for each task, and the settings that workers take over from the coordinating process."""

    cpus: float
    gpus: float
    """At most 1."""
    variables: tuple[tuple[str, str], ...] = ()

    def tasks_on(self, node: Mapping[str, float]) -> int:
        """Return how many tasks run at the same time on a node with these resources."""
        counts = [node.get("CPU", 0) / self.cpus]
        if self.gpus:
            counts.append(math.floor(1 / self.gpus + _ROUNDING) * node.get("GPU", 0))  # no task has parts of two GPUs
        return math.floor(min(counts) + _ROUNDING)


def run_shard(
    task: Any, task_run_id: UUID, parameters: dict[str, Any], context: dict[str, Any], resources: TaskResources
) -> Any:
    """Run one Prefect task in this process, and return its final state.

    Ray repeats the call elsewhere if the process or its machine dies.
    """
    _set_up(resources)
    _check_gpu()
    state = run_task_sync(
        task=task, task_run_id=task_run_id, parameters=parameters, context=context, return_type="state"
    )
    # Ray may end this process without notice as soon as the run has all its shards.
    for messages in (APILogWorker, EventsWorker):
        messages.drain_all(timeout=DELIVERY_SECONDS)
    return state


@lru_cache(maxsize=1)
def _set_up(resources: TaskResources) -> None:
    """Set up this process once, before torch is imported."""
    os.environ.update(resources.variables)
    node_id = ray.get_runtime_context().get_node_id()
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    node = next(node["Resources"] for node in nodes if node["NodeID"] == node_id)
    os.environ["DREAMGRID_WORKERS"] = str(max(1, resources.tasks_on(node)))
    if resources.gpus:
        os.environ["DREAMGRID_WORKERS_PER_GPU"] = str(math.floor(1 / resources.gpus + _ROUNDING))
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all GPUs visible to a task that has asked for none
    set_up_compute()


@lru_cache(maxsize=1)
def _first_gpu() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def _check_gpu() -> None:
    """End this process if Ray has given it another GPU than before. Ray then runs the shard in a new process.

    CUDA reads the variable only once, so this process would go on to use the other GPU.
    """
    if _first_gpu() != os.environ.get("CUDA_VISIBLE_DEVICES"):
        os._exit(1)
