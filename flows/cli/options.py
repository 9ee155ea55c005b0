"""The flags of the command line, derived from the fields of settings and jobs.

Flags pass their values on as text. pydantic validates them together with the job file, so that both give the same
messages.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from dreamcore.errors import InvalidInput
from dreamcore.fields import Output, Reference
from dreamcore.grid import Grid
from dreamcore.looks import LOOKS
from dreamcore.presets import PRESETS, Preset
from dreamcore.settings import DreamSettings
from dreamcore.sizes import parse_size
from dreamcore.sweeps import NUMBER_RANGE
from dreamcore.targets import Frozen, layers_label
from flows.jobs.job import DreamJob, read_job
from flows.machine.terminal import print_message
from flows.s3.layout import folder_uri

__all__ = [
    "destination_folder",
    "field_options",
    "job_from_flags",
    "job_options",
    "json_option",
    "memory_option",
    "metavar_of",
    "one_name_option",
    "refuse_ranges",
    "take_one",
    "values_of",
]

Command = TypeVar("Command", bound=Callable[..., Any])

NO_DEFAULTS: Mapping[str, Any] = {}
_REPEATED = ("source", "exclude")
"""Flags of a job that may be given several times. Several sources are a list."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value on standard output.")


def _set_memory(_context: click.Context, _option: click.Parameter, size: str | None) -> None:
    """Set the limit in the environment, where every worker process reads it."""
    if size:
        os.environ["DREAMGRID_MAX_MEMORY"] = str(parse_size(size))


memory_option = click.option(
    "--max-memory",
    expose_value=False,
    callback=_set_memory,
    metavar="SIZE",
    help="Memory that each dreaming process may use, for example 2GiB. Larger images are computed in memory tiles, "
    "which do not change the look.",
)


def field_options(
    model: type[Frozen], *leave_out: str, reference: str = "URI", defaults: Mapping[str, Any] = NO_DEFAULTS
) -> Callable[[Command], Command]:
    """Return a decorator that adds a flag for each field of `model`.

    The flag of an axis of `Grid`, `--source` and `--exclude` may be given several times, any other flag once.

    Args:
        model: the settings, the grid, the output or the job.
        leave_out: fields without a flag.
        reference: what help shows for a field that refers to a file: `URI` or `PATH`.
        defaults: what help shows as the defaults of some fields, instead of those of `model`.
    """

    def decorate(command: Command) -> Command:
        for name in reversed([name for name in model.model_fields if name not in leave_out]):
            field = _described_field(model, name)
            option = click.option(
                "--" + name.replace("_", "-"),
                name,
                multiple=True,
                callback=None if model is Grid or name in _REPEATED else take_one,
                metavar=metavar_of(field, reference),
                help=_help(name, field, defaults.get(name, field.default)),
            )
            command = option(command)
        return command

    return decorate


def take_one(_context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """Return the value of a flag that may be given once. click itself would silently use the last of several values.

    Raises:
        InvalidInput: the flag is given more than once.
    """
    if len(values) > 1:
        several = ", or use `dreamgrid run`, which dreams every combination" if option.name in Grid.model_fields else ""
        raise InvalidInput(f"{option.opts[0]} is given {len(values)} times: give it once{several}")
    return values[0] if values else None


def refuse_ranges(flags: Mapping[str, str]) -> None:
    """Refuse a range of numbers such as `4-8`, for a command that makes one dream.

    Args:
        flags: the texts of the given flags by field.

    Raises:
        InvalidInput: a number is a range.
    """
    for name, text in flags.items():
        is_axis = name in Grid.model_fields and name in DreamSettings.model_fields
        is_number = is_axis and {int, float} & set(_types_in(DreamSettings.model_fields[name].annotation))
        if is_number and re.match(NUMBER_RANGE, text):
            raise InvalidInput(
                f"--{name.replace('_', '-')} {text} stands for several values, and this command makes one dream: give "
                "one value, or use `dreamgrid run`, which dreams every combination"
            )


def one_name_option(field: str) -> Callable[[Command], Command]:
    """Return the option of a command that makes one image, for the field `preset` or `look` of a grid."""
    axis = Grid.model_fields[field]
    return click.option(f"--{field}", multiple=True, callback=take_one, metavar=metavar_of(axis), help=axis.description)


def values_of(annotation: object) -> tuple[str, ...]:
    """Return the values that a field of this type may have, if they are a closed list; otherwise an empty tuple.

    The values of an axis are those of its setting.
    """
    if annotation is bool:
        return ("true", "false")
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next(filter(None, map(values_of, get_args(annotation))), ())


def metavar_of(field: FieldInfo, reference: str = "URI") -> str:
    """Return what help shows for the value of a flag: its choices, its range, or its type.

    Args:
        field: the field that the flag sets.
        reference: what to show for a reference to a file.
    """
    if values := values_of(field.annotation):
        return f"[{'|'.join(values)}]"
    types = set(_types_in(field.annotation))
    if Reference in types:
        return reference
    if int in types:
        limits = _limits(field)
        return f"[{limits['ge']}..{limits['le']}]" if limits.keys() == {"ge", "le"} else "INTEGER"
    if float in types:
        return "FLOAT"
    return "URI" if "s3://" in str(field.json_schema_extra) else "TEXT"


def _types_in(annotation: object) -> Iterator[object]:
    """Yield a type and everything that it is composed of."""
    yield annotation
    for part in get_args(annotation):
        yield from _types_in(part)


def _limits(field: FieldInfo) -> dict[str, float]:
    """Return the bounds of a number by the name of the comparison: `ge`, `gt`, `le`, `lt`."""
    names = ("ge", "gt", "le", "lt")
    bounds = {name: getattr(bound, name) for bound in field.metadata for name in names if hasattr(bound, name)}
    return {name: value for name, value in bounds.items() if value < 2**63}  # the range of an integer needs no note


def _range(field: FieldInfo) -> str:
    """Return the bounds of a number as click writes them, such as `x>=0` or `1<x<=4`; empty if there are none."""
    limits = _limits(field)
    below = {"ge": "<=", "gt": "<"}
    lower = next((f"{limits[name]}{below[name]}" for name in below if name in limits), "")
    upper = next((f"{sign}{limits[name]}" for name, sign in (("le", "<="), ("lt", "<")) if name in limits), "")
    if lower and not upper:
        return next(f"x{sign}{limits[name]}" for name, sign in (("ge", ">="), ("gt", ">")) if name in limits)
    return f"{lower}x{upper}" if upper else ""


def _described_field(model: type[Frozen], name: str) -> FieldInfo:
    """Return the field that describes a flag: for an axis, the field of its setting."""
    owner = DreamSettings if model is Grid and name in DreamSettings.model_fields else model
    return owner.model_fields[name]


def _help(name: str, field: FieldInfo, value: Any) -> str:
    """Return the description of a field, with its default `value` and the bounds that its metavar does not show."""
    notes = []
    if not field.is_required() and value not in (None, ()):
        default = layers_label(value) if name == "layers" else value
        notes.append(f"default: {str(default).lower() if isinstance(default, bool) else default}")
    if (bounds := _range(field)) and ".." not in metavar_of(field):
        notes.append(bounds)
    return f"{field.description}" + (f"  [{'; '.join(notes)}]" if notes else "")


def job_options(command: Command) -> Command:
    """Add the job file as an argument, and a flag for every field of a job."""
    for decorate in (
        field_options(Output),
        field_options(Grid, "points"),
        field_options(DreamJob, "sources", "grid", "output", "enlarge", "zoom", "strict", "retry_failed", "executor"),
        click.argument("job", required=False, type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


def job_from_flags(
    file: Path | None, flags: Mapping[str, Any], unfinished: Mapping[str, Any] | None = None
) -> DreamJob:
    """Return the job that a file or an unfinished run describes, with the flags over it.

    Args:
        file: the job file; None if the flags or the unfinished run describe the job.
        flags: values by field; flags that are not given are None or empty.
        unfinished: the fields of the job of an unfinished run.

    Raises:
        InvalidInput: no job is given, or a field is wrong.
    """
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    if sources := given.pop("source", None):
        given |= {"source": sources[0], "sources": ()} if len(sources) == 1 else {"source": None, "sources": sources}
    grid = {name: given.pop(name) for name in list(given) if name in Grid.model_fields}
    output = {name: given.pop(name) for name in list(given) if name in Output.model_fields}
    if file is None and not given and not unfinished:
        raise InvalidInput("no job is given: name a job file, or give --source and --destination")
    nested = {name: fields for name, fields in (("grid", grid), ("output", output)) if fields}
    job = read_job(file, {**(unfinished or {}), **given, **nested})
    for flag, known in (("preset", PRESETS), ("look", LOOKS)):
        chosen = [known[name] for name in getattr(job.grid, flag) or () if flag in grid]
        if names := _settings_over(chosen, job.grid, grid):
            print_message(f"the job sets {', '.join(names)}: these values override --{flag}", "yellow")
    return job


def _settings_over(presets: Sequence[Preset], grid: Grid, flags: Mapping[str, Any]) -> list[str]:
    """Return the axes that the presets or looks would set, if the job did not set them and no flag does either."""
    fields = {"layers"}.union(*(preset.settings for preset in presets)) if presets else set()
    return [name for name in Grid.model_fields if name in fields - set(flags) and getattr(grid, name) is not None]


def destination_folder(destination: str) -> str:
    """Return the folder of a destination on the command line, with a slash at its end.

    Raises:
        InvalidInput: it is not an S3 address.
    """
    try:
        return folder_uri(destination)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
