"""Output of commands: results on standard output, everything else on standard error."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from flows.machine.pace import LINE_SECONDS, Display, Snapshot, TransferState, duration

__all__ = [
    "console",
    "frame_progress",
    "listing_progress",
    "one_line",
    "print_line",
    "print_message",
    "print_remedy",
    "printable",
    "progress",
    "run_progress",
    "screen",
    "show_json",
    "transfer_progress",
    "waiting",
]

UNWRAPPED = 10_000
"""Width of tables in a pipe or a file, in characters: their rows are not wrapped."""

console = Console(markup=False, highlight=False, width=None if sys.stdout and sys.stdout.isatty() else UNWRAPPED)
screen = Console(stderr=True, markup=False, highlight=False)

MAX_LINE = 500
"""Characters of a text from an untrusted source that are printed."""


def show_json(value: object) -> None:
    """Print one JSON value."""
    click.echo(json.dumps(value, indent=1))


def print_line(line: str) -> None:
    """Print one line of a result, without control characters. Object keys in it may come from untrusted people."""
    click.echo(printable(line))


def print_message(message: object, style: str) -> None:
    """Print a message on standard error, without control characters except line breaks.

    Args:
        message: the message, or the error that contains it.
        style: the color, for example `red` or `yellow`.
    """
    text = "\n".join(map(printable, str(message).split("\n")))
    screen.print(f"dreamgrid: {text}", style=style, soft_wrap=True)


def print_remedy(remedy: str) -> None:
    """Print on standard error what to do, below a message."""
    screen.print(remedy, markup=False, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Return `text` with a space for each character that could control a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def one_line(text: str) -> str:
    """Return the beginning of `text`, printable, on one line."""
    return printable(text)[:MAX_LINE]


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal what the command waits for, as long as the block lasts.

    Args:
        what: the text, such as `Loading the network ...`.
    """
    with screen.status(what) if screen.is_terminal else nullcontext():
        yield


@contextmanager
def progress(what: str, at_first: str = "") -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error. Yields a function that is called with the finished and the total number.

    Args:
        what: the word before the bar.
        at_first: what a terminal shows until the first call, in place of `what`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=screen)
    with ExitStack() as shown:
        shown.enter_context(waiting(at_first or f"{what} ..."))

        def show(finished: int, planned: int) -> None:
            if not bar.task_ids:
                shown.close()
                shown.enter_context(bar)
                bar.add_task(what)
            bar.update(bar.task_ids[0], completed=finished, total=planned)

        yield show


@contextmanager
def frame_progress(clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of a movie on standard error: a bar on a terminal, otherwise a line every half minute.

    Args:
        clock: returns seconds.

    Yields:
        A function that is called with the finished and the total number of frames.
    """
    if screen.is_terminal:
        with progress("frames", "Dreaming the first frame ...") as show:
            yield show
        return
    counted, started, printed = 0, 0.0, clock()

    def show_line(finished: int, planned: int) -> None:
        nonlocal counted, started, printed
        if not counted:  # the first frame takes longer than the others
            counted, started = finished, clock()
        elif clock() - printed >= LINE_SECONDS or finished == planned:
            printed = clock()
            each = (printed - started) / (finished - counted)
            left = f", about {duration(each * (planned - finished))} left" if finished < planned else ""
            screen.print(f"{finished:,} of {planned:,} frames, {each:.2f} s each{left}", soft_wrap=True)

    yield show_line


@contextmanager
def listing_progress() -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many objects were listed. Yields a function that is called with the number."""
    with Progress(
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=screen,
        disable=not screen.is_terminal,
    ) as bar:
        line = bar.add_task("listing", total=None, visible=False)
        yield lambda count: bar.update(line, completed=count, visible=True)


@contextmanager
def transfer_progress(
    what: str, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[TransferState], None]]:
    """Show the progress of an upload or a download: a bar on a terminal, otherwise a line every half minute.

    Args:
        what: the word before the bar.
        clock: returns seconds.
    """
    if screen.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[files]} files"))
        with Progress(*columns, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=screen) as bar:
            line = bar.add_task(what, total=None, visible=False, files="")
            yield lambda state: bar.update(
                line,
                completed=state.bytes,
                total=state.all_bytes,
                files=f"{state.files:,}/{state.all_files:,}",
                visible=True,
            )
        return
    started = printed = clock()

    def show_line(state: TransferState) -> None:
        nonlocal printed
        if clock() - printed < LINE_SECONDS:
            return
        printed = clock()
        left = (printed - started) * (state.all_bytes / state.bytes - 1) if state.bytes else 0
        ends = f", about {duration(left)} left" if left else ""
        files = f"{state.files:,} of {state.all_files:,} files"
        screen.print(f"{files}, {decimal(state.bytes)} of {decimal(state.all_bytes)}{ends}", soft_wrap=True)

    yield show_line


@contextmanager
def run_progress(clock: Callable[[], float] = time.monotonic) -> Iterator[Display]:
    """Show the progress of a run on standard error: a bar on a terminal, otherwise a line every half minute.

    Args:
        clock: returns seconds.
    """
    if screen.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
        )
        with Progress(*columns, console=screen) as bar:
            yield _Bar(bar)
        return
    lines = _Lines(clock)
    try:
        yield lines
    finally:
        lines.finish()


class _Bar:
    """A progress bar on a terminal."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("dreaming", total=None, visible=False, pace="")

    def start(self, run_id: str, destination: str) -> None:
        self._bar.console.print(printable(f"run {run_id} -> {destination}"), soft_wrap=True)

    def listed(self, count: int) -> None:
        self._bar.update(self._task, description="listing", completed=count, visible=True)

    def show(self, snapshot: Snapshot) -> None:
        finished, planned, pace = snapshot.finished, snapshot.planned, snapshot.pace
        self._bar.update(self._task, description="dreaming", completed=finished, total=planned, visible=True, pace=pace)


class _Lines:
    """Plain lines, for a log file or a pipe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._printed = clock()
        self._waiting: Snapshot | None = None  # the newest one, if it was not printed
        self._last = ""

    def start(self, run_id: str, destination: str) -> None:
        self._print(f"run {run_id} -> {destination}")

    def listed(self, count: int) -> None:
        if self._clock() - self._printed >= LINE_SECONDS:
            self._print(f"{count:,} objects listed")

    def show(self, snapshot: Snapshot) -> None:
        self._waiting = snapshot
        if self._clock() - self._printed >= LINE_SECONDS:
            self.finish()

    def finish(self) -> None:
        """Print the newest progress, unless it was printed."""
        if self._waiting and str(self._waiting) != self._last:
            self._print(str(self._waiting))
        self._waiting = None

    def _print(self, line: str) -> None:
        self._printed, self._last = self._clock(), line
        screen.print(printable(line), soft_wrap=True)
