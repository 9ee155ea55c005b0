"""The conditions of `dreamgrid prune`: every expression selects the rows that plain Python selects."""

import operator
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamcore.errors import InvalidInput
from flows.destination.condition import parse_condition
from flows.destination.manifest import Row, from_parquet, to_parquet
from flows.destination.selection import select
from tests.support.rows import DONE, FAILED

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)

Test = Callable[[Row], bool | None]
"""What a condition says of a row; None as SQL's null."""


def selected(where: str, rows: list[Row]) -> list[Row]:
    """Return the rows for which a condition is true."""
    selection = select(where)
    table = from_parquet(to_parquet(rows), sorted(selection.columns))
    return [row for row, chosen in zip(rows, selection.mask(table), strict=True) if chosen]


# --- random rows and conditions

TEXTS = st.text(st.sampled_from("ab%_.'\"\\\n *ä"), max_size=4)
NUMBERS = st.integers(-3, 3)
REALS = st.sampled_from([-1.5, -0.25, 0.0, 0.5, 2.0])
TIMES = st.integers(-3, 3).map(lambda days: NOW + timedelta(days=days))
ROWS = st.builds(
    lambda error, model, seed, width, before, after, created_at: replace(
        DONE, error=error, model=model, seed=seed, width=width, score_before=before, score_after=after,
        created_at=created_at,
    ),
    st.none() | TEXTS, TEXTS, NUMBERS, st.none() | NUMBERS, st.none() | REALS, st.none() | REALS, TIMES,
)  # fmt: skip

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "==": operator.eq, "<>": operator.ne, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def column(name: str) -> tuple[str, Callable[[Row], Any]]:
    return name, operator.attrgetter(name)


def literal(value: Any) -> tuple[str, Callable[[Row], Any]]:
    text = quoted(value.isoformat()) if isinstance(value, datetime) else str(value)
    return quoted(value) if isinstance(value, str) else text, lambda _row: value


def difference(left: Any, right: Any) -> tuple[str, Callable[[Row], Any]]:
    (first, one), (second, two) = left, right

    def value(row: Row) -> Any:
        return None if None in (one(row), two(row)) else one(row) - two(row)

    return f"{first} - ({second})", value


TEXT = st.sampled_from(["error", "model", "status"]).map(column) | TEXTS.map(literal)
SIMPLE = st.sampled_from(["seed", "width", "score_before", "score_after"]).map(column) | (NUMBERS | REALS).map(literal)
NUMBER = SIMPLE | st.builds(difference, SIMPLE, SIMPLE)
TIME = st.just(column("created_at")) | TIMES.map(literal)


def has_column(side: tuple[str, Any]) -> bool:
    return bool(re.search("error|model|status|seed|width|score|created", side[0].split("'")[0]))


def comparison(sides: tuple[Any, Any], sign: str) -> tuple[str, Test]:
    (first, one), (second, two) = sides

    def test(row: Row) -> bool | None:
        return None if None in (one(row), two(row)) else OPERATORS[sign](one(row), two(row))

    return f"{first} {sign} {second}", test


PAIRS = st.tuples(TEXT, TEXT) | st.tuples(NUMBER, NUMBER) | st.tuples(TIME, TIME)
COMPARISONS = st.builds(
    comparison, PAIRS.filter(lambda sides: any(map(has_column, sides))), st.sampled_from([*OPERATORS])
)


def member(name: str, items: list[Any], negated: bool) -> tuple[str, Test]:
    def test(row: Row) -> bool | None:
        value = getattr(row, name)
        return None if value is None else (value in items) != negated

    listed = ", ".join(literal(item)[0] for item in items)
    return f"{name} {'not ' * negated}in ({listed})", test


def between(name: str, low: Any, high: Any, negated: bool) -> tuple[str, Test]:
    def test(row: Row) -> bool | None:
        value = getattr(row, name)
        return None if value is None else (low <= value <= high) != negated

    return f"{name} {'not ' * negated}between {literal(low)[0]} and {literal(high)[0]}", test


def like(name: str, pattern: str, negated: bool) -> tuple[str, Test]:
    regex = "".join({"%": ".*", "_": "."}.get(each, re.escape(each)) for each in pattern)

    def test(row: Row) -> bool | None:
        value = getattr(row, name)
        return None if value is None else bool(re.fullmatch(regex, value, re.DOTALL)) != negated

    return f"{name} {'not ' * negated}like {quoted(pattern)}", test


def missing(name: str, negated: bool) -> tuple[str, Test]:
    return f"{name} is {'not ' * negated}null", lambda row: (getattr(row, name) is None) != negated


def both(left: tuple[str, Test], right: tuple[str, Test]) -> tuple[str, Test]:
    def test(row: Row) -> bool | None:
        values = (left[1](row), right[1](row))
        return False if False in values else None if None in values else True

    return f"({left[0]}) and {right[0]}" if " or " in left[0] else f"{left[0]} AND ({right[0]})", test


def either(left: tuple[str, Test], right: tuple[str, Test]) -> tuple[str, Test]:
    def test(row: Row) -> bool | None:
        values = (left[1](row), right[1](row))
        return True if True in values else None if None in values else False

    return f"{left[0]} or {right[0]}", test


def negation(inside: tuple[str, Test]) -> tuple[str, Test]:
    def test(row: Row) -> bool | None:
        value = inside[1](row)
        return None if value is None else not value

    return f"not ({inside[0]})", test


TEXT_COLUMNS, NUMBER_COLUMNS = st.sampled_from(["error", "model"]), st.sampled_from(["seed", "width", "score_after"])
SOME = st.booleans()
PREDICATES = (
    COMPARISONS
    | st.builds(member, TEXT_COLUMNS, st.lists(TEXTS, min_size=1, max_size=3), SOME)
    | st.builds(member, NUMBER_COLUMNS, st.lists(NUMBERS, min_size=1, max_size=3), SOME)
    | st.builds(between, NUMBER_COLUMNS, NUMBERS, REALS, SOME)
    | st.builds(like, TEXT_COLUMNS, TEXTS, SOME)
    | st.builds(missing, TEXT_COLUMNS | NUMBER_COLUMNS, SOME)
)
CONDITIONS = st.recursive(
    PREDICATES,
    lambda inner: st.builds(both, inner, inner) | st.builds(either, inner, inner) | st.builds(negation, inner),
    max_leaves=5,
)


@given(st.lists(ROWS, min_size=1, max_size=5), CONDITIONS)
def test_a_condition_selects_the_rows_that_python_selects(rows: list[Row], condition: tuple[str, Test]) -> None:
    where, test = condition
    assert selected(where, rows) == [row for row in rows if test(row)], where


# --- single cases


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("status = 'failed'", [FAILED]),
        ("STATUS = 'done' and not score_after < 0.2", [DONE]),
        ("score_after - score_before < 0.05", []),
        ("score_after > -1e9", [DONE]),
        ("source_uri like '%/käfer ''n'' \"co\".jpg'", [DONE, FAILED]),
        ("error not like '%truncated'", []),  # null for the finished dream
        ("error is null or error not like '%truncated'", [DONE]),
        ("created_at < '2026-01-03'", [DONE, FAILED]),
        ("created_at >= '2026-01-02 03:04:06'", []),
        ("created_at < '2026-01-02T05:04:06+02:00'", [DONE, FAILED]),
        ("seed >= 9223372036854775807", [DONE, FAILED]),
        ("seed > 9223372036854775808", []),
        ("source_bytes = 1099511627776.0 and source_bytes - 0.5 < 1099511627776", [DONE, FAILED]),
        ("source_bytes > 1099511627776.0", []),
        ("result_id = '00112233445566ff'", [DONE]),
        ("\"status\" = 'done'", [DONE]),
        ("status = 'done' -- the others", [DONE]),
    ],
)
def test_conditions_on_one_finished_and_one_failed_dream(where: str, chosen: list[Row]) -> None:
    assert selected(where, [DONE, FAILED]) == chosen


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "not complete or not correct"),
        ("status =", "not complete or not correct near '='"),
        ("status = 'failed", "not complete or not correct"),
        ("status = 'failed' score_after < 1", "near 'score_after'"),
        ("status = 'failed'; delete from rows", "near 'from'"),
        ("status", "'status' is not supported: use comparisons"),
        ("state = 'failed'", "there is no column 'state'. Text needs single quotes. Columns: run_id, "),
        ('status = "failed"', "there is no column 'failed'. Text needs single quotes."),
        ("rows.status = 'failed'", "'rows.status' is not the name of a column"),
        ("layers = 'blocks.4'", "the column layers has lists"),
        ("status = 3", "text cannot be compared with integer"),
        ("score_after < '0.2'", "number cannot be compared with text"),
        ("score_after - status < 1", "'status' is no number"),
        ("created_at < 'yesterday'", "'yesterday' is no time"),
        ("created_at < 3.5", "time cannot be compared with number"),
        ("created_at = status", "a column of text cannot be compared with a time"),
        ("status = null", "write `is null`"),
        ("status is true", "after `is` comes"),
        ("3 is null", "'3' is not the name of a column"),
        ("status in ()", "the list after `in` is empty"),
        ("status in (select 1)", "is not supported here (query)"),
        ("status like model", "`like` compares a column of text with a pattern"),
        ("seed like '3'", "`like` compares a column of text with a pattern"),
        ("status like 'a!%' escape '!'", "is not supported"),
        ("status ilike 'a'", "is not supported"),
        ("lower(status) = 'done'", "is neither a column nor a number nor a text in single quotes"),
        ("score_after * 2 < 1", "is neither a column nor a number"),
        ("(status = 'a') = (status = 'b')", "is neither a column nor a number"),
        ("status = ?", "is neither a column nor a number"),
        ("score_after < all (select 1)", "is neither a column nor a number"),
    ],
)
def test_anything_else_is_refused(where: str, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_condition(where)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("age", "hours"), [("3h", 3), ("90d", 2160), ("2w", 336), ("1y", 8760), ("0d", 0)])
def test_rows_older_than_an_age_are_selected(age: str, hours: int) -> None:
    edge = NOW - timedelta(hours=hours)
    rows = [replace(DONE, created_at=edge + timedelta(microseconds=each)) for each in (-1, 0, 1)]
    table = from_parquet(to_parquet(rows), ["created_at", "result_id"])
    assert select(older_than=age, now=NOW).mask(table).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give --where, --older-than, --settings or --unrated"),
        ({"older_than": "90"}, "--older-than 90 is no age: write a number and h, d, w or y, such as 90d"),
        ({"older_than": "-1d"}, "--older-than -1d is no age"),
        ({"older_than": "3000y"}, "lies before the year 1"),
        ({"older_than": "9" * 30 + "y"}, "lies before the year 1"),
        ({"settings": "12"}, "--settings 12 is no settings_id: give its first digits, at least four"),
        ({"settings": "xyz12"}, "--settings xyz12 is no settings_id"),
    ],
)
def test_other_wrong_selections_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        select(**arguments)
    assert message in str(refused.value)


def test_several_conditions_must_all_be_true() -> None:
    rows = [replace(row, settings_id=each) for row in (DONE, FAILED) for each in ("00aa" * 4, "00bb" * 4)]
    selection = select("status = 'done'", "1d", "00aa", NOW)
    table = from_parquet(to_parquet(rows), sorted(selection.columns))
    assert selection.mask(table).tolist() == [True, False, False, False]
    assert selection.command("s3://dreams/a b/") == (
        "dreamgrid prune 's3://dreams/a b/' --where 'status = '\"'\"'done'\"'\"'' --older-than 1d --settings 00aa --yes"
    )
    with pytest.raises(InvalidInput, match="--settings 00aa means 2 settings: give more digits"):
        selection.check_settings({"00aa1", "00aa2", "00bb"})
