"""The correlation of the three colors in natural photographs, and the matrix that gives an image this correlation.

The constants are those of Olah, Mordvintsev and Schubert, "Feature Visualization", Distill (2017), as in lucid,
`optvis/param/color.py`. There they were measured on the photographs of ImageNet.
"""

from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    "COVARIANCE_ROOT",
    "color_correlation",
    "correlate_colors",
    "decorrelate_colors",
    "mix_colors",
    "natural_steps",
]

_PIXELS = 2**20
"""Pixels that are multiplied at a time, so that large images need no second copy."""
COVARIANCE_ROOT = ((0.26, 0.09, 0.02), (0.27, 0.0, -0.05), (0.27, -0.09, 0.03))
"""A square root S of the covariance of red, green and blue in [0, 1]: the covariance is S times its transpose.

The columns are the brightness, red against blue, and green against red and blue, each times its standard deviation.
"""


def color_correlation(like: Tensor) -> Tensor:
    """Return the matrix M (3, 3) that turns three independent colors into red, green and blue.

    M is `COVARIANCE_ROOT` divided by the largest norm of its columns, so that M does not make a color stronger. It is
    not symmetric: a gradient with respect to the image becomes one with respect to the independent colors by the
    transpose of M.

    Args:
        like: a tensor of the device and dtype to return.

    Example:
        >>> color_correlation(torch.zeros(())).norm(dim=0)
        tensor([1.0000, 0.2755, 0.1334])
    """
    return _matrices(like.device, like.dtype)[0]


def correlate_colors(images: Tensor) -> Tensor:
    """Return M times each pixel of `images` (..., 3, H, W): red, green and blue from three independent colors.

    Example:
        A change of the first color changes red, green and blue alike:

        >>> correlate_colors(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)).flatten()
        tensor([0.5628, 0.5845, 0.5845])
    """
    return _times(color_correlation(images), images)


def decorrelate_colors(images: Tensor) -> Tensor:
    """Undo `correlate_colors`: return the three independent colors (..., 3, H, W) of `images` (..., 3, H, W)."""
    return _times(_matrices(images.device, images.dtype)[1], images)


@lru_cache
def _matrices(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return M (3, 3) and its inverse, cached: a new tensor at each step would make a GPU wait."""
    root = torch.tensor(COVARIANCE_ROOT, dtype=torch.float64)
    matrix = root / torch.linalg.vector_norm(root, dim=0).max()
    return matrix.to(device, dtype), torch.linalg.inv(matrix).to(device, dtype)


def natural_steps(amount: float, like: Tensor) -> Tensor:
    """Return the matrix by which a gradient is multiplied, so that steps change the colors as natural images do.

    The matrix is (1 - amount) I + amount C. C is M times its transpose, scaled so that its entries add up to 3: gray
    stays as strong as it is, and color becomes weaker. The gradient of the independent colors of `correlate_colors`,
    turned back into red, green and blue, is C times the gradient, up to that factor.

    Args:
        amount: the setting `color`, from 0 to 1.
        like: a tensor of the device and dtype to return.

    Returns:
        Matrix (3, 3).

    Example:
        >>> (natural_steps(1, torch.zeros(())) @ torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]).T).T
        tensor([[0.9750, 1.0125, 1.0125],
                [0.3567, 0.3244, 0.2939]])
    """
    root = color_correlation(like)
    product = root @ root.T
    return torch.lerp(torch.eye(3).to(product), product * 3 / product.sum(), amount)


def mix_colors(gradient: Tensor, matrix: Tensor) -> Tensor:
    """Return `matrix` (3, 3) times each pixel of `gradient` (B, 3, H, W), which the function overwrites."""
    for sample in gradient:  # a product of the whole batch would round differently
        for pixels in sample.flatten(1).split(_PIXELS, 1):
            pixels.copy_(matrix @ pixels)
    return gradient


def _times(matrix: Tensor, images: Tensor) -> Tensor:
    """Return `matrix` (3, 3) times each pixel of `images` (..., 3, H, W)."""
    return (matrix @ images.flatten(-2)).view_as(images)
