"""Noise to dream from: dreamcore/noise.py."""

import numpy as np
import pytest
import torch

from dreamcore import InvalidInput, noise_image
from dreamcore.octaves import resize
from dreamcore.results import to_tensor


def test_noise_is_gray_on_average_and_has_contrast_at_every_size() -> None:
    noise = to_tensor(np.asarray(noise_image(256, 192, seed=1)))
    assert noise.shape == (1, 3, 192, 256)
    assert (noise.mean((2, 3)) - 0.5).abs().max() < 0.05
    assert 3 / 255 < noise.std() < 12 / 255
    small = resize(noise, (24, 32))
    assert small.std() > 0.5 * noise.std()  # of white noise, an eighth would remain
    red, green = noise[0, 0].flatten(), noise[0, 1].flatten()
    assert np.corrcoef(red, green)[0, 1] > 0.6


def test_noise_depends_on_size_and_seed_alone() -> None:
    first = noise_image(33, 20, seed=5)
    torch.manual_seed(1)
    assert noise_image(33, 20, seed=5) == first
    assert first.size == (33, 20)
    assert noise_image(33, 20, seed=6) != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 20), "noise of 0x20 pixels"),
        ((100_000, 100_000), "at most 100 megapixels"),
        ((20, 20, -1), "seed of noise is -1"),
    ],
)
def test_impossible_noise_is_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        noise_image(*arguments)
