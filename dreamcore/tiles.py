"""A picture in tiles: where they lie, and how large they may be."""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

MULTIPLE = 32
"""Tiles are cut at multiples of this, the coarsest stride of most networks, so that no layer's positions are cut."""


@dataclass(frozen=True)
class Frame:
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pictures: Tensor) -> Tensor:
        """That part of `pictures` (..., H, W), as a view of them."""
        return pictures[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def place(self, at: tuple[float, float], size: tuple[int, int]) -> tuple[float, float] | None:
        """Where a place of a picture of `size` (H, W) lies in this part, both across and down from 0 to 1; or None."""
        across = (at[0] * size[1] - self.left) / self.width
        down = (at[1] * size[0] - self.top) / self.height
        inside = 0 <= across < 1 and 0 <= down < 1
        at_the_edge = (self.height, self.width) == size
        return (across, down) if inside or at_the_edge else None


def whole(size: tuple[int, int]) -> list[Frame]:
    """A picture of `size` (H, W) in one piece."""
    return [Frame(0, 0, *size)]


def cut(size: tuple[int, int], side: int, least: int) -> list[Frame]:
    """A picture of `size` (H, W) in tiles of `side` pixels; the last ones are what is left.

    A rest of less than `least` pixels is joined to the tile before it: nothing is left out.
    """
    rows, columns = (_edges(length, side, least) for length in size)
    return [
        Frame(top, left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def cut_evenly(size: tuple[int, int], side: int) -> list[Frame]:
    """A picture of `size` (H, W) in tiles of about equal sizes with sides of at most about `side` pixels.

    A picture of no more pixels than one tile is one, and so is any where `side` is 0.
    """
    if not side or size[0] * size[1] <= side * side:
        return whole(size)
    rows, columns = (_edges(length, _even(length, side), side // 2) for length in size)
    return [
        Frame(top, left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def _even(length: int, side: int) -> int:
    """The side that divides `length` into as few tiles as `side` does, but equal ones."""
    even = math.ceil(length / math.ceil(length / side))
    return min(side, math.ceil(even / MULTIPLE) * MULTIPLE)


def _edges(length: int, side: int, least: int) -> list[int]:
    edges = list(range(0, length, side))
    if len(edges) > 1 and length - edges[-1] < least:
        edges.pop()
    return [*edges, length]
