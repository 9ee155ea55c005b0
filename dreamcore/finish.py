"""The last changes of a dream: contrast, the colors of the photograph, and a share of the photograph itself."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dreamcore.settings import DreamSettings

__all__ = ["finish", "finish_from", "is_finished"]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness: ITU-R BT.601, as in Pillow."""


def is_finished(settings: DreamSettings) -> bool:
    """Return whether a dream with these settings stays as the ascent has left it."""
    return (settings.contrast, settings.keep_colors, settings.blend) == (1, 0, 0)


def finish(dreams: Tensor, images: Tensor, masks: Sequence[Tensor | None], settings: Sequence[DreamSettings]) -> Tensor:
    """Apply `contrast`, then `keep_colors`, then `blend` to each sample of a batch.

    Args:
        dreams: dreams (B, 3, H, W) in [0, 1]. The function overwrites them.
        images: the photographs (B, 3, H, W) in [0, 1].
        masks: the mask (1, H, W) in [0, 1] of each sample, or None. Where it is 0, nothing changes.
        settings: the settings of each sample.

    Returns:
        Images (B, 3, H, W) in [0, 1].
    """
    for dream, image, mask, each in zip(dreams, images, masks, settings, strict=True):
        if not is_finished(each):
            dream.copy_(_finish(dream, image, mask, each))
    return dreams


def finish_from(start: Tensor, dreams: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
    """Return finished images: `start`, which is finished, and the finished change from `start` to `dreams`.

    Args:
        start: images (B, 3, H, W) in [0, 1] that are finished already.
        dreams: images (B, 3, H, W) in [0, 1] that an ascent has made of `start`. They are overwritten.
        finish: finishes images in place.
    """
    before = finish(start.clone())
    return finish(dreams).sub_(before).add_(start).clamp_(0, 1)


def _finish(dream: Tensor, image: Tensor, mask: Tensor | None, settings: DreamSettings) -> Tensor:
    finished = dream
    if settings.contrast != 1:
        gray = _brightness(dream).mean()  # as Pillow's ImageEnhance.Contrast
        finished = torch.lerp(gray.expand_as(dream), dream, settings.contrast)
        finished = finished if mask is None else torch.lerp(dream, finished, mask)
    if settings.keep_colors:
        colors = image + (_brightness(finished) - _brightness(image))
        finished = torch.lerp(finished, colors, settings.keep_colors)
    return finished.lerp(image, settings.blend).clamp_(0, 1) if settings.blend else finished.clamp_(0, 1)


def _brightness(image: Tensor) -> Tensor:
    """Return the brightness (1, H, W) of `image` (3, H, W)."""
    brightness: Tensor = LUMA[0] * image[0] + LUMA[1] * image[1] + LUMA[2] * image[2]
    return brightness[None]
