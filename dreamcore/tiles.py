"""Tiles: rectangular parts of an image, and ways to divide an image into them."""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

__all__ = ["INSIDE", "MULTIPLE", "Edges", "Tile", "even_tiles", "fixed_tiles", "pixel", "whole_image"]

MULTIPLE = 32
"""Even tiles begin at multiples of this, in pixels: the largest stride of most networks, so that no position is cut."""

Edges = tuple[tuple[bool, bool], tuple[bool, bool]]
"""Whether each edge of a tile is an edge of the image: ((top, bottom), (left, right))."""

INSIDE: Edges = ((False, False), (False, False))
"""The edges of a tile that touches no edge of the image."""


@dataclass(frozen=True)
class Tile:
    """A rectangular part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, images: Tensor) -> Tensor:
        """Return this part of `images` (..., H, W), as a view of the tensor."""
        return images[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def edges(self, size: tuple[int, int]) -> Edges:
        """Return which edges of the tile are edges of an image of `size` (H, W)."""
        bottom, right = self.top + self.height, self.left + self.width
        return (self.top == 0, bottom == size[0]), (self.left == 0, right == size[1])

    def locate(self, at: tuple[float, float], size: tuple[int, int]) -> tuple[float, float] | None:
        """Return the position in this tile of a position in the image.

        Args:
            at: position (x, y) in the image, each from 0 to 1.
            size: size (H, W) of the image.

        Returns:
            The position (x, y) in the tile, each in [0, 1), or None if it is outside the tile.

        Example:
            >>> Tile(top=0, left=96, height=64, width=64).locate((0.75, 0.25), (128, 160))
            (0.375, 0.5)
        """
        x = (pixel(at[0], size[1]) - self.left) / self.width
        y = (pixel(at[1], size[0]) - self.top) / self.height
        return (x, y) if 0 <= x < 1 and 0 <= y < 1 else None


def pixel(position: float, length: int) -> float:
    """Return the coordinate, in pixels, of a position from 0 to 1 along a side of `length` pixels.

    Position 1 is in the last pixel.
    """
    return min(position * length, length - 0.5)


def whole_image(size: tuple[int, int]) -> list[Tile]:
    """Return one tile that covers an image of `size` (H, W)."""
    return [Tile(0, 0, *size)]


def fixed_tiles(size: tuple[int, int], side: int, min_side: int) -> list[Tile]:
    """Divide an image of `size` (H, W) into tiles of `side` pixels.

    The last tile of each row and column gets the rest. A rest of less than `min_side` pixels is added to the tile
    before it.

    Example:
        >>> [tile.width for tile in fixed_tiles((64, 160), side=64, min_side=32)]
        [64, 64, 32]
        >>> [tile.width for tile in fixed_tiles((64, 150), side=64, min_side=32)]
        [64, 86]
    """
    return _grid(*(_fixed_borders(length, side, min_side) for length in size))


def even_tiles(size: tuple[int, int], side: int, min_side: int) -> list[Tile]:
    """Divide an image of `size` (H, W) into tiles of about equal size, with sides of about `side` pixels at most.

    The result is one tile if `side` is 0 or if the image has no more pixels than one tile.

    Args:
        size: size (H, W) of the image.
        side: side of the tiles in pixels, or 0.
        min_side: least side of a tile in pixels. Only a tile of a smaller image may be smaller.

    Example:
        >>> even_tiles((96, 160), side=96, min_side=1)
        [Tile(top=0, left=0, height=96, width=64), Tile(top=0, left=64, height=96, width=96)]
    """
    if not side or size[0] * size[1] <= side * side:
        return whole_image(size)
    return _grid(*(_even_borders(length, side, min_side) for length in size))


def _grid(rows: list[int], columns: list[int]) -> list[Tile]:
    """Return the tiles between the borders, row by row."""
    return [
        Tile(top, left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def _fixed_borders(length: int, side: int, min_side: int) -> list[int]:
    borders = list(range(0, length, side))
    if len(borders) > 1 and length - borders[-1] < min_side:
        borders.pop()
    return [*borders, length]


def _even_borders(length: int, side: int, min_side: int) -> list[int]:
    count = min(math.ceil(length / side), max(1, length // (min_side + MULTIPLE)))
    return [*(MULTIPLE * round(length * tile / count / MULTIPLE) for tile in range(count)), length]
