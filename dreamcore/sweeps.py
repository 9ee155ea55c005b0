"""Texts that stand for several values: ranges of numbers, and sweeps over the channels of a layer.

A range of numbers is `4-8` for whole numbers, or `0.004-0.012/5` for five evenly spaced numbers. A sweep over channels
is `*`, `0-63`, `top16` or `weakest16`: it gives one dream for each of these channels. Channels in parentheses, as in
`(0-63)` or `(top16)`, or in a list with commas are excited together in one dream.

This module imports no torch, so that planning a run stays fast.
"""

import re
from collections.abc import Sequence
from decimal import Context
from typing import NamedTuple

__all__ = [
    "MAX_GRID_POINTS",
    "NUMBER_RANGE",
    "Channels",
    "Rank",
    "Ranking",
    "ranked",
    "read_channels",
    "read_range",
    "sweep_channels",
]

MAX_GRID_POINTS = 10_000
"""Largest number of points in a grid, duplicates included."""
MAX_CHANNELS = 2**16
"""Largest number of channels in the text of one target. No known layer has as many."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
NUMBER_RANGE = rf"^({_NUMBER})-({_NUMBER})(?:/(\d+))?$"
"""Pattern of a range of numbers."""
_DIGITS = Context(prec=12)
"""Decimal arithmetic: 0.004-0.012/5 has the value 0.006 and not 0.0060000000000000005."""


# --- ranges of numbers


def read_range(text: str, *, whole: bool) -> list[int] | list[float] | None:
    """Return the numbers that a range stands for, from the lower to the higher one, or None if `text` is no range.

    Args:
        text: `4-8`, or `0.004-0.012/5` with the number of values.
        whole: whether the numbers must be whole. Only then, the number of values may be left out.

    Raises:
        ValueError: the range is empty, too long or not evenly divided by whole numbers.

    Example:
        >>> read_range("4-8", whole=True)
        [4, 5, 6, 7, 8]
        >>> read_range("0.004-0.012/5", whole=False)
        [0.004, 0.006, 0.008, 0.01, 0.012]
        >>> read_range("-3", whole=False) is None
        True
    """
    match = re.match(NUMBER_RANGE, text.strip(), re.ASCII)
    if match is None:
        return None
    low, high = (_DIGITS.create_decimal(end) for end in match.groups()[:2])
    if low >= high:
        raise ValueError(f"the range {text} is empty: write the smaller number first")
    if match[3] is None and not whole:
        raise ValueError(f"the range {text} needs the number of its values: write {text}/5 for five of them")
    count = int(match[3]) if match[3] else int(high - low) + 1
    if not 2 <= count <= MAX_GRID_POINTS:
        raise ValueError(f"the range {text} stands for {count:,} values: choose from 2 to {MAX_GRID_POINTS:,}")
    step = _DIGITS.divide(high - low, count - 1)
    numbers = [float(_DIGITS.add(low, _DIGITS.multiply(step, number))) for number in range(count)]
    if not whole:
        return numbers
    if not all(number.is_integer() for number in (*numbers, float(low), float(high))):
        raise ValueError(f"the range {text} does not have whole numbers only")
    return [int(number) for number in numbers]


# --- channels


class Channels(NamedTuple):
    """The channels of a target, as its text gives them."""

    channels: tuple[int, ...] = ()
    direction: tuple[float, ...] = ()
    """Coefficient of each channel, if the channels are a direction."""
    sweep: str = ""
    """Text that must be resolved: a sweep, or channels that depend on the photograph."""


_RANGE = re.compile(r"(\d+)-(\d+)", re.ASCII)
_RANKED = re.compile(r"(top|weakest)([1-9]\d{0,5})", re.ASCII)
_TERM = re.compile(rf"(\d+)(?:\*({_NUMBER}))?", re.ASCII)


def read_channels(text: str) -> Channels:
    """Return the channels that the part of a target after the colon stands for.

    Raises:
        ValueError: the text names no channels, or a range in it is empty or too long.

    Example:
        >>> read_channels("12,17,20-22").channels
        (12, 17, 20, 21, 22)
        >>> read_channels("12*0.8,17*-0.3").direction
        (0.8, -0.3)
        >>> read_channels("0-63").sweep, read_channels("(0-2)").channels, read_channels("(top16)").sweep
        ('0-63', (0, 1, 2), '(top16)')
    """
    inside = text[1:-1] if text.startswith("(") and text.endswith(")") else None
    if text == "*" or _RANKED.fullmatch(text) or (inside and _RANKED.fullmatch(inside)):
        return Channels(sweep=text)
    if _RANGE.fullmatch(text):
        _read_bounds(text)
        return Channels(sweep=text)
    parts = (text if inside is None else inside).split(",")
    if all(map(_TERM.fullmatch, parts)) and "*" in text:
        terms = [part.partition("*") for part in parts]
        return Channels(tuple(int(term[0]) for term in terms), tuple(float(term[2] or 1) for term in terms))
    return Channels(tuple(channel for part in parts for channel in _read_together(part, text)))


def _read_together(part: str, text: str) -> Sequence[int]:
    """Return the channels of one entry of a list."""
    if part.isascii() and part.isdigit():
        return (int(part),)
    if _RANGE.fullmatch(part):
        return _read_bounds(part)
    raise ValueError(
        f"{text!r} does not name channels: write 12 or 12,17 or (0-63) for channels together, 12*0.8,17*-0.3 for a "
        "direction, or *, 0-63, top16 or weakest16 for one channel after the other"
    )


def _read_bounds(text: str) -> range:
    low, high = map(int, text.split("-"))
    if low > high:
        raise ValueError(f"the range of channels {text} is empty: write {high}-{low}")
    if high - low >= MAX_CHANNELS:
        raise ValueError(f"the range of channels {text} is too long: a layer has at most {MAX_CHANNELS:,} channels")
    return range(low, high + 1)


class Ranking(NamedTuple):
    """The channels of a layer that a photograph excites most or least."""

    order: str
    """`top`: the channel of the largest mean activation is first; `weakest`: that of the smallest."""
    size: int
    """How many channels each photograph gets."""
    layer: str
    at: tuple[float, float] | None
    """The position where the activations are measured; None: everywhere."""


class Rank(NamedTuple):
    """One channel of a sweep such as `top16`. It is for the photographs whose ranking contains the channel."""

    ranking: Ranking
    channel: int


def ranked(sweep: str) -> tuple[str, int] | None:
    """Return order and count of a sweep that depends on the photograph; None for any other sweep.

    Example:
        >>> ranked("top16"), ranked("(weakest4)"), ranked("*")
        (('top', 16), ('weakest', 4), None)
    """
    match = _RANKED.fullmatch(sweep.strip("()"))
    return (match[1], int(match[2])) if match else None


def sweep_channels(sweep: str, channels: int) -> range:
    """Return the channels that a sweep may stand for. If it depends on the photograph, these are all channels.

    Args:
        sweep: `*`, `0-63`, `top16` or `weakest16`.
        channels: number of channels of the layer. A range is not checked against it.

    Example:
        >>> sweep_channels("*", 112), sweep_channels("4-5", 112), sweep_channels("top1", 112)
        (range(0, 112), range(4, 6), range(0, 112))
    """
    return _read_bounds(sweep) if _RANGE.fullmatch(sweep) else range(channels)
