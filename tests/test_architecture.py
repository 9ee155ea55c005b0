"""Imports point in one direction, and lists that must agree do agree."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from graphlib import TopologicalSorter
from pathlib import Path
from typing import get_args

import pytest

from dreamcore.errors import ErrorKind
from dreamcore.grid import Grid
from dreamcore.settings import DreamSettings
from flows.destination.manifest import Row
from flows.gallery.pages import _KINDS

ROOT = Path(__file__).parents[1]


def modules_of(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    paths = (path for path in (ROOT / package).rglob("*.py") if path.stem != "__init__")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


CORE, FLOWS = modules_of("dreamcore"), modules_of("flows")

# The rooms of flows, from the highest to the lowest. A module imports modules of its own room and of lower ones.
ROOMS = (
    *("cli", "form", "gallery", "dream_collection", "prefect_ui", "results", "running", "planning", "movies"),
    *("pictures", "contact_sheets", "local", "folders", "destination", "jobs", "s3", "decoding", "machine"),
)


def imports(source: str) -> Iterator[str]:
    """Every module that a source file imports, anywhere in it, by `import x` or by `from x import y`."""
    modules = CORE | FLOWS
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in modules else str(node.module)


def imported(path: Path) -> set[str]:
    return set(imports(path.read_text()))


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def ours(path: Path) -> set[str]:
    return imported(path) & (CORE | FLOWS).keys()


@pytest.mark.parametrize(
    "statement",
    [
        "import flows.s3.storage",
        "import flows.s3.storage as s",
        "from flows.s3 import storage",
        "from flows.s3.storage import x",
    ],
)
def test_every_form_of_import_is_found(statement: str) -> None:
    assert set(imports(f"def f():\n    {statement}")) == {"flows.s3.storage"}


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_no_s3_no_prefect_and_no_flows(module: str) -> None:
    assert not packages(CORE[module]) & {"flows", "prefect", "boto3", "botocore", "click", "rich", "yaml", "pyarrow"}


def room(module: str) -> str:
    """The folder of a module of flows, or the module itself if it is in none."""
    return module.split(".")[1]


@pytest.mark.parametrize("module", FLOWS)
def test_flows_import_only_their_own_and_lower_rooms(module: str) -> None:
    assert {room(each) for each in FLOWS} == set(ROOMS), "ROOMS must list every folder and every other module of flows"
    lower = ROOMS[ROOMS.index(room(module)) :]
    assert {room(other) for other in ours(FLOWS[module]) & FLOWS.keys()} <= set(lower)


BOTOCORE = ("flows.s3.storage", "flows.s3.errors", "flows.s3.requests", "flows.s3.transfers")


@pytest.mark.parametrize("module", FLOWS)
def test_only_storage_imports_boto(module: str) -> None:
    assert bool(packages(FLOWS[module]) & {"boto3"}) == (module == "flows.s3.storage")
    assert bool(packages(FLOWS[module]) & {"botocore"}) == (module in BOTOCORE)


@pytest.mark.parametrize("module", FLOWS)
def test_only_the_flow_and_the_command_import_prefect(module: str) -> None:
    parts_of_the_flow = {
        *("form", "dream_collection", "cli.run", "running.process_pool", "running.ray_cluster", "running.ray_worker"),
        *("prefect_ui.artifacts", "prefect_ui.cancellation", "prefect_ui.events", "prefect_ui.prefect_names"),
        *("prefect_ui.progress", "prefect_ui.retries"),
    }
    assert ("prefect" in packages(FLOWS[module])) == (module.removeprefix("flows.") in parts_of_the_flow)


@pytest.mark.parametrize("module", sorted(FLOWS.keys() - {"flows.decoding.decoder"}))
def test_only_the_decoder_decodes_untrusted_images(module: str) -> None:
    nodes = list(ast.walk(ast.parse(FLOWS[module].read_text())))
    named = {f"{node.module}.{a.name}" for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names}
    named |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert not named & {"dreamcore.images", "dreamcore.images.decode", "dreamcore.images.*"}


def test_only_the_child_processes_of_the_video_decoder_read_videos() -> None:
    inside = {"flows.decoding.video_frames", "flows.decoding.video_sound"}
    users = {module for module, path in FLOWS.items() if ours(path) & inside}
    assert users <= {"flows.decoding.video_decoder", "flows.decoding.video_sound"}
    assert {module for module, path in FLOWS.items() if "av" in packages(path)} == {
        *inside,
        "flows.movies.movie",  # only writes
        "flows.decoding.video_decoder",
    }


@pytest.mark.parametrize(
    "module", ["flows.jobs.plan", "flows.jobs.cost", "flows.jobs.work", "flows.jobs.job", "flows.s3.layout"]
)
def test_plans_and_jobs_know_of_the_core_only_settings(module: str) -> None:
    settings = {f"dreamcore.{name}" for name in ("settings", "fields", "targets", "sweeps", "grid", "errors", "zoom")}
    assert ours(FLOWS[module]) & CORE.keys() <= settings


def test_the_ascent_never_imports_image_files() -> None:
    reached, waiting = set(), ["dreamcore.ascent"]
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting += ours(CORE[module]) - reached
    assert "dreamcore.images" not in reached


def test_imports_have_no_circles() -> None:
    """Imports inside functions count, too."""
    graph = {module: ours(path) for module, path in (CORE | FLOWS).items()}
    assert set(TopologicalSorter(graph).static_order()) == set(graph)


def test_no_module_has_a_name_without_meaning() -> None:
    meaningless = {"utils", "util", "common", "base", "helpers", "misc", "core"}
    assert not meaningless & {module.rpartition(".")[2] for module in CORE | FLOWS}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("dreamcore", {"prefect", "boto3", "torch"}),
        ("dreamcore.settings", {"torch"}),
        ("dreamcore.catalog", {"torch", "timm"}),
        pytest.param("dreamcore.batch", {"prefect", "boto3", "flows"}, marks=pytest.mark.slow),
        ("flows.decoding.decoder", {"torch", "prefect", "boto3", "pydantic"}),
        ("flows.jobs.plan", {"torch", "prefect", "boto3"}),
        ("flows.jobs.job", {"torch", "prefect", "boto3"}),
        ("flows.running.protocol", {"torch", "prefect"}),
        ("flows.results.redream, flows.pictures.preview, flows.pictures.atlas", {"torch", "prefect"}),
        ("flows.movies.zoom, flows.movies.video", {"torch", "prefect", "av", "cv2"}),
        ("flows.dream_collection, flows.form, flows.running.process_pool", {"torch", "ray", "prefect_ray"}),
    ],
)
def test_importing_stays_cheap(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*{absent!r} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_planning_with_the_bundled_network_imports_no_torch() -> None:
    code = "import sys; from dreamcore.catalog import *; from dreamcore.settings import BUNDLED; "
    code += "network_spec(BUNDLED); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


OF_A_JOB = ("max_pixels", "output", "enlarge", "movie")
"""Settings that a job has once for its whole grid."""


def test_a_grid_has_an_axis_for_every_setting_except_those_of_the_whole_job() -> None:
    assert [name for name in DreamSettings.model_fields if name not in OF_A_JOB] == [
        name for name in Grid.model_fields if name not in ("preset", "look", "points")
    ]


def test_the_columns_of_the_manifest_are_the_published_ones() -> None:
    """Columns are only ever added, and nullable. Readers rely on these names."""
    published = """
        run_id job_id shard status error_kind error source_uri source_etag source_bytes source_width source_height
        settings_id model weights_sha256 layers octaves octave_scale steps step_size jitter seed settings score_before
        score_after layer_scores classes_before classes_after result_uri result_bytes result_sha256 width height device
        precision batch tile seconds algorithm_version created_at octaves_left_out octave_scores stage_scores
        result_id enlarged_from
    """
    assert [field.name for field in fields(Row)] == published.split()


def test_no_two_tests_on_the_servers_have_the_same_name() -> None:
    """The fixtures `source` and `destination` name a prefix after the test, in servers that tests share."""
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    found = [each for text in texts for each in re.findall(r"^def (test_\w+)\((.*?)\) -> None", text, re.M | re.S)]
    counts = Counter(name for name, _ in found)
    on_servers = {name for name, arguments in found if re.search(r"\b(source|destination|collection): ", arguments)}
    assert not [name for name in on_servers if counts[name] > 1]


def test_the_gallery_explains_every_error_kind() -> None:
    assert _KINDS.keys() == set(get_args(ErrorKind))
