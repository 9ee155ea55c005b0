"""A picture in tiles: where they lie, and how large they may be."""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

MULTIPLE = 32
"""Tiles are cut at multiples of this, the coarsest stride of most networks, so that no layer's positions are cut."""


Edges = tuple[tuple[bool, bool], tuple[bool, bool]]
"""Which of four are those of a picture: top and bottom, left and right."""

INSIDE: Edges = ((False, False), (False, False))
"""None of them."""


@dataclass(frozen=True)
class Tile:
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, pictures: Tensor) -> Tensor:
        """That part of `pictures` (..., H, W), as a view of them."""
        return pictures[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def edges(self, size: tuple[int, int]) -> Edges:
        """Which of its edges are those of the picture of `size` (H, W), too."""
        bottom, right = self.top + self.height, self.left + self.width
        return (self.top == 0, bottom == size[0]), (self.left == 0, right == size[1])

    def locate(self, at: tuple[float, float], size: tuple[int, int]) -> tuple[float, float] | None:
        """Where a place of a picture of `size` (H, W) lies in this part, both across and down from 0 to 1; or None."""
        across = (pixel(at[0], size[1]) - self.left) / self.width
        down = (pixel(at[1], size[0]) - self.top) / self.height
        return (across, down) if 0 <= across < 1 and 0 <= down < 1 else None


def pixel(place: float, length: int) -> float:
    """Where along a side of `length` pixels a place from 0 to 1 lies: 1 is in the last pixel, not behind it."""
    return min(place * length, length - 0.5)


def whole_image(size: tuple[int, int]) -> list[Tile]:
    """A picture of `size` (H, W) in one piece."""
    return [Tile(0, 0, *size)]


def fixed_tiles(size: tuple[int, int], side: int, least: int) -> list[Tile]:
    """A picture of `size` (H, W) in tiles of `side` pixels; the last ones are what is left.

    A rest of less than `least` pixels is joined to the tile before it: nothing is left out.
    """
    return _frames(*(_edges(length, side, least) for length in size))


def even_tiles(size: tuple[int, int], side: int, least: int) -> list[Tile]:
    """A picture of `size` (H, W) in tiles of about equal sizes, with sides of at most about `side` pixels.

    A picture of no more pixels than one tile is one, and so is any where `side` is 0. No tile has a side below
    `least` pixels, unless the picture has.
    """
    if not side or size[0] * size[1] <= side * side:
        return whole_image(size)
    return _frames(*(_even_edges(length, side, least) for length in size))


def _frames(rows: list[int], columns: list[int]) -> list[Tile]:
    return [
        Tile(top, left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def _edges(length: int, side: int, least: int) -> list[int]:
    edges = list(range(0, length, side))
    if len(edges) > 1 and length - edges[-1] < least:
        edges.pop()
    return [*edges, length]


def _even_edges(length: int, side: int, least: int) -> list[int]:
    count = min(math.ceil(length / side), max(1, length // (least + MULTIPLE)))
    return [*(MULTIPLE * round(length * tile / count / MULTIPLE) for tile in range(count)), length]
