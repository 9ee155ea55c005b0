"""Conditions on the columns of the manifest and on the marks of dreams, written as in the WHERE clause of SQL.

`sqlglot` parses the text. Only what is translated here is accepted; anything else is refused, so that no part of a
condition is ever ignored. As in SQL, a comparison with a missing value is neither true nor false.
"""

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from typing import Any, NamedTuple, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp

from dreamcore.errors import InvalidInput
from flows.destination.manifest import SCHEMA

__all__ = ["MARK", "Condition", "parse_condition"]

_KINDS = {"string": "text", "int64": "integer", "double": "number", "timestamp[us, tz=UTC]": "time"}
"""What a column of this Arrow type is compared with. Columns of other types are lists, which cannot be compared."""
MARK = "mark"
"""The mark of a dream. It stands beside the columns of the manifest, but is not among them."""
_COLUMNS = {field.name: _KINDS[str(field.type)] for field in SCHEMA if str(field.type) in _KINDS} | {MARK: "integer"}
_COMPARISONS: dict[type[exp.Expr], Callable[[Any, Any], Any]] = {
    exp.EQ: operator.eq,
    exp.NEQ: operator.ne,
    exp.LT: operator.lt,
    exp.LTE: operator.le,
    exp.GT: operator.gt,
    exp.GTE: operator.ge,
}
_SUMS: dict[type[exp.Expr], Callable[[Any, Any], Any]] = {exp.Add: operator.add, exp.Sub: operator.sub}


@dataclass(frozen=True)
class Condition:
    """A condition on the rows of the manifest."""

    expression: pc.Expression
    """True for the rows that are meant, otherwise false or null."""
    columns: frozenset[str]
    """The columns that the expression needs, and `MARK` if it needs the marks."""


class _Value(NamedTuple):
    """One side of a comparison."""

    kind: str
    """`text`, `integer`, `number` or `time`."""
    value: Any
    """An Arrow expression, or the text, number or time itself."""


def parse_condition(text: str) -> Condition:
    """Return the condition in a text such as `status = 'failed' and source_uri like '%/raw/%'`.

    Raises:
        InvalidInput: the text is not a condition on columns of the manifest and marks.
    """
    try:
        tree = sqlglot.parse_one(text, dialect="duckdb", into=exp.Condition)
    except sqlglot.errors.SqlglotError as error:
        place = next((each for each in getattr(error, "errors", ()) if each.get("highlight")), None)
        near = f" near {place['highlight']!r}" if place else ""
        raise InvalidInput(
            f"the condition {text!r} is not complete or not correct{near}: write it as in SQL, such "
            "as \"status = 'failed' and score_after < 0.2\""
        ) from error
    translator = _Translator(text)
    return Condition(translator.truth(tree), frozenset(translator.columns))


class _Translator:
    """Translates the syntax tree of one condition, and collects the columns in it."""

    def __init__(self, text: str) -> None:
        self.text, self.columns = text, set[str]()

    def refuse(self, what: str) -> NoReturn:
        """Raise `InvalidInput`."""
        raise InvalidInput(f"the condition {self.text!r} cannot be used: {what}")

    def parts(self, node: exp.Expr, *names: str) -> Iterator[Any]:
        """Yield these parts of a node; refuse the node if it has any other part."""
        if others := {name for name, value in node.args.items() if value} - set(names):
            self.refuse(f"{node.sql('duckdb')!r} is not supported here ({', '.join(sorted(others))})")
        return (node.args.get(name) for name in names)

    def truth(self, node: exp.Expr) -> pc.Expression:
        """Return the expression of a node that is true, false or null."""
        if isinstance(node, exp.Paren):
            (inside,) = self.parts(node, "this")
            return self.truth(inside)
        if isinstance(node, exp.Not):
            (inside,) = self.parts(node, "this")
            return ~self.truth(inside)
        if isinstance(node, exp.And | exp.Or):
            left, right = map(self.truth, self.parts(node, "this", "expression"))
            return left & right if isinstance(node, exp.And) else left | right
        if type(node) in _COMPARISONS:
            left, right = self.parts(node, "this", "expression")
            return self.compared(_COMPARISONS[type(node)], self.value(left), self.value(right))
        if isinstance(node, exp.Is | exp.In | exp.Between | exp.Like):
            expression = self.predicate(node)
            return ~expression if node.args.get("negate") else expression
        return self.refuse(
            f"{node.sql('duckdb')!r} is not supported: use comparisons (= <> < <= > >=), like, in, between, is null, "
            "and, or, not"
        )

    def predicate(self, node: exp.Expr) -> pc.Expression:
        """Return the expression of IS NULL, IN, BETWEEN or LIKE, without a NOT inside it."""
        if isinstance(node, exp.Is):
            this, null, _ = self.parts(node, "this", "expression", "negate")
            if not isinstance(null, exp.Null):
                self.refuse("after `is` comes `null` or `not null`")
            return self.column(this).value.is_null()
        if isinstance(node, exp.In):
            this, items, _ = self.parts(node, "this", "expressions", "negate")
            value = self.value(this)
            if not items:
                self.refuse("the list after `in` is empty")
            return reduce(operator.or_, (self.compared(operator.eq, value, self.value(item)) for item in items))
        if isinstance(node, exp.Between):
            this, *bounds, _ = self.parts(node, "this", "low", "high", "negate")
            value, (low, high) = self.value(this), map(self.value, bounds)
            return self.compared(operator.ge, value, low) & self.compared(operator.le, value, high)
        this, pattern, _ = self.parts(node, "this", "expression", "negate")
        column, wanted = self.column(this), self.value(pattern)
        if column.kind != "text" or not isinstance(wanted.value, str):
            self.refuse("`like` compares a column of text with a pattern such as '%/raw/%'")
        return pc.match_substring_regex(column.value, pattern=_regex(wanted.value))

    def value(self, node: exp.Expr) -> _Value:
        """Return one side of a comparison."""
        if isinstance(node, exp.Column):
            return self.column(node)
        if isinstance(node, exp.Paren):
            (inside,) = self.parts(node, "this")
            return self.value(inside)
        if isinstance(node, exp.Literal):
            self.parts(node, "this", "is_string")
            return _Value("text", node.this) if node.is_string else _number(node.this)
        if isinstance(node, exp.Neg):
            (inside,) = self.parts(node, "this")
            value = self.numeric(inside)
            return value._replace(value=pc.negate(value.value) if _is_expression(value) else -value.value)
        if type(node) in _SUMS:
            left, right = _alike(*map(self.numeric, self.parts(node, "this", "expression")))
            return _Value(left.kind, _SUMS[type(node)](left.value, right.value))
        if isinstance(node, exp.Null):
            self.refuse("nothing equals null: write `is null` or `is not null`")
        return self.refuse(f"{node.sql('duckdb')!r} is neither a column nor a number nor a text in single quotes")

    def numeric(self, node: exp.Expr) -> _Value:
        """Return a number."""
        value = self.value(node)
        if value.kind not in ("integer", "number"):
            self.refuse(f"{node.sql('duckdb')!r} is no number")
        return value

    def column(self, node: exp.Expr) -> _Value:
        """Return the expression of a column, and note the column."""
        if not isinstance(node, exp.Column) or node.table:
            self.refuse(f"{node.sql('duckdb')!r} is not the name of a column")
        name = node.name if node.name in _COLUMNS else node.name.lower()
        if name not in _COLUMNS:
            if name in SCHEMA.names:
                self.refuse(
                    f"the column {name} has lists, which cannot be compared; the column settings has their text"
                )
            self.refuse(f"there is no column {node.name!r}. Text needs single quotes. Columns: {', '.join(_COLUMNS)}")
        self.columns.add(name)
        return _Value(_COLUMNS[name], pc.field(name))

    def compared(self, compare: Callable[[Any, Any], Any], left: _Value, right: _Value) -> pc.Expression:
        """Return the expression that compares two values. A text that is compared with a time is read as a time."""
        if {left.kind, right.kind} == {"text", "time"}:
            left, right = self.as_time(left), self.as_time(right)
        left, right = _alike(left, right)
        if left.kind != right.kind:
            self.refuse(f"{left.kind} cannot be compared with {right.kind}; text needs single quotes, numbers none")
        return compare(left.value, right.value)

    def as_time(self, value: _Value) -> _Value:
        """Return a text as a time; a time without a zone is UTC."""
        if value.kind == "time":
            return value
        if not isinstance(value.value, str):
            self.refuse("a column of text cannot be compared with a time")
        try:
            time = datetime.fromisoformat(value.value)
        except ValueError:
            self.refuse(f"{value.value!r} is no time: write it as '2026-11-28' or '2026-11-28 13:00'")
        time = time if time.tzinfo else time.replace(tzinfo=UTC)
        return _Value("time", pa.scalar(time.astimezone(UTC), SCHEMA.field("created_at").type))


def _number(text: str) -> _Value:
    """Return the number that a text means. An integer that is too large for a column is a real number."""
    try:
        whole = int(text)
    except ValueError:
        return _Value("number", float(text))
    return _Value("integer", whole) if whole < 2**63 else _Value("number", float(whole))


def _alike(*values: _Value) -> list[_Value]:
    """Return values as expressions. If one is a real number, the others become real numbers, too.

    Arrow itself would convert integers to 32 bits.
    """
    are_real = {value.kind for value in values} == {"integer", "number"}
    return [_real(value) if are_real else value._replace(value=_expression(value)) for value in values]


def _real(value: _Value) -> _Value:
    return _Value("number", _expression(value).cast(pa.float64(), safe=False))


def _is_expression(value: _Value) -> bool:
    return isinstance(value.value, pc.Expression)


def _expression(value: _Value) -> pc.Expression:
    return value.value if _is_expression(value) else pc.scalar(value.value)


def _regex(pattern: str) -> str:
    """Return the regular expression of a LIKE pattern: `%` is any text, `_` any character."""
    words = {"%": ".*", "_": "."}
    return rf"(?s)\A{''.join(words.get(character) or re.escape(character) for character in pattern)}\z"
