"""Runs that the gallery starts: a real child process, a real store and a real Prefect server."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreamcore.errors import InvalidInput
from dreamcore.settings import DreamSettings
from flows.destination import manifest
from flows.gallery.job_runs import last_run, start
from flows.gallery.jobs import ChosenDream, Variations, more_like, preview
from flows.jobs.job import DreamJob
from flows.s3.storage import Storage
from tests.support.collections import Collection, executor
from tests.support.shards import put_photograph


def test_a_composed_job_is_previewed_and_run_through_prefect(
    storage: Storage,
    source: str,
    destination: str,
    prefect_api: Callable[[str, dict[str, Any]], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("DREAMGRID_WORKERS", "1")
    for number, name in enumerate(("a/1.png", "b/1.png", "b/2.png")):
        put_photograph(storage, source + name, number)
    collection = Collection(storage, source, destination)
    collection.run_job(collection.job("blocks.0"), executor(storage))
    rows = manifest.read(storage, destination, ["source_uri", "settings", "result_bytes"]).to_pylist()
    chosen = [ChosenDream.from_row(row) for row in rows if "1.png" in row["source_uri"]]
    job = more_like(chosen, Variations(seeds=1), destination)
    again = DreamJob.model_validate(
        {**job.model_dump(), "grid": {"points": [*job.grid.points, {"layers": "blocks.0"}]}}
    )

    found = preview(job, storage, price_per_hour=3.6)
    assert (found.photographs, found.dreams, found.done, found.refused) == (2, 2, 0, None)
    mean = sum(row["result_bytes"] for row in rows) / len(rows)
    assert found.bytes == round(2 * mean)
    assert found.cost == pytest.approx(found.seconds / 1000, abs=1e-3)
    assert last_run(destination, storage) is None

    run = start(job, storage)
    with pytest.raises(InvalidInput, match=f"^a job is already running for {destination}: wait until"):
        start(again, storage)
    assert (run.outcome().state, run.job) == ("running", job)
    assert run.wait(300)
    outcome = run.outcome()
    assert (outcome.state, outcome.message) == ("completed", "2 done"), outcome
    progress = run.progress()
    assert outcome.report is not None
    assert progress.run_id == outcome.report.run_id
    assert (progress.finished, progress.planned, progress.seconds_left) == (2, 2, 0) or progress.seconds_left is None
    (flow_run,) = prefect_api("flow_runs/filter", {"flow_runs": {"tags": {"all_": [destination.rstrip("/")]}}})
    assert str(progress.flow_run).endswith(f"/flow-run/{flow_run['id']}")
    assert len(manifest.read(storage, destination, ["result_id"])) == 5
    assert last_run(destination, storage) == run
    assert preview(job, storage).dreams == 0


def test_a_run_that_cannot_start_or_is_stopped_says_why(
    storage: Storage, source: str, destination: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("DREAMGRID_WORKERS", "1")
    missing = more_like([ChosenDream(f"{source}gone.png", DreamSettings())], Variations(seeds=1), destination)
    run = start(missing, storage)
    assert run.wait(180)
    outcome = run.outcome()
    assert outcome.state == "refused"
    assert outcome.message.startswith(f"there is neither a photograph nor a folder {source}gone.png: correct it")

    put_photograph(storage, f"{source}1.png")
    long = DreamJob.model_validate({**missing.model_dump(), "sources": [f"{source}1.png"]})
    long = long.model_copy(update={"grid": long.grid.model_copy(update={"points": ({"steps": 5000},)})})
    run = start(long, storage)
    deadline = time.monotonic() + 180
    while run.progress().run_id is None and time.monotonic() < deadline:
        time.sleep(0.1)
    run.stop()
    assert run.wait(180)
    assert run.outcome().state == "stopped"
    with pytest.raises(InvalidInput, match=r"is held by the unfinished run .* of another job"):
        start(missing, storage)
