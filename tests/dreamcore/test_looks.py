"""Color and light: natural steps, soft clipping, calm areas, the finish of a dream, and the looks made of them."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from torch import Tensor

from dreamcore.ascent import Sample, ascend
from dreamcore.batch import to_pixels
from dreamcore.calm import LEAST, calm_weights, local_contrast
from dreamcore.catalog import network_spec, resolve_layers
from dreamcore.color_correlation import COVARIANCE_ROOT, mix_colors, natural_steps
from dreamcore.finish import LUMA, finish
from dreamcore.gradients import slow_near_limits
from dreamcore.looks import LOOKS, LookName
from dreamcore.settings import DreamSettings, nearest_name, read_recorded, settings_id
from tests.support.tiny import changed, picture, tiny_network

SHARES = st.floats(0, 1)


def column(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


# --- color


@given(SHARES)
def test_steps_follow_the_covariance_of_natural_colors(amount: float) -> None:
    """lucid's constants, written out again: S S^T, scaled so that its nine entries have the mean of those of gray."""
    root = COVARIANCE_ROOT
    covariance = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in root] for one in root]
    total = sum(map(sum, covariance))
    expected = [
        [(1 - amount) * (row == column) + amount * 3 * covariance[row][column] / total for column in range(3)]
        for row in range(3)
    ]
    torch.testing.assert_close(natural_steps(amount, torch.zeros(())), torch.tensor(expected))


def test_color_makes_steps_gray() -> None:
    def chroma(color: float) -> float:
        change = ascend(tiny_network(), [Sample(picture()[0], changed(color=color))]).images - picture()
        return float((change - change.mean(1, keepdim=True)).abs().mean())

    assert chroma(1) < chroma(0.5) < chroma(0)


def test_samples_of_one_batch_may_be_finished_differently() -> None:
    fields: list[dict[str, object]] = [{}, {"contrast": 0.5}, {"keep_colors": 1}, {"blend": 0.5}]
    together = ascend(tiny_network(), [Sample(picture()[0], changed(**each)) for each in fields]).images
    for each, found in zip(fields, together, strict=True):
        alone = ascend(tiny_network(), [Sample(picture()[0], changed(**each))]).images[0]
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-4)


def test_colors_are_mixed_in_a_batch_exactly_as_alone() -> None:
    gradient, matrix = torch.randn(3, 3, 37, 51), natural_steps(0.9, torch.zeros(()))
    mixed = mix_colors(gradient.clone(), matrix)
    assert torch.equal(mixed[1:2], mix_colors(gradient[1:2].clone(), matrix))
    torch.testing.assert_close(mixed, torch.einsum("ij,bjhw->bihw", matrix, gradient))


# --- light


@given(SHARES, st.floats(-2, 2), st.floats(0.01, 1))
def test_a_step_shrinks_with_the_distance_to_its_limit(value: float, step: float, distance: float) -> None:
    found = slow_near_limits(column(step).clone(), column(value), distance).item()
    room = 1 - value if step > 0 else value
    assert found == pytest.approx(step * min(1, room / distance), abs=1e-5)


def test_soft_clipping_clips_fewer_pixels() -> None:
    def clipped(soft_clip: float) -> int:
        images = ascend(tiny_network(), [Sample(picture()[0], changed(soft_clip=soft_clip))]).images
        return int(((images < 1 / 255) | (images > 254 / 255)).sum())

    assert clipped(0.15) < clipped(0) / 2


# --- calm areas


def test_the_contrast_is_the_standard_deviation_of_the_brightness() -> None:
    stripes = torch.zeros(1, 3, 80, 80)
    stripes[..., ::2] = 1
    assert local_contrast(stripes)[0, 0, 40, 40].item() == pytest.approx(0.5, abs=0.01)
    assert local_contrast(torch.full((1, 3, 9, 5), 0.7)).abs().max() < 0.01


def test_smooth_areas_change_less_than_others() -> None:
    image = picture(96, 96)[0].clone()
    image[:, :, :48] = 0.5
    change = (ascend(tiny_network(), [Sample(image, changed(calm=0.2, octaves=1))]).images[0] - image).abs().mean(0)
    assert change[:, :32].mean() < 0.3 * change[:, 64:].mean()
    assert change[:, :32].mean() > 0


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.01, 1))
def test_weights_are_in_range_for_any_size(height: int, width: int, calm: float) -> None:
    weights = calm_weights(torch.rand(1, 3, height, width), calm)
    assert weights.shape == (1, 1, height, width)
    assert LEAST - 1e-6 <= weights.min() <= weights.max() <= 1 + 1e-6


# --- the finish


def finished(mask: Tensor | None = None, **fields: object) -> Tensor:
    dream, image = picture(seed=1), picture(seed=2)
    return finish(dream, image, [mask], [changed(**fields)])


@pytest.mark.parametrize("contrast", [0.4, 1.7])
def test_contrast_is_that_of_pillow(contrast: float) -> None:
    expected = ImageEnhance.Contrast(Image.fromarray(to_pixels(picture(seed=1))[0])).enhance(contrast)
    found = Image.fromarray(to_pixels(finished(contrast=contrast))[0])
    difference = torch.tensor(list(found.tobytes())).sub(torch.tensor(list(expected.tobytes()))).abs()
    assert difference.max() <= 2


def test_kept_colors_are_those_of_the_photograph_and_the_brightness_is_that_of_the_dream() -> None:
    dream, image = picture(seed=1) * 0.2 + 0.4, picture(seed=2) * 0.2 + 0.4  # far from the limits
    found = finish(dream, image, [None], [changed(keep_colors=1)])

    def split(pixels: Tensor) -> tuple[Tensor, Tensor]:
        brightness = (pixels * torch.tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
        return brightness, pixels - brightness

    torch.testing.assert_close(split(found)[0], split(dream)[0])
    torch.testing.assert_close(split(found)[1], split(image)[1])


def test_blend_mixes_the_photograph_in() -> None:
    torch.testing.assert_close(finished(blend=0.25), 0.75 * picture(seed=1) + 0.25 * picture(seed=2))


def test_the_finish_changes_nothing_where_the_mask_is_black() -> None:
    black = torch.zeros(1, *picture().shape[-2:])
    settings = changed(contrast=2, keep_colors=0.5, blend=0.5)
    (found,) = ascend(tiny_network(), [Sample(picture()[0], settings, mask=black)]).images
    torch.testing.assert_close(found, picture()[0])


# --- looks


def test_look_names_are_the_keys_of_the_table() -> None:
    assert get_args(LookName) == tuple(LOOKS)


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_excites_its_layers_and_the_same_depths_elsewhere(look: LookName) -> None:
    settings = resolve_layers(DreamSettings.model_validate({"look": look}))
    assert settings.layers == DreamSettings.model_validate({"layers": LOOKS[look].layers}).layers
    depths = DreamSettings.model_validate({"layers": LOOKS[look].depths}).layers
    spec = network_spec(LOOKS[look].model)
    elsewhere = {spec.resolve_depth(each).layer if "%" in each.layer else each.layer for each in depths}
    assert elsewhere == {target.layer for target in settings.layers}
    for target in resolve_layers(DreamSettings.model_validate({"look": look, "model": "resnet18"})).layers:
        assert network_spec("resnet18").layer(target.layer)
    assert nearest_name(settings) == {"look": look}


def test_looks_differ_in_their_identity() -> None:
    identities = {settings_id(DreamSettings.model_validate({"look": look}), "w") for look in LOOKS}
    assert len(identities | {settings_id(DreamSettings(), "w")}) == len(LOOKS) + 1


def test_a_look_and_a_preset_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="the preset keras and the look neon set the same fields; leave one out"):
        DreamSettings.model_validate({"preset": "keras", "look": "neon"})


def test_an_unknown_look_is_rejected_with_the_names_of_all_looks() -> None:
    with pytest.raises(ValueError, match="there is no look 'nice'; choose creatures, filigree"):
        DreamSettings.model_validate({"look": "nice"})


def test_recorded_settings_without_color_and_light_have_none() -> None:
    """Dreams of versions without these settings keep their identity and their look."""
    recorded = DreamSettings.model_validate({"look": "neon"}).model_dump(mode="json")
    for name in ("color", "soft_clip", "calm", "contrast", "keep_colors", "blend"):
        del recorded[name]
    assert read_recorded(recorded) == DreamSettings.model_validate({"look": "neon"})
