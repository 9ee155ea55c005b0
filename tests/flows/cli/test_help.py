"""Help texts: complete, in 80 columns, with the type of every flag and with examples that can be parsed."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from dreamcore.fields import Output
from dreamcore.grid import Grid
from dreamcore.settings import DreamSettings
from flows.cli.main import cli
from flows.cli.options import metavar_of
from flows.jobs.job import DreamJob
from tests.support.command import PHOTOS, Command

HEAVY = ("torch", "torchvision", "timm", "prefect", "boto3", "pyarrow", "duckdb", "numpy", "PIL")
LIGHT_COMMANDS = (["--help"], ["image", "--help"], ["status", "--json"], ["run", "--nonsense"])
USED_BY_COMMANDS = (
    *("gallery.server", "gallery.share", "folders.upload", "folders.download", "results.prune", "results.verify"),
    *("destination.favourites", "contact_sheets.sheets", "planning.retry", "planning.estimate", "running.protocol"),
    "local.stack",
)


def command_paths(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command and subcommand, such as `("manifest", "verify")`."""
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from command_paths(command, (*path, name))
        else:
            yield (*path, name)


COMMANDS = list(command_paths())


def imported_by(statement: str) -> set[str]:
    """Return the heavy packages that a new interpreter has imported after `statement`."""
    code = f"{statement}\nimport sys\nprint(*set({HEAVY!r}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_no_heavy_package(dreamgrid: Command) -> None:
    assert imported_by("import flows.cli.main") == set()
    assert "dreamgrid demo" in dreamgrid("--help").stdout


@pytest.mark.parametrize("arguments", LIGHT_COMMANDS, ids=" ".join)
def test_light_commands_import_no_heavy_package(arguments: list[str]) -> None:
    run = f"""
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from flows.cli.main import main
with redirect_stdout(StringIO()), redirect_stderr(StringIO()), suppress(SystemExit):
    main({arguments!r})
"""
    assert imported_by(run) == set()


def test_no_command_without_dreams_imports_torch_or_prefect() -> None:
    modules = ", ".join(f"flows.{name}" for name in USED_BY_COMMANDS)
    assert imported_by(f"import {modules}").isdisjoint({"torch", "torchvision", "timm", "prefect"})


def test_a_dream_of_the_bundled_network_imports_only_what_it_uses(tmp_path: Path) -> None:
    files = [str(PHOTOS / "chelsea.png"), str(tmp_path / "dream.png")]
    quick = ["--steps", "1", "--octaves", "1", "--max-pixels", "3000"]
    run = f"from flows.cli.main import cli; cli.main({['image', *files, *quick]!r}, standalone_mode=False)"
    assert imported_by(f"{run}; print()") == {"torch", "numpy", "PIL"}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_is_complete_in_80_columns(path: tuple[str, ...], dreamgrid_inprocess: Command) -> None:
    done = dreamgrid_inprocess(*path, "--help")
    assert done.returncode == 0, done.stderr
    usage, *lines = done.stdout.splitlines()
    assert usage.startswith(" ".join(["Usage: dreamgrid", *path]))
    assert [line for line in lines if "..." in line] == [], "a description is cut"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_shows_examples_that_can_be_parsed(path: tuple[str, ...], dreamgrid_inprocess: Command) -> None:
    _, _, rest = dreamgrid_inprocess(*path, "--help").stdout.partition("  Examples:\n")
    examples = [line.strip() for line in rest.partition("\n\n")[0].splitlines()]
    assert any(" ".join(["dreamgrid", *path]) in example for example in examples)
    for example in examples:
        words = shlex.split(example.partition("   ")[0])
        if words[0] == "dreamgrid":
            parse(cli, words[1:])


def parse(command: click.Command, arguments: list[str], parent: click.Context | None = None) -> None:
    """Parse arguments as click does before it calls a command; raise if there is no such command or flag."""
    with command.make_context(command.name, arguments, parent=parent) as context:
        if isinstance(command, click.Group):
            _, subcommand, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert subcommand
            parse(subcommand, rest, context)


@pytest.mark.parametrize("command", ["run", "plan", "image"])
def test_help_shows_the_type_of_each_setting(command: str, dreamgrid_inprocess: Command) -> None:
    text = " ".join(dreamgrid_inprocess(command, "--help").stdout.split())
    reference = "PATH" if command == "image" else "URI"
    for flag in (
        "--gradient [laplacian|gaussian|plain]",
        "--preset [google2015|tf2|tf2_tiled|keras|gordic|lucid]",
        "--transforms [shift|lucid|crops]",
        "--stay-near TEXT",
        "--clip [true|false]",
        "--octaves [1..32]",
        "--step-size FLOAT",
        "--max-pixels INTEGER",
        "--quality [1..100]",
        "--seed INTEGER",
        "--layers TEXT",
        f"--guide {reference}",
        f"--weights {reference}",
    ):
        assert f"{flag} " in text
    for note in ("[default: laplacian]", "[default: 1.4; 1<x<=4]", "[default: 0; x>=0]", "[default: true]"):
        assert note in text


def test_help_shows_addresses_and_files(dreamgrid_inprocess: Command) -> None:
    run = dreamgrid_inprocess("run", "--help").stdout
    assert "--source URI" in run
    assert "--destination URI" in run
    redream = dreamgrid_inprocess("redream", "--help").stdout
    assert all(f"--{name} PATH" in redream for name in ("source", "guide", "mask", "weights"))


@pytest.mark.parametrize("model", [DreamSettings, DreamJob, Output])
def test_no_number_is_shown_as_text(model: type[DreamSettings | DreamJob | Output]) -> None:
    numbers = [field for field in model.model_fields.values() if {int, float} & {field.annotation, type(field.default)}]
    assert numbers
    assert "TEXT" not in {metavar_of(field) for field in numbers}


def test_every_axis_of_the_grid_is_a_flag(dreamgrid_inprocess: Command) -> None:
    text = dreamgrid_inprocess("run", "--help").stdout
    assert all(f"--{name.replace('_', '-')} " in text for name in Grid.model_fields if name != "points")
