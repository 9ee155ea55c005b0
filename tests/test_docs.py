"""The documents agree with the code: tables, examples, the file tree, and everything that pages name."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

from dreamcore.looks import LOOKS, LookName
from dreamcore.presets import AS_PUBLISHED, PRESETS, PresetName
from dreamcore.settings import DreamSettings
from flows.jobs.job import WITHOUT_EFFECT_ON_DREAMS, DreamJob

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FOLDERS = ("", "docs/", "docs/atlas/", "deployments/", "examples/", "examples/*/")
PAGES = [path for folder in FOLDERS for path in sorted(ROOT.glob(f"{folder}*.md"))]
README = (ROOT / "README.md").read_text()


def links_of(page: Path) -> list[str]:
    return re.findall(r"\]\(((?!http)[^)]+)\)", page.read_text())


def anchor(heading: str) -> str:
    """The name by which GitHub links to a heading."""
    return re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_the_tables_of_settings_are_generated() -> None:
    text = (DOCS / "settings.md").read_text()
    assert runpy.run_path(str(DOCS / "make_settings.py"))["page"](text) == text, "run `make docs`"


@pytest.mark.parametrize("name", PRESETS)
def test_the_page_of_presets_lists_their_settings(name: PresetName) -> None:
    text, default = (DOCS / "presets.md").read_text(), DreamSettings()
    row = re.findall(rf"^\| `{name}` \| (`.*) \|$", text, re.MULTILINE)[-1]
    found = {field: yaml.safe_load(value.strip("`")) for field, value in re.findall(r"`(\w+)` (\S+?)(?:,|$)", row)}
    own = {field: value for field, value in PRESETS[name].settings.items() if field not in AS_PUBLISHED}
    expected = {field: value for field, value in own.items() if getattr(default, field) != value}
    numbers = {field: pytest.approx(value, rel=0.001) for field, value in expected.items() if type(value) is float}
    assert found == expected | numbers


@pytest.mark.parametrize("name", LOOKS)
def test_the_page_of_looks_lists_their_settings(name: LookName) -> None:
    section = (DOCS / "looks.md").read_text().split(f"## {name.capitalize()}\n")[1].split("\n## ")[0]
    assert f"--look {name}" in section
    assert f"`{LOOKS[name].layers}`" in section
    found = {
        field: yaml.safe_load(value.strip("`")) for field, value in re.findall(r"`(\w+)` ([\d.]+?)(?:,|\.\n)", section)
    }
    assert found == LOOKS[name].settings


def test_pages_name_the_fields_that_may_change_when_a_run_is_resumed() -> None:
    """These fields are not part of `job_id`. A retry is another run, so `retry_failed` may not change."""
    (row,) = re.findall(r"^\| `job_id` \| (.*?)\.", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == WITHOUT_EFFECT_ON_DREAMS
    (sentence,) = re.findall(r"^(.*) do not change the image\.", (DOCS / "settings.md").read_text(), re.MULTILINE)
    assert {*re.findall(r"`(\w+)`", sentence), "retry_failed"} == WITHOUT_EFFECT_ON_DREAMS
    (sentence,) = re.findall(r"you may change the number of (.*?)\.", (DOCS / "scheduling.md").read_text(), re.DOTALL)
    assert {*re.findall(r"`(\w+)`", sentence), "retry_failed"} == WITHOUT_EFFECT_ON_DREAMS


def test_the_page_of_the_installation_lists_the_extras() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys() - {"dev"}
    table = (DOCS / "getting-started.md").read_text().partition("| extra |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == extras


def test_the_readme_shows_a_job() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(DreamJob.model_validate(yaml.safe_load(block)).settings()) == 6


@pytest.mark.parametrize("name", ["job.yaml", "demo.yaml"])
def test_the_examples_are_jobs(name: str) -> None:
    assert len(DreamJob.model_validate(yaml.safe_load((ROOT / "examples" / name).read_text())).settings()) == 6


@pytest.mark.parametrize("package", ["dreamcore", "flows"])
def test_the_file_tree_is_complete(package: str) -> None:
    text = (DOCS / "architecture.md").read_text()
    (tree,) = re.findall(rf"^{package}/ .*\n((?:  .*\n)+)", text, re.MULTILINE)
    named, folder = set[str](), ""
    for indent, name in re.findall(r"^( +)([\w/.]+) ", tree, re.MULTILINE):
        folder = folder if len(indent) > 2 else name
        named.add(name if name == folder else folder + name)
    hidden = re.compile(r"(.*/)?__init__\.py|(cli|gallery|local)/.+")  # the tree names these folders only
    assert named - {"__init__.py"} == {name for name in entries(ROOT / package) if not hidden.fullmatch(name)}


def entries(folder: Path) -> set[str]:
    """The modules, the JSON files and the folders in a folder, and in the folders in it."""
    paths = [*folder.iterdir(), *folder.glob("*/*")]
    paths = [path for path in paths if path.is_dir() or path.suffix in (".py", ".json")]
    names = {f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}" for path in paths}
    return {name for name in names if "__pycache__" not in name}


def test_the_index_links_every_page() -> None:
    assert set(links_of(DOCS / "README.md")) >= {path.name for path in DOCS.glob("*.md")} - {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links_of(page):
        file, _, heading = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in map(anchor, headings), target


def test_tests_that_pages_name_exist() -> None:
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    found = [path.stem for path in tests]
    found += [name for path in tests for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)]
    named = {name for page in PAGES for name in re.findall(r"`(?:tests/)?(test_\w+)", page.read_text())}
    assert [name for name in named if not any(each.startswith(name) for each in found)] == []
