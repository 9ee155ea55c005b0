"""Every planned dream becomes exactly one row, whatever the photograph is. Too many failures stop the run."""

import json
from collections import Counter
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamcore.errors import DreamgridError, Unavailable
from flows.destination import manifest, run_record
from flows.destination.history import finished_dreams
from flows.destination.run_record import Run
from flows.jobs.job import DreamJob
from flows.jobs.plan import Sources, make_plan
from flows.planning.estimate import estimate
from flows.planning.scan import plan_settings, scan
from flows.running import protocol
from flows.running.shard import dream_shard
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.support.command import Command
from tests.support.shards import put_photograph

BYTES = {
    "empty": b"",
    "page": b"<html>not a photograph</html>",
    "cut off": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "other": b"8BPS\0\1 of another format",
}
BECOMES = {
    "good": ("done", None),
    "empty": ("failed", "not_an_image"),
    "page": ("failed", "not_an_image"),
    "cut off": ("failed", "damaged"),
    "other": ("failed", "unsupported"),
    "deleted": ("skipped", "source_missing"),
    "replaced": ("skipped", "source_changed"),
}
"""Status and error kind of the rows of each sort of photograph."""

_numbers = count()


def put(storage: Storage, uri: str, sort: str) -> None:
    if sort in BYTES:
        storage.write(uri, BYTES[sort], "image/png")
    else:
        put_photograph(storage, uri)


def begin(storage: Storage, source: str, destination: str, **fields: object) -> Run:
    grid = {"layers": ["blocks.0", "blocks.1"], "octaves": [1], "steps": [1]}
    job = DreamJob.model_validate({"source": source, "destination": destination, "grid": grid, **fields})
    return protocol.claim(job, plan_settings(job), storage)[0]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(sorts=st.lists(st.sampled_from(sorted(BECOMES)), min_size=1, max_size=5))
def test_done_failed_and_skipped_rows_add_up_to_the_planned_dreams(
    sorts: list[str], storage: Storage, source: str, destination: str
) -> None:
    here, there = (f"{folder}{next(_numbers)}/" for folder in (source, destination))
    for number, sort in enumerate(sorts):
        put(storage, f"{here}{number}.png", sort)
    run = begin(storage, here, there)
    plan = make_plan(scan(run.job, storage).sources, run.settings, finished_dreams(run.destination, storage))
    shards = protocol.freeze(run, plan, storage)
    for number, sort in enumerate(sorts):
        if sort == "deleted":
            storage.delete(f"{here}{number}.png")
        elif sort == "replaced":
            put_photograph(storage, f"{here}{number}.png", seed=1)

    counts = Counter[str]()
    for shard in shards:
        counts.update(dream_shard(run, shard, storage))
    report = protocol.finish(run, shards, 0.0, storage)

    assert report.done + report.failed + report.skipped == report.planned == 2 * len(sorts)
    assert (report.done, report.failed, report.skipped) == (counts["done"], counts["failed"], counts["skipped"])
    rows = manifest.read(storage, there).to_pylist()
    found = Counter((row["source_uri"], row["status"], row["error_kind"]) for row in rows)
    assert found == {(f"{here}{number}.png", *BECOMES[sort]): 2 for number, sort in enumerate(sorts)}


def test_a_run_with_missing_rows_is_not_finished(storage: Storage, source: str, destination: str) -> None:
    put(storage, source + "page.png", "page")
    run = begin(storage, source, destination)
    plan = make_plan(scan(run.job, storage).sources, run.settings, finished_dreams(run.destination, storage))
    first, *_ = shards = protocol.freeze(run, plan, storage)
    dream_shard(run, first, storage)
    with pytest.raises(DreamgridError, match="1 rows, but 2 dreams were planned: another process abandoned it"):
        protocol.finish(run, shards, 0.0, storage)
    assert storage.find(layout.success_uri(run.destination, run.run_id)) is None


def test_a_run_ended_by_another_process_cannot_be_planned(storage: Storage, source: str, destination: str) -> None:
    put(storage, source + "page.png", "page")
    run = begin(storage, source, destination)
    same = begin(storage, source, destination)
    assert same.run_id == run.run_id
    assert not protocol.freeze(same, make_plan(Sources(()), (), lambda _key: True), storage)
    with pytest.raises(Unavailable, match="another process ended the run"):
        protocol.freeze(run, make_plan(scan(run.job, storage).sources, run.settings, lambda _: False), storage)
    assert begin(storage, source, destination).run_id != run.run_id, "the next claim starts a new run"


def test_a_worker_loads_the_run_by_its_name(storage: Storage, source: str, destination: str) -> None:
    run = begin(storage, source, destination)
    assert run_record.load_run(destination, run.run_id, storage) == run
    storage.delete(layout.job_uri(run.destination, run.run_id))
    with pytest.raises(Unavailable, match=r"job\.json is missing: restore it"):
        run_record.load_run(destination, run.run_id, storage)


def test_a_resumed_run_may_turn_stage_scores_on(
    storage: Storage, source: str, destination: str, dreamgrid: Command
) -> None:
    put(storage, source + "good.png", "good")
    run = begin(storage, source, destination)
    resumed = dreamgrid("run", "--resume", destination, "--stage-scores", "true", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["run_id"] == run.run_id
    assert all(row["stage_scores"] for row in manifest.read(storage, destination).to_pylist())


def test_the_estimate_covers_the_unfinished_run(
    storage: Storage, source: str, destination: str, dreamgrid: Command
) -> None:
    put(storage, source + "page.png", "page")
    run = begin(storage, source, destination)
    assert estimate(run.job)["resumes"] == run.run_id
    plan = make_plan(scan(run.job, storage).sources, run.settings, lambda _key: False)
    first, *_ = protocol.freeze(run, plan, storage)
    dream_shard(run, first, storage)
    put(storage, source + "later.png", "page")
    found = estimate(run.job)
    shown = {name: found[name] for name in ("resumes", "refused", "photographs", "planned", "done", "shards")}
    left = {"photographs": 2, "planned": 1, "done": 1, "shards": 1}
    assert shown == {"resumes": run.run_id, "refused": None, **left}, "later photographs belong to the next run"

    other = dreamgrid("plan", "--source", source, "--destination", destination)
    assert other.returncode == 0, other.stderr
    assert "resumes" not in other.stdout
    assert f"a run would be refused: {destination} is held by the unfinished run {run.run_id}" in other.stderr
    storage.write(layout.plan_uri(run.destination, run.run_id), make_plan(Sources(()), (), lambda _: True).parquet, "")
    assert estimate(run.job)["resumes"] is None


@pytest.mark.parametrize(
    ("done", "failed", "max_failures", "stops"),
    [(50, 50, 0.5, False), (49, 51, 0.5, True), (0, 99, 0.5, False), (99, 1, 0.0, True), (0, 100, 1.0, False)],
)
def test_a_run_stops_when_more_dreams_fail_than_the_job_allows(
    done: int, failed: int, max_failures: float, stops: bool, storage: Storage, source: str, destination: str
) -> None:
    run, plan = begin(storage, source, destination, max_failures=max_failures), make_plan(Sources(()), (), bool)
    counts = {"done": done, "failed": failed}
    if stops:
        with pytest.raises(DreamgridError, match=rf"{failed} of the first 100 dreams failed.*--max-failures 1"):
            protocol.check_failures(run, plan, counts, storage)
    else:
        protocol.check_failures(run, plan, counts, storage)


def test_a_run_stopped_by_failures_continues_with_a_higher_limit(
    storage: Storage, source: str, destination: str, dreamgrid: Command, tmp_path: Path
) -> None:
    for number in range(40):
        storage.write(f"{source}{number}.jpg", BYTES["page"], "image/jpeg")
    job = ("--source", source, "--destination", destination, *("--steps", "1", "--steps", "2", "--steps", "3"))
    stopped = dreamgrid("run", *job, DREAMGRID_WORKERS="2")  # more and smaller shards, so that the run is not finished
    assert stopped.returncode == 1, stopped.stderr
    assert "not_an_image). Finished dreams are kept." in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert len(manifest.read(storage, destination)) > 100

    resumed = dreamgrid("run", "--resume", destination, "--max-failures", "1", "--json")
    assert resumed.returncode == 1, "a run in which every dream failed counts as failed"
    report = json.loads(resumed.stdout)
    assert (report["state"], report["failed"], report["failures"]) == ("completed", 120, {"not_an_image": 120})
    assert f"the run {report['run_id']} failed: 0 done, 120 failed: 120 not_an_image; every dream" in resumed.stderr
    assert len(manifest.read(storage, destination)) == 120
    assert run_record.read_mark(destination, storage) is None
