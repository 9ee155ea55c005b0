"""The colors of natural photographs: dreamcore/color_correlation.py."""

import torch

from dreamcore.color_correlation import COVARIANCE_ROOT, color_correlation, correlate_colors, decorrelate_colors


def test_independent_colors_get_the_published_covariance_up_to_one_factor() -> None:
    noise = torch.randn(3, 300, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = correlate_colors(noise).flatten(1).cov()
    root = torch.tensor(COVARIANCE_ROOT, dtype=torch.float64)
    published = root @ root.T
    torch.testing.assert_close(covariance / covariance.trace(), published / published.trace(), atol=0.01, rtol=0)
    assert covariance.trace() < noise.flatten(1).cov().trace()


def test_the_matrix_multiplies_each_pixel_from_the_left() -> None:
    images = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    matrix = color_correlation(images)
    torch.testing.assert_close(correlate_colors(images)[1, :, 0, 1], matrix @ images[1, :, 0, 1])
    torch.testing.assert_close(decorrelate_colors(correlate_colors(images)), images, atol=1e-4, rtol=0)
