"""How far a run is and how fast it advances, also within a shard.

A worker process writes the number of finished dreams of its shard into a small file, and the process of the run adds up
these files. No file is needed for the result: if one cannot be written, only the progress within a shard is missing.
The processes of other machines write no such files. Their dreams count when their shard ends (see
`flows.running.rates`).
"""

import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = [
    "LINE_SECONDS",
    "Display",
    "Meter",
    "Pace",
    "ShardCounter",
    "ShardCounts",
    "Snapshot",
    "TransferState",
    "duration",
    "shard_counter",
]

LINE_SECONDS = 30.0
"""Seconds between two lines of progress, where there is no progress bar."""

_WINDOW_SECONDS = 300.0
"""The rate is that of the last five minutes."""
_WRITE_SECONDS = 1.0


@dataclass(frozen=True)
class Snapshot:
    """The progress of a run at one moment."""

    finished: int
    """Rows that the manifest will have, also those that were there when the run was resumed."""
    planned: int
    rate: float | None = None
    """New dreams in a second; None until two dreams were finished."""

    @property
    def pace(self) -> str:
        """The rate and the time left, such as `2.1 a second, about 6 min left`; empty if they are not known."""
        if not self.rate:
            return ""
        rate = f"{self.rate:.1f} a second" if self.rate >= 1 else f"{self.rate * 60:.1f} a minute"
        left = self.planned - self.finished
        return f"{rate}, about {duration(left / self.rate)} left" if left > 0 else rate

    def __str__(self) -> str:
        """Return one line, such as `120 of 900 dreams, 2.1 a second, about 6 min left`."""
        counts = f"{self.finished:,} of {self.planned:,} dreams"
        return f"{counts}, {self.pace}" if self.pace else counts


@dataclass(frozen=True)
class TransferState:
    """How far an upload or a download is."""

    files: int
    all_files: int
    bytes: int
    """Bytes that were copied, and those of files that did not need to be copied."""
    all_bytes: int


def duration(seconds: float) -> str:
    """Return a duration in the unit that needs one or two digits.

    Example:
        >>> duration(340), duration(20000)
        ('6 min', '5.6 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Display(Protocol):
    """Shows the progress of a run to somebody."""

    def start(self, run_id: str, destination: str) -> None:
        """Show which run has begun."""

    def listed(self, count: int) -> None:
        """Show how many objects of the source have been listed so far."""

    def show(self, snapshot: Snapshot) -> None:
        """Show the progress."""


class Meter:
    """Measures how fast a count grows, over the last five minutes."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()  # time and count

    @property
    def count(self) -> int:
        """The newest count; 0 if there is none."""
        return self._counts[-1][1] if self._counts else 0

    @property
    def mean_interval(self) -> float:
        """The mean seconds between two counts. There must be two."""
        return max(self._counts[-1][0] - self._counts[0][0], 1e-3) / (len(self._counts) - 1)

    def add(self, now: float, count: int) -> None:
        """Add a count."""
        self._counts.append((now, count))
        self.forget(now)

    def forget(self, now: float) -> None:
        """Forget counts that are older than five minutes, except the newest two."""
        while len(self._counts) > 2 and now - self._counts[1][0] > _WINDOW_SECONDS:
            self._counts.popleft()

    def silence(self, now: float) -> float:
        """Return the seconds since the newest count."""
        return now - self._counts[-1][0]

    def rate(self, now: float) -> float | None:
        """Return the growth in a second since the first of the kept counts; None before the second count.

        The time since the newest count belongs to the next one. It counts if it is longer than the mean time between
        two counts, so that the rate of a run that hangs goes down.
        """
        if len(self._counts) < 2:
            return None
        (begin, before), (end, after) = self._counts[0], self._counts[-1]
        seconds = max(end - begin, 1e-3)
        return (after - before) / (seconds + max(0.0, self.silence(now) - self.mean_interval))


class Pace:
    """Computes the rate of a run from its counts. Dreams of the first count are not new and do not count.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._meter = clock, Meter()
        self._first: int | None = None
        self._finished = 0

    def update(self, finished: int, planned: int) -> Snapshot:
        """Return the progress after `finished` of `planned` dreams. The count never goes back."""
        self._finished = max(self._finished, min(finished, planned))
        if self._first is None:
            self._first = self._finished
        now = self._clock()
        if self._finished > max(self._first, self._meter.count):
            self._meter.add(now, self._finished)
        self._meter.forget(now)
        return Snapshot(self._finished, planned, self._meter.rate(now))


class ShardCounts:
    """The finished dreams of shards that are not finished, as the worker processes of this machine report them."""

    def __init__(self) -> None:
        self.is_used = False
        """Whether a worker process has reported a dream."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        with suppress(OSError):
            self._folder = tempfile.TemporaryDirectory(prefix="dreamgrid-progress-", ignore_cleanup_errors=True)

    @property
    def folder(self) -> str | None:
        """The folder for `shard_counter`; None if no folder can be made."""
        return self._folder.name if self._folder else None

    def total(self) -> int:
        """Return the number of dreams that all files report. A file that is being written counts as zero."""
        total = 0
        with suppress(OSError):
            for file in Path(self.folder).iterdir() if self.folder else ():
                with suppress(OSError, ValueError):
                    total += int(file.read_text())
        self.is_used = self.is_used or total > 0
        return total

    def close(self) -> None:
        """Remove the folder."""
        if self._folder:
            self._folder.cleanup()


class ShardCounter:
    """Counts the finished dreams of one shard, in a worker process. Any thread calls it after each dream.

    Args:
        file: the file for `ShardCounts`; None to report nothing.
    """

    def __init__(self, file: Path | None) -> None:
        self.finished = 0
        """Dreams that are done, failed or skipped."""
        self.failures = Counter[str]()
        """Failed and skipped dreams by error kind."""
        self._file, self._written, self._lock = file, 0.0, threading.Lock()

    def __call__(self, error_kind: str | None = None) -> None:
        """Count one dream, and write the count at most once in a second."""
        with self._lock, suppress(OSError):  # the disk may be full
            self.finished += 1
            if error_kind:
                self.failures[error_kind] += 1
            if self._file and time.monotonic() - self._written >= _WRITE_SECONDS:
                self._written = time.monotonic()
                self._file.write_text(str(self.finished))


@contextmanager
def shard_counter(folder: str | None, shard: str) -> Iterator[ShardCounter]:
    """Yield the counter of one shard.

    When the shard is finished and counts as a whole, its file is removed. After an error the file stays, because its
    dreams are in S3.

    Args:
        folder: the folder of `ShardCounts`; None to report nothing.
        shard: a name of the shard, unique in the run.
    """
    file = Path(folder) / shard if folder else None
    yield ShardCounter(file)
    if file:
        with suppress(OSError):
            file.unlink(missing_ok=True)
