"""Views: the random shift and mirroring of an image before each step."""

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dreamcore.settings import DreamSettings
from dreamcore.tiles import Tile, pixel

__all__ = ["View", "Views", "to_device"]


@dataclass(frozen=True)
class View:
    """A cyclic shift of an image, and whether the shifted image is mirrored.

    Example:
        >>> view = View(down=0, right=1, mirrored=True)
        >>> image = torch.tensor([[1, 2, 3]])
        >>> view.apply(image)
        tensor([[2, 1, 3]])
        >>> view.invert(view.apply(image))
        tensor([[1, 2, 3]])
    """

    down: int
    """Shift in pixels; rows that leave the image enter it at the top."""
    right: int
    """Shift in pixels; columns that leave the image enter it at the left."""
    mirrored: bool = False
    """Whether left and right are exchanged after the shift."""

    @classmethod
    def choose(
        cls, settings: DreamSettings, octave: int, step: int, random_tile_offset: tuple[int, int] = (1, 1)
    ) -> "View":
        """Return the view of one step.

        The view depends on the arguments alone: not on the batch, the order of the steps or the machine.

        Args:
            settings: `seed`, `jitter` and `flip` are used. The shift is in [-jitter, jitter] pixels.
            octave: number of the octave; the coarsest is 0.
            step: number of the step in its octave.
            random_tile_offset: (rows, columns). The shift grows by a random number of pixels below these.
        """
        counter = struct.pack(">QII", settings.seed, octave, step)
        down, right = struct.unpack(">QQ", hashlib.blake2b(counter, digest_size=16).digest())
        offset = struct.unpack(">QQ", hashlib.blake2b(counter, digest_size=16, person=b"tiles").digest())
        span = 2 * settings.jitter + 1
        coin = hashlib.blake2b(counter, digest_size=1, person=b"flip").digest()[0] % 2
        return cls(
            down % span - settings.jitter + offset[0] % random_tile_offset[0],
            right % span - settings.jitter + offset[1] % random_tile_offset[1],
            settings.flip and coin == 1,
        )

    def apply(self, images: Tensor) -> Tensor:
        """Return `images` (..., H, W) in this view."""
        shifted = images.roll((self.down, self.right), (-2, -1))
        return shifted.flip(-1) if self.mirrored else shifted

    def invert(self, images: Tensor) -> Tensor:
        """Undo `apply`: return the original of each view in `images` (..., H, W)."""
        shifted = images.flip(-1) if self.mirrored else images
        return shifted.roll((-self.down, -self.right), (-2, -1))

    def locate(self, at: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
        """Return the position in this view of a position `at` in an image of `size` (H, W).

        Positions are (x, y), from 0 to 1.
        """
        x = (pixel(at[0], size[1]) + self.right) % size[1] / size[1]
        y = (pixel(at[1], size[0]) + self.down) % size[0] / size[0]
        return (1 - x if self.mirrored else x), y


@dataclass(frozen=True)
class Views:
    """The views of all samples of a batch in one step."""

    each: tuple[View, ...]
    """One view per sample."""
    size: tuple[int, int]
    """Size (H, W) of the images."""

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
        """Return the views of one step.

        Args:
            settings: settings of each sample.
            octave: number of the octave; the coarsest is 0.
            step: number of the step in its octave.
            size: size (H, W) of the images.
            random_tile_offset: whether to shift by up to the whole image, so that the borders of tiles move and leave
                no seams.
        """
        largest = size if random_tile_offset else (1, 1)
        return cls(tuple(View.choose(each, octave, step, largest) for each in settings), size)

    def apply(self, images: Tensor) -> Tensor:
        """Return `images` (B, C, H, W), each in its view."""
        if len(set(self.each)) == 1:
            return self.each[0].apply(images)
        if images.device.type != "cpu":
            return self.gather(images)
        return torch.stack([view.apply(image) for view, image in zip(self.each, images, strict=True)])

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient (B, C, H, W) with respect to the images from that with respect to the views."""
        if len(set(self.each)) == 1:
            return self.each[0].invert(gradient)
        if gradient.device.type != "cpu":
            return self.gather(gradient, inverse=True)
        return torch.stack([view.invert(one) for view, one in zip(self.each, gradient, strict=True)])

    def gather(self, images: Tensor, *, inverse: bool = False) -> Tensor:
        """Return the same as `apply`, or as `pull_back`, in a number of operations that does not grow with the batch.

        A GPU would need several kernels for each sample otherwise. A CPU is faster with a copy for each sample.
        """
        (height, width), device = self.size, images.device
        down, right, mirrored = _offsets(self.each, device)[..., None].unbind(1)  # each (B, 1)
        sign = 1 if inverse else -1
        rows = (torch.arange(height, device=device) + sign * down) % height  # (B, H)
        columns = (torch.arange(width, device=device) + sign * right) % width  # (B, W)
        columns = torch.where(mirrored > 0, width - 1 - columns if inverse else columns.flip(1), columns)
        samples, channels = (torch.arange(count, device=device) for count in images.shape[:2])
        rows, columns = rows[:, None, :, None], columns[:, None, None]
        return images[samples[:, None, None, None], channels[:, None, None], rows, columns]

    def locator(self, tile: Tile) -> Callable[[int, tuple[float, float]], tuple[float, float] | None]:
        """Return a function of (sample, position in its image) that gives the position in `tile` of the sample's view.

        The function returns None if the position is outside the tile. Positions are (x, y), from 0 to 1.
        """
        return lambda sample, at: tile.locate(self.each[sample].locate(at, self.size), self.size)


@lru_cache(maxsize=4096)
def _offsets(views: tuple[View, ...], device: torch.device) -> Tensor:
    """Return the shift down, the shift to the right and the mirroring of each view as a tensor (B, 3) on `device`."""
    return to_device(torch.tensor([(view.down, view.right, view.mirrored) for view in views]), device)


def to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to `device`. A GPU does not wait: a copy from ordinary memory would make it wait."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)
