"""End to end: a collection is dreamt, dreamt again and extended, with a real S3 and a real Prefect server."""

import base64
import hashlib
import io
import json
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.dataset as ds
import pyarrow.fs
import pytest
from PIL import Image

from dreamcore.images import decode, read_metadata
from flows.destination import manifest
from flows.destination.parts import part_uris
from flows.local.stack import Stack
from flows.prefect_ui.gallery_links import slug_of
from flows.s3.storage import Storage
from tests.support.command import PHOTOS, Command

GALLERY = "http://gallery.example:8470"


def photograph(name: str, width: int = 72, height: int = 48) -> bytes:
    """A small real photograph."""
    sink = io.BytesIO()
    with Image.open(PHOTOS / name) as image:
        image.convert("RGB").resize((width, height)).save(sink, "PNG")
    return sink.getvalue()


def report_of(finished: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(finished.stdout))


def test_a_second_run_dreams_only_new_photographs(
    stack: Stack,
    storage: Storage,
    source: str,
    destination: str,
    dreamgrid: Command,
    dreamgrid_inprocess: Command,
    prefect_api: Callable[[str, dict[str, Any]], Any],
    tmp_path: Path,
) -> None:
    storage.write(source + "cat.png", photograph("chelsea.png"), "image/png")
    storage.write(source + "deep/er/coffee cup.png", photograph("coffee.jpg"), "image/png")
    storage.write(source + "broken.jpg", b"<html>no photograph</html>", "image/jpeg")
    storage.write(source + "notes.txt", b"not a photograph", "text/plain")
    job = ["--source", source, "--destination", destination, "--max-pixels", "4096"]
    grid = [
        "--layers",
        "blocks.2",
        "--layers",
        "blocks.1=0.5+blocks.2",
        "--octaves",
        "1",
        "--octaves",
        "2",
        "--steps",
        "2",
    ]

    variables = {"DREAMGRID_GALLERY_URL": f"{GALLERY}?token=secret", "DREAMGRID_WORKERS": "2"}
    report = report_of(dreamgrid("run", *job, *grid, "--json", **variables))
    counts = {name: report[name] for name in ("state", "planned", "done", "failed", "skipped")}
    assert counts == {"state": "completed", "planned": 12, "done": 8, "failed": 4, "skipped": 0}
    assert json.loads(storage.read(f"{destination}_runs/{report['run_id']}/success.json") or b"")["done"] == 8
    assert storage.find(f"{destination}_runs/active.json") is None

    rows = manifest.read(storage, destination).to_pylist()
    check_rows(rows, storage)
    assert {row["error_kind"] for row in rows if row["status"] == "failed"} == {"not_an_image"}
    check_other_readers(stack, storage, destination, rows, tmp_path)
    check_prefect_page(prefect_api, report)
    check_failures_are_logged(prefect_api, source)

    strict = dreamgrid("run", *job, *grid, "--strict", "--json")
    assert strict.returncode == 1, strict.stderr
    again = json.loads(strict.stdout)
    assert (again["state"], again["planned"], again["run_id"]) == ("nothing to do", 0, None)
    assert again["sheets"] == report["sheets"] == f"{destination}sheets/", "they are there, though none was drawn"
    assert (again["photographs_failed_earlier"], again["failed_earlier"]) == (1, 4)
    assert "4 dreams (photographs: 1) failed earlier and are tried again when the photograph changes" in strict.stderr
    name, message = state_of_the_last_run(prefect_api)
    assert (name, message.partition(":")[0]) == ("Failed", "nothing to do")

    retried = dreamgrid("run", *job, *grid, "--json", "--retry-failed")
    assert retried.returncode == 1, "every dream failed again"
    retry = json.loads(retried.stdout)
    assert (retry["planned"], retry["failures"], retry["retry_failed"]) == (4, {"not_an_image": 4}, True)
    assert state_of_the_last_run(prefect_api) == ("Failed", "0 done, 4 failed: 4 not_an_image; every dream failed")
    check_rows(manifest.read(storage, destination).to_pylist(), storage)

    storage.write(source + "rocket.png", photograph("rocket.jpg"), "image/png")
    planned = report_of(dreamgrid_inprocess("plan", *job, *grid, "--json"))
    assert (planned["photographs"], planned["grid_points"]) == (4, 4)
    assert (planned["planned"], planned["done"], planned["failed_earlier"]) == (4, 12, 4)
    added = report_of(dreamgrid("run", *job, *grid, "--json", "--strict"))
    assert (added["planned"], added["done"]) == (4, 4)
    assert len(manifest.read(storage, destination)) == 16

    shown = report_of(dreamgrid_inprocess("manifest", destination, "--json"))
    assert (shown["rows"], shown["photographs"], shown["runs"]) == (16, 4, 2)
    assert shown["statuses"] == {"done": 12, "failed": 4}
    assert shown["errors"] == {"not_an_image": 4}
    (failure,) = json.loads(dreamgrid_inprocess("manifest", "failures", destination, "--json").stdout)
    named = {name: failure[name] for name in ("source_uri", "status", "error_kind", "dreams")}
    assert named == {"source_uri": source + "broken.jpg", "status": "failed", "error_kind": "not_an_image", "dreams": 4}
    assert f"manifest failures {destination}" in dreamgrid_inprocess("manifest", destination).stdout
    table = dreamgrid_inprocess("manifest", "failures", destination).stdout
    assert "broken.jpg" in table
    assert "4 dreams failed or were skipped." in table
    assert len(shown["settings"]) == 4


def check_rows(rows: list[dict[str, Any]], storage: Storage) -> None:
    """Check that there is one row for each photograph and settings, and that it matches the dream."""
    identities = {(row["source_uri"], row["source_etag"], row["settings_id"]) for row in rows}
    assert len(identities) == len(rows) == 12
    for row in rows:
        if row["status"] == "done":
            data = storage.read(row["result_uri"])
            assert data is not None
            assert (len(data), hashlib.sha256(data).hexdigest()) == (row["result_bytes"], row["result_sha256"])
            assert decode(data).pixels.shape == (row["height"], row["width"], 3) == (48, 72, 3)
            inside = read_metadata(data) or {}
            assert inside["settings"] == json.loads(row["settings"])
            assert (inside["settings_id"], inside["score_after"]) == (row["settings_id"], row["score_after"])
            assert row["score_after"] > row["score_before"]
            assert len(row["classes_before"]) == len(row["classes_after"]) == 5
        else:
            assert row["result_uri"] is None
            assert row["error"]


def check_other_readers(
    stack: Stack, storage: Storage, destination: str, rows: list[dict[str, Any]], folder: Path
) -> None:
    """Check that pyarrow and DuckDB read the same rows without Dreamgrid's code."""
    endpoint = stack.s3_url.removeprefix("http://")
    filesystem = pyarrow.fs.S3FileSystem(
        access_key=stack.access_key, secret_key=stack.secret_key, endpoint_override=endpoint, scheme="http"
    )
    path = destination.removeprefix("s3://") + "manifest"
    table = ds.dataset(path, filesystem=filesystem, partitioning="hive").to_table()
    assert sorted(table["settings_id"].to_pylist()) == sorted(row["settings_id"] for row in rows)

    for uri in part_uris(storage, destination):
        copy = folder / uri.removeprefix(destination)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(storage.read(uri) or b"")
    query = (
        f"select status, count(*) from read_parquet('{folder}/manifest/*/*.parquet', hive_partitioning=true) group by 1"
    )
    with duckdb.connect() as database:
        assert dict(database.sql(query).fetchall()) == {"done": 8, "failed": 4}


def state_of_the_last_run(prefect_api: Callable[[str, dict[str, Any]], Any]) -> tuple[str, str]:
    """Return the name and the message of the final state of the flow run that was started last."""
    (run,) = prefect_api("flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    return run["state"]["name"], run["state"]["message"]


def check_prefect_page(prefect_api: Callable[[str, dict[str, Any]], Any], report: dict[str, Any]) -> None:
    """Check that the Prefect UI shows the run, its shards, the final progress and the contact sheets."""
    flow_runs = prefect_api("flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    assert flow_runs[0]["state_type"] == "COMPLETED"
    destination = report["destination"].rstrip("/")
    started = flow_runs[0]["expected_start_time"][:10]
    assert flow_runs[0]["name"] == f"{destination.rpartition('/')[2]} {started} -> {destination}"
    assert flow_runs[0]["tags"] == [destination]
    assert state_of_the_last_run(prefect_api) == ("Completed with failures", "8 done, 4 failed: 4 not_an_image")
    of_this_run = {"flow_runs": {"id": {"any_": [flow_runs[0]["id"]]}}}
    deadline = time.monotonic() + 120
    states: Counter[tuple[bool, str]] = Counter()
    while states[True, "COMPLETED"] < 8 or {state for _, state in states} != {"COMPLETED"}:
        assert time.monotonic() < deadline, states  # the server records the states of tasks some seconds later
        time.sleep(0.2)
        task_runs = prefect_api("task_runs/filter", of_this_run)
        states = Counter((run["name"].startswith("shard "), run["state_type"]) for run in task_runs)
    assert states[True, "COMPLETED"] == 8
    artifacts = prefect_api("artifacts/filter", of_this_run)
    (progress,) = (artifact for artifact in artifacts if artifact["type"] == "progress")
    assert float(progress["data"]) == pytest.approx(100)
    tables = {key["key"].partition("-")[0]: json.loads(key["data"]) for key in artifacts if key["type"] == "table"}
    counts = {"planned": 12, "done": 8, "failed": 4, "skipped": 0, "not_an_image": 4}
    assert tables["report"] == [counts]
    (node,) = tables["nodes"]
    assert (node["node"], node["shards"], node["dreams"], node["failed"]) == (socket.gethostname(), 8, 8, 4)
    assert node["dreams a minute"] > 0
    sheets = [artifact for artifact in artifacts if artifact["type"] == "image"]
    assert len(sheets) == 2
    assert len({artifact["key"] for artifact in artifacts}) == len(artifacts) == 6, (
        "progress, report, nodes, gallery and two sheets"
    )
    (link,) = (artifact["data"] for artifact in artifacts if artifact["type"] == "markdown")
    page = f"{GALLERY}/d/{slug_of(report['destination'])}/library?run={report['run_id']}"
    assert f"({page})" in link
    for sheet in sheets:
        picture = sheet["data"].partition("data:image/jpeg;base64,")[2]
        assert min(decode(base64.b64decode(picture)).pixels.shape[:2]) > 100
    check_events(prefect_api, flow_runs[0]["id"], report)


def check_events(prefect_api: Callable[[str, dict[str, Any]], Any], flow_run: str, report: dict[str, Any]) -> None:
    """Check that the server has an event for each shard and for the run, and that the log has the same records."""
    wanted = {"event": {"prefix": ["dreamgrid."]}, "related": {"id": [f"prefect.flow-run.{flow_run}"]}}
    deadline = time.monotonic() + 60
    while len(events := prefect_api("events/filter", {"filter": wanted, "limit": 50})["events"]) < 9:
        assert time.monotonic() < deadline, events  # the server writes events some seconds later
        time.sleep(0.2)
    names = Counter(event["event"] for event in events)
    assert names == {"dreamgrid.shard.finished": 8, "dreamgrid.run.finished": 1}
    shards = [event["payload"] for event in events if event["event"] == "dreamgrid.shard.finished"]
    assert {shard["shard"] for shard in shards} == set(range(8))
    assert [sum(shard[name] for shard in shards) for name in ("done", "failed", "skipped", "new")] == [8, 4, 0, 12]
    failures = sum((Counter(shard["failures"]) for shard in shards), Counter[str]())
    assert failures == {"not_an_image": 4}
    assert {(shard["run"], shard["node"]) for shard in shards} == {(report["run_id"], socket.gethostname())}

    (run,) = (event for event in events if event["event"] == "dreamgrid.run.finished")
    assert run["resource"]["prefect.resource.id"] == f"dreamgrid.run.{report['run_id']}"
    assert run["resource"]["dreamgrid.failures"] == "some"
    assert run["payload"]["summary"] == "8 done, 4 failed: 4 not_an_image"
    assert run["payload"]["final_state"] == "Completed with failures"
    assert run["payload"]["manifest"] == report["manifest"]

    logs = prefect_api("logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}})
    lines = [json.loads(entry["message"]) for entry in logs if entry["message"].startswith("{")]
    assert sorted(lines, key=lambda line: line["shard"]) == sorted(shards, key=lambda shard: shard["shard"])


def check_failures_are_logged(prefect_api: Callable[[str, dict[str, Any]], Any], source: str) -> None:
    """Check that the log of the flow names the failed photograph and the reason."""
    logged = [entry["message"] for entry in prefect_api("logs/filter", {"logs": {"level": {"ge_": 30}}})]
    (warning,) = (message for message in logged if source in message)
    assert warning.startswith(f"4 dreams failed or were skipped:\n{source}broken.jpg: not_an_image, ")
