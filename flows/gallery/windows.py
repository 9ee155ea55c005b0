"""Windows on long axes: a table shows some of the values at a time, says which, and has links to the others."""

from typing import NamedTuple

from flows.gallery.address import Params
from flows.gallery.records import Axis

__all__ = ["Window", "window"]


class Window(NamedTuple):
    """The values of a long axis that a page shows."""

    key: str
    """The parameter of the address that has the position of the first value."""
    first: int
    """Position of the first value, from 1."""
    last: int
    total: int
    before: str
    """The query of the page with the values before these; empty if there are none."""
    after: str
    """The query of the page with the values after these; empty if there are none."""


def window(axis: Axis, most: int, key: str, params: Params, value: str) -> tuple[Axis, Window | None]:
    """Return the part of an axis that a page shows, and the window; None if the page shows the whole axis.

    Args:
        axis: the axis.
        most: the largest number of values that a page shows.
        key: the parameter of the address that has the position of the first value, from 0.
        params: the address.
        value: the value that is shown if the address has no position.
    """
    count = len(axis.values)
    if count <= most:
        return axis, None
    given = params.get(key)
    if given.isascii() and given.isdecimal() and len(given) < 10:
        position = min(int(given), count - 1)
    else:
        position = axis.values.index(value) if value in axis.values else 0
    first = position // most * most
    shown = Axis(axis.name, axis.values[first : first + most])

    def query(start: int) -> str:
        return params.with_changes({key: str(start), "chosen": None, "run": None}) if 0 <= start < count else ""

    last = first + len(shown.values)
    return shown, Window(key, first + 1, last, count, query(first - most), query(first + most))
