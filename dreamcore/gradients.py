"""What is done to the gradient before the picture follows it. Each sample of a batch is treated for itself."""

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

BANDS = 5
"""Bands of the Laplacian pyramid, the coarsest included."""

TINY = 1e-12
"""Keeps a gradient of zeros at zero."""


def normalise(gradient: Tensor, how: Literal["laplacian", "mean_abs"]) -> Tensor:
    """Give `gradient` (B, 3, H, W) a mean absolute value of 1 a sample, its bands evened out first if asked.

    `mean_abs` is the normalisation of Mordvintsev, Olah and Tyka's notebook (2015), `laplacian` puts that of their
    TensorFlow notebook (2016) before it.
    """
    if how == "laplacian":
        gradient = even_bands(gradient)
    return gradient / gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(TINY)


def even_bands(gradient: Tensor) -> Tensor:
    """Divide each band of the Laplacian pyramid of `gradient` (B, C, H, W) by its RMS and put them together again.

    Burt and Adelson's pyramid (1983) with the kernel 1 4 6 4 1. High frequencies no longer drown the low ones.
    """
    bands: list[Tensor] = []
    coarse = gradient
    while len(bands) < BANDS - 1 and min(coarse.shape[-2:]) >= 4:
        finer, coarse = coarse, _shrink(coarse)
        bands.append(finer - _enlarge(coarse, finer))
    result = _over_rms(coarse)
    for band in reversed(bands):
        result = _over_rms(band) + _enlarge(result, band)
    return result


def _over_rms(band: Tensor) -> Tensor:
    return band / band.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(TINY)


def _shrink(picture: Tensor) -> Tensor:
    """Half the size, smoothed first."""
    channels = picture.shape[1]
    padded = F.pad(picture, (2, 2, 2, 2), mode="reflect")
    return F.conv2d(padded, _kernel(channels, picture.device, picture.dtype), stride=2, groups=channels)


def _enlarge(picture: Tensor, like: Tensor) -> Tensor:
    """Twice the size, exactly that of `like`."""
    channels = picture.shape[1]
    kernel = 4 * _kernel(channels, picture.device, picture.dtype)
    odd_or_even = [(side - 1) % 2 for side in like.shape[-2:]]
    return F.conv_transpose2d(picture, kernel, stride=2, padding=2, output_padding=odd_or_even, groups=channels)


@lru_cache
def _kernel(channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The binomial kernel of five taps, for each channel: (channels, 1, 5, 5), with the sum 1."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=device, dtype=dtype) / 16
    return torch.outer(taps, taps).expand(channels, 1, 5, 5).contiguous()
