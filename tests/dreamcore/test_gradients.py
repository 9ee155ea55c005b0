"""What is done to a gradient: one size of step for every picture, and its frequencies evened out."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamcore.gradients import BANDS, filter_gradient, normalizer, smooth
from tests.support.tiny import changed

HOW = ["mean_abs", "std", "zero_mean_std", "rms", "adam"]
GRADIENT = ["laplacian", "gaussian", "plain"]
SIZES = [(64, 48), (63, 47), (1, 1), (3, 7), (7, 3), (4, 5), (5, 4), (33, 2), (1, 40)]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}

Plane = NDArray[np.float64]


def normalise(gradient: Tensor, how: str) -> Tensor:
    """A gradient treated and normalised: `how` names one or the other."""
    if how in GRADIENT:
        gradient, how = filter_gradient(gradient.clone(), changed(gradient=how, steps=4), 1), "mean_abs"
    return normalizer(how)(gradient)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def smoothed(plane: Plane, axis: int) -> Plane:
    """Convolved with 1 4 6 4 1 along one axis, zero outside."""
    result: Plane = np.apply_along_axis(lambda line: np.convolve(line, [1, 4, 6, 4, 1])[2:-2] / 16, axis, plane)
    return result


def shrunk(plane: Plane) -> Plane:
    padded = np.pad(plane, 2, mode="reflect")
    return smoothed(smoothed(padded, 0), 1)[2:-2:2, 2:-2:2]


def enlarged(plane: Plane, height: int, width: int) -> Plane:
    spread = np.zeros((height, width))
    spread[::2, ::2] = plane
    return smoothed(smoothed(4 * spread, 0), 1)


def textbook_laplacian(gradient: Plane) -> Plane:
    """Burt and Adelson's pyramid of (C, H, W) with each band at an RMS of 1, a plane at a time."""
    bands: list[Plane] = []
    while len(bands) < BANDS - 1 and min(gradient.shape[1:]) >= 4:
        coarse = np.stack([shrunk(plane) for plane in gradient])
        bands.append(gradient - np.stack([enlarged(plane, *gradient.shape[1:]) for plane in coarse]))
        gradient = coarse
    even = [band / np.sqrt((band**2).mean()) for band in [*bands, gradient]]
    result = even.pop()
    for band in reversed(even):
        result = band + np.stack([enlarged(plane, *band.shape[1:]) for plane in result])
    normal: Plane = result / np.abs(result).mean()
    return normal


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", GRADIENT)
def test_the_mean_of_each_sample_is_one(how: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    result = normalise(noise(3, 3, *size, dtype=dtype) * torch.tensor([1e-6, 1, 1e6]).view(3, 1, 1, 1).to(dtype), how)
    assert result.dtype == dtype
    torch.testing.assert_close(result.abs().mean((1, 2, 3)), torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("size", SIZES)
def test_laplacian_is_that_of_the_textbook(size: tuple[int, int]) -> None:
    gradient = noise(1, 3, *size, dtype=torch.float64)
    np.testing.assert_allclose(normalise(gradient, "laplacian")[0], textbook_laplacian(gradient[0].numpy()), atol=1e-10)


def test_mean_abs_changes_nothing_but_the_scale() -> None:
    gradient = noise(1, 3, 20, 30)
    torch.testing.assert_close(normalise(gradient, "mean_abs"), gradient / gradient.abs().mean())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("how", HOW + GRADIENT)
def test_a_sample_does_not_see_its_neighbours(how: str, dtype: torch.dtype) -> None:
    batch = noise(3, 3, 37, 50, dtype=dtype) * torch.tensor([1, 1e3, 1e-3], dtype=dtype).view(3, 1, 1, 1)
    alone = torch.cat([normalise(sample[None], how) for sample in batch])
    torch.testing.assert_close(normalise(batch, how), alone, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("how", HOW + GRADIENT)
def test_the_scale_of_a_gradient_does_not_matter_but_its_sign_does(how: str, dtype: torch.dtype) -> None:
    gradient = noise(1, 3, 37, 50, dtype=dtype)
    expected = normalise(gradient, how)
    torch.testing.assert_close(normalise(gradient * 1e-5, how), expected, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(normalise(gradient * -1e5, how), -expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", HOW + GRADIENT)
def test_zeros_stay_zeros_beside_a_sample_that_is_none(how: str, size: tuple[int, int]) -> None:
    batch = noise(2, 3, *size)
    batch[0] = 0
    result = normalise(batch, how)
    assert (result[0] == 0).all()
    assert result.isfinite().all()


def test_laplacian_raises_what_mean_abs_leaves_drowned() -> None:
    """A broad wave under noise of fifty times its strength, which is what gradients look like."""
    wave = torch.linspace(0, 2 * torch.pi, 96).sin().expand(1, 3, 96, 96)
    gradient = 0.02 * wave + noise(1, 3, 96, 96)

    def share_of_wave(how: str) -> float:
        return torch.nn.functional.cosine_similarity(normalise(gradient, how).flatten(), wave.flatten(), dim=0).item()

    assert share_of_wave("mean_abs") < 0.05
    assert share_of_wave("laplacian") > 0.15


NORMALISED: dict[str, Callable[[Plane], Plane]] = {
    "mean_abs": lambda g: g / np.abs(g).mean(),
    "std": lambda g: g / g.std(),
    "zero_mean_std": lambda g: (g - g.mean()) / g.std(ddof=1),
    "rms": lambda g: g * np.sqrt(g.size) / np.linalg.norm(g),
    "adam": lambda g: np.sign(g),
}


@pytest.mark.parametrize("how", HOW)
def test_each_normalisation_is_what_its_name_says(how: str) -> None:
    gradient = noise(1, 3, 20, 30, dtype=torch.float64) + 0.5
    np.testing.assert_allclose(normalizer(how)(gradient)[0], NORMALISED[how](gradient[0].numpy()), rtol=1e-4)


def test_adam_is_that_of_torch() -> None:
    """Three steps of the library's optimiser, climbing the same gradients (of RMS 1, which is all that differs)."""
    gradients = [normalizer("rms")(noise(1, 3, 6, 7, seed=seed, dtype=torch.float64)) for seed in range(3)]
    climber = torch.zeros(1, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    library, ours = torch.optim.Adam([climber], lr=0.05, maximize=True), normalizer("adam")
    place = torch.zeros_like(climber)
    for gradient in gradients:
        climber.grad = gradient
        library.step()
        place = place + 0.05 * ours(gradient)
    torch.testing.assert_close(place.detach(), climber.detach(), rtol=0, atol=1e-9)


def test_each_octave_begins_adam_anew() -> None:
    gradient = noise(1, 3, 6, 7)
    torch.testing.assert_close(normalizer("adam")(gradient), normalizer("adam")(gradient))


def test_the_cascade_is_the_mean_of_three_gaussians() -> None:
    """Told again of one bright pixel, and blind to a constant."""
    pixel = torch.zeros(1, 3, 21, 21, dtype=torch.float64)
    pixel[..., 10, 10] = 1
    reach = np.arange(-4, 5)
    lines = [np.exp(-(reach**2) / (2 * (1.5 * scale) ** 2)) for scale in (0.5, 1, 2)]
    expected = np.mean([np.outer(line, line) / line.sum() ** 2 for line in lines], axis=0)
    np.testing.assert_allclose(smooth(pixel, 1.5)[0, 0, 6:15, 6:15], expected, atol=1e-12)
    flat = torch.full((1, 3, 7, 5), 2.5)
    torch.testing.assert_close(smooth(flat, 0.8), flat)


def test_the_cascade_widens_with_the_steps_of_an_octave() -> None:
    gradient, settings = noise(1, 3, 40, 40), changed(gradient="gaussian", steps=10)
    left = [filter_gradient(gradient.clone(), settings, step).std().item() for step in range(10)]
    assert left == sorted(left, reverse=True)
    torch.testing.assert_close(filter_gradient(gradient.clone(), settings, 4), smooth(gradient, 5 / 10 * 2 + 0.5))
