"""How the dreams of a video follow its motion. Pure functions on tensors.

Each frame starts from the detail of the last dream, moved by the optical flow. Persistence p is the share of the detail
that a frame keeps. If each frame adds the detail d, there is d + p d + p² d + ... = d / (1 - p) after many frames.
So 1 / (1 - p) frames together dream as much as one image with that many times their steps.
"""

from torch import Tensor

from dreamcore.optical_flow import Flow, track
from dreamcore.settings import DreamSettings

__all__ = ["finishing", "first_steps", "follow", "is_cut"]

LEAST_VISIBLE = 1 / 3
"""If less of a frame was visible in the frame before, there is a cut between them."""


def follow(frame: Tensor, previous: Tensor, dream: Tensor, flow: Flow, persistence: float) -> Tensor:
    """Return a frame with the detail of the last dream, moved by the flow. The next dream starts from this.

    The detail is the difference between the last dream and its frame. It is left out where the frame before does not
    show the same point.

    Args:
        frame: the frame (1, 3, H, W) in [0, 1].
        previous: the frame before it.
        dream: the dream of the frame before.
        flow: the flow from the frame to the frame before.
        persistence: share of the detail that is kept, in [0, 1].

    Returns:
        The image (1, 3, H, W) in [0, 1].

    Example:
        >>> import torch
        >>> frame, still = torch.full((1, 3, 8, 8), 0.5), Flow(torch.zeros(8, 8, 2), torch.ones(1, 1, 8, 8))
        >>> round(float(follow(frame, frame, frame + 0.1, still, 0.9).mean()), 3)
        0.59
    """
    detail = track(dream - previous, flow.back.to(frame), "bicubic")
    return (frame + persistence * flow.visible.to(frame) * detail).clamp(0, 1)


def is_cut(flow: Flow) -> bool:
    """Return whether a frame shows another scene than the frame before it."""
    return float(flow.visible.mean()) < LEAST_VISIBLE


def first_steps(steps: int, persistence: float) -> int:
    """Return how many steps the first frame of a scene gets, so that it has as much detail as later ones.

    Args:
        steps: the steps of a frame that continues a dream.
        persistence: share of the detail that each frame keeps, at least 0 and below 1.

    Example:
        >>> first_steps(1, 0.9), first_steps(10, 0)
        (10, 10)
    """
    return round(steps / (1 - persistence))


def finishing(settings: DreamSettings, persistence: float) -> DreamSettings:
    """Return settings whose `contrast`, `keep_colors` and `blend`, applied to each frame, add up to the given ones.

    If each frame applies the factor f = g / (1 + p (g - 1)) to its detail, the detail after many frames has the
    factor g.

    Args:
        settings: the settings of the video.
        persistence: p, the share of the detail that each frame keeps, in [0, 1].

    Example:
        >>> round(finishing(DreamSettings(keep_colors=0.4), 0.9).keep_colors, 4)
        0.0625
    """

    def each(factor: float) -> float:
        return factor / (1 + persistence * (factor - 1))

    return settings.model_copy(
        update={
            "contrast": each(settings.contrast),
            "keep_colors": 1 - each(1 - settings.keep_colors),
            "blend": 1 - each(1 - settings.blend),
        }
    )
