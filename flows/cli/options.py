"""The flags of the command, made from the fields of settings and jobs themselves."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click

from dreamcore.errors import InvalidInput
from dreamcore.grid import Grid
from dreamcore.presets import PRESETS
from dreamcore.settings import DreamSettings, Output
from dreamcore.targets import Frozen, layers_label
from flows.job import DreamJob, read_job
from flows.layout import folder_uri
from flows.machine import parse_size
from flows.terminal import print_message

Command = TypeVar("Command", bound=Callable[..., Any])
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON value on standard output.")


def _set_memory(_context: click.Context, _option: click.Parameter, size: str | None) -> None:
    """Worker processes read it from the environment, wherever they are started."""
    if size:
        os.environ["DREAMGRID_MAX_MEMORY"] = str(parse_size(size))


memory_option = click.option(
    "--max-memory",
    expose_value=False,
    callback=_set_memory,
    metavar="SIZE",
    help="Memory for each process that dreams, such as 2GiB: larger pictures are dreamt in tiles.",
)


def options_of(model: type[Frozen], *leave_out: str) -> Callable[[Command], Command]:
    """A flag for each field of `model`, described by the field itself; axes may be given several times."""

    def decorate(command: Command) -> Command:
        for name in reversed([name for name in model.model_fields if name not in leave_out]):
            flag, values = "--" + name.replace("_", "-"), metavar_of(model.model_fields[name].annotation)
            once = None if model is Grid else take_one
            option = click.option(flag, name, multiple=True, callback=once, metavar=values, help=_help(model, name))
            command = option(command)
        return command

    return decorate


def take_one(_context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The value of a flag that may be given once; of several, click would take the last and say nothing."""
    if len(values) > 1:
        several = ", or use `dreamgrid run`, which dreams every combination" if option.name in Grid.model_fields else ""
        raise InvalidInput(f"{option.opts[0]} is given {len(values)} times: give it once{several}")
    return values[0] if values else None


def values_of(annotation: object) -> tuple[str, ...]:
    """The values that a field of this type may have, where they can be counted up; an axis has those of its setting."""
    if annotation is bool:
        return ("true", "false")
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next(filter(None, map(values_of, get_args(annotation))), ())


def metavar_of(annotation: object) -> str | None:
    """What help shows for the value of a flag, as click writes a choice; None leaves it to click."""
    return f"[{'|'.join(values)}]" if (values := values_of(annotation)) else None


def _help(model: type[Frozen], name: str) -> str:
    """What a field says of itself, with its default; an axis says what the setting says."""
    field = (DreamSettings if model is Grid and name in DreamSettings.model_fields else model).model_fields[name]
    default = layers_label(field.default) if name == "layers" else field.default
    return f"{field.description}" + ("" if field.is_required() or default is None else f"  [default: {default}]")


def job_options(command: Command) -> Command:
    """The job file, and a flag for every field of a job."""
    for decorate in (
        options_of(Output),
        options_of(Grid, "points"),
        options_of(DreamJob, "grid", "output"),
        click.argument("job", required=False, type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


def job_of(job: Path | None, flags: Mapping[str, Any], begun: Mapping[str, Any] | None = None) -> DreamJob:
    """The job that a file and flags describe, or the one that was begun, with flags over it."""
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    grid = {name: given.pop(name) for name in list(given) if name in Grid.model_fields}
    output = {name: given.pop(name) for name in list(given) if name in Output.model_fields}
    if job is None and not given and not begun:
        raise InvalidInput("there is no job: name a job file, or give --source and --destination")
    nested = {name: fields for name, fields in (("grid", grid), ("output", output)) if fields}
    the_job = read_job(job, {**(begun or {}), **given, **nested})
    if "preset" in grid and (names := _before_presets(the_job.grid, grid)):
        print_message(f"the job itself sets {', '.join(names)}: that goes before what --preset says", "yellow")
    return the_job


def _before_presets(grid: Grid, flags: Mapping[str, Any]) -> list[str]:
    """The axes that its presets would set, had the job not set them already, and no flag beside the preset."""
    presets = [PRESETS[name] for name in grid.preset or ()]
    theirs = {"layers"}.union(*(preset.settings for preset in presets))
    return [name for name in Grid.model_fields if name in theirs - set(flags) and getattr(grid, name) is not None]


def destination_folder(destination: str) -> str:
    """The folder that a destination on the command line names; raises `InvalidInput` where it is no S3 address."""
    try:
        return folder_uri(destination)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
