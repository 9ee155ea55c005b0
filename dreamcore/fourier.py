"""Images as decorrelated Fourier spectra: the parametrisation of feature visualization.

The image of a spectrum is sigmoid(M · irfft2(spectrum · scale)), where M is `color_correlation`. The scale is large for
low frequencies, as in photographs. So a step of equal length for all frequencies gives large shapes and little noise.
The method is that of Olah, Mordvintsev and Schubert, "Feature Visualization", Distill (2017), with the constants of
lucid, `optvis/param/spatial.py`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dreamcore.color_correlation import correlate_colors, decorrelate_colors

__all__ = ["Spectrum", "frequency_scale", "from_spectrum", "to_spectrum"]

_CONTRAST = 4
"""Lucid divides the values before the sigmoid by this."""

_MARGIN = 1 / 1024
"""`to_spectrum` moves values to at least this distance from 0 and 1: a quarter of an 8-bit step."""


def frequency_scale(size: tuple[int, int], like: Tensor) -> Tensor:
    """Return the scale of each frequency of an image of `size` (H, W): (H, W // 2 + 1).

    The scale is √(H · W) / f, where f is the frequency in cycles per pixel, but at least one cycle per longer side.

    Args:
        size: height and width of the image in pixels.
        like: a tensor of the device and dtype to return.
    """
    height, width = size
    down = torch.fft.fftfreq(height, device=like.device, dtype=like.dtype)[:, None]
    right = torch.fft.rfftfreq(width, device=like.device, dtype=like.dtype)
    frequency = (down.square() + right.square()).sqrt().clamp_min(1 / max(size))
    scale: Tensor = math.sqrt(height * width) / frequency
    return scale


def from_spectrum(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the images of spectra. The function is differentiable.

    Args:
        spectrum: (B, 3, H, 2 * (W // 2 + 1)). Along the last dimension, real and imaginary parts alternate.
        size: height and width of the images in pixels.

    Returns:
        Images (B, 3, H, W) in (0, 1).

    Example:
        >>> from_spectrum(torch.zeros(1, 3, 4, 6), (4, 5))[0, :, 0, 0]
        tensor([0.5000, 0.5000, 0.5000])
    """
    waves = torch.view_as_complex(spectrum.reshape(*spectrum.shape[:-1], -1, 2)) * frequency_scale(size, spectrum)
    return correlate_colors(torch.fft.irfft2(waves, s=size) / _CONTRAST).sigmoid()


def to_spectrum(images: Tensor) -> Tensor:
    """Return the spectra (B, 3, H, 2 * (W // 2 + 1)) of `images` (B, 3, H, W): the inverse of `from_spectrum`.

    Values outside (0, 1) are moved inside, by at most a quarter of an 8-bit step for values in [0, 1].

    Example:
        >>> images = torch.rand(1, 3, 8, 9, generator=torch.Generator().manual_seed(0))
        >>> (from_spectrum(to_spectrum(images), (8, 9)) - images).abs().max() < 1 / 1000
        tensor(True)
    """
    size = images.shape[-2], images.shape[-1]
    waves = torch.fft.rfft2(decorrelate_colors(images.clamp(_MARGIN, 1 - _MARGIN).logit()) * _CONTRAST)
    return torch.view_as_real(waves / frequency_scale(size, images)).flatten(-2)


class Spectrum:
    """A canvas (see `Canvas`) whose steps change the spectra of the images.

    Args:
        start: images (B, 3, H, W) with which the octave starts.
        normalize: normalizes the gradients (B, 3, H, 2 * (W // 2 + 1)) of the octave with respect to the spectra.
        step_size: the mean change (B, 1, 1, 1) of a coefficient of the spectrum per step.
        base: source images (B, 3, H, W), for the areas that the mask keeps.
        mask: masks (B, 1, H, W). Where a mask is 0 the image equals `base`.
    """

    def __init__(
        self,
        start: Tensor,
        normalize: Callable[[Tensor], Tensor],
        step_size: Tensor,
        base: Tensor,
        mask: Tensor | None,
    ) -> None:
        self._spectrum, self._normalize, self._step_size = to_spectrum(start), normalize, step_size
        self._base, self._mask = base, mask

    def image(self) -> Tensor:
        """Return the images (B, 3, H, W) in [0, 1]."""
        return self._image(self._spectrum)

    def step(self, gradient: Tensor, active: Tensor) -> None:
        """Add the normalized gradient with respect to the spectra, times the step size."""
        spectrum = self._spectrum.requires_grad_()
        direction = self._normalize(torch.autograd.grad(self._image(spectrum), spectrum, gradient)[0])
        self._spectrum = spectrum.detach() + direction * (self._step_size * active)

    def _image(self, spectrum: Tensor) -> Tensor:
        images = from_spectrum(spectrum, (self._base.shape[-2], self._base.shape[-1]))
        return images if self._mask is None else self._base + self._mask * (images - self._base)
