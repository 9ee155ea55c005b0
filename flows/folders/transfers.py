"""Copies many files to or from S3 at the same time: what `upload` and `download` share."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from dreamcore.errors import InvalidInput, Unavailable
from flows.machine.pace import TransferState
from flows.machine.prefetch import bounded_as_completed, thread_pool
from flows.s3.errors import concerns_one_object
from flows.s3.globs import compile_globs
from flows.s3.transfers import OnBytes

__all__ = [
    "EXCLUDED",
    "RESERVED",
    "OnProgress",
    "Problem",
    "Refused",
    "TransferReport",
    "copy_all",
    "name_filter",
]

RESERVED = ".dreamgrid"
"""Beginning of the names of files and folders of Dreamgrid itself, such as the data of the embedded servers."""
EXCLUDED = "excluded"
"""Kind of a name that the patterns leave out."""

_TRANSFERS = 16
"""Files that are copied at the same time. Small files wait for responses most of the time."""
_TICK = 0.5
"""Seconds after which the progress is shown also if no file is finished."""


class Refused(Exception):
    """One file or object cannot be copied. The message says why and what to do."""


class Problem(NamedTuple):
    """A file or object that could not be copied."""

    name: str
    """Its path in the folder, or its key below the prefix."""
    why: str


OnProgress = Callable[[TransferState], None]


@dataclass
class TransferReport:
    """What was copied."""

    copied: int = 0
    """Files that were copied."""
    bytes: int = 0
    """Bytes of these files."""
    unchanged: int = 0
    """Files that had been copied before."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of files that were not to be copied, by kind."""
    problems: list[Problem] = field(default_factory=list)
    """Files that could not be copied."""

    def add_problem(self, name: str, why: str) -> None:
        """Add a file that could not be copied. Bytes of its name that are no UTF-8 become escapes."""
        self.problems.append(Problem(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), why))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        problems = [problem._asdict() for problem in self.problems]
        return {**vars(self), "skipped": dict(self.skipped.most_common()), "problems": problems}


class Item(Protocol):
    """A file or object to be copied."""

    @property
    def name(self) -> str:
        """Its path in the folder, or its key below the prefix."""

    @property
    def size(self) -> int:
        """Its size in bytes."""


_Item = TypeVar("_Item", bound=Item)


def name_filter(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that returns whether a name is chosen by patterns; `flows.s3.globs` describes them.

    Args:
        include: choose only the names that match one of these patterns; empty chooses all.
        exclude: do not choose the names that match one of these patterns.

    Raises:
        InvalidInput: a pattern is malformed.
    """
    try:
        included, excluded = compile_globs(include), compile_globs(exclude)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    return lambda name: (not include or included(name)) and not excluded(name)


def copy_all(
    items: Sequence[_Item], copy: Callable[[_Item, OnBytes], bool], report: TransferReport, on_progress: OnProgress
) -> None:
    """Copy files with several threads, and add what happens to the report. After an error, no transfer goes on.

    Args:
        items: the files or objects.
        copy: copies one item and returns whether it had to be copied. It may raise `Refused`.
        report: the report.
        on_progress: called after each file, and at least every half second.

    Raises:
        InvalidInput, Unavailable: as `copy` does, except for errors of S3 that concern one object only.
    """
    copying = _Copying(copy)
    all_bytes = sum(item.size for item in items)
    finished = 0
    with thread_pool(_TRANSFERS) as pool:
        try:
            futures: dict[Future[bool], _Item] = {}

            def submit(item: _Item) -> Future[bool]:
                future = pool.submit(copying.run, item)
                futures[future] = item
                return future

            for future in bounded_as_completed(submit, items, 2 * _TRANSFERS, _TICK):
                if future:
                    finished += 1
                    _add(report, futures.pop(future), future)
                on_progress(TransferState(finished, len(items), min(copying.bytes, all_bytes), all_bytes))
        finally:
            copying.stopped.set()
    report.problems.sort()


def _add(report: TransferReport, item: Item, future: Future[bool]) -> None:
    """Add the outcome of one item to the report."""
    try:
        copied = future.result()
    except Refused as error:
        report.add_problem(item.name, str(error))
    except Unavailable as error:
        if not concerns_one_object(error):
            raise
        report.add_problem(item.name, str(error))
    else:
        report.copied += copied
        report.unchanged += not copied
        report.bytes += item.size if copied else 0


class _Copying:
    """Copies items in several threads and counts their bytes."""

    def __init__(self, copy: Callable[[Any, OnBytes], bool]) -> None:
        self._copy, self._lock = copy, threading.Lock()
        self.bytes = 0
        self.stopped = threading.Event()

    def run(self, item: Item) -> bool:
        copied = self._copy(item, self._count)
        if not copied:
            self._count(item.size)
        return copied

    def _count(self, number: int) -> None:
        if self.stopped.is_set() and number >= 0:
            raise Unavailable("the transfer was stopped")
        with self._lock:
            self.bytes += number
