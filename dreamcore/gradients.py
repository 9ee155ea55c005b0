"""Gradient filters, penalties and normalization. Each sample of a batch is processed independently."""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamcore.settings import DreamSettings

__all__ = [
    "BANDS",
    "NORMALIZERS",
    "Adam",
    "filter_gradient",
    "keras",
    "mean_abs",
    "normalize_bands",
    "normalizer",
    "penalty_gradient",
    "rms",
    "slow_near_limits",
    "smooth",
    "std",
    "tf2",
    "zero_mean_std",
]

_SAMPLE = (1, 2, 3)
"""The dimensions of one sample of a batch (B, 3, H, W)."""

BANDS = 5
"""Number of bands of the Laplacian pyramid, including the coarsest."""

_TINY = 1e-12
"""Lower bound of divisors, so that a gradient of zeros stays zero."""

_EQUAL = 1e-6
"""Neighbours that differ by less count as equal. An inverse Fourier transform gives equal neighbours different rounding
errors, whose sign would otherwise be the gradient of the total variation."""


def filter_gradient(gradient: Tensor, settings: DreamSettings, step: int) -> Tensor:
    """Apply the filter of the setting `gradient` to a gradient.

    Args:
        gradient: gradient (B, 3, H, W). The function may overwrite it.
        settings: `gradient` and `steps` are used.
        step: number of the step in its octave. The Gaussian filter becomes wider with each step.

    Returns:
        Gradient (B, 3, H, W).
    """
    match settings.gradient:
        case "laplacian":
            return normalize_bands(gradient)
        case "gaussian":
            return smooth(gradient, sigma=(step + 1) / settings.steps * 2 + 0.5)
        case "plain":
            return gradient


def penalty_gradient(images: Tensor, base: Tensor, total_variation: Tensor, l2: Tensor) -> Tensor:
    """Return the gradient of the penalties with respect to the images.

    The penalties are the total variation (the mean absolute difference of horizontal neighbours plus that of vertical
    neighbours) and the mean squared difference from the source image. The variation of equal neighbours has the
    gradient zero.

    Args:
        images: images (B, 3, H, W) in [0, 1].
        base: source images (B, 3, H, W) in [0, 1].
        total_variation: weight of the total variation (B, 1, 1, 1).
        l2: weight of the mean squared difference (B, 1, 1, 1).

    Returns:
        Gradient (B, 3, H, W).
    """
    images = images.detach().requires_grad_()
    horizontal = F.softshrink(images[..., :, 1:] - images[..., :, :-1], _EQUAL).abs().mean(_SAMPLE)
    vertical = F.softshrink(images[..., 1:, :] - images[..., :-1, :], _EQUAL).abs().mean(_SAMPLE)
    change = (images - base).square().mean(_SAMPLE)
    penalties = total_variation.flatten() * (horizontal + vertical) + l2.flatten() * change
    return torch.autograd.grad(penalties.sum(), images)[0]


def mean_abs(gradient: Tensor) -> Tensor:
    """Divide `gradient` (B, 3, H, W) by its mean absolute value: Mordvintsev, Olah and Tyka's notebook (2015)."""
    return gradient / gradient.abs().mean(_SAMPLE, keepdim=True).clamp_min(_TINY)


def std(gradient: Tensor) -> Tensor:
    """Divide `gradient` (B, 3, H, W) by its standard deviation."""
    return gradient / gradient.std(_SAMPLE, correction=0, keepdim=True).clamp_min(_TINY)


def zero_mean_std(gradient: Tensor) -> Tensor:
    """Subtract the mean of `gradient` (B, 3, H, W) and divide by its standard deviation: Gordić's pytorch-deepdream."""
    return (gradient - gradient.mean(_SAMPLE, keepdim=True)) / gradient.std(_SAMPLE, keepdim=True).clamp_min(_TINY)


def tf2(gradient: Tensor) -> Tensor:
    """Divide `gradient` (B, 3, H, W) by its standard deviation plus 2e-8: TensorFlow's DeepDream tutorial.

    The tutorial adds 1e-8 for images in [-1, 1]. In [0, 1] gradients are twice as large.
    """
    return gradient / (gradient.std(_SAMPLE, correction=0, keepdim=True) + 2e-8)


def keras(gradient: Tensor) -> Tensor:
    """Divide `gradient` (B, 3, H, W) by its mean absolute value, but at least by 2e-6: keras-io.

    keras-io uses 1e-6 for images in [-1, 1]. In [0, 1] gradients are twice as large.
    """
    return gradient / gradient.abs().mean(_SAMPLE, keepdim=True).clamp_min(2e-6)


def rms(gradient: Tensor) -> Tensor:
    """Divide `gradient` (B, 3, H, W) by its root mean square: an L2 normalization that ignores the image size."""
    return gradient / _rms(gradient)


def _rms(gradient: Tensor) -> Tensor:
    """Return the root mean square (B, 1, 1, 1) of each sample, without a temporary copy of the gradient."""
    norm: Tensor = torch.linalg.vector_norm(gradient, dim=_SAMPLE, keepdim=True)
    return norm.div(gradient[0].numel() ** 0.5).clamp_min(_TINY)


def slow_near_limits(direction: Tensor, images: Tensor, distance: float) -> Tensor:
    """Make steps towards white and towards black smaller near white and black: a shoulder and a toe, as in film.

    A step of a channel towards white is multiplied by its distance to white divided by `distance`, at most by 1; a
    step towards black by its distance to black. Steps away from the near limit stay as they are.

    Args:
        direction: normalized gradient (B, 3, H, W). The function overwrites it.
        images: images (B, 3, H, W) in [0, 1].
        distance: the setting `soft_clip`, above 0.

    Returns:
        Gradient (B, 3, H, W).

    Example:
        >>> images = torch.tensor([0.5, 0.95, 0.95]).view(1, 3, 1, 1)
        >>> direction = torch.tensor([1.0, 1.0, -1.0]).view(1, 3, 1, 1)
        >>> slow_near_limits(direction, images, 0.1).flatten()
        tensor([ 1.0000,  0.5000, -1.0000])
    """
    room = 1 - images
    torch.where(direction > 0, room, images, out=room)
    return direction.mul_(room.clamp_(0, distance).div_(distance))


class Adam:
    """The Adam update of one octave: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015).

    The update is the running mean of the gradients divided by the root of the running mean of their squares.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0
        self.steps = 0

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the update (B, 3, H, W) for the next gradient (B, 3, H, W)."""
        gradient = rms(gradient)  # so that the epsilon below has the same effect at every scale of the gradient
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
"""The normalizations without state, by the value of the setting `normalise`. Adam has state: one object per octave."""


def normalizer(method: str) -> Callable[[Tensor], Tensor]:
    """Return the function that normalizes the gradients (B, 3, H, W) of one octave.

    The normalized gradient does not depend on the scale of the network's activations.

    Args:
        method: a value of the setting `normalise`.

    Example:
        >>> gradient = torch.tensor([-3.0, 1.0]).view(1, 1, 1, 2)
        >>> normalizer("mean_abs")(gradient).flatten()
        tensor([-1.5000,  0.5000])
    """
    if method == "adam":
        return Adam()
    return NORMALIZERS[method]


def smooth(gradient: Tensor, sigma: float) -> Tensor:
    """Return the mean of three Gaussian filters of a gradient: the cascade of Gordić's pytorch-deepdream.

    Args:
        gradient: gradient (B, C, H, W).
        sigma: the kernels of 9x9 pixels have the standard deviations 0.5, 1 and 2 times `sigma`, in pixels.

    Returns:
        Gradient (B, C, H, W).
    """
    channels = gradient.shape[1]
    padded = F.pad(gradient, (4, 4, 4, 4), mode="reflect" if min(gradient.shape[-2:]) > 4 else "replicate")
    return F.conv2d(padded, _cascade(sigma, channels, gradient.device, gradient.dtype), groups=channels)


def normalize_bands(gradient: Tensor) -> Tensor:
    """Divide each band of the Laplacian pyramid of a gradient by its root mean square, and add the bands again.

    Low frequencies, which are weak in a gradient, become as strong as high ones. The pyramid is that of Burt and
    Adelson, "The Laplacian Pyramid as a Compact Image Code" (1983), with the kernel 1 4 6 4 1.

    Args:
        gradient: gradient (B, C, H, W). The function overwrites it.

    Returns:
        Gradient (B, C, H, W).

    Example:
        A broad wave with a tenth of the amplitude of the noise becomes visible:

        >>> noise = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
        >>> wave = torch.linspace(0, 6.28, 96).sin().expand(1, 3, 96, 96)
        >>> gradient = 0.1 * wave + noise
        >>> def similarity(image):
        ...     return torch.cosine_similarity(image.flatten(), wave.flatten(), dim=0).item()
        >>> similarity(gradient) < 0.1 < 0.4 < similarity(normalize_bands(gradient.clone()))
        True
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


def _shrink(image: Tensor) -> Tensor:
    """Smooth `image` (B, C, H, W) with the kernel 1 4 6 4 1 and return every second row and column.

    This function and `_enlarge` add slices, because a convolution of three channels uses memory for sixteen.
    """
    for dimension in (2, 3):
        padded = F.pad(image, (0, 0, 2, 2) if dimension == 2 else (2, 2, 0, 0), mode="reflect")
        count = (image.shape[dimension] + 1) // 2
        taps = [_every_other(padded, dimension, at).narrow(dimension, 0, count) for at in range(5)]
        image = (taps[0] + taps[4]).add_(taps[1], alpha=4).add_(taps[3], alpha=4).add_(taps[2], alpha=6).div_(16)
    return image


def _enlarge(image: Tensor, like: Tensor) -> Tensor:
    """Return `image` (B, C, h, w) at twice the size, interpolated with the kernel 1 4 6 4 1, in the shape of `like`."""
    for dimension in (2, 3):
        count, length = image.shape[dimension], like.shape[dimension]
        shape = list(image.shape)
        shape[dimension] = length
        larger = image.new_empty(shape)
        even, odd = _every_other(larger, dimension, 0), _every_other(larger, dimension, 1)
        torch.mul(image, 6 / 8, out=even)
        even.narrow(dimension, 1, count - 1).add_(image.narrow(dimension, 0, count - 1), alpha=1 / 8)
        even.narrow(dimension, 0, count - 1).add_(image.narrow(dimension, 1, count - 1), alpha=1 / 8)
        torch.mul(image.narrow(dimension, 0, odd.shape[dimension]), 1 / 2, out=odd)
        odd.narrow(dimension, 0, count - 1).add_(image.narrow(dimension, 1, count - 1), alpha=1 / 2)
        image = larger
    return image


def _every_other(image: Tensor, dimension: int, first: int) -> Tensor:
    """Return every second row (dimension 2) or column (dimension 3) from `first`, as a view of `image`."""
    return image[:, :, first::2] if dimension == 2 else image[..., first::2]


@lru_cache
def _cascade(sigma: float, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the mean of three Gaussian kernels for each channel: (channels, 1, 9, 9), each with the sum 1."""
    reach = torch.arange(-4, 5, device=device, dtype=dtype)
    lines = [torch.exp(-(reach**2) / (2 * (sigma * scale) ** 2)) for scale in (0.5, 1.0, 2.0)]
    kernel = torch.stack([torch.outer(line, line) / line.sum() ** 2 for line in lines]).mean(0)
    return kernel.expand(channels, 1, 9, 9).contiguous()
