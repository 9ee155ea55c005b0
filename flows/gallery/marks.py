"""Marks of dreams, as the pages use them."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

__all__ = ["READ_SECONDS", "REJECTED", "Marks", "MemoryMarks", "RecentMarks"]

REJECTED = -1
READ_SECONDS = 2.0
"""Marks of other processes are read at most this often."""


class Marks(Protocol):
    """The marks of one destination: 1 to 5, `REJECTED`, or 0 for none."""

    def read(self) -> Mapping[str, int]:
        """Return the mark of each dream that has one, by `result_id`."""

    def add(self, result_id: str, mark: int) -> None:
        """Set the mark of a dream, or remove it with 0. The mark is stored when the method returns."""


class RecentMarks:
    """Marks of which reading takes time: they are read at most every two seconds, and after each mark of this process.

    A mark that another process adds appears when they are read again.
    """

    def __init__(self, marks: Marks, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept, self._clock = marks, clock
        self._lock = threading.Lock()
        self._known: Mapping[str, int] = {}
        self._read_at: float | None = None

    def read(self) -> Mapping[str, int]:
        """Return the mark of each dream that has one, by `result_id`."""
        with self._lock:
            if self._read_at is None or self._clock() - self._read_at > READ_SECONDS:
                self._known, self._read_at = self._kept.read(), self._clock()
            return self._known

    def add(self, result_id: str, mark: int) -> None:
        """Set the mark of a dream, or remove it with 0. The mark is stored when the method returns."""
        self._kept.add(result_id, mark)
        with self._lock:
            self._read_at = None


class MemoryMarks:
    """Marks that end with the process."""

    def __init__(self) -> None:
        self._marks: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self) -> Mapping[str, int]:
        """Return the mark of each dream that has one, by `result_id`."""
        with self._lock:
            return dict(self._marks)

    def add(self, result_id: str, mark: int) -> None:
        """Set the mark of a dream, or remove it with 0."""
        with self._lock:
            if mark:
                self._marks[result_id] = mark
            else:
                self._marks.pop(result_id, None)
