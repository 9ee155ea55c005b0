"""The README says what the code says."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from dreamcore.grid import Grid
from dreamcore.objectives import Frozen, objective_label
from dreamcore.presets import PRESET, PresetName
from dreamcore.settings import DreamSettings
from flows.job import DreamJob
from flows.options import values_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def in_table(values: tuple[str, ...]) -> str:
    return f" {', '.join(values)}" if values else ""


def rows_of(model: type[Frozen], *leave_out: str) -> list[str]:
    """The beginnings of the table rows that a model's fields should have; settings have a column of their values."""
    rows = []
    for name, field in model.model_fields.items():
        if name not in leave_out:
            default = objective_label(field.default) if name == "layers" else field.default
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


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        file, _, heading = target.partition("#")
        assert (ROOT / file).exists(), target
        headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in {
            re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings
        }
