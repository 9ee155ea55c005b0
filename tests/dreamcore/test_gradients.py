"""Gradient filters and normalization, against numpy implementations."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamcore.gradients import BANDS, filter_gradient, normalizer, smooth
from tests.support.tiny import changed

NORMALIZATIONS = ["mean_abs", "std", "zero_mean_std", "rms", "adam"]
FILTERS = ["laplacian", "gaussian", "plain"]
SIZES = [(64, 48), (63, 47), (1, 1), (3, 7), (7, 3), (4, 5), (5, 4), (33, 2), (1, 40)]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}

Plane = NDArray[np.float64]


def processed(gradient: Tensor, method: str) -> Tensor:
    """Return a gradient after the normalization `method`, or after the filter `method` and `mean_abs`."""
    if method in FILTERS:
        gradient, method = filter_gradient(gradient.clone(), changed(gradient=method, steps=4), 1), "mean_abs"
    return normalizer(method)(gradient)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def smoothed(plane: Plane, axis: int) -> Plane:
    """Return `plane` convolved with 1 4 6 4 1 along one axis, with zeros outside."""
    result: Plane = np.apply_along_axis(lambda line: np.convolve(line, [1, 4, 6, 4, 1])[2:-2] / 16, axis, plane)
    return result


def shrunk(plane: Plane) -> Plane:
    padded = np.pad(plane, 2, mode="reflect")
    return smoothed(smoothed(padded, 0), 1)[2:-2:2, 2:-2:2]


def enlarged(plane: Plane, height: int, width: int) -> Plane:
    sparse = np.zeros((height, width))
    sparse[::2, ::2] = plane
    return smoothed(smoothed(4 * sparse, 0), 1)


def plain_laplacian(gradient: Plane) -> Plane:
    """Return the sum of the bands of Burt and Adelson's pyramid of (C, H, W), each with an RMS of 1."""
    bands: list[Plane] = []
    while len(bands) < BANDS - 1 and min(gradient.shape[1:]) >= 4:
        coarse = np.stack([shrunk(plane) for plane in gradient])
        bands.append(gradient - np.stack([enlarged(plane, *gradient.shape[1:]) for plane in coarse]))
        gradient = coarse
    normalized = [band / np.sqrt((band**2).mean()) for band in [*bands, gradient]]
    result = normalized.pop()
    for band in reversed(normalized):
        result = band + np.stack([enlarged(plane, *band.shape[1:]) for plane in result])
    scaled: Plane = result / np.abs(result).mean()
    return scaled


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", FILTERS)
def test_the_mean_absolute_value_of_each_sample_is_one(method: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    result = processed(
        noise(3, 3, *size, dtype=dtype) * torch.tensor([1e-6, 1, 1e6]).view(3, 1, 1, 1).to(dtype), method
    )
    assert result.dtype == dtype
    torch.testing.assert_close(result.abs().mean((1, 2, 3)), torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("size", SIZES)
def test_laplacian_equals_the_plain_implementation(size: tuple[int, int]) -> None:
    gradient = noise(1, 3, *size, dtype=torch.float64)
    np.testing.assert_allclose(processed(gradient, "laplacian")[0], plain_laplacian(gradient[0].numpy()), atol=1e-10)


def test_mean_abs_changes_only_the_scale() -> None:
    gradient = noise(1, 3, 20, 30)
    torch.testing.assert_close(processed(gradient, "mean_abs"), gradient / gradient.abs().mean())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", NORMALIZATIONS + FILTERS)
def test_a_sample_does_not_depend_on_the_others(method: str, dtype: torch.dtype) -> None:
    batch = noise(3, 3, 37, 50, dtype=dtype) * torch.tensor([1, 1e3, 1e-3], dtype=dtype).view(3, 1, 1, 1)
    alone = torch.cat([processed(sample[None], method) for sample in batch])
    torch.testing.assert_close(processed(batch, method), alone, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", NORMALIZATIONS + FILTERS)
def test_the_scale_of_a_gradient_has_no_effect_and_the_sign_is_kept(method: str, dtype: torch.dtype) -> None:
    gradient = noise(1, 3, 37, 50, dtype=dtype)
    expected = processed(gradient, method)
    torch.testing.assert_close(processed(gradient * 1e-5, method), expected, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(processed(gradient * -1e5, method), -expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", NORMALIZATIONS + FILTERS)
def test_a_gradient_of_zeros_stays_zero_in_a_batch(method: str, size: tuple[int, int]) -> None:
    batch = noise(2, 3, *size)
    batch[0] = 0
    result = processed(batch, method)
    assert (result[0] == 0).all()
    assert result.isfinite().all()


def test_laplacian_strengthens_low_frequencies() -> None:
    """A broad wave under noise of fifty times its amplitude, as in a typical gradient."""
    wave = torch.linspace(0, 2 * torch.pi, 96).sin().expand(1, 3, 96, 96)
    gradient = 0.02 * wave + noise(1, 3, 96, 96)

    def similarity_to_wave(method: str) -> float:
        return torch.nn.functional.cosine_similarity(
            processed(gradient, method).flatten(), wave.flatten(), dim=0
        ).item()

    assert similarity_to_wave("mean_abs") < 0.05
    assert similarity_to_wave("laplacian") > 0.15


EXPECTED: dict[str, Callable[[Plane], Plane]] = {
    "mean_abs": lambda g: g / np.abs(g).mean(),
    "std": lambda g: g / g.std(),
    "zero_mean_std": lambda g: (g - g.mean()) / g.std(ddof=1),
    "rms": lambda g: g * np.sqrt(g.size) / np.linalg.norm(g),
    "adam": lambda g: np.sign(g),
}


@pytest.mark.parametrize("method", NORMALIZATIONS)
def test_each_normalization_equals_its_formula(method: str) -> None:
    gradient = noise(1, 3, 20, 30, dtype=torch.float64) + 0.5
    np.testing.assert_allclose(normalizer(method)(gradient)[0], EXPECTED[method](gradient[0].numpy()), rtol=1e-4)


def test_adam_equals_the_optimizer_of_torch() -> None:
    """Three steps of torch's optimizer with the same gradients, scaled to an RMS of 1."""
    gradients = [normalizer("rms")(noise(1, 3, 6, 7, seed=seed, dtype=torch.float64)) for seed in range(3)]
    parameter = torch.zeros(1, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    theirs, ours = torch.optim.Adam([parameter], lr=0.05, maximize=True), normalizer("adam")
    position = torch.zeros_like(parameter)
    for gradient in gradients:
        parameter.grad = gradient
        theirs.step()
        position = position + 0.05 * ours(gradient)
    torch.testing.assert_close(position.detach(), parameter.detach(), rtol=0, atol=1e-9)


def test_each_normalizer_starts_adam_from_zero() -> None:
    gradient = noise(1, 3, 6, 7)
    torch.testing.assert_close(normalizer("adam")(gradient), normalizer("adam")(gradient))


def test_the_cascade_is_the_mean_of_three_gaussians() -> None:
    """The response to one bright pixel is the kernel, and a constant is unchanged."""
    pixel = torch.zeros(1, 3, 21, 21, dtype=torch.float64)
    pixel[..., 10, 10] = 1
    reach = np.arange(-4, 5)
    lines = [np.exp(-(reach**2) / (2 * (1.5 * scale) ** 2)) for scale in (0.5, 1, 2)]
    expected = np.mean([np.outer(line, line) / line.sum() ** 2 for line in lines], axis=0)
    np.testing.assert_allclose(smooth(pixel, 1.5)[0, 0, 6:15, 6:15], expected, atol=1e-12)
    flat = torch.full((1, 3, 7, 5), 2.5)
    torch.testing.assert_close(smooth(flat, 0.8), flat)


def test_the_cascade_becomes_wider_with_each_step_of_an_octave() -> None:
    gradient, settings = noise(1, 3, 40, 40), changed(gradient="gaussian", steps=10)
    deviations = [filter_gradient(gradient.clone(), settings, step).std().item() for step in range(10)]
    assert deviations == sorted(deviations, reverse=True)
    torch.testing.assert_close(filter_gradient(gradient.clone(), settings, 4), smooth(gradient, 5 / 10 * 2 + 0.5))
