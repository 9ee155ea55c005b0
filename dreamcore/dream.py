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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dreamcore.errors import ImageError
from dreamcore.gradients import normaliser, treat
from dreamcore.models import Network
from dreamcore.scores import penalty, score
from dreamcore.settings import DreamSettings, Target

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
    base = dreams = resize(pictures, sizes[0])
    for octave, size in enumerate(sizes):  # step 6: over octaves from coarse to fine
        last, base = base, resize(pictures, size)
        dreams = carry(dreams, last, base, settings)
        normalise = normaliser(settings.normalise)
        for step in range(settings.steps):
            view = View.choose(settings, octave, step)
            seen = view.of(dreams).requires_grad_()
            activations = network.activations(seen, layers)  # step 1: forward, no further than needed
            objective = score(activations, view.targets(settings.layers, size), settings.measure)  # step 3: measure
            if settings.total_variation or settings.l2:
                objective = objective - penalty(seen, view.of(base), settings)
            (gradient,) = torch.autograd.grad(objective.sum(), seen)  # step 4: with respect to the image
            uphill = normalise(view.back(treat(gradient, settings, step)))
            dreams = (dreams + settings.step_size * uphill).clamp(0, 1)  # step 5: move up the gradient
            if watch:
                watch(octave * settings.steps + step + 1, len(sizes) * settings.steps)
    return dreams


def carry(dreams: Tensor, last: Tensor, base: Tensor, settings: DreamSettings) -> Tensor:
    """Begin an octave with what the one before it dreamt.

    Args:
        dreams: the dreams of the octave before.
        last: the pictures at the size of the octave before.
        base: the pictures at the size of this one.
        settings: `carry` says what goes on: `detail`, what was dreamt, added to the pictures with all the detail that
            this size has of them; or `result`, the dreams as they are, enlarged.
    """
    size = (base.shape[-2], base.shape[-1])
    if settings.carry == "result":
        return resize(dreams, size).clamp(0, 1)
    return (base + resize(dreams - last, size)).clamp(0, 1)


@dataclass(frozen=True)
class View:
    """How the network is shown the picture in one step: shifted, and mirrored or not.

    A pure function of the seed, the octave counted from the coarsest, and the step: what else is in the batch, the
    order and the machine do not matter.
    """

    down: int
    right: int
    mirrored: bool

    @classmethod
    def choose(cls, settings: DreamSettings, octave: int, step: int) -> "View":
        """The view of one step: shifts in pixels, each in [-jitter, jitter]."""
        counter = struct.pack(">QII", settings.seed, octave, step)
        down, right = struct.unpack(">QQ", hashlib.blake2b(counter, digest_size=16).digest())
        span = 2 * settings.jitter + 1
        coin = hashlib.blake2b(counter, digest_size=1, person=b"flip").digest()[0] % 2
        return cls(down % span - settings.jitter, right % span - settings.jitter, settings.flip and coin == 1)

    def of(self, pictures: Tensor) -> Tensor:
        """`pictures` (B, C, H, W) as the network is shown them."""
        shifted = pictures.roll((self.down, self.right), (2, 3))
        return shifted.flip(3) if self.mirrored else shifted

    def back(self, pictures: Tensor) -> Tensor:
        """The inverse of `of`."""
        shifted = pictures.flip(3) if self.mirrored else pictures
        return shifted.roll((-self.down, -self.right), (2, 3))

    def targets(self, objective: Sequence[Target], size: tuple[int, int]) -> list[Target]:
        """The objective with its places where they are in this view of a picture of `size` (H, W)."""
        return [
            target.model_copy(update={"at": self._place(target.at, size)}) if target.at else target
            for target in objective
        ]

    def _place(self, at: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
        across, down = (at[0] + self.right / size[1]) % 1, (at[1] + self.down / size[0]) % 1
        return (1 - across if self.mirrored else across), down


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


def to_tensor(pixels: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """Pixels (H, W, 3) of 8 bits as a batch of one: (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1)[None].float() / 255


def to_pixels(pictures: Tensor) -> NDArray[np.uint8]:
    """The first of `pictures` (B, 3, H, W) in [0, 1] as pixels (H, W, 3) of 8 bits."""
    pixels: NDArray[np.uint8] = (pictures[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    return pixels
