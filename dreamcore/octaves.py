"""Octaves: their sizes, the pictures at these sizes, and what goes from one to the next."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamcore.errors import ImageError
from dreamcore.settings import DreamSettings

MIN_OCTAVE = 32
"""Side in pixels below which an octave shows the network too little to be worth its steps."""

SHRUNK = 32
"""How many times a GPU shrinks smoothly at once; from about 47 times on torch finds no room for the weights there."""

Size = tuple[int, int]
"""Height and width in pixels."""


def octave_sizes(size: Size, settings: DreamSettings, min_size: int = 1) -> list[Size]:
    """The size of each octave, the coarsest first, of a picture of `size`.

    Octaves with a side below `MIN_OCTAVE` or the network's least size are left out, though never the picture's own.

    Raises:
        ImageError: `too_small`: the picture itself is below the network's least size.
    """
    if min(size) < min_size:
        raise ImageError("too_small", f"{size[1]}x{size[0]} pixels: the network needs {min_size} on each side")
    least = max(min_size, MIN_OCTAVE)
    return [each for each in _all_sizes(size, settings) if each == size or min(each) >= least]


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


def images_at(pictures: Tensor, sizes: Sequence[Size], octave: int, settings: DreamSettings) -> Tensor:
    """The undreamt pictures (B, 3, *sizes[octave]) of an octave."""
    if settings.resample == "zoom":  # each from the next larger one
        for size in reversed(sizes[octave:]):
            pictures = resize(pictures, size, "zoom")
        return pictures
    return resize(pictures, sizes[octave], settings.resample)


def mask_at(masks: Sequence[Tensor | None], size: Size, like: Tensor) -> Tensor | None:
    """The masks (B, 1, H, W) of a batch at the size of an octave; all of it is dreamt where a sample has none."""
    if not any(mask is not None for mask in masks):
        return None
    everything = like.new_ones(1, 1, *size)
    resized = [everything if mask is None else resize(mask.to(like)[None], size, "bilinear") for mask in masks]
    return torch.cat(resized).clamp(0, 1)


def carry(dreams: Tensor, last: Tensor, base: Tensor, mask: Tensor | None, settings: DreamSettings) -> Tensor:
    """Begin an octave with what the one before it dreamt.

    Args:
        dreams: the dreams of the octave before.
        last: the pictures at the size of the octave before.
        base: the pictures at the size of this one.
        mask: where nothing may change at this size: where it is 0.
        settings: `carry` says what goes on: `detail`, what was dreamt, added to the pictures with all the detail that
            this size has of them; or `result`, the dreams as they are, resized, or rounded to 8 bits before.
    """
    size = (base.shape[-2], base.shape[-1])
    if settings.carry == "detail":
        start = base + resize(dreams - last, size, settings.resample)
    else:
        rounded = (dreams * 255).round() / 255 if settings.carry == "result_8bit" else dreams
        start = resize(rounded, size, settings.resample)
    return start if mask is None else torch.where(mask > 0, start, base)


def resize(pictures: Tensor, size: Size, how: str = "bicubic") -> Tensor:
    """Resize (B, C, H, W) to (B, C, *size).

    `bicubic` is smoothed against aliasing when shrinking; `bilinear` is not, as in TensorFlow and OpenCV; `zoom` is
    linear between corners that stay where they are, as in SciPy.
    """
    if pictures.shape[-2:] == size:
        return pictures
    match how:
        case "bicubic":
            shrinking = size[0] < pictures.shape[-2] or size[1] < pictures.shape[-1]
            if pictures.is_cuda and (SHRUNK * size[0] < pictures.shape[-2] or SHRUNK * size[1] < pictures.shape[-1]):
                return resize(pictures.cpu(), size, how).to(pictures.device)
            return F.interpolate(pictures, size, mode="bicubic", align_corners=False, antialias=shrinking)
        case "bilinear":
            return F.interpolate(pictures, size, mode="bilinear", align_corners=False)
        case _:
            return F.interpolate(pictures, size, mode="bilinear", align_corners=True)
