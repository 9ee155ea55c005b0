"""The correlation of the three colors in natural photographs, and the matrix that gives an image this correlation.

The constants are those of Olah, Mordvintsev and Schubert, "Feature Visualization", Distill (2017), as in lucid,
`optvis/param/color.py`. There they were measured on the photographs of ImageNet.
"""

import torch
from torch import Tensor

__all__ = ["COVARIANCE_ROOT", "color_correlation", "correlate_colors", "decorrelate_colors"]

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
    root = torch.tensor(COVARIANCE_ROOT, device=like.device, dtype=like.dtype)
    norms: Tensor = torch.linalg.vector_norm(root, dim=0)
    return root / norms.max()


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
    return _times(torch.linalg.inv(color_correlation(images)), images)


def _times(matrix: Tensor, images: Tensor) -> Tensor:
    """Return `matrix` (3, 3) times each pixel of `images` (..., 3, H, W)."""
    return (matrix @ images.flatten(-2)).view_as(images)
