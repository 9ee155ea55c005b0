"""Plan shards and read rows in tests of runs."""

import io
from collections.abc import Sequence

from PIL import Image

from flows import manifest
from flows.history import finished_dreams
from flows.job import DreamJob
from flows.plan import make_plan
from flows.run_record import Run
from flows.scan import plan_settings, scan
from flows.storage import Storage
from flows.work import Shard, Source, Work
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
