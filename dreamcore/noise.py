"""Noise to dream from, instead of a photograph.

The noise is gray on average. Its spectrum falls with the frequency and its colors are correlated, both as in
photographs. So it has some contrast in every octave, in contrast to white noise, which vanishes in small octaves. Lucid
begins with noise of this kind: Olah, Mordvintsev and Schubert, "Feature Visualization", Distill (2017).
"""

import torch
from PIL import Image

from dreamcore.errors import InvalidInput
from dreamcore.fourier import from_spectrum
from dreamcore.images import MAX_SOURCE_PIXELS

__all__ = ["noise_image"]

_DEVIATION = 0.05
"""Standard deviation of a coefficient of the spectrum. The pixels then have one of about 6 of 255 levels."""


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image of noise. It depends on its size and the seed alone.

    Args:
        width: width in pixels.
        height: height in pixels.
        seed: random seed, at least 0 and below 2**63.

    Raises:
        InvalidInput: a side is not positive, the image has too many pixels, or the seed is out of range.

    Example:
        >>> image = noise_image(64, 48, seed=7)
        >>> image.size, image.mode
        ((64, 48), 'RGB')
        >>> image == noise_image(64, 48, seed=7), image == noise_image(64, 48, seed=8)
        (True, False)
    """
    if min(width, height) < 1 or width * height > MAX_SOURCE_PIXELS:
        raise InvalidInput(f"noise of {width}x{height} pixels: give sides of at least 1 and at most 100 megapixels")
    if not 0 <= seed < 2**63:
        raise InvalidInput(f"the seed of noise is {seed}: give a number of at least 0 and below 2**63")
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.randn(1, 3, height, 2 * (width // 2 + 1), generator=generator) * _DEVIATION
    values = from_spectrum(spectrum, (height, width))[0].permute(1, 2, 0)
    return Image.fromarray((values * 255).round().byte().numpy())
