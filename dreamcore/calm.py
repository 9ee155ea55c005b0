"""Smaller steps in smooth areas, so that skies and walls do not fill with dots and lattices."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["calm_weights", "local_contrast"]

REACH = 8
"""Half the side of the windows in which the contrast is measured, in pixels of the octave."""
LEAST = 0.1
"""Smallest weight. Even an image of one color can begin to dream."""


def calm_weights(images: Tensor, calm: float) -> Tensor:
    """Return how much of a step each pixel takes: all of it in areas with contrast, a tenth in areas without.

    An octave gets its weights from the result of the octave before. So where large shapes have appeared in a sky, they
    get details, and the rest of the sky stays calm.

    Args:
        images: images (B, 3, H, W) in [0, 1].
        calm: the setting `calm`, above 0: the contrast from which a pixel takes the whole step.

    Returns:
        Weights (B, 1, H, W) in [0.1, 1].

    Example:
        >>> import torch
        >>> sky_and_trees = torch.cat([torch.ones(1, 3, 64, 64), torch.rand(1, 3, 64, 64)], 2)
        >>> weights = calm_weights(sky_and_trees, 0.08)
        >>> round(weights[0, 0, 0, 0].item(), 3), round(weights[0, 0, 127, 0].item(), 3)
        (0.1, 1.0)
    """
    contrast = local_contrast(images).div_(calm).clamp_(0, 1)
    return LEAST + (1 - LEAST) * _smooth(contrast)


def local_contrast(images: Tensor) -> Tensor:
    """Return the standard deviation of the brightness around each pixel of `images` (B, 3, H, W) as (B, 1, H, W)."""
    brightness = images.mean(1, keepdim=True)
    mean = _smooth(brightness)
    return _smooth(brightness.square()).sub_(mean.square_()).clamp_min_(0).sqrt_()


def _smooth(image: Tensor) -> Tensor:
    """Return the mean of the mean of a window around each pixel of `image` (B, 1, H, W)."""
    height, width = (min(REACH, side - 1) for side in image.shape[-2:])
    for _ in range(2):  # one window after the other along each side: a square window takes many times as long
        image = F.avg_pool2d(F.pad(image, (0, 0, height, height), mode="reflect"), (2 * height + 1, 1), stride=1)
        image = F.avg_pool2d(F.pad(image, (width, width, 0, 0), mode="reflect"), (1, 2 * width + 1), stride=1)
    return image
