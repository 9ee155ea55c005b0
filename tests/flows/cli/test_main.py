"""The command as people and machines use it: help, answers, exit codes, and bad input told in one message."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dreamcore.images import read_metadata
from flows.local.stack import Stack
from flows.storage import Storage
from flows.terminal import print_message
from tests.conftest import PHOTOS, Command
from tests.support.faults import Fault, Proxy, first

HEAVY = ("torch", "prefect", "boto3", "pyarrow")


def imported_by(statement: str) -> set[str]:
    """Which heavy packages a fresh interpreter has after `statement`."""
    code = f"{statement}\nimport sys\nprint(*set({HEAVY!r}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_is_instant_because_nothing_heavy_is_imported(dreamgrid: Command) -> None:
    assert imported_by("import flows.cli.main") == set()
    assert "dreamgrid demo" in dreamgrid("--help").stdout
    assert "[default: laplacian]" in " ".join(dreamgrid("run", "--help").stdout.split())


@pytest.mark.parametrize("command", ["run", "plan", "image"])
def test_help_has_the_values_that_a_setting_may_have(command: str, dreamgrid: Command) -> None:
    told = " ".join(dreamgrid(command, "--help").stdout.split())
    assert "--gradient [laplacian|gaussian|plain] " in told
    assert "--preset [google2015|tf2|tf2_tiled|keras|gordic] " in told
    assert "--clip [true|false] " in told
    assert "--octaves TEXT " in told


def test_a_plan_imports_no_torch_and_no_prefect() -> None:
    assert imported_by("import flows.scan") == {"boto3", "pyarrow"}


def test_one_picture_needs_no_s3_and_no_prefect(dreamgrid: Command, tmp_path: Path) -> None:
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    arguments = ("--layers", "blocks.4", "--octaves", "2", "--steps", "1", "--max-pixels", "20000")
    done = dreamgrid("image", str(PHOTOS / "chelsea.png"), "out.png", *arguments, **nowhere)
    assert done.returncode == 0, done.stderr
    assert "Egyptian cat" in done.stdout
    inside = read_metadata((tmp_path / "out.png").read_bytes()) or {}
    assert inside["settings"]["layers"] == [{"layer": "blocks.4", "channels": [], "at": None, "weight": 1.0}]  # type: ignore[index]
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width * picture.height <= 20000
        assert picture.width / picture.height == pytest.approx(451 / 300, rel=0.02)


def test_what_cannot_be_dreamt_is_told(dreamgrid: Command, tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>")
    for arguments, message in (
        (("page.jpg", "out.png"), "page.jpg: no picture"),
        (("missing.jpg", "out.png"), "missing.jpg cannot be read"),
        (("page.jpg", "out.gif"), "'png', 'webp' or 'jpg', not 'gif'"),
        (("page.jpg", "no/folder/out.png"), "no folder"),
        (("page.jpg", "out.png", "--steps", "many"), "steps: "),
    ):
        done = dreamgrid("image", *arguments)
        assert done.returncode in (1, 2), done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_networks_are_listed(dreamgrid: Command) -> None:
    assert "googlenet" in json.loads(dreamgrid("models", "GoogLeNet", "--json").stdout)
    nothing = dreamgrid("models", "zzz", "--json")
    message = "dreamgrid: no network has 'zzz' in its name; `dreamgrid models` lists all\n"
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (2, "", message)


def test_the_stack_of_an_empty_folder(dreamgrid: Command) -> None:
    assert dreamgrid("down").returncode == 0
    assert json.loads(dreamgrid("status", "--json").stdout)["running"] is False
    nothing = dreamgrid("env")
    assert nothing.returncode == 2
    assert "dreamgrid up" in nothing.stderr


BAD_JOBS = {
    "unknown model": ("model: [efficientnet_lite9]", "does not exist; did you mean efficientnet_lite"),
    "unknown layer": (
        "layers: [blocks.44]",
        "layer 'blocks.44' does not exist in",
    ),
    "unknown channel": ("layers: ['blocks.4:112']", "channel 112 does not exist in blocks.4"),
    "empty grid": ("", "grid: it is empty"),
    "empty axis": ("octaves: []", "grid.octaves: the list is empty"),
    "wrong type": ("octaves: [three]", "grid.octaves[0]: input should be a valid integer"),
    "unknown axis": ("octave: [3]", "grid.octave: there is no such field"),
    "no objective": ("layers: [3]", "grid.layers[0]: 3 is no objective"),
}


@pytest.mark.parametrize("case", BAD_JOBS)
def test_a_bad_grid_starts_nothing(
    case: str, dreamgrid: Command, storage: Storage, source: str, destination: str, tmp_path: Path
) -> None:
    axis, message = BAD_JOBS[case]
    (tmp_path / "job.yaml").write_text(f"source: {source}\ndestination: {destination}\ngrid: {{{axis}}}\n")
    for command in ("run", "plan") if case == "unknown layer" else ("run",):
        done = dreamgrid(command, "job.yaml", "--json")
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert list(storage.list(destination)) == []


def bad_access(stack: Stack) -> dict[str, tuple[str, str, dict[str, str], str]]:
    """Source, destination, environment and the message they give."""
    here, there = "s3://photos/x/", "s3://dreams/x/"
    return {
        "missing bucket": ("s3://nowhere/x/", there, {}, "no bucket 'nowhere'"),
        "missing destination": (here, "s3://nowhere/x/", {}, "no bucket 'nowhere'"),
        "refused credentials": (here, there, {"AWS_SECRET_ACCESS_KEY": "x"}, "refuses access (SignatureDoesNotMatch"),
        "unreachable endpoint": (
            here,
            there,
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"},
            "127.0.0.1:9 does not answer",
        ),
        "unreachable Prefect": (
            here,
            there,
            {"PREFECT_API_URL": "http://u:pass@127.0.0.1:9/api"},
            "no Prefect server to work with at http://127.0.0.1:9/api (",
        ),
        "no Prefect": (
            here,
            there,
            {"PREFECT_API_URL": stack.s3_url.replace("//", "//u:pass@")},
            "no Prefect server to work with at",
        ),
        "Prefect's page": (here, there, {"PREFECT_API_URL": stack.prefect_url}, "no Prefect server to work with at"),
        "same place": (here, "s3://photos/x", {}, "source and destination are both s3://photos/x/"),
        "among the results": ("s3://dreams/x/images/", there, {}, "lies among the results"),
        "no address": ("photos/x", there, {}, "source: 'photos/x' is no S3 address"),
    }


@pytest.mark.parametrize(
    "case",
    ["missing bucket", "missing destination", "refused credentials", "unreachable endpoint",
     "unreachable Prefect", "no Prefect", "Prefect's page", "same place", "among the results", "no address"],
)  # fmt: skip
def test_bad_access_starts_nothing(case: str, dreamgrid: Command, stack: Stack, source: str, destination: str) -> None:
    bad_source, bad_destination, env, message = bad_access(stack)[case]
    job = ("--source", bad_source, "--destination", bad_destination)
    done = dreamgrid("run", *job, "--json", **env)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert stack.secret_key not in done.stderr
    assert "u:pass" not in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DREAMGRID_WORKERS", "DREAMGRID_WORKERS is 'lots': give a number of processes, 1 or more"),
        ("DREAMGRID_BATCH", "DREAMGRID_BATCH is 'lots': give a number of dreams, 1 or more"),
        ("DREAMGRID_PATIENCE", "DREAMGRID_PATIENCE is 'lots': give a number of seconds, 1 or more"),
        ("DREAMGRID_MAX_MEMORY", "DREAMGRID_MAX_MEMORY: 'lots' is no amount of memory: write such as 2GiB or 500MB"),
    ],
)
def test_a_bad_environment_starts_nothing(
    name: str, message: str, dreamgrid: Command, storage: Storage, source: str, destination: str
) -> None:
    storage.write(source + "cat.png", (PHOTOS / "chelsea.png").read_bytes(), "image/png")
    for command in ("run", "plan"):
        done = dreamgrid(command, "--source", source, "--destination", destination, **{name: "lots"})
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr == f"dreamgrid: {message}\n"
    assert list(storage.list(destination)) == []


def test_no_photograph_is_nothing_to_do(dreamgrid: Command, source: str, destination: str) -> None:
    for strict, code in (((), 0), (("--strict",), 1)):
        done = dreamgrid("run", "--source", source, "--destination", destination, *strict)
        assert done.returncode == code, done.stderr
        assert done.stdout == f"Nothing to do: there is no photograph in {source}.\n"


def test_a_mistyped_source_starts_nothing(dreamgrid: Command, storage: Storage, source: str, destination: str) -> None:
    cat = (PHOTOS / "chelsea.png").read_bytes()
    storage.write(source + "chelsea.png", cat, "image/png")
    storage.write(source + "deep/chelsea.png", cat, "image/png")
    storage.write(source + "notes.txt", b"not looked at", "text/plain")
    for wrong, message in (
        ("chelsea.pgn", f"neither a photograph nor a folder {source}chelsea.pgn: correct it"),
        ("ch", f"neither a photograph nor a folder {source}ch: correct it"),
        ("notes.txt", f"{source}notes.txt is no photograph by its name"),
    ):
        for command in ("plan", "run"):
            done = dreamgrid(command, "--source", source + wrong, "--destination", destination, "--json")
            assert (done.returncode, done.stdout) == (2, ""), done.stderr
            assert message in done.stderr
    assert list(storage.list(destination)) == []
    for right, photographs in (("chelsea.png", 1), ("deep", 1), ("deep/", 1), ("", 2), ("still empty/", 0)):
        done = dreamgrid("plan", "--source", source + right, "--destination", destination, "--json")
        assert json.loads(done.stdout)["photographs"] == photographs, done.stderr


def test_no_key_steers_the_terminal(dreamgrid: Command, destination: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = dreamgrid("manifest", f"{destination}[red]1/")
    assert shown.stdout == f"There is no manifest in {destination}[red]1/ yet.\n"
    done = dreamgrid("manifest", "s3://nowhere/\x1b[31mred\x9b\u202e/")
    assert done.returncode == 2
    assert done.stderr.endswith("correct s3://nowhere/ [31mred  /manifest/\n"), done.stderr
    print_message("a server did not start\nthe end of its log", "red")
    assert capsys.readouterr().err == "dreamgrid: a server did not start\nthe end of its log\n"


@pytest.mark.parametrize(
    ("flags", "fault", "call", "told", "again"),
    [
        ((), Fault.UNKNOWN, "api/artifacts", "501 Not Implemented", "the same command"),
        (("--abandon",), Fault.GONE, "set_state", "404 Not ObjectInfo", "the same command without --abandon"),
    ],
    ids=["bad answer", "deleted"],
)
def test_a_bad_answer_of_prefect_stops_a_run(
    flags: tuple[str, ...], fault: Fault, call: str, told: str, again: str,
    dreamgrid: Command, stack: Stack, storage: Storage, source: str, destination: str,
) -> None:  # fmt: skip
    storage.write(source + "cat.png", (PHOTOS / "chelsea.png").read_bytes(), "image/png")
    with Proxy(stack.prefect_url) as proxy:
        proxy.choose = first(fault, "POST", call)
        address = f"http://u:pass@127.0.0.1:{proxy.server_port}/api"
        done = dreamgrid("run", "--source", source, "--destination", destination, *flags, PREFECT_API_URL=address)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert f"Prefect's server does not answer as it should ({told}); see PREFECT_API_URL" in done.stderr
    assert f"Nothing is lost: {again} goes on where this one stopped." in done.stderr
    assert "Traceback" not in done.stderr
    assert "u:pass" not in done.stderr


def test_a_bar_that_somebody_deleted_stops_no_run(
    dreamgrid: Command, stack: Stack, storage: Storage, source: str, destination: str
) -> None:
    storage.write(source + "cat.png", (PHOTOS / "chelsea.png").read_bytes(), "image/png")
    with Proxy(stack.prefect_url) as proxy:
        proxy.choose = first(Fault.GONE, "PATCH", "api/artifacts")
        job = ("--source", source, "--destination", destination, "--steps", "1", "--octaves", "1", "--octaves", "2")
        done = dreamgrid("run", *job, "--json", PREFECT_API_URL=f"http://127.0.0.1:{proxy.server_port}/api")
    assert proxy.count(Fault.GONE) == 1
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 2


def test_what_a_job_file_keeps_from_a_preset_is_told(
    dreamgrid: Command, source: str, destination: str, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(
        f"source: {source}\ndestination: {destination}\n"
        "grid: {model: efficientnet_lite0, layers: blocks.3, octaves: [3, 4], steps: 10, seed: [1, 2]}\n"
    )
    flags = ("--preset", "tf2", "--preset", "gordic", "--steps", "5", "--json")
    told = "dreamgrid: the job itself sets layers, octaves: that goes before what --preset says"
    for command in ("plan", "run"):
        done = dreamgrid(command, "job.yaml", *flags)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[0] == told
        alone = dreamgrid(command, "--source", source, "--destination", destination, *flags)
        assert told not in alone.stderr


def test_a_usage_error_is_exit_2(dreamgrid: Command) -> None:
    assert dreamgrid("run", "--nonsense").returncode == 2
    assert dreamgrid("run").returncode == 2
    assert dreamgrid("run", "job.yaml", "--resume", "s3://dreams/x/").returncode == 2
    assert dreamgrid("manifest", "no-address").returncode == 2
    lacking = dreamgrid("run", "--source", "s3://photos/a/")
    message = "dreamgrid: the job: destination: it is missing; give --destination\n"
    assert (lacking.returncode, lacking.stderr) == (2, message)
    twice = dreamgrid("run", "--source", "s3://photos/a/", "--source", "s3://photos/b/")
    assert (twice.returncode, twice.stderr) == (2, "dreamgrid: --source is given 2 times: give it once\n")
