"""The shapes of tiles as classes of a stylesheet.

The policy of the pages forbids inline styles, so that a tile gets its ratio of width to height from a class.
"""

import math

__all__ = ["ratio_class", "stylesheet"]

_STEPS = 24
"""Classes for each doubling of the ratio: the error is at most 1.5 %."""
_LOW, _HIGH = -2 * _STEPS, 2 * _STEPS


def ratio_class(width: int | None, height: int | None) -> str:
    """Return the class of a picture of this size in pixels. Without a size, the picture is square."""
    step = round(_STEPS * math.log2((width or 1) / (height or 1)))
    return f"r{min(max(step, _LOW), _HIGH) - _LOW}"


def stylesheet() -> str:
    """Return the rules of all classes: `--ar` is the ratio."""
    steps = range(_LOW, _HIGH + 1)
    return "".join(f".r{step - _LOW}{{--ar:{2 ** (step / _STEPS):.4f}}}\n" for step in steps)
