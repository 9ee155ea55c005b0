"""Marks of dreams, as the pages use them."""

import threading
from collections.abc import Mapping
from typing import Protocol

__all__ = ["REJECTED", "Marks", "MemoryMarks"]

REJECTED = -1


class Marks(Protocol):
    """The marks of one destination: 1 to 5, `REJECTED`, or 0 for none."""

    def read(self) -> Mapping[str, int]:
        """Return the mark of each dream that has one, by `result_id`."""

    def add(self, result_id: str, mark: int) -> None:
        """Set the mark of a dream, or remove it with 0. The mark is stored when the method returns."""


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
