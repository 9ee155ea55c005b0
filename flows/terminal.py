"""What commands print with: results on standard output, everything else on standard error."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(markup=False, highlight=False)
screen = Console(stderr=True, markup=False, highlight=False)


def show_json(value: object) -> None:
    """Print one JSON value."""
    click.echo(json.dumps(value, indent=1))


def print_line(line: str) -> None:
    """Print a line of a result; names in it may be strangers'."""
    click.echo(printable(line))


def print_message(message: object, style: str) -> None:
    """Tell people something on standard error, line by line; names in it may be strangers'."""
    told = "\n".join(map(printable, str(message).split("\n")))
    screen.print(f"dreamgrid: {told}", style=style, soft_wrap=True)


def printable(text: str) -> str:
    """What strangers wrote, harmless on a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def one_line(text: str) -> str:
    """The same, and short."""
    return printable(text)[:500]


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, to be called with how far it is and how far it goes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=screen) as bar:
        line = bar.add_task(what, total=None, visible=False)
        yield lambda finished, planned: bar.update(line, completed=finished, total=planned, visible=True)
