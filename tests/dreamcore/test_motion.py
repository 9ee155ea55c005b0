"""The camera of a zoom, the return of a loop, and colors that do not drift."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dreamcore.motion import LEAST_CONTRAST, Colors, colors_of, mix_in, palette, transform, warp, with_colors
from dreamcore.zoom import Motion
from tests.support.tiny import picture

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (48, 64)
IDENTITY = torch.eye(3, dtype=torch.float64)

motions = st.builds(
    Motion,
    zoom=st.floats(0.5, 3),
    rotate=st.floats(-90, 90),
    center=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)


def point(x: float, y: float) -> Tensor:
    return torch.tensor([x, y, 1], dtype=torch.float64)


@given(motion=motions, seconds=st.floats(-2, 2))
def test_the_center_stays_in_place(motion: Motion, seconds: float) -> None:
    center = point(motion.center[0] * SIZE[1], motion.center[1] * SIZE[0])
    torch.testing.assert_close(transform(motion, seconds, SIZE) @ center, center)


@given(motion=motions, one=st.floats(0, 2), other=st.floats(0, 2))
def test_movements_add_up(motion: Motion, one: float, other: float) -> None:
    both = transform(motion, one, SIZE) @ transform(motion, other, SIZE)
    torch.testing.assert_close(both, transform(motion, one + other, SIZE), atol=1e-8, rtol=1e-8)


@given(motion=motions)
def test_a_movement_can_be_undone(motion: Motion) -> None:
    torch.testing.assert_close(transform(motion, 1, SIZE) @ transform(motion, -1, SIZE), IDENTITY)


def test_a_picture_turns_clockwise_and_grows() -> None:
    turned = transform(Motion(zoom=2, rotate=90), 1, (100, 100)) @ point(100, 50)
    torch.testing.assert_close(turned, point(50, 25))  # the right edge shows what was halfway up


def test_warp_shows_the_enlarged_middle() -> None:
    image = picture(*SIZE)
    found = warp(image, transform(Motion(zoom=2, rotate=0), 1, SIZE))
    middle = image[..., 12:36, 16:48]
    expected = torch.nn.functional.interpolate(middle, SIZE, mode="bicubic").clamp(0, 1)
    inside = (..., slice(4, -4), slice(4, -4))  # at the borders, interpolate sees only the middle
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-4, rtol=0)


def test_warp_mirrors_beyond_the_borders() -> None:
    image = picture(*SIZE)
    shifted = torch.tensor([[1, 0, -10], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(warp(image, shifted)[..., :10], image[..., :10].flip(-1), atol=1e-4, rtol=0)


def test_a_standing_camera_changes_nothing() -> None:
    torch.testing.assert_close(warp(picture(*SIZE), IDENTITY), picture(*SIZE), atol=1e-5, rtol=0)


def test_at_the_end_of_a_loop_the_first_frame_is_all_that_is_seen() -> None:
    torch.testing.assert_close(mix_in(picture(*SIZE, 1), picture(*SIZE), IDENTITY, 1.0), picture(*SIZE))


def test_the_first_frame_appears_small_in_the_middle_with_soft_edges() -> None:
    image, first = torch.zeros(1, 3, *SIZE), torch.ones(1, 3, *SIZE)
    far = transform(Motion(zoom=4, rotate=0), -1, SIZE)
    mixed = mix_in(image, first, far, 0.01)[0, 0] / 0.01
    assert mixed[24, 32] == pytest.approx(1, abs=0.01)
    assert mixed[0].max() == pytest.approx(0.01)
    assert 0.1 < mixed[24, 26] < 0.9


def correlated(seed: int) -> Tensor:
    image = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.3
    image[:, 1] = 0.5 * image[:, 0] + 0.5 * image[:, 1]
    return image


def test_an_image_gets_the_colors_of_another() -> None:
    wanted = colors_of(correlated(0) * 0.5 + 0.2)
    found = colors_of(with_colors(correlated(1), wanted))
    torch.testing.assert_close(found.mean, wanted.mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.covariance, wanted.covariance, atol=1e-5, rtol=0)


def test_an_image_keeps_its_own_colors() -> None:
    torch.testing.assert_close(with_colors(correlated(0), colors_of(correlated(0))), correlated(0), atol=1e-4, rtol=0)


def test_a_gray_image_of_one_value_does_not_fail() -> None:
    flat = torch.full((1, 3, 8, 8), 0.5)
    assert with_colors(flat, colors_of(correlated(0))).isfinite().all()
    assert with_colors(correlated(0), colors_of(flat)).isfinite().all()


def test_the_palette_of_a_flat_photograph_has_some_contrast() -> None:
    found = palette(torch.full((1, 3, 8, 8), 0.5))
    assert found.covariance.diagonal().tolist() == pytest.approx([LEAST_CONTRAST**2] * 3)
    rich = correlated(0)
    assert isinstance(palette(rich * 2 - 0.5), Colors)
    torch.testing.assert_close(palette(rich * 2 - 0.5).covariance, colors_of(rich * 2 - 0.5).covariance)
