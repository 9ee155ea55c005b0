"""The public names of dreamcore are documented, exist, and are imported when they are used."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Annotated, get_origin

import pytest

import dreamcore

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
MODULES = sorted(f"dreamcore.{path.stem}" for path in (ROOT / "dreamcore").glob("[a-z]*.py"))


def test_the_exported_names_are_the_documented_ones() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    first_table = page.partition("## Installation")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", first_table, re.MULTILINE)) == set(dreamcore.__all__)


def test_the_page_lists_the_arguments_of_dream() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    table = page.partition("`dream` has these arguments:")[2].partition("\n## ")[0]
    first_columns = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = {name for column in first_columns for name in re.findall(r"`(\w+)`", column)}
    assert named == set(signature(dreamcore.dream).parameters) - {"fields"}


def test_the_exported_names_exist() -> None:
    assert dir(dreamcore) == sorted(dreamcore.__all__)
    for name in dreamcore.__all__:
        assert getattr(dreamcore, name).__doc__
    assert dreamcore.__version__ == version("dreamgrid")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'dreamcore' has no attribute 'dreams'$"):
        dreamcore.dreams  # noqa: B018


def test_no_module_hides_a_public_name() -> None:
    assert not {f"dreamcore.{name}" for name in dreamcore.__all__} & set(MODULES)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import dreamcore", {"torch", "prefect", "boto3", "pydantic", "PIL"}),
        ("from dreamcore import DreamSettings, Grid, InvalidInput, network_spec", {"torch", "prefect", "boto3"}),
        pytest.param(
            "from dreamcore import dream, load_network", {"prefect", "boto3", "flows"}, marks=pytest.mark.slow
        ),
    ],
)
def test_importing_dreamcore_imports_only_what_is_used(code: str, absent: set[str]) -> None:
    script = f"import sys; {code}; print(*{absent!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_lists_its_public_names_and_documents_them(module: str) -> None:
    imported = importlib.import_module(module)
    assert imported.__doc__
    names = imported.__all__
    assert [name for name in names if not hasattr(imported, name)] == []
    undocumented = {
        name
        for name, documented in definitions(module)
        if name in names and not documented and get_origin(getattr(imported, name)) is not Annotated
    }  # the types of settings are described by their fields
    assert undocumented == set()


def definitions(module: str) -> Iterator[tuple[str, bool]]:
    """Yield each name that a module defines, and whether it has a docstring: constants have a string below them."""
    body = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        text_follows = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        match node:
            case ast.FunctionDef() if any(isinstance(each, ast.Name) for each in node.decorator_list) and all(
                isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list
            ):
                continue
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name, ast.get_docstring(node) is not None
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name, text_follows


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.failed == 0
