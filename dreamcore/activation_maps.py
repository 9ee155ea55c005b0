"""The activations of a layer as maps: features by channel and position."""

import math

from torch import Tensor

__all__ = ["as_map", "crop_padding"]


def as_map(features: Tensor, images: Tensor, stride: int) -> Tensor:
    """Return tokens (B, N, C) as a map (B, C, h, w). Return other activations unchanged.

    Args:
        features: the activations of a layer, such as (B, N, C) or (B, C, h, w).
        images: the images (B, 3, H, W) in the network.
        stride: the stride of the layer in pixels: the side of a patch.
    """
    if features.ndim != 3:
        return features
    height, width = (side // stride for side in images.shape[-2:])
    patches = features[:, -height * width :]  # the class token and registers come before the patches
    return patches.transpose(1, 2).reshape(len(patches), -1, height, width)


def crop_padding(features: Tensor, images: Tensor, padded: Tensor) -> Tensor:
    """Return the positions of `features` that overlap the images and not only their padding.

    Args:
        features: activations (B, C, h, w). Activations without positions (B, C) are returned unchanged.
        images: the images (B, 3, H, W).
        padded: the images with padding at the right and at the bottom.
    """
    if features.ndim != 4:
        return features  # no positions
    sides = [
        math.ceil(positions * side / padded_side)
        for positions, side, padded_side in zip(features.shape[-2:], images.shape[-2:], padded.shape[-2:], strict=True)
    ]
    return features[..., : sides[0], : sides[1]]
