"""What is done to the gradient before the picture follows it. Each sample of a batch is treated for itself."""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamcore.settings import DreamSettings

SAMPLE = (1, 2, 3)
"""The dimensions of one sample of a batch."""

BANDS = 5
"""Bands of the Laplacian pyramid, the coarsest included."""

TINY = 1e-12
"""Keeps a gradient of zeros at zero."""


def filter_gradient(gradient: Tensor, settings: DreamSettings, step: int) -> Tensor:
    """Even out or smooth `gradient` (B, 3, H, W) as the settings say for a step of an octave; it is written over."""
    match settings.gradient:
        case "laplacian":
            return normalize_bands(gradient)
        case "gaussian":
            return smooth(gradient, sigma=(step + 1) / settings.steps * 2 + 0.5)
        case "plain":
            return gradient


def penalty_gradient(pictures: Tensor, undreamt: Tensor, total_variation: Tensor, l2: Tensor) -> Tensor:
    """Gradient (B, 3, H, W) of what is held against `pictures`, which were dreamt from `undreamt` of that shape.

    That is the total variation, the mean difference of neighbours across and down, and the mean squared change, each
    with a weight (B, 1, 1, 1) for each sample.
    """
    seen = pictures.detach().requires_grad_()
    across = (seen[..., :, 1:] - seen[..., :, :-1]).abs().mean(SAMPLE)
    down = (seen[..., 1:, :] - seen[..., :-1, :]).abs().mean(SAMPLE)
    change = (seen - undreamt).square().mean(SAMPLE)
    penalties = total_variation.flatten() * (across + down) + l2.flatten() * change
    return torch.autograd.grad(penalties.sum(), seen)[0]


def mean_abs(gradient: Tensor) -> Tensor:
    """Over its mean absolute value: Mordvintsev, Olah and Tyka's notebook (2015)."""
    return gradient / gradient.abs().mean(SAMPLE, keepdim=True).clamp_min(TINY)


def std(gradient: Tensor) -> Tensor:
    """Over its standard deviation."""
    return gradient / gradient.std(SAMPLE, correction=0, keepdim=True).clamp_min(TINY)


def zero_mean_std(gradient: Tensor) -> Tensor:
    """Less its mean, over its standard deviation: Gordic's pytorch-deepdream."""
    return (gradient - gradient.mean(SAMPLE, keepdim=True)) / gradient.std(SAMPLE, keepdim=True).clamp_min(TINY)


def tf2(gradient: Tensor) -> Tensor:
    """Over its standard deviation and 1e-8 in the tutorial's units, in which a picture goes from -1 to 1."""
    return gradient / (gradient.std(SAMPLE, correction=0, keepdim=True) + 2e-8)


def keras(gradient: Tensor) -> Tensor:
    """Over its mean absolute value, or 1e-6 where that is less, for pictures that go from -1 to 1: keras-io."""
    return gradient / gradient.abs().mean(SAMPLE, keepdim=True).clamp_min(2e-6)


def rms(gradient: Tensor) -> Tensor:
    """Over its root mean square, which is its L2 norm for a picture of any size."""
    return gradient / _rms(gradient)


def _rms(gradient: Tensor) -> Tensor:
    """The root mean square (B, 1, 1, 1) of each sample, without a copy of it."""
    norm: Tensor = torch.linalg.vector_norm(gradient, dim=SAMPLE, keepdim=True)
    return norm.div(gradient[0].numel() ** 0.5).clamp_min(TINY)


class Adam:
    """Kingma and Ba's step (2015) for one octave: the running mean over the root of the running mean square."""

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0
        self.steps = 0

    def __call__(self, gradient: Tensor) -> Tensor:
        """The step for the next gradient (B, 3, H, W)."""
        gradient = rms(gradient)  # Adam does not depend on the gradient's scale, but its epsilon does
        self.steps += 1
        self.mean = self.beta1 * self.mean + (1 - self.beta1) * gradient
        self.square = self.beta2 * self.square + (1 - self.beta2) * gradient.square()
        mean = self.mean / (1 - self.beta1**self.steps)
        square = self.square / (1 - self.beta2**self.steps)
        return mean / (square.sqrt() + 1e-8)


NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean_abs": mean_abs,
    "std": std,
    "zero_mean_std": zero_mean_std,
    "rms": rms,
    "tf2": tf2,
    "keras": keras,
}
"""What divides a gradient by a size of its own; Adam, which remembers, is made anew for each octave."""


def normalizer(how: str) -> Callable[[Tensor], Tensor]:
    """What gives the gradients (B, 3, H, W) of one octave a size that does not depend on the network, a sample each."""
    if how == "adam":
        return Adam()
    return NORMALIZERS[how]


def smooth(gradient: Tensor, sigma: float) -> Tensor:
    """Mean of `gradient` (B, C, H, W) under three Gaussians of 9x9 with sigma times 0.5, 1 and 2: Gordic's cascade."""
    channels = gradient.shape[1]
    padded = F.pad(gradient, (4, 4, 4, 4), mode="reflect" if min(gradient.shape[-2:]) > 4 else "replicate")
    return F.conv2d(padded, _cascade(sigma, channels, gradient.device, gradient.dtype), groups=channels)


def normalize_bands(gradient: Tensor) -> Tensor:
    """Divide each band of the Laplacian pyramid of `gradient` (B, C, H, W) by its RMS and put them together again.

    Burt and Adelson's pyramid (1983) with the kernel 1 4 6 4 1. High frequencies no longer drown the low ones. What is
    in `gradient` is written over.
    """
    bands = [gradient]
    while len(bands) < BANDS and min(bands[-1].shape[-2:]) >= 4:
        bands.append(_shrink(bands[-1]))
        bands[-2].sub_(_enlarge(bands[-1], bands[-2]))
    result = rms(bands.pop())
    while bands:
        band = bands.pop()
        result = band.div_(_rms(band)).add_(_enlarge(result, band))
    return result


def _shrink(picture: Tensor) -> Tensor:
    """Half the size, smoothed first.

    Sums of slices, here and in `_enlarge`: convolutions of three channels take memory for sixteen.
    """
    for dimension in (2, 3):
        padded = F.pad(picture, (0, 0, 2, 2) if dimension == 2 else (2, 2, 0, 0), mode="reflect")
        count = (picture.shape[dimension] + 1) // 2
        taps = [_every_second(padded, dimension, at).narrow(dimension, 0, count) for at in range(5)]
        picture = (taps[0] + taps[4]).add_(taps[1], alpha=4).add_(taps[3], alpha=4).add_(taps[2], alpha=6).div_(16)
    return picture


def _enlarge(picture: Tensor, like: Tensor) -> Tensor:
    """Twice the size, exactly that of `like`."""
    for dimension in (2, 3):
        count, length = picture.shape[dimension], like.shape[dimension]
        shape = list(picture.shape)
        shape[dimension] = length
        larger = picture.new_empty(shape)
        even, odd = _every_second(larger, dimension, 0), _every_second(larger, dimension, 1)
        torch.mul(picture, 6 / 8, out=even)
        even.narrow(dimension, 1, count - 1).add_(picture.narrow(dimension, 0, count - 1), alpha=1 / 8)
        even.narrow(dimension, 0, count - 1).add_(picture.narrow(dimension, 1, count - 1), alpha=1 / 8)
        between = odd.shape[dimension]
        torch.mul(picture.narrow(dimension, 0, between), 1 / 2, out=odd)
        odd.narrow(dimension, 0, count - 1).add_(picture.narrow(dimension, 1, count - 1), alpha=1 / 2)
        picture = larger
    return picture


def _every_second(picture: Tensor, dimension: int, first: int) -> Tensor:
    """Rows or columns of `picture`, as a view of it."""
    return picture[:, :, first::2] if dimension == 2 else picture[..., first::2]


@lru_cache
def _cascade(sigma: float, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Mean of three Gaussians, for each channel: (channels, 1, 9, 9), with the sum 1."""
    reach = torch.arange(-4, 5, device=device, dtype=dtype)
    lines = [torch.exp(-(reach**2) / (2 * (sigma * scale) ** 2)) for scale in (0.5, 1.0, 2.0)]
    kernel = torch.stack([torch.outer(line, line) / line.sum() ** 2 for line in lines]).mean(0)
    return kernel.expand(channels, 1, 9, 9).contiguous()
