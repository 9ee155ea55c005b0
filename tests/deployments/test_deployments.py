"""The deployments: `prefect deploy`, a process worker in another folder, and runs created by deployment."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling, Scheduled

from dreamcore.settings import DreamSettings
from flows.destination import manifest
from flows.dream_collection import dream_collection
from flows.form import ADDRESSES, dream_from_form, job_from_form
from flows.jobs.job import DreamJob
from flows.local.stack import Stack
from flows.s3.storage import Storage
from tests.support.command import Command
from tests.support.kills import Observer, put_photographs

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
POOL = "dreamgrid"
DEPLOYED = ("nightly", "grid", "cluster")
BUCKET = "s3://test-deployments/"
FORM: dict[str, Any] = {
    "source": f"{BUCKET}photos/",
    "destination": f"{BUCKET}dreams/",
    "octaves": [2],
    "steps": [1],
    "more": {"max_pixels": 64 * 48},
}
NEVER = datetime.now(UTC) + timedelta(days=365)  # no worker starts a run so long before its time


def prefect(stack: Stack, folder: Path, *arguments: str, seconds: float = 300) -> str:
    """Run `prefect`, which must succeed without a question, and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=folder,
        env=os.environ | stack.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(stack.environment()["PREFECT_API_URL"], httpx_settings={"trust_env": False}) as client:
        yield client


@pytest.fixture(scope="module")
def deployed(stack: Stack, client: SyncPrefectClient) -> Iterator[dict[str, DeploymentResponse]]:
    """Return the deployments by name, and delete them and their work pool afterwards."""
    prefect(stack, ROOT, "work-pool", "create", POOL, "--type", "process")
    try:
        prefect(stack, ROOT, "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
        yield {name: client.read_deployment_by_name(f"dream-collection/{name}") for name in DEPLOYED}
    finally:
        for deployment in client.read_deployments():
            if deployment.work_pool_name == POOL:
                client.delete_deployment(deployment.id)
        client.delete_work_pool(POOL)


@pytest.fixture(scope="module")
def worker(
    stack: Stack,
    client: SyncPrefectClient,
    deployed: dict[str, DeploymentResponse],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """Start a worker in an empty folder, which runs only what a test requests, and return its log."""
    client.pause_deployment(deployed["nightly"].id)  # in case it is 02:00 now
    folder = tmp_path_factory.mktemp("worker")
    log = folder / "worker.log"
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-P", "-m", "prefect", "worker", "start", "--pool", POOL, "--limit", "1"]
    mark = {"DREAMGRID_TEST": str(folder)}  # each run starts a new session, but inherits this variable
    environment = os.environ | stack.environment() | mark | {"DREAMGRID_WORKERS": "1"}
    with log.open("w") as sink, subprocess.Popen(
        command, cwd=elsewhere, env=environment, stdout=sink, stderr=sink, start_new_session=True
    ) as process:  # fmt: skip
        try:
            yield log
        finally:
            process.kill()
            assert all_end(f"DREAMGRID_TEST={folder}"), "a process outlives the worker"


def all_end(mark: str) -> bool:
    """Kill every process with `mark` in its environment, and return whether all have ended within a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        alive = [int(file.parent.name) for file in Path("/proc").glob("[0-9]*/environ") if contains_mark(file, mark)]
        if not alive:
            return True
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return False


def contains_mark(environ: Path, mark: str) -> bool:
    try:
        return mark.encode() in environ.read_bytes().split(b"\0")
    except OSError:  # it ended, or belongs to another user
        return False


def job_of(parameters: dict[str, Any]) -> DreamJob:
    """Return the job that these parameters of a deployment describe."""
    addresses = {name: value for name, value in parameters.items() if name in ADDRESSES}
    axes = {name: values for name, values in parameters.items() if name not in (*ADDRESSES, "more")}
    return job_from_form(addresses, axes, parameters.get("more", {}))


def photograph() -> bytes:
    sink = io.BytesIO()
    with Image.open(ROOT / "examples" / "photos" / "chelsea.png") as picture:
        picture.convert("RGB").resize((64, 48)).save(sink, "PNG")
    return sink.getvalue()


def test_nightly_is_scheduled_at_two_with_one_run_at_a_time(deployed: dict[str, DeploymentResponse]) -> None:
    nightly = deployed["nightly"]
    assert [entry.schedule.model_dump(include={"cron", "timezone"}) for entry in nightly.schedules] == [
        {"cron": "0 2 * * *", "timezone": "UTC"}
    ]
    assert nightly.schedules[0].active
    assert not nightly.paused
    assert nightly.global_concurrency_limit is not None
    assert nightly.global_concurrency_limit.limit == 1
    assert nightly.concurrency_options is not None
    assert nightly.concurrency_options.collision_strategy == "ENQUEUE"
    job = job_of(nightly.parameters)
    assert (job.source, job.destination) == ("s3://photos/", "s3://dreams/nightly/")
    assert job.settings() == (DreamSettings(),), "the example is the default dream"


def test_grid_has_no_schedule(deployed: dict[str, DeploymentResponse]) -> None:
    assert deployed["grid"].schedules == []
    assert deployed["grid"].parameters == {}


def test_the_cluster_is_used_on_demand(deployed: dict[str, DeploymentResponse]) -> None:
    cluster = deployed["cluster"]
    assert cluster.schedules == []
    assert job_of(cluster.parameters | {"source": "s3://a/", "destination": "s3://b/"}).executor.name == "ray"


def test_all_deployments_have_a_description_and_enforce_their_schema(deployed: dict[str, DeploymentResponse]) -> None:
    for deployment in deployed.values():
        assert deployment.description
        assert deployment.enforce_parameter_schema
        assert deployment.work_pool_name == POOL
        assert deployment.job_variables == {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}}
        assert deployment.entrypoint == "flows/form.py:dream_from_form"


def test_the_form_has_only_plain_fields(deployed: dict[str, DeploymentResponse]) -> None:
    """Prefect shows `anyOf` as a choice of types with the text 'Property is type "None"', and `properties` as boxes."""
    schema = deployed["grid"].parameter_openapi_schema or {}
    assert schema["required"] == ["destination"]
    form = schema["properties"]
    assert {name: (field["type"], field.get("items", {}).get("type")) for name, field in form.items()} == {
        "source": ("string", None),
        "sources": ("array", "string"),
        "destination": ("string", None),
        "look": ("array", "string"),
        "layers": ("array", "string"),
        "octaves": ("array", "integer"),
        "steps": ("array", "integer"),
        "model": ("array", "string"),
        "preset": ("array", "string"),
        "more": ("object", None),
    }
    for field in form.values():
        assert field["description"]
        assert not {"anyOf", "allOf", "$ref", "properties"} & field.keys()


def test_a_deployment_of_the_flow_with_a_job_still_works() -> None:
    """Earlier versions deployed this flow. Its deployments pass the job as one parameter."""
    job = {"source": "s3://photos/", "destination": "s3://dreams/"}
    assert dream_collection.validate_parameters({"job": job}) == {"job": DreamJob.model_validate(job)}
    assert dream_collection.name == dream_from_form.name, "otherwise both would be deployed side by side"


def test_the_files_contain_no_machine_path_and_no_secret() -> None:
    for file in DEPLOYMENTS.rglob("*.*"):
        text = file.read_text()
        assert str(ROOT) not in text
        assert not re.search(r"AKIA|AWS_SECRET_ACCESS_KEY['\"]?\s*[:=]\s*\S|aws_secret", text), file


def test_the_policy_allows_exactly_the_calls_of_the_code() -> None:
    action = {
        "list_objects_v2": "s3:ListBucket",
        "head_object": "s3:GetObject",
        "get_object": "s3:GetObject",
        "put_object": "s3:PutObject",
        "copy_object": "s3:PutObject",  # and s3:GetObject for the original
        "delete_object": "s3:DeleteObject",
        "delete_objects": "s3:DeleteObject",
        "create_bucket": None,  # only the demo calls it
    }
    code = (ROOT / "flows" / "s3" / "storage.py").read_text()
    called = set(re.findall(r"\bs3\.(\w+)\(", code))
    statements = json.loads((DEPLOYMENTS / "iam-policy.json").read_text())["Statement"]
    allowed = [entry["Action"] if isinstance(entry["Action"], list) else [entry["Action"]] for entry in statements]
    assert {name for names in allowed for name in names} == {action[call] for call in called} - {None}
    (deleted,) = [entry["Resource"] for entry in statements if "s3:DeleteObject" in entry["Action"]]
    assert deleted == [
        f"arn:aws:s3:::DESTINATION_BUCKET/PREFIX/{name}"
        for name in ("frames/*", "_runs/active.json", "_runs/probe-*", "_runs/*/started/*")
    ]


def test_the_policy_of_a_prune_may_delete_only_dreams_sheets_and_marks() -> None:
    statements = json.loads((DEPLOYMENTS / "iam-policy-prune.json").read_text())["Statement"]
    resources = {entry["Action"]: entry["Resource"] for entry in statements}
    assert resources.keys() == {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"}
    below = "arn:aws:s3:::DESTINATION_BUCKET/PREFIX/"
    assert resources["s3:DeleteObject"] == [
        f"{below}{name}"
        for name in ("images/*", "thumbs/*", "frames/*", "sheets/*", "_runs/prune.json", "_runs/probe-*")
    ]
    assert not any(
        folder in name for folder in ("images", "thumbs", "frames", "sheets") for name in resources["s3:PutObject"]
    )


def test_the_server_accepts_the_kubernetes_template(stack: Stack, client: SyncPrefectClient) -> None:
    template = "deployments/kubernetes/base-job-template.json"
    prefect(stack, ROOT, "work-pool", "create", "gpu", "--type", "kubernetes", "--base-job-template", template)
    try:
        pool = client.read_work_pool("gpu")
    finally:
        client.delete_work_pool("gpu")
    assert pool.base_job_template["variables"]["properties"]["gpus"]["default"] == "1"
    (container,) = pool.base_job_template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    assert {container["resources"][kind]["cpu"] for kind in ("requests", "limits")} == {"{{ cpu_request }}"}
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(pool.base_job_template["job_configuration"])))
    assert used == set(pool.base_job_template["variables"]["properties"])


def test_the_schedule_creates_runs(client: SyncPrefectClient, deployed: dict[str, DeploymentResponse]) -> None:
    mine = DeploymentFilter(id=DeploymentFilterId(any_=[deployed["nightly"].id]))
    deadline = time.monotonic() + 300  # the scheduler runs once a minute
    while not (runs := client.read_flow_runs(deployment_filter=mine, limit=3)):
        assert time.monotonic() < deadline, "the server's scheduler made no run: see its log"
        time.sleep(0.5)
    assert all(run.auto_scheduled and run.state_type is StateType.SCHEDULED for run in runs)
    assert {(run.expected_start_time or NEVER).strftime("%H:%M") for run in runs} == {"02:00"}


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": ["blocks.4", "blocks.3=0.3+blocks.4", "blocks.4:12,17", "blocks.4:0-63", "blocks.4:top16"]},
        {"more": {"steps": "4-8", "step_size": ["0.004-0.012/5", 0.02], "layers": "blocks.4:*"}},
        {"octaves": [2, 4], "steps": [1, 2], "model": ["efficientnet_lite0"], "preset": ["keras", "tf2"]},
        {"more": {"jitter": 16, "octave_scale": [1.3, 1.5], "clip": None, "guide": "s3://photos/guide.png"}},
        {"more": {"points": [{"layers": "blocks.3", "octaves": 2}], "output": {"format": "jpg", "quality": 80}}},
        {"more": {"sheets": 0, "max_failures": 0.9, "stage_scores": True, "strict": True, "retry_failed": True}},
        {"more": {"retry_failed": ["damaged", "out_of_memory"], "exclude": ["*.tmp"]}},
        {},
    ],
    ids=["layers", "sweeps", "lists", "settings", "points and output", "job fields", "lists of the job", "nothing"],
)
def test_the_server_accepts_every_field(
    client: SyncPrefectClient, deployed: dict[str, DeploymentResponse], fields: dict[str, Any]
) -> None:
    fields = {"source": "s3://photos/", "destination": "s3://dreams/grid/", **fields}
    assert job_of(fields)
    run = client.create_flow_run_from_deployment(
        deployed["grid"].id, parameters=fields, state=Scheduled(scheduled_time=NEVER)
    )
    client.delete_flow_run(run.id)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "'destination' is a required property"),
        ({"source": "s3://photos/"}, "'destination' is a required property"),
        ({"source": "photos", "destination": "s3://dreams/"}, "'photos' does not match"),
        ({"sources": ["photos"]}, "'photos' does not match"),
        ({"octaves": ["many"]}, "'many' is not of type"),
        ({"octaves": [99]}, "99 is greater than the maximum"),
        ({"octaves": 4}, "4 is not of type 'array'"),
        ({"layers": [""]}, "'' should be non-empty"),
        ({"preset": ["kera"]}, "'kera' is not one of"),
        ({"more": {"octavs": [4]}}, "'octavs' is not one of"),
        ({"more": {"octaves": ["many"]}}, "'many' does not match"),
        ({"more": {"grid": {"octaves": [4]}}}, "'grid' is not one of"),
        ({"more": {"seed": "one"}}, "'one' does not match"),
        ({"more": {"output": {"format": "gif"}}}, "'gif' is not one of"),
        ({"more": {"executor": "dask"}}, "'dask' is not valid under any of the given schemas"),
    ],
)
def test_a_wrong_field_is_refused_when_the_run_is_created(
    client: SyncPrefectClient, deployed: dict[str, DeploymentResponse], parameters: dict[str, Any], message: str
) -> None:
    if parameters and "source" not in parameters:
        parameters = FORM | parameters
    with pytest.raises(PrefectHTTPStatusError) as error:
        client.create_flow_run_from_deployment(
            deployed["grid"].id, parameters=parameters, state=Scheduled(scheduled_time=NEVER)
        )
    assert message in error.value.response.json()["detail"]


def test_a_worker_in_another_folder_dreams(
    stack: Stack, client: SyncPrefectClient, deployed: dict[str, DeploymentResponse], worker: Path, storage: Storage
) -> None:
    source = photograph()
    storage.create_bucket(BUCKET)
    storage.write(f"{BUCKET}photos/cat.png", source, "image/png")
    parameters = json.dumps({"model": [], "more": {}} | FORM)
    watch = ("--watch", "--watch-interval", "1", "--watch-timeout", "240")
    try:
        output = prefect(
            stack, worker.parent, "deployment", "run", "dream-collection/nightly", "--params", parameters, *watch
        )
    except (AssertionError, subprocess.TimeoutExpired) as error:
        pytest.fail(f"{error}\nThe worker's log:\n{worker.read_text()}")
    run_id = re.search(r"UUID: (\S+)", output)
    assert run_id
    run = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run_id[1]]}}))[0]
    assert run.state_type is StateType.COMPLETED
    assert run.deployment_id == deployed["nightly"].id
    assert re.fullmatch(rf"nightly \d{{4}}-\d\d-\d\d -> {BUCKET}dreams", run.name)
    assert FORM["destination"].rstrip("/") in run.tags

    rows = manifest.read(storage, FORM["destination"]).to_pylist()
    assert [(row["status"], row["source_uri"], row["octaves"]) for row in rows] == [
        ("done", f"{BUCKET}photos/cat.png", 2)
    ]
    dream = storage.read(rows[0]["result_uri"])
    assert dream is not None
    assert hashlib.sha256(dream).hexdigest() == rows[0]["result_sha256"]
    with Image.open(io.BytesIO(dream)) as picture, Image.open(io.BytesIO(source)) as photo:
        assert picture.size == photo.size == (64, 48)
        assert picture.convert("RGB").tobytes() != photo.tobytes()


def test_the_final_states_of_deployed_runs(
    client: SyncPrefectClient,
    deployed: dict[str, DeploymentResponse],
    worker: Path,
    storage: Storage,
    source: str,
    destination: str,
) -> None:
    """One of three photographs is broken; then the source has only the broken one."""
    put_photographs(storage, f"{source}some/", 2)
    for folder in ("some", "all"):
        storage.write(f"{source}{folder}/broken.jpg", b"<html>no photograph</html>", "image/jpeg")
    runs = {}
    for folder in ("some", "all"):
        fields = FORM | {"source": f"{source}{folder}/", "destination": f"{destination}{folder}/"}
        runs[folder] = client.create_flow_run_from_deployment(deployed["grid"].id, parameters=fields).id
    deadline = time.monotonic() + 300
    while not all((state := client.read_flow_run(run).state) and state.is_final() for run in runs.values()):
        assert time.monotonic() < deadline, f"The worker's log:\n{worker.read_text()}"
        time.sleep(0.5)
    time.sleep(3)  # the worker sees that the processes of the runs end; it must not change their states
    states = {folder: client.read_flow_run(run).state for folder, run in runs.items()}
    found = {folder: (state.type, state.name, state.message) for folder, state in states.items() if state}
    assert found == {
        "some": (StateType.COMPLETED, "Completed with failures", "2 done, 1 failed: 1 not_an_image"),
        "all": (StateType.FAILED, "Failed", "0 done, 1 failed: 1 not_an_image; every dream failed"),
    }
    assert "Traceback" not in worker.read_text()


@pytest.mark.soak
def test_a_cancelled_run_stops_and_is_resumed(
    client: SyncPrefectClient,
    deployed: dict[str, DeploymentResponse],
    worker: Path,
    storage: Storage,
    source: str,
    destination: str,
    dreamgrid: Command,
) -> None:
    put_photographs(storage, source, 40)
    fields = {"source": source, "destination": destination, "layers": ["blocks.1"], "octaves": [2], "steps": [100]}
    run = client.create_flow_run_from_deployment(deployed["grid"].id, parameters=fields)
    observer = Observer(storage, destination)

    def await_or_fail(seconds: float, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"The worker's log:\n{worker.read_text()}"
            time.sleep(0.5)
            observer.look()

    await_or_fail(240, lambda: observer.dreams)
    client.set_flow_run_state(run.id, Cancelling())
    await_or_fail(120, lambda: client.read_flow_run(run.id).state_type is StateType.CANCELLED)
    finished = len(observer.dreams)
    time.sleep(5)
    observer.look()
    assert len(observer.dreams) == finished < 40, "a worker still dreams"
    log = worker.read_text()
    assert "Finished in state Running()" not in log
    assert "leaked" not in log
    assert "Traceback" not in log

    resumed = dreamgrid("run", "--resume", destination)
    assert resumed.returncode == 0, resumed.stderr
    observer.check_finished(job_of(fields))
