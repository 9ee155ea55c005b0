"""How values are written in pages: the filters of the templates."""

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup, escape

from flows.gallery.points import Point, defaults
from flows.gallery.ratios import ratio_class
from flows.gallery.records import DreamRow
from flows.gallery.whole import look_of
from flows.s3.layout import is_movie

__all__ = [
    "FILTERS",
    "describe",
    "dream_name",
    "figure",
    "gain",
    "movie",
    "plain",
    "redream_command",
    "setting",
    "settings_text",
]

_DIRECTIONS = re.compile("[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
"""Marks that change the direction of the text after them."""
_BREAKS = re.compile(r"([+/_,])(?=.)")
_IN_WORDS = ("octaves", "steps", "seed")
_TINY, _WIDTH, _HEIGHT = 1e-9, 100, 34


def plain(text: object) -> str:
    """Return a text for an attribute, without control characters and marks that change the direction of text."""
    shown = "".join(character if character.isprintable() else "\ufffd" for character in str(text or ""))
    return _DIRECTIONS.sub("\ufffd", shown)


def breakable(text: object) -> Markup:
    """Return a long name in which lines may be broken after `+`, `/`, `_` and `,`."""
    return Markup("<wbr>").join(escape(part) for part in _BREAKS.sub("\\1\0", str(text)).split("\0"))


def gain(value: float | None) -> str:
    """Return a gain with its sign, such as `+0.87`."""
    return "" if value is None else f"{value:+.2f}".replace("-", "−")


def figure(value: float | None) -> str:
    """Return a score with two digits after the point."""
    return "" if value is None else f"{value:.2f}".replace("-", "−")


def number(value: float) -> str:
    """Return a count with commas."""
    return f"{value:,}"


def size(count: int) -> str:
    """Return a number of bytes with a unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count = round(count / 1000)
    return f"{count:,} GB"


def duration(seconds: float) -> str:
    """Return a duration in hours if it has two or more, else in minutes if it has two or more, else in seconds."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def setting(value: str, name: str) -> str:
    """Return the value of a setting for a list. For `enlarge`, it is the strength: its dream is shown elsewhere."""
    return value.partition("), ")[2] or value if name == "enlarge" else value


def dream_name(row: DreamRow) -> str:
    """Return the look of a dream, or else its layers, and whether it is enlarged."""
    return _look(row) or row.layers + _enlarged(row)


def settings_text(row: DreamRow) -> str:
    """Return the look of a dream, or else its layers and its most important settings, as a short line."""
    values = {each: row.settings.get(each, defaults().get(each, "")) for each in _IN_WORDS}
    words = f"{row.layers}, {values['octaves']} octaves × {values['steps']}, seed {values['seed']}"
    return _look(row) or words + _enlarged(row)


def _look(row: DreamRow) -> str:
    return look_of(Point(row.settings_id, row.model, row.layers, row.objective, row.settings))


def _enlarged(row: DreamRow) -> str:
    return ", enlarged" if "enlarge" in row.settings else ""


def describe(row: DreamRow) -> str:
    """Return the text alternative of a picture, for screen readers."""
    told = {} if _look(row) else row.settings
    others = [f"{each} {value}" for each, value in told.items() if each not in _IN_WORDS]
    score = [f"gain {gain(row.gain)}"] if row.gain is not None else []
    seen = [f"seen: {row.classes_after[0].label}"] if row.classes_after else []
    return plain(", ".join([row.source_name, settings_text(row), *others, *score, *seen]))


def redream_command(row: DreamRow) -> str:
    """Return the command that makes a dream again, for a shell; empty for a movie, which its job makes."""
    if movie(row):
        return ""
    suffix = (row.result_uri or "").rpartition(".")[2]
    return f"dreamgrid redream {shlex.quote(row.result_uri or '')} again.{suffix}"


def movie(row: DreamRow) -> bool:
    """Return whether a dream is a movie."""
    return is_movie(row.result_uri or "")


def sparkline(scores: Sequence[float]) -> Markup:
    """Return a line through the scores after each octave."""
    if len(scores) < 2:
        return Markup("<span></span>")
    low, high = min(scores), max(scores)
    height, step = high - low or _TINY, _WIDTH / (len(scores) - 1)
    points = " ".join(f"{i * step:.1f},{30 - 26 * (score - low) / height:.1f}" for i, score in enumerate(scores))
    label = "Score after each octave: " + ", ".join(f"{score:.2f}" for score in scores)
    return Markup(
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}"><polyline points="{}"/></svg>'
    ).format(_WIDTH, _HEIGHT, label, points)


FILTERS: dict[str, Callable[..., Any]] = {
    "breakable": breakable,
    "bytes": size,
    "describe": describe,
    "dream_name": dream_name,
    "duration": duration,
    "figure": figure,
    "gain": gain,
    "movie": movie,
    "number": number,
    "plain": plain,
    "ratio": lambda row: ratio_class(row.width, row.height),
    "redream": redream_command,
    "setting": setting,
    "settings_text": settings_text,
    "sparkline": sparkline,
}
