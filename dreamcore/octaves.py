"""Octaves: their sizes, the images at each size, and the start of an octave from the one before it."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamcore.errors import ImageError
from dreamcore.settings import DreamSettings

__all__ = [
    "MIN_OCTAVE",
    "Size",
    "carry",
    "enlarged",
    "images_at",
    "larger_sizes",
    "mask_at",
    "octave_sizes",
    "resize",
]

MIN_OCTAVE = 32
"""Least side of an octave in pixels. Smaller octaves contain too little context for a network and are skipped."""

_MAX_GPU_SHRINK = 32
"""Largest antialiased reduction on a GPU. From a factor of about 47, torch's kernel lacks memory for its weights."""

_ALL_OCTAVES = 32
"""More octaves than an image has: the octaves are those of the enlarged image, whatever `octaves` says."""

Size = tuple[int, int]
"""Height and width in pixels."""


def octave_sizes(size: Size, settings: DreamSettings, min_size: int = 1) -> list[Size]:
    """Return the size of each octave, the coarsest first.

    Octaves with a side below `MIN_OCTAVE` or `min_size` are skipped. The octave at the size of the image is kept.

    Args:
        size: size (H, W) of the image.
        settings: `octaves`, `octave_scale`, `octaves_above`, `rounding` and `resample` are used.
        min_size: smallest side that the network accepts, in pixels.

    Raises:
        ImageError: `too_small`: the image is smaller than the network accepts.

    Example:
        >>> octave_sizes((200, 300), DreamSettings(octaves=3, octave_scale=2))
        [(50, 75), (100, 150), (200, 300)]
        >>> octave_sizes((100, 150), DreamSettings(octaves=3, octave_scale=2))
        [(50, 75), (100, 150)]
    """
    if min(size) < min_size:
        raise ImageError("too_small", f"{size[1]}x{size[0]} pixels: the network needs {min_size} on each side")
    least = max(min_size, MIN_OCTAVE)
    return [each for each in _all_sizes(size, settings) if each == size or min(each) >= least]


def larger_sizes(full: Size, dream: Size, settings: DreamSettings, min_size: int = 1) -> list[Size]:
    """Return the size of the dream, and then that of each octave larger than the dream, the coarsest first.

    An octave that is hardly larger than the dream is left out: the dream has that octave already.

    Args:
        full: size (H, W) of the enlarged image.
        dream: size (H, W) of the dream.
        settings: those of the ascent; `octaves` is not used.
        min_size: smallest side that the network accepts, in pixels.

    Raises:
        ImageError: `too_small`: the image is smaller than the network accepts.

    Example:
        >>> larger_sizes((400, 600), (100, 150), DreamSettings(octave_scale=1.4))
        [(100, 150), (146, 219), (204, 306), (286, 429), (400, 600)]
    """
    if full == dream:
        return [full]
    sizes = octave_sizes(full, settings.model_copy(update={"octaves": _ALL_OCTAVES}), min_size)
    least = math.sqrt(settings.octave_scale) * math.sqrt(dream[0] * dream[1])
    return [dream, *(size for size in sizes if size == full or math.sqrt(size[0] * size[1]) >= least)]


def _all_sizes(size: Size, settings: DreamSettings) -> list[Size]:
    whole = round if settings.rounding == "nearest" else int
    levels = range(settings.octaves_above + 1 - settings.octaves, settings.octaves_above + 1)
    if settings.resample != "zoom":
        return [
            (whole(size[0] * settings.octave_scale**level), whole(size[1] * settings.octave_scale**level))
            for level in levels
        ]
    sizes = [size]
    for _ in levels[1:]:
        height, width = sizes[0]
        sizes.insert(0, (whole(height / settings.octave_scale), whole(width / settings.octave_scale)))
    return sizes


def images_at(images: Tensor, sizes: Sequence[Size], octave: int, settings: DreamSettings) -> Tensor:
    """Return the source images at the size of an octave.

    Args:
        images: source images (B, 3, H, W).
        sizes: the sizes of all octaves.
        octave: number of the octave; the coarsest is 0.
        settings: `resample` is used.

    Returns:
        Images (B, 3, *sizes[octave]).
    """
    if settings.resample == "zoom":  # each octave is computed from the next larger one
        for size in reversed(sizes[octave:]):
            images = resize(images, size, "zoom")
        return images
    return resize(images, sizes[octave], settings.resample)


def mask_at(masks: Sequence[Tensor | None], size: Size, like: Tensor) -> Tensor | None:
    """Return the masks of a batch at the size of an octave.

    Args:
        masks: the mask (1, H, W) in [0, 1] of each sample. None means that the whole image may change.
        size: size (H, W) of the octave.
        like: a tensor of the device and dtype to return.

    Returns:
        Masks (B, 1, *size) in [0, 1], or None if no sample has a mask.
    """
    if not any(mask is not None for mask in masks):
        return None
    ones = like.new_ones(1, 1, *size)
    resized = [ones if mask is None else resize(mask.to(like)[None], size, "bilinear") for mask in masks]
    return torch.cat(resized).clamp(0, 1)


def carry(dreams: Tensor, previous: Tensor, base: Tensor, mask: Tensor | None, settings: DreamSettings) -> Tensor:
    """Return the images with which an octave starts, from the dreams of the octave before it.

    Args:
        dreams: dreams (B, 3, h, w) of the previous octave.
        previous: source images (B, 3, h, w) at the size of the previous octave.
        base: source images (B, 3, H, W) at the size of this octave.
        mask: masks (B, 1, H, W). Where a mask is 0 the result equals `base`.
        settings: with `carry` at `detail`, the change made so far is resized and added to `base`, which keeps the
            detail of the source. With `result`, the dreams are resized. With `result_8bit`, they are rounded to 8 bits
            first.

    Returns:
        Images (B, 3, H, W).
    """
    size = (base.shape[-2], base.shape[-1])
    if settings.carry == "detail":
        start = base + resize(dreams - previous, size, settings.resample)
    else:
        rounded = (dreams * 255).round() / 255 if settings.carry == "result_8bit" else dreams
        start = resize(rounded, size, settings.resample)
    return start if mask is None else torch.where(mask > 0, start, base)


def enlarged(dreams: Tensor, images: Tensor, masks: Sequence[Tensor | None], settings: DreamSettings) -> Tensor:
    """Return images with the resized detail of their dreams, and nothing new.

    Args:
        dreams: dreams (B, 3, h, w).
        images: the photographs (B, 3, H, W).
        masks: the mask (1, H, W) of each sample, or None. Where a mask is 0 the result is the photograph.
        settings: those of the ascent.
    """
    small, large = ((each.shape[-2], each.shape[-1]) for each in (dreams, images))
    base = resize(images, small, settings.resample)
    return carry(dreams, base, images, mask_at(masks, large, images), settings).clamp_(0, 1)


def resize(images: Tensor, size: Size, method: str = "bicubic") -> Tensor:
    """Resize images.

    Args:
        images: images (B, C, H, W).
        size: new size (H, W).
        method: `bicubic` is antialiased when it makes the image smaller. `bilinear` is not, as in TensorFlow and
            OpenCV. `zoom` is linear and keeps the centres of the corner pixels in place, as in SciPy.

    Returns:
        Images (B, C, *size).

    Example:
        >>> resize(torch.zeros(1, 3, 48, 64), (24, 32)).shape
        torch.Size([1, 3, 24, 32])
    """
    if images.shape[-2:] == size:
        return images
    match method:
        case "bicubic":
            height, width = images.shape[-2:]
            if images.is_cuda and (_MAX_GPU_SHRINK * size[0] < height or _MAX_GPU_SHRINK * size[1] < width):
                return resize(images.cpu(), size, method).to(images.device)
            shrinking = size[0] < height or size[1] < width
            return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=shrinking)
        case "bilinear":
            return F.interpolate(images, size, mode="bilinear", align_corners=False)
        case _:
            return F.interpolate(images, size, mode="bilinear", align_corners=True)
