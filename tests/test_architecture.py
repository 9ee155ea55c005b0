"""The arrows of the house: imports point one way, and the lists that must agree do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from dreamcore.grid import Grid
from dreamcore.settings import DreamSettings
from flows.manifest import Row

ROOT = Path(__file__).parents[1]
CORE, FLOWS = (
    {f"{package}.{path.stem}": path for path in (ROOT / package).glob("*.py") if path.stem != "__init__"}
    for package in ("dreamcore", "flows")
)

# Each module of flows imports from its own line or from those below it.
STOREYS = (
    {
        "cli",
        "cli_manifest",
        "cli_networks",
        "cli_sheet",
        "cli_stack",
        "dream_collection",
        "demo",
        "single",
        "redream",
        "preview",
    },
    {"shard", "plan", "scan", "history", "sheets", "runs", "verify", "stack", "options", "terminal"},
    {"ahead", "assets", "batches", "contact", "decoder", "manifest", "storage", "trouble", "job", "machine", "servers"},
)


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it; `from flows import plan` is flows.plan."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            modules = CORE | FLOWS
            named = [f"{node.module}.{name.name}" for name in node.names]
            yield from (name for name in named if name in modules)
            if not all(name in modules for name in named):
                yield str(node.module)


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def ours(path: Path) -> set[str]:
    return {name for name in imported(path) if name in CORE or name in FLOWS}


@pytest.mark.parametrize("module", CORE)
def test_the_core_knows_no_s3_no_prefect_and_no_flows(module: str) -> None:
    assert not packages(CORE[module]) & {"flows", "prefect", "boto3", "botocore", "click", "rich", "yaml", "pyarrow"}


@pytest.mark.parametrize("module", FLOWS)
def test_only_storage_knows_boto(module: str) -> None:
    assert bool(packages(FLOWS[module]) & {"boto3"}) == (module == "flows.storage")
    assert bool(packages(FLOWS[module]) & {"botocore"}) == (module in ("flows.storage", "flows.s3_errors"))


@pytest.mark.parametrize("module", sorted(FLOWS.keys() - {"flows.decoder"}))
def test_only_the_decoder_meets_pixels_of_strangers(module: str) -> None:
    nodes = [node for node in ast.walk(ast.parse(FLOWS[module].read_text())) if isinstance(node, ast.ImportFrom)]
    named = {f"{node.module}.{name.name}" for node in nodes for name in node.names}
    assert not named & {"dreamcore.images", "dreamcore.images.decode", "dreamcore.images.*"}


@pytest.mark.parametrize("module", ["flows.plan", "flows.job"])
def test_plans_and_jobs_know_only_settings(module: str) -> None:
    settings = {"dreamcore.settings", "dreamcore.targets", "dreamcore.grid", "dreamcore.errors"}
    assert ours(FLOWS[module]) <= settings


def test_the_ascent_never_meets_a_file() -> None:
    reached, waiting = set(), ["dreamcore.ascent"]
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting += ours(CORE[module]) - reached
    assert "dreamcore.images" not in reached


def test_flows_import_downwards() -> None:
    storey = {f"flows.{name}": height for height, names in enumerate(STOREYS) for name in names}
    assert set(storey) == set(FLOWS), "say in STOREYS, and in the design, where a new module belongs"
    upwards = [
        (module, other)
        for module in FLOWS
        for other in ours(FLOWS[module])
        if other in FLOWS and storey[other] < storey[module]
    ]
    assert upwards == []


def test_no_imports_go_in_circles() -> None:
    """Not even those inside functions."""
    graph = {module: ours(path) for module, path in (CORE | FLOWS).items()}
    assert set(TopologicalSorter(graph).static_order()) == set(graph)


def test_modules_are_named_by_what_they_are() -> None:
    shapeless = {"utils", "util", "common", "base", "helpers", "misc", "core"}
    assert not shapeless & {module.partition(".")[2] for module in CORE | FLOWS}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("dreamcore", {"prefect", "boto3", "torch"}),
        ("dreamcore.settings", {"torch"}),
        ("dreamcore.catalog", {"torch", "timm"}),
        ("dreamcore.batch", {"prefect", "boto3", "flows"}),
        ("flows.decoder", {"torch", "prefect", "boto3", "pydantic"}),
        ("flows.plan", {"torch", "prefect", "boto3"}),
        ("flows.job", {"torch", "prefect", "boto3"}),
        ("flows.redream, flows.preview", {"torch", "prefect"}),
    ],
)
def test_importing_stays_cheap(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*{absent!r} & set(sys.modules))"
    there = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert there.stdout.split() == []


def test_planning_with_the_bundled_network_imports_no_torch() -> None:
    code = "import sys; from dreamcore.catalog import *; network_spec(BUNDLED); print('torch' in sys.modules)"
    there = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == "False"


def test_a_grid_has_an_axis_for_each_setting_but_those_of_the_whole_job() -> None:
    assert [name for name in DreamSettings.model_fields if name not in ("max_pixels", "output")] == [
        name for name in Grid.model_fields if name not in ("preset", "points")
    ]


def test_the_columns_of_the_manifest_are_the_published_ones() -> None:
    """Columns are only ever added, and nullable; readers know them by these names."""
    published = """
        run_id job_id shard status error_kind error source_uri source_etag source_bytes source_width source_height
        settings_id model weights_sha256 layers octaves octave_scale steps step_size jitter seed settings score_before
        score_after layer_scores classes_before classes_after result_uri result_bytes result_sha256 width height device
        precision batch tile seconds algorithm_version created_at octaves_left_out octave_scores stage_scores
    """
    assert [field.name for field in fields(Row)] == published.split()
