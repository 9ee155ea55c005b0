"""Plan shards and read rows in tests of runs."""

import io
from collections.abc import Sequence

from PIL import Image

from dreamcore.batch import Dream, DreamRequest, Limits, dream_photographs
from dreamcore.errors import ImageError
from dreamcore.network import Network
from flows.destination import manifest
from flows.destination.history import finished_dreams
from flows.destination.run_record import Run
from flows.jobs.job import DreamJob
from flows.jobs.plan import make_plan
from flows.jobs.work import Shard, Source, Work
from flows.planning.scan import plan_settings, scan
from flows.running.shard import DreamFunction
from flows.s3.storage import Storage
from tests.support.tiny import pixels


def put_photograph(storage: Storage, uri: str, seed: int = 0, height: int = 40) -> None:
    sink = io.BytesIO()
    Image.fromarray(pixels(height, 56, seed)).save(sink, "PNG")
    storage.write(uri, sink.getvalue(), "image/png")


def plan_run(
    storage: Storage, source: str, destination: str, layers: Sequence[str], **fields: object
) -> tuple[Run, Shard]:
    """Return a run of a job, and all of its work as one shard. `fields` are further fields of the job."""
    grid = {"layers": list(layers), "octaves": [1], "steps": [1]}
    job = DreamJob.model_validate({"source": source, "destination": destination, "grid": grid, **fields})
    settings = plan_settings(job)
    plan = make_plan(scan(job, storage).sources, settings, finished_dreams(job.destination, storage))
    indices: dict[Source, list[int]] = {}  # two shards may share the settings of one photograph
    for work in plan.works():
        indices.setdefault(work.source, []).extend(work.settings)
    works = tuple(Work(source, tuple(settings)) for source, settings in indices.items())
    return Run(run_id="run", job=job, settings=settings), Shard(0, works)


def rows_of(storage: Storage, run: Run) -> list[dict[str, object]]:
    return [dict(row) for row in manifest.read(storage, run.destination).to_pylist()]


def out_of_memory_at(layer: str, dream: DreamFunction = dream_photographs) -> DreamFunction:
    """Return a function that dreams as `dream` does, but fails at one layer."""

    def dream_others(network: Network, requests: Sequence[DreamRequest], limits: Limits) -> list[Dream | ImageError]:
        others = [request for request in requests if request.settings.layers[0].layer != layer]
        dreams = iter(dream(network, others, limits) if others else [])
        failure = ImageError("out_of_memory", "too little memory")
        return [next(dreams) if request.settings.layers[0].layer != layer else failure for request in requests]

    return dream_others
