"""Canvases: what the steps of an octave change, and the image that it shows."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

__all__ = ["Canvas", "Pixels"]


class Canvas(Protocol):
    """The parameters of the images of one octave. The steps of the ascent change the parameters."""

    def image(self) -> Tensor:
        """Return the images (B, 3, H, W) that the parameters give."""
        ...

    def step(self, gradient: Tensor, active: Tensor) -> None:
        """Take one step up the gradient.

        Args:
            gradient: gradient (B, 3, H, W) of the scores with respect to the images.
            active: (B, 1, 1, 1): 1 for the samples that take the step, 0 for those that have stopped.
        """
        ...


class Pixels:
    """The pixels themselves.

    Args:
        start: images (B, 3, H, W) with which the octave starts.
        normalize: normalizes the gradients (B, 3, H, W) of the octave.
        length: the step length of each sample (B, 1, 1, 1), or of each value (B, 3, H, W).
        clip: clips images in place to the range that the settings allow.
    """

    def __init__(
        self,
        start: Tensor,
        normalize: Callable[[Tensor], Tensor],
        length: Tensor,
        clip: Callable[[Tensor], Tensor],
    ) -> None:
        self._pixels, self._normalize, self._length, self._clip = start, normalize, length, clip

    def image(self) -> Tensor:
        """Return the images (B, 3, H, W)."""
        return self._pixels

    def step(self, gradient: Tensor, active: Tensor) -> None:
        """Add the normalized gradient, times the step length."""
        direction = self._normalize(gradient)
        self._pixels = self._clip(direction.mul_(self._length * active).add_(self._pixels))
