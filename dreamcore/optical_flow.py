"""Optical flow: where each pixel of a video frame was in the frame before, and whether it was visible there.

The flow is computed by OpenCV's DIS (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", 2016), which the
extra `video` installs. It needs no trained weights and takes a few milliseconds a frame on one core. A network such as
RAFT is more precise, but its weights would have to be downloaded, and it takes seconds.

OpenCV is imported on the first call.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Flow", "optical_flow", "track"]

_LEAST_SIDE = 32
"""DIS searches patches on a pyramid of images. Frames with a smaller side are regarded as still."""
_RELATIVE, _ABSOLUTE = 0.01, 0.5
"""A pixel is visible in both frames if |b + f|² < 0.01 (|b|² + |f|²) + 0.5, b and f being its flow back and forth
(Sundaram, Brox and Keutzer, "Dense Point Trajectories by GPU-accelerated Large Displacement Optical Flow", 2010)."""

_Pixels = NDArray[np.uint8]


class Flow(NamedTuple):
    """How a frame continues the frame before it."""

    back: Tensor
    """(H, W, 2) float32: where each pixel was in the frame before, relative to its place, as (x, y) in pixels."""
    visible: Tensor
    """(1, 1, H, W) in [0, 1]: 1 where the frame before shows the same point, 0 where it was hidden or outside."""


def optical_flow(previous: _Pixels, frame: _Pixels) -> Flow:
    """Return the flow from a frame to the frame before it.

    Args:
        previous: the frame before, (H, W, 3), uint8, sRGB.
        frame: the frame, (H, W, 3), uint8, sRGB.

    Raises:
        ImportError: OpenCV is not installed.

    Example:
        >>> frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        >>> flow = optical_flow(frame, frame)
        >>> float(flow.back.abs().max()) < 0.01, float(flow.visible.min())
        (True, 1.0)
    """
    height, width = frame.shape[:2]
    if min(height, width) < _LEAST_SIDE:
        return Flow(torch.zeros(height, width, 2), torch.ones(1, 1, height, width))
    grays = _gray(frame), _gray(previous)
    back, forth = (torch.from_numpy(_dis(one, other)) for one, other in (grays, grays[::-1]))
    there = track(forth.permute(2, 0, 1)[None], back)[0].permute(1, 2, 0)  # the flow forth where each pixel was
    distance = (back + there).square().sum(-1)
    tolerance = _RELATIVE * (back.square().sum(-1) + there.square().sum(-1)) + _ABSOLUTE
    points = _points(back) / torch.tensor([width, height])
    inside = ((points >= 0) & (points <= 1)).all(-1)
    seen = ((distance < tolerance) & inside).float()[None, None]
    # A narrow soft border, because the edge of a moving object is not known to the pixel.
    eroded = -F.max_pool2d(-seen, 3, 1, 1)
    return Flow(back, F.avg_pool2d(eroded, 5, 1, 2, count_include_pad=False))


def track(images: Tensor, back: Tensor, mode: str = "bilinear") -> Tensor:
    """Return images moved by a flow. Beyond its borders an image repeats its edge.

    Args:
        images: images (B, C, H, W) of the frame before.
        back: where each pixel was in the frame before, (H, W, 2), relative to its place in pixels.
        mode: `bilinear` or `bicubic`.

    Returns:
        Images (B, C, H, W).
    """
    height, width = images.shape[-2:]
    grid = _points(back).to(images) / images.new_tensor([width, height]) * 2 - 1
    return F.grid_sample(
        images, grid.expand(len(images), -1, -1, -1), mode=mode, padding_mode="border", align_corners=False
    )


def _points(back: Tensor) -> Tensor:
    """Return the point (x, y) of the frame before that each pixel shows, (H, W, 2), in pixels."""
    rows = torch.arange(back.shape[0], device=back.device) + 0.5
    columns = torch.arange(back.shape[1], device=back.device) + 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], -1) + back


def _gray(pixels: _Pixels) -> _Pixels:
    import cv2

    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)


def _dis(one: _Pixels, other: _Pixels) -> NDArray[np.float32]:
    """Return the flow (H, W, 2) from a gray image to another."""
    import cv2

    cv2.setNumThreads(1)  # the flow depends on the number of threads, and a resumed video must have the same frames
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(dis.calc(one, other, None), np.float32)  # type: ignore[call-overload]
