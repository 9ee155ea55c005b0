"""How the network is shown a picture in one step: shifted, and mirrored or not."""

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamcore.settings import DreamSettings
from dreamcore.tiles import Tile, pixel


@dataclass(frozen=True)
class View:
    """One picture's view in one step.

    A pure function of the seed, the octave counted from the coarsest, and the step: what else is in the batch, the
    order and the machine do not matter.
    """

    down: int
    right: int
    mirrored: bool = False

    @classmethod
    def choose(
        cls, settings: DreamSettings, octave: int, step: int, random_tile_offset: tuple[int, int] = (1, 1)
    ) -> "View":
        """Return the view of one step: shifts in [-jitter, jitter] pixels, plus less than `random_tile_offset`."""
        counter = struct.pack(">QII", settings.seed, octave, step)
        down, right = struct.unpack(">QQ", hashlib.blake2b(counter, digest_size=16).digest())
        further = struct.unpack(">QQ", hashlib.blake2b(counter, digest_size=16, person=b"tiles").digest())
        span = 2 * settings.jitter + 1
        coin = hashlib.blake2b(counter, digest_size=1, person=b"flip").digest()[0] % 2
        return cls(
            down % span - settings.jitter + further[0] % random_tile_offset[0],
            right % span - settings.jitter + further[1] % random_tile_offset[1],
            settings.flip and coin == 1,
        )

    def apply(self, picture: Tensor) -> Tensor:
        """`picture` (..., H, W) as the network is shown it."""
        shifted = picture.roll((self.down, self.right), (-2, -1))
        return shifted.flip(-1) if self.mirrored else shifted

    def invert(self, picture: Tensor) -> Tensor:
        """The inverse of `of`."""
        shifted = picture.flip(-1) if self.mirrored else picture
        return shifted.roll((-self.down, -self.right), (-2, -1))

    def locate(self, at: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
        """Where a place, across and down from 0 to 1, of a picture of `size` (H, W) is in this view."""
        across = (pixel(at[0], size[1]) + self.right) % size[1] / size[1]
        down = (pixel(at[1], size[0]) + self.down) % size[0] / size[0]
        return (1 - across if self.mirrored else across), down


@dataclass(frozen=True)
class Views:
    """The views of the samples of a batch in one step."""

    each: tuple[View, ...]
    size: tuple[int, int]
    """Height and width of the pictures."""

    @classmethod
    def choose(
        cls,
        settings: Sequence[DreamSettings],
        octave: int,
        step: int,
        size: tuple[int, int],
        *,
        random_tile_offset: bool,
    ) -> "Views":
        """The views of one step; strewn over the whole picture, the borders of tiles fall everywhere in time."""
        return cls(
            tuple(View.choose(each, octave, step, size if random_tile_offset else (1, 1)) for each in settings), size
        )

    def apply(self, pictures: Tensor) -> Tensor:
        """`pictures` (B, C, H, W) as the network is shown them."""
        if len(set(self.each)) == 1:
            return self.each[0].apply(pictures)
        return torch.stack([view.apply(picture) for view, picture in zip(self.each, pictures, strict=True)])

    def invert(self, pictures: Tensor) -> Tensor:
        """The inverse of `of`."""
        if len(set(self.each)) == 1:
            return self.each[0].invert(pictures)
        return torch.stack([view.invert(picture) for view, picture in zip(self.each, pictures, strict=True)])

    def locator(self, tile: Tile) -> Callable[[int, tuple[float, float]], tuple[float, float] | None]:
        """Tells where in a tile of these views a place of a sample's picture lies, or None where it is outside."""
        return lambda sample, at: tile.locate(self.each[sample].locate(at, self.size), self.size)
