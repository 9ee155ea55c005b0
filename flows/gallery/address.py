"""Addresses of pages: everything that a page shows, except marks, is in its address.

So the Back button of the browser works, a link can be sent to somebody, and a reload changes nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import cast, get_args
from urllib.parse import urlencode

from flows.gallery.records import BestBy, Filters, Sort

__all__ = ["AXIS", "SETTING", "Params", "best_by_of", "filters_of", "sort_of"]

AXIS = "at."
"""The beginning of the parameter that holds the value of a slider."""
SETTING = "with."
"""The beginning of a filter by the value of a setting, such as `with.octaves=4`."""
_LISTS = {"model": "model", "layers": "layers", "seen": "seen"}


class Params:
    """The parameters of an address, in their order. A name may have several values."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.pairs = tuple((name, value) for name, value in pairs if value)

    def get(self, name: str, default: str = "") -> str:
        """Return the last value of a parameter."""
        return next((value for key, value in reversed(self.pairs) if key == name), default)

    def all(self, name: str) -> tuple[str, ...]:
        """Return every value of a parameter."""
        return tuple(value for key, value in self.pairs if key == name)

    def below(self, prefix: str) -> dict[str, str]:
        """Return the parameters whose names begin with `prefix`, by the rest of the name."""
        return {key.removeprefix(prefix): value for key, value in self.pairs if key.startswith(prefix)}

    def with_changes(self, changes: Mapping[str, str | int | Sequence[str] | None]) -> str:
        """Return the query with some parameters replaced; None or an empty value removes one."""
        pairs = [pair for pair in self.pairs if pair[0] not in changes]
        for name, value in changes.items():
            values = [value] if isinstance(value, str | int) else value or []
            pairs += [(name, str(each)) for each in values if each != ""]
        return urlencode(pairs)

    def without(self, name: str, value: str) -> str:
        """Return the query without one value of a parameter, and from the beginning of the list."""
        return urlencode([pair for pair in self.pairs if pair != (name, value) and pair[0] not in ("after", "chosen")])


def filters_of(params: Params) -> Filters:
    """Return the filters in an address. Malformed values are ignored, because people edit addresses by hand."""
    status = params.get("status", "done")
    return Filters(
        text=params.get("q"),
        status={"all": ""}.get(status, status if status in ("done", "failed", "skipped") else "done"),
        run=params.get("run"),
        since=_time(params.get("since")),
        until=_time(params.get("until")),
        marks_min=_number(params.get("marks")),
        marked={"any": True, "none": False}.get(params.get("marks")),
        hide_rejected=params.get("hide") == "1",
        settings=tuple(params.below(SETTING).items()),
        gain_min=_figure(params.get("gain_min")),
        gain_max=_figure(params.get("gain_max")),
        **{name: params.all(key) for key, name in _LISTS.items()},
    )


def is_filtered(filters: Filters) -> bool:
    """Return whether the filters hide any dream that is done."""
    return any(getattr(filters, each.name) != each.default for each in fields(Filters))


def best_by_of(params: Params) -> BestBy:
    """Return what makes a dream the best one, from an address. If a filter names a mark, it is by default the mark."""
    usual = "mark" if filters_of(params).marks_min is not None else "gain"
    value = params.get("best", usual)
    return cast("BestBy", value if value in get_args(BestBy) else usual)


def sort_of(params: Params) -> Sort:
    """Return the order of photographs, from an address. If the best dream is chosen by mark, it is by default marks."""
    usual = "mark" if best_by_of(params) == "mark" else "gain"
    value = params.get("sort", usual)
    return cast("Sort", value if value in get_args(Sort) else usual)


def _time(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.lstrip("-").isdecimal() and len(text) < 3 else None


def _figure(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
