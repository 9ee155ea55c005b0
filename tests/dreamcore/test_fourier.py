"""Spectra as parameters of images (dreamcore/fourier.py), and lucid's feature visualization with them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamcore.ascent import Sample, ascend
from dreamcore.batch import to_pixels
from dreamcore.fourier import Spectrum, from_spectrum, to_spectrum
from dreamcore.presets import PRESETS
from dreamcore.transforms import Transform
from tests.support.tiny import SETTINGS, changed, dreams, picture, tiny_network

Values = NDArray[np.float64]

M = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]]) / math.sqrt(0.26**2 + 2 * 0.27**2)


def plain_image(real: Values, imaginary: Values, height: int, width: int) -> Values:
    """Return the image (3, H, W) of a spectrum (3, H, W // 2 + 1), as a sum of waves: what lucid's fft_image shows."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.zeros((3, height, width))
    for row in range(height):
        down = min(row, height - row) / height
        for column in range(width // 2 + 1):
            scale = math.sqrt(width * height) / max(math.hypot(down, column / width), 1 / max(width, height))
            twice = 1 if column == 0 or 2 * column == width else 2  # the conjugate wave is not stored
            angle = 2 * np.pi * (row * y / height + column * x / width)
            for color in range(3):
                at = color, row, column
                wave = real[at] * np.cos(angle) - imaginary[at] * np.sin(angle)
                waves[color] += twice * scale * wave / (height * width)
    colors = np.einsum("ij,jyx->iyx", M, waves / 4)
    image: Values = 1 / (1 + np.exp(-colors))
    return image


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (8, 5)])
def test_the_image_of_a_spectrum_is_that_of_lucid(size: tuple[int, int]) -> None:
    spectrum = np.random.default_rng(0).normal(0, 0.5, (3, size[0], size[1] // 2 + 1, 2))
    found = from_spectrum(torch.from_numpy(spectrum).flatten(-2)[None], size)[0]
    np.testing.assert_allclose(found.numpy(), plain_image(spectrum[..., 0], spectrum[..., 1], *size), atol=1e-12)


@pytest.mark.parametrize("size", [(48, 64), (33, 47)])
def test_a_photograph_keeps_its_8_bit_pixels_as_a_spectrum(size: tuple[int, int]) -> None:
    image = picture(*size)
    image[..., :9, :], image[..., :, -9:] = 0, 1  # values without a logit
    back = from_spectrum(to_spectrum(image), size)
    assert np.array_equal(to_pixels(back), to_pixels(image))
    assert back.dtype == image.dtype


def test_the_gradient_equals_finite_differences() -> None:
    spectrum = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda z: from_spectrum(z, (4, 5)), spectrum.requires_grad_())


def test_a_step_follows_the_gradient_with_respect_to_the_spectrum() -> None:
    start, weights = picture(8, 9).double(), torch.randn(1, 3, 8, 9, dtype=torch.float64)
    step_size, active = torch.full((1, 1, 1, 1), 1e-4, dtype=torch.float64), torch.ones(1, 1, 1, 1)
    canvas = Spectrum(start, lambda gradient: gradient, step_size, start, None)
    before = to_spectrum(start).requires_grad_()
    (gradient,) = torch.autograd.grad((from_spectrum(before, (8, 9)) * weights).sum(), before)
    canvas.step(weights, active)
    torch.testing.assert_close(canvas.image(), from_spectrum(before.detach() + 1e-4 * gradient, (8, 9)))
    canvas.step(weights, active * 0)
    torch.testing.assert_close(canvas.image(), from_spectrum(before.detach() + 1e-4 * gradient, (8, 9)))


def bilinear(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the values (3, h, w) of `image` (3, H, W) at pixel coordinates (h, w), with gray around the image."""
    height, width = image.shape[1:]
    left, top = x.floor().long(), y.floor().long()
    total = torch.zeros(3, *x.shape, dtype=image.dtype)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        i, j = top + row, left + column
        weight = (1 - (y - i).abs()) * (1 - (x - j).abs())
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        total += weight * torch.where(inside, image[:, i.clamp(0, height - 1), j.clamp(0, width - 1)], 0.5)
    return total


def plain_lucid(
    activations: Callable[[Tensor], Tensor], start: Tensor, transforms: list[Transform], step_size: float
) -> Tensor:
    """Return the image (3, H, W) after one step of Adam on the spectrum for each transform."""
    height, width = start.shape[1:]
    matrix = torch.from_numpy(M)
    down, right = torch.fft.fftfreq(height).double()[:, None], torch.fft.rfftfreq(width).double()
    scale = math.sqrt(height * width) / torch.hypot(down, right).clamp_min(1 / max(height, width))

    def image_of(z: Tensor) -> Tensor:
        waves = torch.fft.irfft2(torch.complex(z[0], z[1]) * scale, s=(height, width)) / 4
        return torch.einsum("ij,jyx->iyx", matrix, waves).sigmoid()

    waves = torch.fft.rfft2(torch.einsum("ij,jyx->iyx", matrix.inverse(), start.logit()) * 4) / scale
    z = torch.stack([waves.real, waves.imag])
    mean, square = torch.zeros_like(z), torch.zeros_like(z)
    for number, transform in enumerate(transforms, 1):
        z.requires_grad_()
        # pad 12, crop by 8 at an offset, scale, rotate, crop by 4 at an offset: H + 12 rows
        v, u = torch.meshgrid(torch.arange(height + 12.0), torch.arange(width + 12.0), indexing="ij")
        x, y = (u - (width + 11) / 2).double() - transform.after[0], (v - (height + 11) / 2).double()
        y = y - transform.after[1]
        angle = math.radians(transform.degrees)
        x, y = math.cos(angle) * x + math.sin(angle) * y, -math.sin(angle) * x + math.cos(angle) * y
        x, y = x / transform.scale - transform.before[0], y / transform.scale - transform.before[1]
        viewed = bilinear(image_of(z), x + (width - 1) / 2, y + (height - 1) / 2)
        (gradient,) = torch.autograd.grad(activations(viewed[None]).mean(), z)
        gradient = gradient / gradient.square().mean().sqrt()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
        update = (mean / (1 - 0.9**number)) / ((square / (1 - 0.999**number)).sqrt() + 1e-8)
        z = (z + step_size * update).detach()
    return image_of(z)


@pytest.mark.parametrize("size", [(40, 48), (37, 33)])
def test_the_preset_lucid_equals_its_program(size: tuple[int, int]) -> None:
    network = tiny_network()
    network.module.double()
    settings = changed(**{**PRESETS["lucid"].settings, "layers": "deep:5", "steps": 6, "seed": 3})
    start = picture(*size)[0].double()
    transforms = [Transform.choose(settings, 0, step, size) for step in range(6)]
    assert len({each.degrees for each in transforms}) > 2
    expected = plain_lucid(
        lambda x: network.activations(x, ["deep"])["deep"][:, 5], start, transforms, settings.step_size
    )
    found = ascend(network, [Sample(start, settings)]).images[0]
    assert (found - start).abs().max() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)


def test_the_score_rises_and_black_areas_of_the_mask_stay() -> None:
    settings = SETTINGS.model_copy(update={"space": "fourier", "step_size": 0.05})
    mask = torch.ones(1, 48, 64)
    mask[..., :20] = 0
    sample = Sample(picture()[0], settings, mask=mask)
    result = ascend(tiny_network(), [sample])
    still = ascend(tiny_network(), [Sample(picture()[0], settings.model_copy(update={"steps": 0}))])
    assert result.measured > still.measured + 0.1
    change = (result.images - picture()).abs().amax((0, 1, 2))
    assert change[:20].max() < 1e-6 < 0.01 < change[20:].min()


def test_steps_in_fourier_space_change_low_frequencies_more_than_steps_of_pixels_do() -> None:
    def share_of_low_frequencies(space: str) -> float:
        settings = changed(space=space, octaves=1, gradient="plain", normalise="adam", steps=10)
        power = torch.fft.rfft2(dreams(tiny_network(), picture(), settings) - picture()).abs().square()
        return float(power[..., :6, :6].sum() / power.sum())

    assert share_of_low_frequencies("fourier") > 3 * share_of_low_frequencies("picture")
