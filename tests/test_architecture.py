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

import pytest

from dreamcore.grid import Grid
from dreamcore.settings import DreamSettings
from flows.manifest import Row

ROOT = Path(__file__).parents[1]


def modules_of(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    paths = (path for path in (ROOT / package).rglob("*.py") if path.stem != "__init__")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


CORE, FLOWS = modules_of("dreamcore"), modules_of("flows")

# A module of flows imports modules of its own level or of lower levels, without circles.
LEVELS = (
    {
        "cli.atlas",
        "cli.favourites",
        "cli.enlarge",
        "cli.folders",
        "cli.gallery",
        "cli.image",
        "cli.keyframes",
        "cli.main",
        "cli.manifest",
        "cli.networks",
        "cli.options",
        "cli.plan",
        "cli.prune",
        "cli.run",
        "cli.sheet",
        "cli.stack",
        "cli.video",
        "cli.zoom",
    },
    {
        "gallery.address",
        "gallery.at_work",
        "gallery.composer",
        "gallery.context",
        "gallery.downloads",
        "gallery.enlarged",
        "gallery.favourites_page",
        "gallery.export",
        "gallery.export_target",
        "gallery.formats",
        "gallery.grid_page",
        "gallery.job_page",
        "gallery.job_runs",
        "gallery.jobs",
        "gallery.loupe_page",
        "gallery.marks",
        "gallery.marks_page",
        "gallery.pages",
        "gallery.pictures",
        "gallery.planned",
        "gallery.ratios",
        "gallery.scores_page",
        "gallery.security",
        "gallery.server",
        "gallery.site",
        "gallery.thumbnails",
        "gallery.windows",
    },
    {
        "gallery.cache",
        "gallery.conditions",
        "gallery.cursors",
        "gallery.dreams",
        "gallery.queries",
        "gallery.run_list",
        "gallery.scores",
        "gallery.tables",
    },
    {"form"},
    {"dream_collection"},
    {"estimate"},
    {"executors", "artifacts", "cancellation", "progress", "prefect_names", "events", "gallery_links"},
    {"process_pool", "ray_cluster"},
    {"protocol", "compact", "shard"},
    {"movie_shard"},
    {
        *("scan", "verify", "prune", "share", "preview", "redream", "retry"),
        *("atlas", "atlas_pictures", "upload", "download", "enlarge"),
    },
    {"gallery.axes", "gallery.points", "gallery.records", "gallery.whole"},
    {"zoom", "video"},
    {"zoom_plan", "video_plan"},
    {"movie_frames"},
    {"single"},
    {"channels", "delivery", "grouping", "enlargements"},
    {"run_rows", "run_report", "sharing", "compact_mark", "frames"},
    {"run_record"},
    {
        "sheets",
        "favourites",
        "sheet_axes",
        "sheet_rows",
        "history",
        "summary",
        "pruned",
        "selection",
        "condition",
        "contact",
        "calibration",
        "normal_forms",
        "inventory",
        "local.demo",
    },
    {"manifest", "plan", "assets", "cost", "listing", "local.stack"},
    {"parts"},
    {"folder", "transfers"},
    {"storage", "decoder", "video_decoder", "local.temporary"},
    {"s3_transfers", "video_sound"},
    {"video_frames"},
    {
        "job",
        "job_addresses",
        "noise_source",
        "s3_errors",
        "s3_objects",
        "s3_requests",
        "retry_policy",
        "machine",
        "worker_process",
        "video_options",
        "video_selection",
        "child_process",
        "ray_worker",
        "movie",
        "movie_metadata",
        "prefetch",
        "sandbox",
        "retries",
        "work",
        "terminal",
        "fonts",
        "dimensions",
        "pace",
        "rates",
        "prefect_logs",
        "photographs",
        "local.servers",
        "local.ray_nodes",
    },
    {"layout", "globs", "cgroups", "proxies", "job_file"},
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
    ["import flows.storage", "import flows.storage as s", "from flows import storage", "from flows.storage import x"],
)
def test_every_form_of_import_is_found(statement: str) -> None:
    assert set(imports(f"def f():\n    {statement}")) == {"flows.storage"}


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_no_s3_no_prefect_and_no_flows(module: str) -> None:
    assert not packages(CORE[module]) & {"flows", "prefect", "boto3", "botocore", "click", "rich", "yaml", "pyarrow"}


@pytest.mark.parametrize("module", FLOWS)
def test_flows_import_only_their_own_and_lower_levels(module: str) -> None:
    levels = {f"flows.{name}": number for number, names in enumerate(LEVELS) for name in names}
    assert levels.keys() == FLOWS.keys(), "LEVELS must list every module of flows"
    upwards = {other for other in ours(FLOWS[module]) & FLOWS.keys() if levels[other] < levels[module]}
    assert not upwards


BOTOCORE = ("flows.storage", "flows.s3_errors", "flows.s3_requests", "flows.s3_transfers")


@pytest.mark.parametrize("module", FLOWS)
def test_only_storage_imports_boto(module: str) -> None:
    assert bool(packages(FLOWS[module]) & {"boto3"}) == (module == "flows.storage")
    assert bool(packages(FLOWS[module]) & {"botocore"}) == (module in BOTOCORE)


@pytest.mark.parametrize("module", FLOWS)
def test_only_the_flow_and_the_command_import_prefect(module: str) -> None:
    parts_of_the_flow = {
        "form",
        "dream_collection",
        "artifacts",
        "cancellation",
        "events",
        "progress",
        "prefect_names",
        "process_pool",
        "ray_cluster",
        "ray_worker",
        "retries",
    }
    assert ("prefect" in packages(FLOWS[module])) == (module.removeprefix("flows.") in parts_of_the_flow | {"cli.run"})


@pytest.mark.parametrize("module", sorted(FLOWS.keys() - {"flows.decoder"}))
def test_only_the_decoder_decodes_untrusted_images(module: str) -> None:
    nodes = list(ast.walk(ast.parse(FLOWS[module].read_text())))
    named = {f"{node.module}.{a.name}" for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names}
    named |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert not named & {"dreamcore.images", "dreamcore.images.decode", "dreamcore.images.*"}


def test_only_the_child_processes_of_the_video_decoder_read_videos() -> None:
    inside = {"flows.video_frames", "flows.video_sound"}
    users = {module for module, path in FLOWS.items() if ours(path) & inside}
    assert users <= {"flows.video_decoder", "flows.video_sound"}
    assert {module for module, path in FLOWS.items() if "av" in packages(path)} == {
        *inside,
        "flows.movie",  # only writes
        "flows.video_decoder",
    }


@pytest.mark.parametrize("module", ["flows.plan", "flows.cost", "flows.work", "flows.job", "flows.layout"])
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
        ("flows.decoder", {"torch", "prefect", "boto3", "pydantic"}),
        ("flows.plan", {"torch", "prefect", "boto3"}),
        ("flows.job", {"torch", "prefect", "boto3"}),
        ("flows.protocol", {"torch", "prefect"}),
        ("flows.redream, flows.preview, flows.atlas", {"torch", "prefect"}),
        ("flows.zoom, flows.video", {"torch", "prefect", "av", "cv2"}),
        ("flows.dream_collection, flows.form, flows.process_pool", {"torch", "ray", "prefect_ray"}),
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
