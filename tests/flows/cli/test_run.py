"""`dreamgrid run` and `plan`: wrong jobs, access and variables start nothing; failures of Prefect stop a run."""

import json
from pathlib import Path

import pytest

from flows.cli.run import run
from flows.local.stack import Stack
from flows.s3.storage import Storage
from tests.support.command import PHOTOS, Command
from tests.support.faults import Fault, Proxy, first

pytestmark = pytest.mark.slow

BAD_GRIDS = {
    "unknown model": (
        "model: [efficientnet_lite9]",
        "network 'efficientnet_lite9' does not exist; did you mean efficientnet_lite",
    ),
    "unknown layer": (
        "layers: [blocks.44]",
        "layer 'blocks.44' does not exist in efficientnet_lite0; did you mean blocks.4,",
    ),
    "unknown channel": ("layers: ['blocks.4:112']", "channel 112 does not exist in blocks.4"),
    "empty grid": ("", "grid: the grid is empty"),
    "empty axis": ("octaves: []", "grid.octaves: the list is empty"),
    "wrong type": ("octaves: [three]", "grid.octaves[0]: input should be a valid integer"),
    "unknown axis": ("octave: [3]", "grid.octave: unknown field"),
    "no objective": ("layers: [3]", "grid.layers[0]: 3 is no"),
}


@pytest.mark.parametrize("case", BAD_GRIDS)
def test_a_wrong_grid_starts_nothing(
    case: str, dreamgrid_inprocess: Command, storage: Storage, source: str, destination: str, tmp_path: Path
) -> None:
    axis, message = BAD_GRIDS[case]
    (tmp_path / "job.yaml").write_text(f"source: {source}\ndestination: {destination}\ngrid: {{{axis}}}\n")
    for command in ("run", "plan"):
        done = dreamgrid_inprocess(command, "job.yaml", "--json")
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert list(storage.list(destination)) == []


UNREACHABLE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
HERE, THERE = "s3://photos/x/", "s3://dreams/x/"
BAD_ACCESS: dict[str, tuple[str, str, dict[str, str], str]] = {
    "missing source bucket": ("s3://nowhere/x/", THERE, {}, "no bucket 'nowhere'"),
    "missing destination bucket": (HERE, "s3://nowhere/x/", {}, "no bucket 'nowhere'"),
    "wrong credentials": (HERE, THERE, {"AWS_SECRET_ACCESS_KEY": "x"}, "refuses access (SignatureDoesNotMatch"),
    "unreachable endpoint": (HERE, THERE, UNREACHABLE, "127.0.0.1:9 "),
    "source is destination": (HERE, "s3://photos/x", {}, "source and destination are both s3://photos/x/"),
    "source inside the results": ("s3://dreams/x/images/", THERE, {}, "is inside the results"),
    "not an address": ("photos/x", THERE, {}, "source: 'photos/x' is not an S3 address"),
}


@pytest.mark.parametrize("case", BAD_ACCESS)
def test_wrong_access_to_s3_starts_nothing(
    case: str, dreamgrid_inprocess: Command, stack: Stack, source: str, destination: str
) -> None:
    bad_source, bad_destination, env, message = BAD_ACCESS[case]
    done = dreamgrid_inprocess("run", "--source", bad_source, "--destination", bad_destination, "--json", **env)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert stack.secret_key not in done.stderr


@pytest.mark.parametrize("case", ["unreachable", "another server", "the UI instead of the API"])
def test_without_a_usable_prefect_server_nothing_starts(
    case: str, dreamgrid: Command, stack: Stack, source: str, destination: str
) -> None:
    address = {
        "unreachable": "http://u:pass@127.0.0.1:9/api",
        "another server": stack.s3_url.replace("//", "//u:pass@"),
        "the UI instead of the API": stack.prefect_url,
    }[case]
    done = dreamgrid("run", "--source", source, "--destination", destination, "--json", PREFECT_API_URL=address)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert f"no usable Prefect server at {address.replace('u:pass@', '')}" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "u:pass" not in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DREAMGRID_WORKERS", "DREAMGRID_WORKERS is 'lots': give a number of processes, 1 or more"),
        ("DREAMGRID_BATCH", "DREAMGRID_BATCH is 'lots': give a number of dreams, 1 or more"),
        ("DREAMGRID_RETRY_SECONDS", "DREAMGRID_RETRY_SECONDS is 'lots': give a number of seconds, 1 or more"),
        ("DREAMGRID_PATIENCE", "DREAMGRID_PATIENCE is 'lots': give a number of seconds, 1 or more"),
        (
            "DREAMGRID_MAX_MEMORY",
            "DREAMGRID_MAX_MEMORY: 'lots' is not an amount of memory: write for example 2GiB or 500MB",
        ),
    ],
)
def test_a_wrong_variable_starts_nothing(
    name: str, message: str, dreamgrid_inprocess: Command, storage: Storage, source: str, destination: str
) -> None:
    storage.write(source + "cat.png", (PHOTOS / "chelsea.png").read_bytes(), "image/png")
    for command in ("run", "plan"):
        done = dreamgrid_inprocess(command, "--source", source, "--destination", destination, **{name: "lots"})
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr == f"dreamgrid: {message}\n"
    assert list(storage.list(destination)) == []


@pytest.mark.parametrize(
    ("words", "job", "kinds"),
    [
        ("job.yaml", "job.yaml", ()),
        ("--retry-failed job.yaml", "job.yaml", ("all",)),
        ("job.yaml --retry-failed", "job.yaml", ("all",)),
        ("--retry-failed damaged job.yaml", "job.yaml", ("damaged",)),
        ("job.yaml --retry-failed damaged --retry-failed too_small --json", "job.yaml", ("damaged", "too_small")),
        ("--retry-failed=damaged --retry-failed --strict job.yaml", "job.yaml", ("damaged", "all")),
        ("--retry-failed --source s3://a/ --destination s3://b/", None, ("all",)),
    ],
)
def test_the_kind_after_retry_failed_may_be_left_out(words: str, job: str | None, kinds: tuple[str, ...]) -> None:
    parameters = run.make_context("run", words.split()).params
    assert (parameters["job"], parameters["retry_failed"]) == (job and Path(job), kinds)


def test_an_unknown_kind_to_retry_is_refused(dreamgrid_inprocess: Command) -> None:
    done = dreamgrid_inprocess("run", "job.yaml", "--retry-failed=demaged")
    assert done.returncode == 2
    assert "'demaged' is not one of" in done.stderr
    done = dreamgrid_inprocess("run", "--resume", "s3://dreams/x/", "--retry-failed")
    assert (done.returncode, "--resume takes the job from the unfinished run" in done.stderr) == (2, True)


def test_an_empty_source_is_nothing_to_do(dreamgrid: Command, source: str, destination: str) -> None:
    for strict, code in (((), 0), (("--strict",), 1)):
        done = dreamgrid("run", "--source", source, "--destination", destination, *strict)
        assert done.returncode == code, done.stderr
        assert done.stdout == f"Nothing to do: there is no photograph in {source}: it is empty.\n"


def test_a_mistyped_source_starts_nothing(
    dreamgrid_inprocess: Command, storage: Storage, source: str, destination: str
) -> None:
    cat = (PHOTOS / "chelsea.png").read_bytes()
    storage.write(source + "chelsea.png", cat, "image/png")
    storage.write(source + "deep/chelsea.png", cat, "image/png")
    storage.write(source + "notes.txt", b"not a photograph", "text/plain")
    for wrong in ("chelsea.pgn", "ch", "notes"):
        for command in ("plan", "run"):
            done = dreamgrid_inprocess(command, "--source", source + wrong, "--destination", destination, "--json")
            assert (done.returncode, done.stdout) == (2, ""), done.stderr
            assert source + wrong in done.stderr
    assert list(storage.list(destination)) == []
    for right, photographs in (
        ("chelsea.png", 1),
        ("notes.txt", 1),
        ("deep", 1),
        ("deep/", 1),
        ("", 2),
        ("still empty/", 0),
    ):
        done = dreamgrid_inprocess("plan", "--source", source + right, "--destination", destination, "--json")
        assert json.loads(done.stdout)["photographs"] == photographs, done.stderr


@pytest.mark.parametrize(
    ("flags", "fault", "call", "status", "command"),
    [
        ((), Fault.UNKNOWN, "api/artifacts", "501 Not Implemented", "the same command"),
        (("--abandon",), Fault.GONE, "set_state", "404 Not Found", "the same command without --abandon"),
    ],
    ids=["unexpected response", "deleted run"],
)
def test_an_unexpected_response_of_prefect_stops_a_run(
    flags: tuple[str, ...], fault: Fault, call: str, status: str, command: str,
    dreamgrid: Command, stack: Stack, storage: Storage, source: str, destination: str,
) -> None:  # fmt: skip
    storage.write(source + "cat.png", (PHOTOS / "chelsea.png").read_bytes(), "image/png")
    with Proxy(stack.prefect_url) as proxy:
        proxy.choose = first(fault, "POST", call)
        address = f"http://u:pass@127.0.0.1:{proxy.server_port}/api"
        done = dreamgrid("run", "--source", source, "--destination", destination, *flags, PREFECT_API_URL=address)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert f"the Prefect server failed ({status}): check the server and PREFECT_API_URL" in done.stderr
    assert f"Nothing is lost. Give {command} to resume the run." in done.stderr
    assert "Traceback" not in done.stderr
    assert "u:pass" not in done.stderr


def test_a_deleted_progress_bar_does_not_stop_a_run(
    dreamgrid: Command, stack: Stack, storage: Storage, source: str, destination: str
) -> None:
    storage.write(source + "cat.png", (PHOTOS / "chelsea.png").read_bytes(), "image/png")
    with Proxy(stack.prefect_url) as proxy:
        proxy.choose = first(Fault.GONE, "PATCH", "api/artifacts")
        grid = ("--steps", "1", "--octaves", "1", "--octaves", "2", "--max-pixels", "4096")
        job = ("--source", source, "--destination", destination, *grid)
        done = dreamgrid("run", *job, "--json", PREFECT_API_URL=f"http://127.0.0.1:{proxy.server_port}/api")
    assert proxy.count(Fault.GONE) == 1
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 2


def test_settings_of_the_job_file_that_override_a_preset_are_reported(
    dreamgrid_inprocess: Command, source: str, destination: str, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(
        f"source: {source}\ndestination: {destination}\n"
        "grid: {model: efficientnet_lite0, layers: blocks.3, octaves: [3, 4], steps: 10, seed: [1, 2]}\n"
    )
    flags = ("--preset", "tf2", "--preset", "gordic", "--steps", "5", "--json")
    message = "dreamgrid: the job sets layers, octaves: these values override --preset"
    # The wrong variable ends `run` after the job was read and before the run starts.
    for command, env, code in (("plan", {}, 0), ("run", {"DREAMGRID_WORKERS": "wrong"}, 2)):
        done = dreamgrid_inprocess(command, "job.yaml", *flags, **env)
        assert done.returncode == code, done.stderr
        assert done.stderr.splitlines()[0] == message
        without_file = dreamgrid_inprocess(command, "--source", source, "--destination", destination, *flags, **env)
        assert message not in without_file.stderr
