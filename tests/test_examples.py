"""The examples run: those of docs/python.md, the scripts in examples/, and the notebook."""

import io
import re
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from dreamcore.models import _load_default
from dreamcore.settings import DreamSettings
from flows.destination.manifest import to_parquet
from tests.support.downloads import put_weights
from tests.support.rows import DONE, FAILED

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
SIZE = (96, 64)
"""Width and height of the photograph, in pixels."""


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A small photograph of a cat."""
    file = io.BytesIO()
    with Image.open(EXAMPLES / "photos" / "chelsea.png") as image:
        image.convert("RGB").resize(SIZE).save(file, "JPEG")
    (tmp_path / "cat.jpg").write_bytes(file.getvalue())
    return tmp_path / "cat.jpg"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A folder with a manifest of two dreams and one failure."""
    settings = DreamSettings().canonical_json()
    rows = [replace(DONE, settings=settings), replace(DONE, source_etag="f", settings=settings), FAILED]
    part = tmp_path / "manifest" / "run=r1" / "shard-000003.parquet"
    part.parent.mkdir(parents=True)
    part.write_bytes(to_parquet(rows))
    return tmp_path / "manifest"


@pytest.fixture
def resnet50(tmp_path: Path) -> Iterator[None]:
    """Random weights of resnet50 in the place of a download."""
    with pytest.MonkeyPatch.context() as patch:
        put_weights("resnet50", tmp_path / "torch", patch)
        yield
    _load_default.cache_clear()


@pytest.mark.usefixtures("photograph", "manifest", "resnet50")
def test_the_examples_of_the_python_page_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) > 15
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"docs/python.md, example {number}", "exec"), namespace)
    assert size_of(tmp_path / "dream.png") == SIZE
    assert size_of(tmp_path / "sheet.png") == (144, 96)


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of an image file."""
    with Image.open(path) as image:
        return image.size


def run(script: str, *arguments: object) -> None:
    """Run a script of examples/ in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def test_one_picture_is_dreamt(photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("one_picture.py", photograph, photograph.with_name("dream.png"), "layers=blocks.3", "seed=7", "steps=2")
    assert size_of(photograph.with_name("dream.png")) == SIZE
    assert re.fullmatch(r"blocks\.3: \d\.\d\d to \d\.\d\d\n", capsys.readouterr().out)


def test_a_grid_becomes_a_sheet(photograph: Path) -> None:
    run("grid_with_sheet.py", photograph, photograph.with_name("sheet.png"), 2400)
    assert size_of(photograph.with_name("sheet.png")) == (3 * 60, 3 * (40 + 14))


def test_a_module_dreams(photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("own_network.py", photograph, photograph.with_name("dream.png"))
    assert size_of(photograph.with_name("dream.png")) == SIZE
    assert "features.12: 512 channels, stride 16" in capsys.readouterr().out


def test_a_manifest_is_summarised(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("read_manifest.py", manifest)
    out = capsys.readouterr().out
    assert re.search(r"tiny +deep\+stem +2 +3\.75", out)
    assert re.search(r"damaged +1", out)


def test_scripts_have_at_most_thirty_lines() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py") if len(path.read_text().splitlines()) > 30} == set()


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    assert all(cell.outputs == [] for cell in notebook.cells if cell.cell_type == "code"), "clear the outputs"
    (parameters,) = (cell for cell in notebook.cells if "MAX_PIXELS = 90_000" in cell.source)
    parameters.source = parameters.source.replace("90_000", "2_400")
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert any("the same pixels: True" in output.get("text", "") for output in outputs)
