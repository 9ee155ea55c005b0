"""Random transforms of the images before each step: shifts with rotations and changes of scale, or crops.

Only features that survive the transforms grow, and patterns of single pixels do not survive them. The setting
`transforms` chooses the kind; `shift` is in `views.py`.
"""

import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamcore.octaves import Size
from dreamcore.settings import DreamSettings
from dreamcore.tiles import Tile, pixel
from dreamcore.views import Views, to_device

__all__ = ["Transform", "Transforms", "choose_views", "view_size"]

_PADDING = 12
"""Lucid pads each side of the image with this many gray pixels."""
_FIRST_JITTER, _SECOND_JITTER = 8, 4
"""Lucid crops an image by this many pixels at a random offset: by the first number before the change of scale and the
rotation, and by the second after them."""
_SCALES = [1 + (number - 5) / 50 for number in range(11)]
_ANGLES = [*range(-10, 11), *[0] * 5]
"""In degrees. As in lucid, the angle 0 is more frequent."""
_SMALLEST_CROP, _LARGEST_CROP = 0.25, 0.99
"""Sides of a crop, as shares of the sides of the image. Hamblin et al. average sixteen crops in each step, the smallest
with 0.05 of the sides. With one crop in each step, such small crops leave specks."""


def view_size(size: Size, settings: DreamSettings) -> Size:
    """Return the size (H, W) of the views of images of `size` (H, W). The setting `transforms` is used."""
    if settings.transforms != "lucid":
        return size
    larger = 2 * _PADDING - _FIRST_JITTER - _SECOND_JITTER
    return size[0] + larger, size[1] + larger


def choose_views(
    settings: Sequence[DreamSettings], octave: int, step: int, size: Size, *, random_tile_offset: bool
) -> "Views | Transforms":
    """Return the views of the samples of a batch in one step. Their setting `transforms` is the same.

    The arguments are those of `Views.choose`.
    """
    if settings[0].transforms == "shift":
        return Views.choose(settings, octave, step, size, random_tile_offset=random_tile_offset)
    each = tuple(Transform.choose(one, octave, step, size) for one in settings)
    return Transforms(each, size, view_size(size, settings[0]))


@dataclass(frozen=True)
class Transform:
    """A map from positions in a view to positions in its image. Positions are pixels from the centre, (x, y).

    Example:
        >>> Transform(scale=2, degrees=90, before=(5, 0)).source((0, 10))
        (0.0, 0.0)
    """

    scale: float
    """Size of a detail in the view over its size in the image."""
    degrees: float = 0.0
    """Rotation of the view against the image, clockwise."""
    before: tuple[float, float] = (0.0, 0.0)
    """Shift (x, y) before the change of scale and the rotation, in pixels."""
    after: tuple[float, float] = (0.0, 0.0)
    """Shift (x, y) after the change of scale and the rotation, in pixels."""
    mirrored: bool = False
    """Whether left and right of the view are exchanged at the end."""

    @classmethod
    def choose(cls, settings: DreamSettings, octave: int, step: int, size: Size) -> "Transform":
        """Return the transform of one step. It depends on the arguments alone.

        With `transforms` at `lucid`: pad 12, jitter 8, change of scale by up to 10 %, rotation by up to 10 degrees,
        jitter 4. With `crops`: a random crop, enlarged to the size of the image, similar to Hamblin et al., "Feature
        Accentuation" (2024).

        Args:
            settings: `seed`, `transforms` and `flip` are used.
            octave: number of the octave; the coarsest is 0.
            step: number of the step in its octave.
            size: size (H, W) of the images.
        """
        counter = struct.pack(">QII", settings.seed, octave, step)
        random = struct.unpack(">7Q", hashlib.blake2b(counter, digest_size=56, person=b"transforms").digest())
        mirrored = settings.flip and random[6] % 2 == 1
        if settings.transforms == "crops":
            side, down, right = (number / 2**64 for number in random[:3])
            side = _SMALLEST_CROP + side * (_LARGEST_CROP - _SMALLEST_CROP)
            centre = (right - 0.5) * (1 - side) * size[1], (down - 0.5) * (1 - side) * size[0]
            return cls(1 / side, before=(-centre[0], -centre[1]), mirrored=mirrored)
        down, right = (number % (_FIRST_JITTER + 1) - _FIRST_JITTER // 2 for number in random[:2])
        then_down, then_right = (number % (_SECOND_JITTER + 1) - _SECOND_JITTER // 2 for number in random[2:4])
        scale, angle = _SCALES[random[4] % len(_SCALES)], _ANGLES[random[5] % len(_ANGLES)]
        return cls(scale, angle, (right, down), (then_right, then_down), mirrored)

    def source(self, at: tuple[float, float]) -> tuple[float, float]:
        """Return the position in the image of the position `at` in the view."""
        x, y = (-at[0] if self.mirrored else at[0]) - self.after[0], at[1] - self.after[1]
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        return (
            round((cos * x + sin * y) / self.scale - self.before[0], 9),
            round((cos * y - sin * x) / self.scale - self.before[1], 9),
        )

    def target(self, at: tuple[float, float]) -> tuple[float, float]:
        """Return the position in the view of the position `at` in the image: the inverse of `source`."""
        x, y = (at[0] + self.before[0]) * self.scale, (at[1] + self.before[1]) * self.scale
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        x, y = cos * x - sin * y + self.after[0], sin * x + cos * y + self.after[1]
        return -x if self.mirrored else x, y


@dataclass(frozen=True)
class Transforms:
    """The transforms of all samples of a batch in one step. Beyond its edges an image is gray."""

    each: tuple[Transform, ...]
    """One transform per sample."""
    image_size: Size
    """Size (H, W) of the images."""
    size: Size
    """Size (H, W) of the views."""

    def apply(self, images: Tensor) -> Tensor:
        """Return `images` (B, C, H, W), each in its view, (B, C, *size), with bilinear interpolation."""
        return self._sample(images - 0.5) + 0.5

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient (B, C, H, W) with respect to the images from that with respect to the views."""
        images = gradient.new_zeros(*gradient.shape[:2], *self.image_size).requires_grad_()
        pulled_back: Tensor = torch.autograd.grad(self._sample(images), images, gradient)[0]
        return pulled_back

    def locator(self, tile: Tile) -> Callable[[int, tuple[float, float]], tuple[float, float] | None]:
        """Return a function of (sample, position in its image) that gives the position in `tile` of the sample's view.

        The function returns None if the position is outside the tile. Positions are (x, y), from 0 to 1.
        """
        (height, width), (view_height, view_width) = self.image_size, self.size

        def locate(sample: int, at: tuple[float, float]) -> tuple[float, float] | None:
            centred = pixel(at[0], width) - width / 2, pixel(at[1], height) - height / 2
            x, y = self.each[sample].target(centred)
            x, y = x / view_width + 0.5, y / view_height + 0.5
            return tile.locate((x, y), self.size) if 0 <= x < 1 and 0 <= y < 1 else None

        return locate

    def _sample(self, images: Tensor) -> Tensor:
        """Return the views (B, C, *size) of `images` (B, C, H, W), with 0 beyond the edges."""
        matrices = torch.tensor([self._matrix(transform) for transform in self.each], dtype=images.dtype)
        matrices = to_device(matrices, images.device)
        grid = F.affine_grid(matrices, [len(images), images.shape[1], *self.size], align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)

    def _matrix(self, transform: Transform) -> list[list[float]]:
        """Return `Transform.source` as a matrix (2, 3) for positions in [-1, 1], as torch takes them."""
        (height, width), (view_height, view_width) = self.image_size, self.size
        origin = transform.source((0, 0))
        right, down = transform.source((view_width / 2, 0)), transform.source((0, view_height / 2))
        return [
            [(axis[at] - origin[at]) / half for axis in (right, down)] + [origin[at] / half]
            for at, half in ((0, width / 2), (1, height / 2))
        ]
