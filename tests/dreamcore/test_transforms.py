"""Random transforms before each step: dreamcore/transforms.py."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dreamcore.settings import DreamSettings
from dreamcore.tiles import Tile
from dreamcore.transforms import Transform, Transforms, choose_views, view_size
from dreamcore.views import View, Views
from tests.support.tiny import changed, dreams, picture, tiny_network

SIZE = (48, 64)


def chosen(count: int, **fields: object) -> list[Transform]:
    settings = DreamSettings.model_validate(fields)
    return [Transform.choose(settings, 0, step, SIZE) for step in range(count)]


def test_transforms_have_the_ranges_of_lucid() -> None:
    each = chosen(4000, transforms="lucid")
    assert Counter(round(one.scale, 9) for one in each).keys() == {round(0.9 + 0.02 * n, 9) for n in range(11)}
    angles = Counter(one.degrees for one in each)
    assert angles.keys() == set(range(-10, 11))
    assert 4 < angles[0] / (4000 / 26) < 8  # six of the 26 angles in lucid's list are 0
    assert {shift for one in each for shift in one.before} == set(range(-4, 5))
    assert {shift for one in each for shift in one.after} == set(range(-2, 3))
    assert not any(one.mirrored for one in each)
    mirrored = [one.mirrored for one in chosen(400, transforms="lucid", flip=True)]
    assert 150 < sum(mirrored) < 250


def test_crops_lie_inside_the_image_and_have_all_sizes() -> None:
    each = chosen(2000, transforms="crops")
    sides = [1 / one.scale for one in each]
    assert 0.25 <= min(sides) < 0.26
    assert 0.98 < max(sides) <= 0.99
    corners = [one.source((x, y)) for one in each for x in (-32, 32) for y in (-24, 24)]
    assert max(abs(x) for x, _ in corners) <= 32
    assert max(abs(y) for _, y in corners) <= 24
    assert min(x for x, _ in corners) < -31
    assert max(y for _, y in corners) > 23


def test_a_shift_equals_padding_and_two_crops() -> None:
    transforms = Transforms((Transform(1, before=(3, -4), after=(-2, 1)),), SIZE, (60, 76))
    padded = F.pad(picture(), (12, 12, 12, 12), value=0.5)  # (72, 88)
    cropped = padded[..., 4 + 4 : 4 + 4 + 64, 4 - 3 : 4 - 3 + 80]  # crops of 8 and of 4 pixels
    expected = cropped[..., 2 - 1 : 2 - 1 + 60, 2 + 2 : 2 + 2 + 76]
    torch.testing.assert_close(transforms.apply(picture()), expected, atol=1e-5, rtol=0)


def test_a_crop_is_enlarged() -> None:
    transform = Transform(2, before=(16, 12))  # the top left quarter
    (view,) = Transforms((transform,), SIZE, SIZE).apply(picture())
    expected = F.interpolate(picture()[..., :30, :40], scale_factor=2, mode="bilinear")[0, :, :40, :50]
    torch.testing.assert_close(view[:, 1:40, 1:50], expected[:, 1:, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["lucid", "crops"])
def test_a_position_is_found_in_the_view(kind: str) -> None:
    found = 0
    for transform in chosen(60, transforms=kind, flip=True):
        size = (60, 76) if kind == "lucid" else SIZE
        transforms = Transforms((transform,), SIZE, size)
        image = torch.zeros(1, 1, *SIZE)
        image[..., 17:20, 40:43] = 1
        at = transforms.locator(Tile(0, 0, *size))(0, (41.5 / 64, 18.5 / 48))
        if at is None:
            continue
        view = transforms.apply(image)[0, 0]
        assert view[int(at[1] * size[0]), int(at[0] * size[1])] > 0.7
        found += 1
    assert found > (55 if kind == "lucid" else 15)
    x, y = transform.source(transform.target((5, -7)))
    assert (x, y) == pytest.approx((5, -7))


def test_gradients_are_pulled_back_by_the_adjoint() -> None:
    """For a linear map A, <A x, y> = <x, Aᵀ y>."""
    random = torch.Generator().manual_seed(0)
    for kind in ("lucid", "crops"):
        settings = [changed(transforms=kind, seed=seed) for seed in (1, 2)]
        views = choose_views(settings, 0, 0, SIZE, random_tile_offset=False)
        assert views.size == view_size(SIZE, settings[0])
        images = torch.rand(2, 3, *SIZE, generator=random, dtype=torch.float64)
        gradient = torch.rand(2, 3, *views.size, generator=random, dtype=torch.float64)
        change = views.apply(images) - views.apply(torch.zeros_like(images))
        pulled_back = views.pull_back(gradient)
        torch.testing.assert_close((change * gradient).sum((1, 2, 3)), (images * pulled_back).sum((1, 2, 3)))


def test_shifts_stay_the_default() -> None:
    views = choose_views([DreamSettings()], 1, 2, SIZE, random_tile_offset=True)
    assert views == Views.choose([DreamSettings()], 1, 2, SIZE, random_tile_offset=True)
    assert view_size(SIZE, DreamSettings()) == SIZE


@pytest.mark.parametrize("kind", ["lucid", "crops"])
def test_a_dream_with_transforms_also_works_in_memory_tiles(kind: str) -> None:
    settings = changed(transforms=kind, octaves=1)
    images = picture(96, 128)
    whole, tiled = (dreams(tiny_network(), images, settings, tile_size=side) for side in (0, 64))
    assert (whole - images).abs().mean() > 0.02
    assert (tiled - whole).abs().mean() < 0.4 * (whole - images).abs().mean()


VIEWS = st.builds(View, st.integers(-70, 70), st.integers(-70, 70), st.booleans())


@given(st.lists(VIEWS, min_size=1, max_size=4), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_the_views_of_a_batch_are_gathered_as_each_image_is_shifted(each: list[View], size: tuple[int, int]) -> None:
    """A GPU gathers. On a CPU, each image is shifted by itself."""
    views, images = Views(tuple(each), size), torch.rand(len(each), 3, *size)
    assert torch.equal(views.gather(images), views.apply(images))
    assert torch.equal(views.gather(images, inverse=True), views.pull_back(images))
    assert torch.equal(views.pull_back(views.apply(images)), images)
