"""Gains over settings: maps, costs and distributions.

The cache sums up by settings; the values of the settings are joined here.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flows.gallery.axes import in_order
from flows.gallery.conditions import Condition
from flows.gallery.points import Point
from flows.gallery.records import Axis, CostPoint, Histogram, ScoreCell, ScoreMap

__all__ = ["Sums", "cost_points", "histograms", "score_map", "sums"]

_Ask = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]


class Sums(NamedTuple):
    """The dreams of one settings that have a gain."""

    point: Point
    dreams: int
    gain: float
    """Sum of the gains."""
    rank: float
    """Sum of the ranks of the gains within their objective."""
    seconds: float
    """Mean duration."""
    best_rank: float
    best: str
    """`result_id` of the dream with the highest gain."""


def sums(ask: _Ask, points: Mapping[int, Point], where: Condition) -> list[Sums]:
    """Return the sums of the dreams within a condition, by settings."""
    sql = f"""
        SELECT settings_no, count(*), sum(gain), sum(gain_rank), coalesce(avg(seconds), 0), max(gain_rank),
            arg_max(result_no, gain)
        FROM dreams d WHERE {where[0]} AND gain IS NOT NULL GROUP BY settings_no
        """  # noqa: S608 - constants
    return [
        Sums(points[number], dreams, gain, rank, seconds, best_rank, f"{best:016x}")
        for number, dreams, gain, rank, seconds, best_rank, best in sorted(ask(sql, where[1]))
    ]


def score_map(found: Sequence[Sums], x_axis: str, y_axis: str) -> ScoreMap:
    """Return the mean gain, or the mean rank of the gain if there are several objectives, over two settings."""
    is_rank = len({each.point.objective for each in found}) > 1
    groups: dict[tuple[str, str], list[Sums]] = defaultdict(list)
    for each in found:
        groups[each.point.value(x_axis), each.point.value(y_axis)].append(each)
    x = Axis(x_axis, in_order({x for x, _ in groups}))
    y = Axis(y_axis, in_order({y for _, y in groups}))
    cells = {place: _cell(group, is_rank=is_rank) for place, group in groups.items()}
    rows = tuple(tuple(cells.get((column, row)) for column in x.values) for row in y.values)
    return ScoreMap(x, y, rows, "rank" if is_rank else "gain")


def _cell(group: Sequence[Sums], *, is_rank: bool) -> ScoreCell:
    dreams = sum(each.dreams for each in group)
    total = sum(each.rank if is_rank else each.gain for each in group)
    return ScoreCell(total / dreams, dreams, max(group, key=lambda each: each.best_rank).best)


def cost_points(found: Sequence[Sums]) -> list[CostPoint]:
    """Return mean gain and mean duration of each settings."""
    return [
        CostPoint(each.point, each.seconds, each.gain / each.dreams, each.rank / each.dreams, each.dreams)
        for each in found
    ]


def histograms(ask: _Ask, points: Mapping[int, Point], where: Condition, bins: int) -> list[Histogram]:
    """Return the distribution of the gain for each objective, the most frequent objective first."""
    text, values = where
    sql = f"""
        WITH chosen AS (SELECT objective_no, settings_no, gain FROM dreams d WHERE {text} AND gain IS NOT NULL),
        ranges AS (
            SELECT objective_no, any_value(settings_no) AS settings_no, min(gain) AS low, max(gain) AS high
            FROM chosen GROUP BY objective_no
        )
        SELECT ranges.settings_no, low, high,
            CASE WHEN high > low THEN least(floor((gain - low) / (high - low) * ?), ? - 1) ELSE 0 END::INTEGER AS bin,
            count(*)
        FROM chosen JOIN ranges USING (objective_no) GROUP BY ALL
        """  # noqa: S608 - constants
    counts: dict[tuple[str, float, float], list[int]] = defaultdict(lambda: [0] * bins)
    for number, low, high, place, count in ask(sql, [*values, bins, bins]):
        counts[points[number].objective, low, high][place] += count
    found = [
        Histogram(objective, tuple(low + (high - low) * edge / bins for edge in range(bins + 1)), tuple(row), sum(row))
        for (objective, low, high), row in counts.items()
    ]
    return sorted(found, key=lambda each: (-each.dreams, each.objective))
