"""A small collection, and runs of it in the process of the test."""

from collections.abc import Generator, Iterator, Mapping
from typing import Any

from dreamcore.batch import dream_photographs
from flows.destination.run_record import Run
from flows.jobs.cost import CORE, Throughput
from flows.jobs.job import DreamJob
from flows.jobs.work import Shard
from flows.planning.scan import plan_settings, scan
from flows.running import protocol
from flows.running.protocol import Executor, FinishedRun
from flows.running.shard import DreamFunction, dream_shard
from flows.s3.storage import Storage

__all__ = ["Collection", "executor"]


def executor(storage: Storage, dream: DreamFunction = dream_photographs) -> Executor:
    """Return an executor that dreams one shard after another in this process."""

    def execute(run: Run, shards: Iterator[Shard]) -> Generator[Mapping[str, int], None, None]:
        for shard in shards:
            yield dream_shard(run, shard, storage, dream)

    return execute


class Collection:
    """A source and a destination."""

    def __init__(self, storage: Storage, source: str, destination: str) -> None:
        self.storage, self.source, self.destination = storage, source, destination

    def job(self, *layers: str, **fields: Any) -> DreamJob:
        """Return a job with short dreams at these layers."""
        grid = {"layers": list(layers or ("blocks.0", "blocks.1")), "octaves": [1], "steps": [1]}
        return DreamJob.model_validate(
            {"source": self.source, "destination": self.destination, "grid": grid, "sheets": 0, **fields}
        )

    def run_job(self, job: DreamJob, execute: Executor) -> FinishedRun:
        """Run a job to its end."""
        return protocol.run_job(
            job,
            plan_settings(job),
            self.storage,
            execute,
            find_sources=lambda each: scan(each, self.storage),
            throughput=Throughput(1, CORE),
        )
