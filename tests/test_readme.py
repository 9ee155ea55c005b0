"""The README says what the code says, and what pages name is there."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from dreamcore.grid import Grid
from dreamcore.presets import PRESET, PresetName
from dreamcore.settings import DreamSettings
from dreamcore.targets import Frozen, layers_label
from flows.cli.options import values_of
from flows.job import DreamJob

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [path for folder in ("", "docs/", "deployments/", "examples/*/") for path in sorted(ROOT.glob(f"{folder}*.md"))]


def in_table(values: tuple[str, ...]) -> str:
    return f" {', '.join(values)}" if values else ""


def rows_of(model: type[Frozen], *leave_out: str) -> list[str]:
    """The beginnings of the table rows that a model's fields should have; settings have a column of their values."""
    rows = []
    for name, field in model.model_fields.items():
        if name not in leave_out:
            default = layers_label(field.default) if name == "layers" else field.default
            plain = "" if field.is_required() or default is None else f" {default}"
            values = f" |{in_table(values_of(field.annotation))}" if model is DreamSettings else ""
            rows.append(f"| `{name}` |{plain}{values} | {field.description}")
    return rows


@pytest.mark.parametrize("row", rows_of(DreamSettings, "max_pixels", "output") + rows_of(DreamJob, "grid", "output"))
def test_every_field_has_its_row(row: str) -> None:
    assert row in README


def test_a_preset_has_its_row() -> None:
    assert f"| `preset` | |{in_table(get_args(PresetName))} | {PRESET}" in README


def test_every_axis_is_in_the_table() -> None:
    named = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert set(Grid.model_fields) - {"points"} | set(DreamJob.model_fields) - {"grid"} == set(named)


def test_the_job_is_a_job() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(DreamJob.model_validate(yaml.safe_load(block)).settings()) == 6


@pytest.mark.parametrize("name", ["job.yaml", "demo.yaml"])
def test_the_examples_are_jobs(name: str) -> None:
    assert len(DreamJob.model_validate(yaml.safe_load((ROOT / "examples" / name).read_text())).settings()) == 6


def test_every_module_is_in_the_tree() -> None:
    for package in ("dreamcore", "flows"):
        for module in (ROOT / package).glob("[a-z]*.py"):
            assert f"\n  {module.name} " in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", page.read_text()):
        file, _, heading = target.partition("#")
        assert (page.parent / file).exists(), target
        headings = re.findall(r"^#+ (.+)$", (page.parent / file).read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in {
            re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings
        }


def test_tests_that_pages_name_are_there() -> None:
    tests = sorted((ROOT / "tests").glob("test_*.py"))
    there = [path.stem for path in tests]
    there += [name for path in tests for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)]
    named = {name for page in PAGES for name in re.findall(r"`(?:tests/)?(test_\w+)", page.read_text())}
    assert [name for name in named if not any(each.startswith(name) for each in there)] == []
