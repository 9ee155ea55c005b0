"""Marks of dreams, as the pages use them: what S3 had a moment ago, and what has changed since a page was made."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import NamedTuple

from dreamcore.errors import InvalidInput, Unavailable
from flows.destination import favourites
from flows.destination.favourites import Mark
from flows.s3.storage import Storage

__all__ = ["READ_SECONDS", "REJECTED", "Marks", "MarksNews"]

REJECTED = -1
READ_SECONDS = 2.0
"""Marks of other processes are read at most this often."""


class MarksNews(NamedTuple):
    """Marks that a page does not have yet."""

    version: str
    """What the page names when it asks the next time."""
    marks: Mapping[str, int]
    """The mark of each dream whose mark changed, by `result_id`; 0 for none."""
    is_all: bool
    """Whether these are all marks, so that every other dream has none."""


class Marks:
    """The marks of one destination. Threads may share it.

    Reading takes time, so marks of other processes are read every two seconds at most. Marks of this process count at
    once. If S3 does not respond, the marks that are known count, and `trouble` says why.
    """

    def __init__(self, destination: str, storage: Storage, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept, self._clock = favourites.Marks(destination, storage), clock
        self._reading, self._counting = Lock(), Lock()
        self._read_at: float | None = None
        self._counted: Mapping[str, int] = {}  # the marks of the present version
        self._changed: dict[str, int] = {}  # the version in which the mark of a dream changed last
        self._version = 0
        self._process = secrets.token_hex(4)
        self.trouble = ""
        """Why marks of others may be missing; empty if they are not."""

    def read(self) -> Mapping[str, int]:
        """Return the mark of each dream that has one, by `result_id`. The mapping does not change later."""
        if self._is_due() and self._reading.acquire(blocking=self._read_at is None):
            try:
                if self._is_due():
                    self._read_new()
            finally:
                self._reading.release()
        return self._kept.known

    def _is_due(self) -> bool:
        return self._read_at is None or self._clock() - self._read_at > READ_SECONDS

    def _read_new(self) -> None:
        try:
            self._kept.read()
            self.trouble = ""
        except (InvalidInput, Unavailable) as error:
            self.trouble = f"Marks of others may be missing: {error}"
        self._read_at = self._clock()

    def add(self, marks: Iterable[Mark]) -> None:
        """Set marks of dreams, or remove them with 0. The marks are in S3 when the method returns.

        Raises:
            InvalidInput: access is refused.
            Unavailable: S3 failed. Some of the marks may be in S3.
        """
        self._kept.add(marks)

    def version(self) -> str:
        """Return the version of the marks that are known, for `news`."""
        with self._counting:
            return self._count(self._kept.known)

    def news(self, version: str) -> MarksNews:
        """Return the marks that have changed since a version; all marks if another process gave that version."""
        self.read()
        with self._counting:
            known = self._kept.known
            present = self._count(known)
            process, _, number = version.partition("-")
            if process != self._process or not (number.isascii() and number.isdecimal() and len(number) < 10):
                return MarksNews(present, known, is_all=True)
            changed = [name for name, at in self._changed.items() if at > int(number)] if version != present else []
            return MarksNews(present, {name: known.get(name, 0) for name in changed}, is_all=False)

    def _count(self, known: Mapping[str, int]) -> str:
        """Begin a new version if marks have changed, and return the version. The lock is held."""
        if known is not self._counted:
            self._version += 1
            for name, _ in known.items() ^ self._counted.items():
                self._changed[name] = self._version
            self._counted = known
        return f"{self._process}-{self._version}"
