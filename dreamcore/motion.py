"""The geometry and the colors of a zoom through dreams. Pure functions on tensors.

Each frame starts from the frame before it, seen by a camera that moves: zoom, rotation, and a point that stays in
place. This is the endless zoom of Mordvintsev, Olah and Tyka, "Inceptionism: Going Deeper into Neural Networks" (2015).

A transform is a matrix (3, 3) of float64. It maps a point of the new image to the point of the old image that is seen
there. Points are in pixels, (x, y, 1); the top left corner of an image is (0, 0).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamcore.octaves import Size
from dreamcore.zoom import Motion

__all__ = ["Colors", "colors_of", "mix_in", "palette", "transform", "warp", "with_colors"]

LEAST_CONTRAST = 0.12
"""Smallest standard deviation of the values of a movie; 1 is the distance from black to white."""
_LEAST_VARIANCE = 1e-6
"""Variance of colors in [0, 1] below which a direction counts as gray and is not amplified."""


def transform(motion: Motion, seconds: float, size: Size) -> Tensor:
    """Return the transform (3, 3) of a camera that moves for some seconds.

    Args:
        motion: the motion of the camera.
        seconds: how long the camera moves; a negative time moves back.
        size: size (H, W) of the image in pixels.

    Example:
        >>> (transform(Motion(zoom=2, rotate=0), 1, (100, 200)) @ torch.tensor([100.0, 50, 1]).double()).tolist()
        [100.0, 50.0, 1.0]
        >>> (transform(Motion(zoom=2, rotate=0), 1, (100, 200)) @ torch.tensor([200.0, 50, 1]).double()).tolist()
        [150.0, 50.0, 1.0]
    """
    x, y = motion.center[0] * size[1], motion.center[1] * size[0]
    scale, angle = motion.zoom**-seconds, math.radians(motion.rotate * seconds)
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    return torch.tensor([[a, b, x - a * x - b * y], [-b, a, y + b * x - a * y], [0, 0, 1]], dtype=torch.float64)


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Return images seen through a transform, with bicubic interpolation. Beyond its borders an image is mirrored.

    Args:
        images: images (B, 3, H, W) in [0, 1].
        matrix: the transform (3, 3).

    Returns:
        Images (B, 3, H, W) in [0, 1].

    Example:
        >>> image = torch.rand(1, 3, 20, 30)
        >>> torch.allclose(warp(image, transform(Motion(), 0, (20, 30))), image, atol=1e-5)
        True
    """
    height, width = images.shape[-2:]
    points = _seen_points(matrix, (height, width)).to(images)
    grid = points / points.new_tensor([width, height]) * 2 - 1
    grid = grid.expand(len(images), -1, -1, -1)
    seen = F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return seen.clamp(0, 1)


def _seen_points(matrix: Tensor, size: Size) -> Tensor:
    """Return the point (x, y) of the old image that each pixel of the new one sees, as (H, W, 2)."""
    rows = torch.arange(size[0], dtype=matrix.dtype) + 0.5
    columns = torch.arange(size[1], dtype=matrix.dtype) + 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return (torch.stack([x, y, torch.ones_like(x)], -1) @ matrix.T)[..., :2]


def mix_in(images: Tensor, target: Tensor, matrix: Tensor, share: float) -> Tensor:
    """Mix a share of `target`, seen from nearer or farther away, into images. The last frames of a loop use this.

    The edges of `target` are soft: the farther `target` is away, the wider they are. Beyond them, its mirror image is
    mixed in with the square of `share`, so that no rim of the old picture is left at the end of a loop.

    Args:
        images: images (B, 3, H, W) in [0, 1].
        target: the image (1, 3, H, W) that the loop returns to.
        matrix: the transform (3, 3) from `images` to `target`.
        share: the share of `target` where it is seen, in [0, 1]. With share 1 and the identity, the result is `target`.
    """
    height, width = images.shape[-2:]
    sides = torch.tensor([width, height], dtype=matrix.dtype)
    points = _seen_points(matrix, (height, width)) / sides
    inside = torch.minimum(points, 1 - points).amin(-1).to(images)  # share of a side to the nearest border
    magnification = math.sqrt(abs(float(torch.linalg.det(matrix[:2, :2]))))  # how much smaller `target` appears
    softness = max(1 - 1 / magnification, 0.0) / 2
    edge = (inside / softness).clamp(0, 1) if softness > 0 else (inside >= 0).to(images)
    mask = share * (share + (1 - share) * edge.square() * (3 - 2 * edge))
    return images + mask * (warp(target, matrix) - images)


class Colors(NamedTuple):
    """The colors of an image, as a normal distribution."""

    mean: Tensor
    """(3, 1)"""
    covariance: Tensor
    """(3, 3)"""


def colors_of(image: Tensor) -> Colors:
    """Return the colors of an image (1, 3, H, W) in [0, 1]."""
    values = image[0].flatten(1).double().cpu()  # (3, H * W)
    mean = values.mean(1, keepdim=True)
    return Colors(mean, (values - mean) @ (values - mean).T / values.shape[1])


def palette(photograph: Tensor) -> Colors:
    """Return the colors that the frames of a movie of a photograph (1, 3, H, W) keep.

    They are those of the photograph. If its contrast is so low that no dream would be visible, gray contrast is added.
    """
    mean, covariance = colors_of(photograph)
    missing = max(0.0, LEAST_CONTRAST**2 - float(covariance.trace()) / 3)
    return Colors(mean, covariance + missing)


def with_colors(image: Tensor, wanted: Colors) -> Tensor:
    """Return an image with the mean and the covariance of other colors, apart from clipping.

    Without this, gradient ascent makes every frame more colorful than the frame before it, until all colors are
    clipped. The map is linear, and of all such maps it changes the colors least: the optimal transport between two
    normal distributions (Pitié and Kokaram, "The linear Monge-Kantorovitch colour mapping", 2007).

    Args:
        image: the image (1, 3, H, W) in [0, 1].
        wanted: the colors.

    Returns:
        The image (1, 3, H, W) in [0, 1].

    Example:
        >>> gray, colorful = torch.rand(1, 1, 8, 9).expand(1, 3, 8, 9) / 2, torch.rand(1, 3, 8, 9)
        >>> found = colors_of(with_colors(colorful, colors_of(gray)))
        >>> torch.allclose(found.mean, colors_of(gray).mean, atol=0.05)
        True
    """
    now = colors_of(image)
    root, inverse = _power(now.covariance, 0.5), _power(now.covariance, -0.5)
    linear = inverse @ _power(root @ wanted.covariance @ root, 0.5) @ inverse
    offset = wanted.mean - linear @ now.mean
    mapped = linear.to(image) @ image[0].flatten(1) + offset.to(image)
    return mapped.view_as(image).clamp(0, 1)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Return a power of a symmetric positive matrix (3, 3)."""
    values, vectors = torch.linalg.eigh(matrix)
    least = _LEAST_VARIANCE if exponent < 0 else 0.0
    power: Tensor = vectors @ torch.diag(values.clamp_min(least) ** exponent) @ vectors.T
    return power
