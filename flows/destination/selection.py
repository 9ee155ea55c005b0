"""Which rows of the manifest a prune deletes: by a condition, an age, settings or marks. Favourites are kept."""

import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dreamcore.errors import InvalidInput
from flows.destination.condition import MARK, parse_condition

__all__ = ["Selection", "select"]

NO_MARKS: Mapping[str, int] = {}
_HOURS = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}
"""Hours of each unit of an age."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows for which a condition is true."""

    flags: Mapping[str, str]
    """The flags of the command line that select these rows, with their value; empty if a flag takes none."""
    condition: pc.Expression
    columns: frozenset[str]
    """The columns of the manifest that `mask` needs."""
    keeps_favourites: bool = True
    """Whether rows of dreams with the marks 1 to 5 are never selected."""

    def mask(self, rows: pa.Table, marks: Mapping[str, int] = NO_MARKS) -> NDArray[np.bool_]:
        """Return for each row whether it is selected.

        Args:
            rows: rows of the manifest.
            marks: the marks of dreams by `result_id`.
        """
        return self._matching(rows, marks) & ~self._are_kept(rows, marks)

    def kept_favourites(self, rows: pa.Table, marks: Mapping[str, int]) -> int:
        """Return how many rows are not selected only because their dream is a favourite."""
        return int((self._matching(rows, marks) & self._are_kept(rows, marks)).sum())

    def _matching(self, rows: pa.Table, marks: Mapping[str, int]) -> NDArray[np.bool_]:
        numbered = rows.append_column(MARK, _marks_of(rows, marks))
        numbered = numbered.append_column("row number", pa.array(np.arange(len(rows))))
        chosen = np.zeros(len(rows), np.bool_)
        chosen[numbered.filter(self.condition)["row number"].to_numpy()] = True
        return chosen

    def _are_kept(self, rows: pa.Table, marks: Mapping[str, int]) -> NDArray[np.bool_]:
        if not self.keeps_favourites or not marks:
            return np.zeros(len(rows), np.bool_)
        return np.asarray(pc.fill_null(pc.greater(_marks_of(rows, marks), 0), False), np.bool_)

    def command(self, destination: str) -> str:
        """Return the command that prunes these rows."""
        flags = [word for flag in self.flags.items() for word in flag if word]
        return shlex.join(["dreamgrid", "prune", destination, *flags, "--yes"])

    def check_settings(self, settings_ids: Collection[str]) -> None:
        """Raise `InvalidInput` if several of the settings in a manifest begin with the given digits."""
        prefix = self.flags.get("--settings")
        matching = sorted(each for each in settings_ids if prefix and each.startswith(prefix))
        if len(matching) > 1:
            raise InvalidInput(
                f"--settings {prefix} means {len(matching)} settings: give more digits of one of {matching}"
            )


def select(
    where: str | None = None,
    older_than: str | None = None,
    settings: str | None = None,
    now: datetime | None = None,
    *,
    unrated: bool = False,
    with_favourites: bool = False,
) -> Selection:
    """Return the selection of rows for which all given conditions are true, without those of favourites.

    Args:
        where: a condition on the columns of the manifest and `mark`, as in SQL.
        older_than: an age such as `90d`; selects rows that were created before.
        settings: the first digits of a `settings_id`.
        now: the time from which the age is counted; None for the current time.
        unrated: select only dreams without a mark.
        with_favourites: select also dreams with the marks 1 to 5.

    Raises:
        InvalidInput: nothing is given, or a condition is not correct.
    """
    conditions: list[pc.Expression] = []
    columns: set[str] = set()
    if where is not None:
        condition = parse_condition(where)
        conditions.append(condition.expression)
        columns.update(condition.columns)
    if older_than is not None:
        conditions.append(pc.field("created_at") < pc.scalar(_time_before(older_than, now or datetime.now(UTC))))
        columns.add("created_at")
    if settings is not None:
        conditions.append(pc.starts_with(pc.field("settings_id"), _settings_prefix(settings)))
        columns.add("settings_id")
    if unrated:
        conditions.append((pc.field("status") == "done") & (pc.field(MARK) == 0))
        columns.add("status")
    if not conditions:
        raise InvalidInput("no dreams are selected: give --where, --older-than, --settings or --unrated")
    flags = {"--where": where, "--older-than": older_than, "--settings": settings}
    flags |= {"--unrated": "" if unrated else None, "--with-favourites": "" if with_favourites else None}
    given = {flag: value for flag, value in flags.items() if value is not None}
    return Selection(given, _all_of(conditions), frozenset(columns - {MARK} | {"result_id"}), not with_favourites)


def _marks_of(rows: pa.Table, marks: Mapping[str, int]) -> pa.ChunkedArray:
    """Return the mark of each row: 0 for a dream without a mark, null for a row without a dream."""
    marked, values = pa.array(marks, pa.string()), pa.array([*marks.values(), 0], pa.int64())
    places = pc.fill_null(pc.index_in(rows["result_id"], value_set=marked), len(marks))
    return pc.if_else(pc.is_null(rows["result_id"]), pa.scalar(None, pa.int64()), values.take(places))


def _all_of(conditions: list[pc.Expression]) -> pc.Expression:
    first, *others = conditions
    for condition in others:
        first = first & condition
    return first


def _time_before(age: str, now: datetime) -> pa.Scalar:
    """Return the time that lies this age before `now`."""
    found = re.fullmatch(r"(\d+)([hdwy])", age)
    if not found:
        raise InvalidInput(f"--older-than {age} is no age: write a number and h, d, w or y, such as 90d")
    try:
        time = now - timedelta(hours=int(found[1]) * _HOURS[found[2]])
    except OverflowError:
        raise InvalidInput(f"--older-than {age} lies before the year 1: give a smaller age") from None
    return pa.scalar(time, pa.timestamp("us", tz="UTC"))


def _settings_prefix(digits: str) -> str:
    if not re.fullmatch("[0-9a-f]{4,16}", digits):
        raise InvalidInput(
            f"--settings {digits} is no settings_id: give its first digits, at least four; `dreamgrid manifest DEST "
            "--json` lists all"
        )
    return digits
