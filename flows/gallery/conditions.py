"""Filters as conditions in SQL: constant text with placeholders, and the values for them."""

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from dreamcore.errors import InvalidInput
from flows.gallery.points import Point
from flows.gallery.records import Filters
from flows.gallery.tables import STATUSES, searchable

__all__ = ["Condition", "condition", "result_range"]

Condition = tuple[str, list[Any]]
"""A condition on a row `d` of `dreams`, and the values for its placeholders."""

_MAX_WORDS = 8
_HEX = re.compile(r"[0-9a-f]{4,16}")
_NUMBER = re.compile(r"#?(\d{1,6})", re.ASCII)


def condition(filters: Filters, points: Mapping[int, Point], without: Collection[str] = ()) -> Condition:
    """Return the condition of these filters.

    Args:
        filters: the filters.
        points: the settings of the dreams, by `settings_no`.
        without: names of fields of `filters` that are left out.

    Raises:
        InvalidInput: the status does not exist.
    """
    wanted = {
        name: value for name, value in vars(filters).items() if name not in without and value not in ("", (), None)
    }
    parts: list[Condition] = []
    if "status" in wanted:
        parts.append(("d.status = ?", [_status(filters.status)]))
    if {"model", "layers", "settings"} & wanted.keys():
        parts.append((_SETTINGS, [_settings(points, wanted)]))
    if "seen" in wanted:
        parts.append((_SEEN, [list(filters.seen)]))
    if "run" in wanted:
        parts.append(("d.run_no = (SELECT run_no FROM runs WHERE run_id = ?)", [filters.run]))
    if "since" in wanted:
        parts.append(("d.created_at >= ?", [_utc(wanted["since"])]))
    if "until" in wanted:
        parts.append(("d.created_at < ?", [_utc(wanted["until"])]))
    if "gain_min" in wanted:
        parts.append(("d.gain >= ?", [filters.gain_min]))
    if "gain_max" in wanted:
        parts.append(("d.gain <= ?", [filters.gain_max]))
    if "marks_min" in wanted:
        parts.append(("d.result_no IN (SELECT result_no FROM live.marks WHERE mark >= ?)", [filters.marks_min]))
    if "marked" in wanted:
        parts.append(("(d.result_no IN (SELECT result_no FROM live.marks)) = ?", [filters.marked]))
    if wanted.get("hide_rejected"):
        parts.append(("d.result_no NOT IN (SELECT result_no FROM live.marks WHERE mark < 0)", []))
    if "text" in wanted:
        parts += [_word(word) for word in searchable(filters.text).split()[:_MAX_WORDS]]
    return " AND ".join(text for text, _ in parts) or "true", [value for _, values in parts for value in values]


_SETTINGS = "d.settings_no IN (SELECT unnest(?::INTEGER[]))"
_SEEN = "d.label_no IN (SELECT label_no FROM labels WHERE label IN (SELECT unnest(?::VARCHAR[])))"


def _status(name: str) -> int:
    if name not in STATUSES:
        raise InvalidInput(f"there is no status {name!r}; choose {', '.join(STATUSES)}")
    return STATUSES.index(name)


def _settings(points: Mapping[int, Point], wanted: Mapping[str, Any]) -> list[int]:
    models, layers = wanted.get("model"), wanted.get("layers")
    return [
        number
        for number, point in points.items()
        if (models is None or point.model in models)
        and (layers is None or point.layers in layers)
        and all(point.value(name) == value for name, value in wanted.get("settings", ()))
    ]


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


def _word(word: str) -> Condition:
    """Return the condition that one word of a search is found."""
    texts = [
        "d.source_no IN (SELECT source_no FROM sources WHERE contains(search, ?))",
        "d.label_no IN (SELECT label_no FROM labels WHERE contains(search, ?))",
    ]
    values: list[Any] = [word, word]
    if _HEX.fullmatch(word):
        texts.append("d.result_no BETWEEN ? AND ?")
        values += result_range(word)
    if number := _NUMBER.fullmatch(word):
        texts.append("d.number = ?")
        values.append(int(number[1]) or -1)  # failed dreams have the number 0
    return f"({' OR '.join(texts)})", values


def result_range(start: str) -> tuple[int, int]:
    """Return the first and the last `result_id` with this start, as numbers."""
    return int(start.ljust(16, "0"), 16), int(start.ljust(16, "f"), 16)
