"""DeepDream: Mordvintsev, Olah and Tyka, "Inceptionism: Going Deeper into Neural Networks" (2015), in six steps.

1. Forward an image through a trained network up to a chosen layer.
2. Choose what to excite there.
3. Measure the activations.
4. Take the gradient of that score with respect to the image.
5. Move the image up the gradient.
6. Repeat, over octaves from coarse to fine.
"""

import hashlib
import struct
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dreamcore.errors import ImageError
from dreamcore.gradients import normalise
from dreamcore.models import Network
from dreamcore.scores import score
from dreamcore.settings import DreamSettings

LEAST_OCTAVE = 32
"""Side in pixels below which an octave shows the network too little to be worth its steps."""


def dream(
    network: Network, pictures: Tensor, settings: DreamSettings, watch: Callable[[int, int], None] | None = None
) -> Tensor:
    """Dream a batch of pictures of one size under the same settings.

    Args:
        network: the network to dream with.
        pictures: (B, 3, H, W) in [0, 1], on the network's device.
        settings: what to dream; the model and the output named there are not looked at.
        watch: called after every step with the steps done and the steps in all.

    Returns:
        The dreams: (B, 3, H, W) in [0, 1]. A sample whose ascent failed is NaN somewhere.

    Raises:
        ImageError: `too_small` for the network.
    """
    sizes = octave_sizes((pictures.shape[-2], pictures.shape[-1]), settings, network.card.min_size)
    layers = {target.layer for target in settings.layers}  # step 2: what to excite
    detail = torch.zeros_like(pictures[..., :1, :1])
    for octave, size in enumerate(sizes):  # step 6: over octaves from coarse to fine
        base = resize(pictures, size)
        dreams = (base + resize(detail, size)).clamp(0, 1)
        for step in range(settings.steps):
            down, right = jitter_offset(settings, octave, step)
            seen = dreams.roll((down, right), (2, 3)).requires_grad_()
            activations = network.activations(seen, layers)  # step 1: forward, no further than needed
            objective = score(activations, settings.layers)  # step 3: measure the activations
            (gradient,) = torch.autograd.grad(objective.sum(), seen)  # step 4: with respect to the image
            uphill = normalise(gradient, settings.gradient).roll((-down, -right), (2, 3))
            dreams = (dreams + settings.step_size * uphill).clamp(0, 1)  # step 5: move up the gradient
            if watch:
                watch(octave * settings.steps + step + 1, len(sizes) * settings.steps)
        detail = dreams - base
    return dreams


def octave_sizes(size: tuple[int, int], settings: DreamSettings, min_size: int = 1) -> list[tuple[int, int]]:
    """Height and width of each octave, the coarsest first; the last is `size` itself.

    Octaves with a side below `LEAST_OCTAVE` or the network's least size are left out.

    Raises:
        ImageError: `too_small`: even the full size is below the network's least size.
    """
    height, width = size
    if min(size) < min_size:
        raise ImageError("too_small", f"{width}x{height} pixels: the network needs {min_size} on each side")
    scales = [settings.octave_scale**-level for level in range(settings.octaves - 1, 0, -1)]
    coarser = [(round(height * scale), round(width * scale)) for scale in scales]
    return [smaller for smaller in coarser if min(smaller) >= max(min_size, LEAST_OCTAVE)] + [size]


def resize(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, H, W) to (B, C, *size), bicubic, smoothed against aliasing when shrinking."""
    if pictures.shape[-2:] == size:
        return pictures
    shrinking = size[0] < pictures.shape[-2] or size[1] < pictures.shape[-1]
    return F.interpolate(pictures, size, mode="bicubic", align_corners=False, antialias=shrinking)


def jitter_offset(settings: DreamSettings, octave: int, step: int) -> tuple[int, int]:
    """Shift (down, right) in pixels before one step, each in [-jitter, jitter].

    A pure function of the seed, the octave counted from the coarsest, and the step: what else is in the batch, the
    order and the machine do not matter.
    """
    counter = struct.pack(">QII", settings.seed, octave, step)
    down, right = struct.unpack(">QQ", hashlib.blake2b(counter, digest_size=16).digest())
    span = 2 * settings.jitter + 1
    return down % span - settings.jitter, right % span - settings.jitter


def to_tensor(pixels: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """Pixels (H, W, 3) of 8 bits as a batch of one: (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1)[None].float() / 255


def to_pixels(pictures: Tensor) -> NDArray[np.uint8]:
    """The first of `pictures` (B, 3, H, W) in [0, 1] as pixels (H, W, 3) of 8 bits."""
    pixels: NDArray[np.uint8] = (pictures[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    return pixels
