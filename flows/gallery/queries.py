"""The questions that the gallery's pages ask the cache.

The texts of all statements are constants, and values from outside are parameters. Lists are paged by keyset: a cursor
names the last entry of a page, so that no page costs more than the first one, and no entry is lost or repeated while
rows are added.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from flows.gallery import scores
from flows.gallery.axes import axes_of
from flows.gallery.cache import Cache
from flows.gallery.conditions import Condition, condition, result_range
from flows.gallery.cursors import read_cursor, write_cursor
from flows.gallery.dreams import read_dream, select
from flows.gallery.points import Point
from flows.gallery.records import (
    Axis,
    BestBy,
    CostPoint,
    Counts,
    DreamRow,
    Failure,
    FailureKind,
    Filters,
    Histogram,
    MarkCount,
    Photograph,
    Run,
    ScoreMap,
    Sort,
)
from flows.gallery.run_list import RunReader
from flows.gallery.tables import STATUSES

__all__ = ["Queries"]

_FACET_VALUES = 200
_ALL = Filters(status="")
_ID = re.compile(r"[0-9a-f]{4,16}")

_KEYS: Mapping[Sort, str] = {
    "name": "s.search",
    "gain": "-coalesce(rank, -1)",
    "mark": "-coalesce(mark, 0)",
    "newest": "-epoch_us(newest)",
    "cost": "-coalesce(milliseconds, 0)::BIGINT",
}
"""The keys of the orders of photographs, in rising order. They are exact, so that cursors are."""
_MARK_KEY = f"-(m.mark * {10**16} + epoch_us(d.created_at))"
"""The key of the order of marked dreams: microseconds since 1970 have less than 16 digits."""
_BEST: Mapping[BestBy, str] = {
    "gain": "e.settings_no IS NULL",
    "mark": "coalesce(m.mark, 0), e.settings_no IS NULL",
    "score": "e.settings_no IS NULL, coalesce(d.score_rank, -1)",
}
"""What is compared before the rank of the gain. An enlarged dream is the best one only by its mark,
or if the photograph has no other dream."""
_ENLARGED = "LEFT JOIN (SELECT unnest(?::INTEGER[]) AS settings_no) e ON e.settings_no = d.settings_no"
_MARKED = "LEFT JOIN live.marks m ON m.result_no = d.result_no AND d.status = 0"


class Queries:
    """Reads a cache. Threads may share it.

    Args:
        cache: the rows.
        marks: returns the marks of dreams by `result_id`.
    """

    def __init__(self, cache: Cache, marks: Callable[[], Mapping[str, int]] = dict) -> None:
        self.cache, self._marks = cache, marks
        self._runs = RunReader(cache)

    def _ask(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        self.cache.use_marks(self._marks())
        return self.cache.query(sql, parameters)

    def _condition(self, filters: Filters, *without: str) -> Condition:
        return condition(filters, self.cache.points, without)

    def _dreams(self, where: str, values: Sequence[Any]) -> list[DreamRow]:
        return [read_dream(row, self.cache.points) for row in self._ask(f"{select()} {where}", values)]

    # --- photographs

    def photographs(
        self,
        filters: Filters,
        *,
        best_by: BestBy = "gain",
        sort: Sort = "name",
        after: str | None = None,
        limit: int = 100,
    ) -> tuple[list[Photograph], str | None]:
        """Return a page of the photographs with rows within the filters, and the cursor of the next page.

        Args:
            filters: the filters.
            best_by: what makes the best dream of each photograph.
            sort: the order.
            after: the cursor of this page; None for the first page.
            limit: the largest number of photographs.

        Raises:
            InvalidInput: the cursor is malformed, or the status does not exist.
        """
        position = read_cursor(after, sort) if after else None
        found = self._page(filters, sort, position, limit + 1)
        cursor = write_cursor(sort, *found[limit - 1]) if len(found) > limit else None
        return self._summaries([number for _, number in found[:limit]], filters, best_by), cursor

    def _page(
        self, filters: Filters, sort: Sort, position: Sequence[Any] | None, limit: int, *, backwards: bool = False
    ) -> list[tuple[Any, int]]:
        """Return keys and `source_no`s of photographs, from behind a position or, backwards, from before it."""
        where, values = self._condition(filters)
        compare, direction = ("<", "DESC") if backwards else (">", "ASC")
        beyond = f"WHERE (key, source_no) {compare} (?, ?)" if position else ""
        sql = f"""
            WITH found AS ({_found(sort)} WHERE {where} GROUP BY d.source_no),
            keyed AS (SELECT {_KEYS[sort]} AS key, source_no FROM found JOIN sources s USING (source_no))
            SELECT key, source_no FROM keyed {beyond} ORDER BY key {direction}, source_no {direction} LIMIT ?
            """  # noqa: S608 - constants
        return [(key, number) for key, number in self._ask(sql, [self._enlarged(), *values, *(position or ()), limit])]

    def _enlarged(self) -> list[int]:
        """Return the `settings_no`s of enlarged dreams. They repeat other dreams, so their gains do not count."""
        return [number for number, point in self.cache.points.items() if point.enlarges]

    def _summaries(self, numbers: Sequence[int], filters: Filters, best_by: BestBy) -> list[Photograph]:
        """Return the photographs with these `source_no`s, in this order."""
        where, values = self._condition(filters, "status")
        best = f"({_BEST[best_by]}, coalesce(d.gain_rank, -1), -d.number)"
        summaries = f"""
            SELECT count(*) FILTER (d.status = 0) AS dreams, count(*) FILTER (d.status > 0) AS failed,
                count(DISTINCT d.objective_no) FILTER (d.status = 0) AS objectives,
                coalesce(arg_max(d.dream_no, {best}) FILTER (d.status = 0), max(d.dream_no)) AS shown
            FROM dreams d {_MARKED} {_ENLARGED}
            WHERE d.source_no IN (SELECT unnest(?::INTEGER[])) AND {where} GROUP BY d.source_no
            """  # noqa: S608 - constants
        sql = select("c.dreams", "c.failed", "c.objectives", "d.source_no")
        rows = self._ask(
            f"{sql} JOIN ({summaries}) c ON c.shown = d.dream_no", [self._enlarged(), list(numbers), *values]
        )
        found = {row[-1]: _photograph(row, self.cache.points) for row in rows}
        return [found[number] for number in numbers if number in found]

    def photograph(self, source_uri: str) -> Photograph | None:
        """Return one photograph with the best of all its dreams; None if it has no row."""
        found = self._ask("SELECT source_no FROM sources WHERE uri = ?", [source_uri])
        summaries = self._summaries([number for (number,) in found], Filters(), "gain")
        return summaries[0] if summaries else None

    def neighbours(self, source_uri: str, filters: Filters, sort: Sort = "name") -> tuple[str | None, str | None]:
        """Return the addresses of the photographs before and after this one among those within the filters."""
        sources = self._ask("SELECT source_no FROM sources WHERE uri = ?", [source_uri])
        if not sources:
            return None, None
        sql = f"""
            WITH found AS ({_found(sort)} WHERE d.source_no = ? GROUP BY d.source_no)
            SELECT {_KEYS[sort]}, source_no FROM found JOIN sources s USING (source_no)
            """  # noqa: S608 - constants
        position = self._ask(sql, [self._enlarged(), *sources[0]])
        pages = [self._page(filters, sort, position[0], 1, backwards=way) if position else [] for way in (True, False)]
        before, after = (self._uri(page[0][1]) if page else None for page in pages)
        return before, after

    def _uri(self, source_no: int) -> str:
        ((uri,),) = self._ask("SELECT uri FROM sources WHERE source_no = ?", [source_no])
        return str(uri)

    # --- counts

    def counts(self, filters: Filters) -> Counts:
        """Return how many photographs and dreams are within the filters, and how many failed besides the status."""
        (where, values), (others, more) = self._condition(filters), self._condition(filters, "status")
        sql = f"SELECT count(DISTINCT source_no), count(*) FILTER (status = 0) FROM dreams d WHERE {where}"  # noqa: S608
        ((photographs, dreams),) = self._ask(sql, values)
        ((failed,),) = self._ask(f"SELECT count(*) FROM dreams d WHERE {others} AND status > 0", more)  # noqa: S608
        return Counts(photographs, dreams, failed)

    def facets(self, filters: Filters) -> dict[str, list[tuple[str, int]]]:
        """Return the most frequent values of each filter and the number of rows with each, by name of the filter.

        The names are `status`, `model`, `layers`, `seen`, `run` and `date` (days, in UTC, the latest first). The
        counts of one filter leave out its own condition, so that the other choices stay in view.
        """
        status = self._facet(filters, "status", "status", "dreams d")
        points = self.cache.points
        found: dict[str, list[tuple[str, int]]] = {"status": [(STATUSES[value], count) for value, count in status]}
        for name in ("model", "layers"):
            sums = Counter[str]()
            for number, count in self._facet(filters, name, "settings_no", "dreams d", limit=None):
                sums[getattr(points[number], name)] += count
            found[name] = sums.most_common(_FACET_VALUES)
        found["seen"] = self._facet(filters, "seen", "label", "dreams d JOIN labels USING (label_no)")
        found["run"] = self._facet(filters, "run", "run_id", "dreams d JOIN runs USING (run_no)")
        days = self._facet(filters, "since", "d.created_at::DATE", "dreams d", "until")
        found["date"] = [(day.isoformat(), count) for day, count in sorted(days, reverse=True)]
        return found

    def _facet(
        self, filters: Filters, name: str, value: str, table: str, *without: str, limit: int | None = _FACET_VALUES
    ) -> list[tuple[Any, int]]:
        where, values = self._condition(filters, name, *without)
        sql = f"SELECT {value} AS value, count(*) AS n FROM {table} WHERE {where} GROUP BY value ORDER BY n DESC, value"  # noqa: S608
        rows = self._ask(f"{sql} LIMIT ?" if limit else sql, [*values, limit] if limit else values)
        return [(value, count) for value, count in rows]

    # --- dreams

    def dreams(self, source_uri: str) -> list[DreamRow]:
        """Return all rows of a photograph in the order of their numbers; those that failed are last."""
        found = self._dreams("WHERE s.uri = ?", [source_uri])
        return sorted(found, key=lambda row: (row.status != "done", row.number, row.created_at))

    def within(self, filters: Filters, limit: int) -> list[DreamRow]:
        """Return the rows within the filters, by photograph and number, up to a limit."""
        where, values = self._condition(filters)
        return self._dreams(f"WHERE {where} ORDER BY s.search, d.source_no, d.number LIMIT ?", [*values, limit])

    def dream(self, result_id: str) -> DreamRow | None:
        """Return the dream with this `result_id`; None if there is none. Equal photographs have equal dreams."""
        found = self.find(result_id) if len(result_id) == 16 else []
        return found[0] if found else None

    def chosen(self, result_ids: Sequence[str]) -> list[DreamRow]:
        """Return the dreams with these `result_id`s, in this order. Those that failed or do not exist are left out."""
        numbers = [int(each, 16) for each in result_ids if len(each) == 16 and _ID.fullmatch(each)]
        where = "WHERE d.status = 0 AND d.result_no IN (SELECT unnest(?::UBIGINT[])) ORDER BY d.dream_no DESC"
        found = {row.result_id: row for row in self._dreams(where, [numbers])}
        return [found[each] for each in result_ids if each in found]

    def find(self, start: str, limit: int = 100) -> list[DreamRow]:
        """Return the dreams whose `result_id` begins with these digits, four at the least."""
        if not _ID.fullmatch(start):
            return []
        where = "WHERE d.result_no BETWEEN ? AND ? ORDER BY d.status, d.result_no, d.dream_no LIMIT ?"
        return self._dreams(where, [*result_range(start), limit])

    def enlarged(self, result_id: str) -> list[DreamRow]:
        """Return the dreams that enlarge this dream, the largest first."""
        numbers = [int(result_id, 16)] if len(result_id) == 16 and _ID.fullmatch(result_id) else []
        where = (
            "WHERE x.enlarged_from IN (SELECT unnest(?::UBIGINT[])) AND d.status = 0 ORDER BY x.width DESC, d.number"
        )
        return self._dreams(where, [numbers])

    def numbered(self, source_uri: str, number: int) -> DreamRow | None:
        """Return the dream of a photograph with this number; None if there is none."""
        found = self._dreams("WHERE s.uri = ? AND d.number = ? AND d.status = 0", [source_uri, number])
        return found[0] if found else None

    def favourites(
        self, marks_min: int = 1, *, with_rejected: bool = False, after: str | None = None, limit: int = 500
    ) -> tuple[list[DreamRow], str | None]:
        """Return a page of the dreams with at least this mark, and the cursor of the next page.

        High marks are first, and of dreams with one mark the newest. Rejected dreams, if they are wanted, are last.

        Raises:
            InvalidInput: the cursor is malformed.
        """
        position = read_cursor(after, "mark") if after else None
        beyond = "WHERE (key, dream_no) > (?, ?)" if position else ""
        marked = f"""
            WITH marked AS (
                SELECT dream_no, {_MARK_KEY} AS key FROM live.marks m JOIN dreams d USING (result_no)
                WHERE d.status = 0 AND (m.mark >= ? OR (? AND m.mark < 0))
            )
            SELECT key, dream_no FROM marked {beyond} ORDER BY key, dream_no LIMIT ?
            """  # noqa: S608 - constants
        sql = f"{select('c.key', 'c.dream_no')} JOIN ({marked}) c ON c.dream_no = d.dream_no ORDER BY c.key, c.dream_no"
        rows = self._ask(sql, [marks_min, with_rejected, *(position or ()), limit + 1])
        cursor = write_cursor("mark", *rows[limit - 1][-2:]) if len(rows) > limit else None
        return [read_dream(row, self.cache.points) for row in rows[:limit]], cursor

    def marked(self) -> list[MarkCount]:
        """Return how many dreams have each mark, high marks first."""
        sql = """
            SELECT m.mark, count(*), coalesce(sum(x.result_bytes), 0)::BIGINT
            FROM live.marks m JOIN dreams d USING (result_no) JOIN details x USING (dream_no)
            WHERE d.status = 0 GROUP BY m.mark ORDER BY m.mark DESC
            """
        return [MarkCount(*row) for row in self._ask(sql)]

    def favourite_count(self) -> int:
        """Return how many dreams have a mark of 1 or more."""
        ((count,),) = self._ask(
            "SELECT count(*) FROM live.marks m JOIN dreams d USING (result_no) WHERE d.status = 0 AND m.mark > 0"
        )
        return int(count)

    # --- grids

    def axes(self, source_uri: str) -> list[Axis]:
        """Return the settings that vary among the dreams of a photograph, each with its values in order."""
        sql = "SELECT DISTINCT settings_no FROM dreams JOIN sources USING (source_no) WHERE uri = ?"
        return axes_of([self.cache.points[number] for (number,) in self._ask(sql, [source_uri])])

    def grid(
        self, source_uri: str, down: str | None, across: str | None, fixed: Mapping[str, str]
    ) -> list[list[DreamRow | None]]:
        """Return a row of dreams for each value of the axis `down`, with a dream for each value of `across`.

        Args:
            source_uri: the photograph.
            down: the axis whose values are rows; None for one row.
            across: the axis whose values are columns; None for one column.
            fixed: the value of each other axis. Axes that are left out have any value; then the latest row is shown.

        Returns:
            The rows in the order of the values in `axes`. A cell is None if there is no row of the manifest; it has
            a row that failed if there is no dream.
        """
        values = {axis.name: axis.values for axis in self.axes(source_uri)}
        rows, columns = values.get(down or "", ("",)), values.get(across or "", ("",))
        cells: dict[tuple[str, str], DreamRow] = {}
        points = {point.settings_id: point for point in self.cache.points.values()}
        for dream in sorted(self.dreams(source_uri), key=lambda row: (row.status == "done", row.created_at)):
            point = points[dream.settings_id]
            if all(point.value(name) == value for name, value in fixed.items()):
                place = (point.value(down) if down in values else "", point.value(across) if across in values else "")
                cells[place] = dream
        return [[cells.get((row, column)) for column in columns] for row in rows]

    # --- scores

    def score_map(self, x_axis: str, y_axis: str, filters: Filters) -> ScoreMap:
        """Return the mean gain over the values of two settings, of the dreams within the filters."""
        return scores.score_map(self._sums(filters), x_axis, y_axis)

    def gain_against_cost(self, filters: Filters) -> list[CostPoint]:
        """Return mean gain and mean seconds of each settings, of the dreams within the filters."""
        return scores.cost_points(self._sums(filters))

    def score_axes(self, filters: Filters) -> list[Axis]:
        """Return the settings that vary among the dreams within the filters: the axes of score maps."""
        return axes_of([each.point for each in self._sums(filters)])

    def objectives(self, filters: Filters) -> list[tuple[str, int]]:
        """Return the objectives of the dreams within the filters with the number of dreams, the most frequent first."""
        counts = Counter[str]()
        for each in self._sums(filters):
            counts[each.point.objective] += each.dreams
        return counts.most_common()

    def gain_histogram(self, filters: Filters, bins: int = 40) -> list[Histogram]:
        """Return the distribution of the gain for each objective, the most frequent objective first."""
        return scores.histograms(self._ask, self.cache.points, self._scored(filters), bins)

    def _sums(self, filters: Filters) -> list[scores.Sums]:
        return scores.sums(self._ask, self.cache.points, self._scored(filters))

    def _scored(self, filters: Filters) -> Condition:
        """Return the condition of these filters for dreams whose gains count."""
        where, values = self._condition(filters)
        return f"{where} AND d.settings_no NOT IN (SELECT unnest(?::INTEGER[]))", [*values, self._enlarged()]

    # --- failures and runs

    def failure_kinds(self, filters: Filters = _ALL) -> list[FailureKind]:
        """Return how many photographs and dreams failed or were skipped, by kind, the most frequent first."""
        where, values = self._condition(filters, "status")
        sql = f"""
            SELECT coalesce(error_kind, ''), count(DISTINCT source_no), count(*)
            FROM dreams d JOIN details x USING (dream_no) WHERE status > 0 AND {where}
            GROUP BY ALL ORDER BY 3 DESC, 1
            """  # noqa: S608 - constants
        return [FailureKind(*row) for row in self._ask(sql, values)]

    def failures(
        self, kind: str | None = None, filters: Filters = _ALL, after: str | None = None, limit: int = 100
    ) -> tuple[list[Failure], str | None]:
        """Return a page of the photographs with dreams that failed, by name, and the cursor of the next page.

        Args:
            kind: only failures of this kind; None for all.
            filters: the filters, besides the status.
            after: the cursor of this page; None for the first page.
            limit: the largest number of failures.

        Raises:
            InvalidInput: the cursor is malformed.
        """
        where, values = self._condition(filters, "status")
        position = read_cursor(after, "failures") if after else None
        beyond = "WHERE (search, dream_no) > (?, ?)" if position else ""
        chosen = "" if kind is None else "AND coalesce(x.error_kind, '') = ?"
        sql = f"""
            WITH found AS (
                SELECT d.source_no, x.source_etag, d.status, coalesce(x.error_kind, '') AS kind,
                    coalesce(x.error, '') AS error, count(*) AS dreams, arg_max(d.run_no, d.created_at) AS run_no,
                    max(d.created_at) AS latest, min(d.dream_no) AS dream_no
                FROM dreams d JOIN details x USING (dream_no) WHERE d.status > 0 AND {where} {chosen} GROUP BY ALL
            )
            SELECT uri, source_etag, name, status, kind, error, dreams, run_id, latest, search, dream_no
            FROM found JOIN sources USING (source_no) JOIN runs USING (run_no) {beyond}
            ORDER BY search, dream_no LIMIT ?
            """  # noqa: S608 - constants
        rows = self._ask(sql, [*values, *([] if kind is None else [kind]), *(position or ()), limit + 1])
        found = [_failure(row) for row in rows[:limit]]
        return found, write_cursor("failures", *rows[limit - 1][-2:]) if len(rows) > limit else None

    def newest(self) -> datetime | None:
        """Return the time of the newest row; None if there is none."""
        found: list[tuple[datetime | None]] = self._ask("SELECT max(created_at) FROM dreams")
        return found[0][0].replace(tzinfo=UTC) if found[0][0] else None

    def damaged_parts(self) -> list[str]:
        """Return the addresses of the parts of the manifest that are left out, because they are damaged."""
        return [uri for (uri,) in self._ask("SELECT uri FROM parts WHERE is_damaged ORDER BY uri")]

    def runs(self) -> list[Run]:
        """Return all runs of the destination from its `_runs/` folder, the latest first.

        Raises:
            InvalidInput: access is refused.
            Unavailable: S3 failed.
        """
        return self._runs.read()


def _found(sort: Sort) -> str:
    """Return the beginning of a query for what photographs are sorted by; its first parameter is `_enlarged`."""
    mark, marks = ("max(m.mark)", _MARKED) if sort == "mark" else ("0", "")
    return f"""
        SELECT d.source_no, max(gain_rank) FILTER (e.settings_no IS NULL) AS rank, max(created_at) AS newest,
            sum((seconds * 1000)::BIGINT) AS milliseconds, {mark} AS mark
        FROM dreams d {_ENLARGED} {marks}
        """  # noqa: S608 - constants


def _photograph(row: Sequence[Any], points: Mapping[int, Point]) -> Photograph:
    dream = read_dream(row, points)
    dreams, failed, objectives = row[-4:-1]
    best = dream if dream.status == "done" else None
    return Photograph(dream.source_uri, dream.source_etag, dream.source_name, best, dreams, failed, objectives)


def _failure(row: Sequence[Any]) -> Failure:
    uri, etag, name, status, kind, error, dreams, run_id, at, *_ = row
    return Failure(uri, etag, name, STATUSES[status], kind, error, dreams, run_id, at.replace(tzinfo=UTC))  # type: ignore[arg-type]
