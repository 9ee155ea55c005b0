"""Enlarged dreams: what they keep of the dream, and what is new in them."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamcore.ascent import AscentResult, Sample, ascend
from dreamcore.batch import DreamRequest, dream_photograph
from dreamcore.enlarge import enlarged_photograph, enlarged_settings, settings_of_ascent
from dreamcore.errors import InvalidInput
from dreamcore.fields import Reference
from dreamcore.images import Photograph
from dreamcore.octaves import larger_sizes, resize
from dreamcore.settings import DreamSettings, settings_id
from tests.support.tiny import changed, dreams, picture, pixels, tiny_network

FILE = Reference(uri="s3://dreams/one.png", sha256="0123456789abcdef" * 4)
SMALL, LARGE = (48, 60), (96, 120)
FINISHED: dict[str, Any] = {"contrast": 1.2, "keep_colors": 0.5, "blend": 0.2}


def settings_for(strength: float, **fields: Any) -> DreamSettings:
    return enlarged_settings(changed(octave_scale=2, **fields), FILE, strength, LARGE[0] * LARGE[1])


def enlarge(strength: float, size: tuple[int, int] = LARGE, mask: Tensor | None = None, **fields: Any) -> AscentResult:
    """Enlarge a dream of `SMALL` pixels to `size`, with one octave if `size` is `LARGE`."""
    image, dream = picture(*LARGE), small_dream(**fields)
    settings = settings_of_ascent(settings_for(strength, **fields))
    sample = Sample(resize(image, size)[0].clamp(0, 1), settings, mask=mask, dream=dream)
    return ascend(tiny_network(), [sample])


def small_dream(**fields: Any) -> Tensor:
    return dreams(tiny_network(), resize(picture(*LARGE), SMALL).clamp(0, 1), changed(**fields))[0]


@pytest.mark.parametrize("fields", [{}, FINISHED])
def test_a_dream_of_the_same_size_stays_as_it_is(fields: dict[str, Any]) -> None:
    same = enlarge(1, SMALL, **fields).images[0]
    torch.testing.assert_close(same, small_dream(**fields), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, FINISHED, {"carry": "result"}, {"octaves_above": 1}])
def test_strength_0_adds_the_resized_detail_to_the_photograph_and_nothing_else(fields: dict[str, Any]) -> None:
    image, dream = picture(*LARGE), small_dream(**fields)
    expected = image[0] + resize(dream[None] - resize(image, SMALL), LARGE)[0]
    torch.testing.assert_close(enlarge(0, **fields).images[0], expected.clamp(0, 1), rtol=0, atol=1e-4)


def test_new_details_raise_the_score_and_grow_with_the_strength() -> None:
    none, half, full = (enlarge(strength) for strength in (0, 0.5, 1))
    assert none.octave_scores[0, -1] < half.octave_scores[0, -1] < full.octave_scores[0, -1]
    changes = [(each.images - none.images).abs().mean() for each in (half, full)]
    assert 0.002 < changes[0] < changes[1]


def test_new_details_keep_the_composition() -> None:
    """Reduced to its size, the enlarged dream is nearer to the dream than a dream of the large photograph is."""
    small, large = small_dream(), picture(*LARGE)
    anew = dreams(tiny_network(), large, changed())
    distances = [(resize(each, SMALL)[0] - small).abs().mean() for each in (enlarge(0.5).images, anew)]
    assert distances[0] < distances[1] / 2


def test_new_details_get_the_contrast_and_the_colors_of_the_photograph_once() -> None:
    plain, finished = enlarge(1), enlarge(1, keep_colors=1.0)
    colors = [each.images[0] - each.images[0].mean(0) for each in (plain, finished)]
    photograph = picture(*LARGE)[0] - picture(*LARGE)[0].mean(0)
    differences = [(each - photograph).abs().mean() for each in colors]
    assert differences[1] < differences[0] / 3


def test_where_the_mask_is_black_the_photograph_stays() -> None:
    mask = torch.ones(1, *LARGE)
    mask[:, :, :60] = 0
    found = enlarge(1, mask=mask).images[0]
    torch.testing.assert_close(found[:, :, :60], picture(*LARGE)[0, :, :, :60], rtol=0, atol=1e-5)
    assert (found - picture(*LARGE)[0])[:, :, 60:].abs().mean() > 0.01


def test_the_scores_begin_with_that_of_the_dream() -> None:
    original = small_dream()
    sample = Sample(resize(picture(*LARGE), SMALL)[0].clamp(0, 1), changed(steps=0, octaves=1))
    score = ascend(tiny_network(), [replace(sample, image=original)]).octave_scores[0, 0]
    torch.testing.assert_close(enlarge(1).octave_scores[0, 0], score)
    assert enlarge(1).skipped_octaves == 0


def test_progress_counts_only_the_new_octaves() -> None:
    seen: list[tuple[int, int]] = []
    sample = Sample(picture(*LARGE)[0], settings_of_ascent(settings_for(1)), dream=small_dream())
    ascend(tiny_network(), [sample], on_step=lambda *counts: seen.append(counts))
    assert seen == [(step, 5) for step in range(1, 6)]


def test_memory_tiles_give_the_same_detail() -> None:
    sample = Sample(picture(*LARGE)[0], settings_of_ascent(settings_for(0.5)), dream=small_dream())
    whole, tiled = (ascend(tiny_network(), [sample], tile).octave_scores[0] for tile in (0, 64))
    nothing = enlarge(0).octave_scores[0]
    torch.testing.assert_close(tiled[0], whole[0], rtol=1e-3, atol=1e-3)
    rises = [(each - nothing)[-1] for each in (tiled, whole)]
    assert 0.6 * rises[1] < rises[0] < 1.2 * rises[1]
    assert rises[1] > 0.05


@pytest.mark.parametrize("scale", [1.2, 1.4, 2.0])
@pytest.mark.parametrize("octaves", [1, 6])
@pytest.mark.parametrize("above", [0, 2])
def test_only_octaves_larger_than_the_dream_are_dreamt(scale: float, octaves: int, above: int) -> None:
    settings = DreamSettings(octave_scale=scale, octaves=max(octaves, above + 1), octaves_above=above)
    settings = settings_of_ascent(enlarged_settings(settings, FILE, 1, 10**6))
    sizes = larger_sizes((700, 1000), (210, 300), settings)
    assert (sizes[0], sizes[-1]) == ((210, 300), (700, 1000))
    for (height, width), (next_height, next_width) in pairwise(sizes):
        assert scale**0.5 * 0.99 < next_height / height < scale**1.5 * 1.01
        assert scale**0.5 * 0.99 < next_width / width < scale**1.5 * 1.01


def test_a_smaller_photograph_is_resampled() -> None:
    small = Photograph(pixels(30, 40), width=40, height=30)
    large = enlarged_photograph(small, 4 * 1200)
    assert (large.pixels.shape, large.width, large.height) == ((60, 80, 3), 40, 30)
    again = resize(torch.from_numpy(large.pixels).permute(2, 0, 1)[None].float(), (30, 40))[0].permute(1, 2, 0).numpy()
    assert np.abs(again - small.pixels).mean() < 12, "noise loses some contrast, and nothing moves"
    for enough in (replace(small, width=4000, height=3000), enlarged_photograph(small, 1200)):
        assert enlarged_photograph(enough, 1200) is enough


def test_the_identity_depends_on_the_dream_and_the_strength_but_not_on_the_address() -> None:
    plain = changed()
    identity = settings_id(enlarged_settings(plain, FILE, 0.5, 10**6), "w")
    moved = enlarged_settings(plain, FILE.model_copy(update={"uri": "elsewhere.png"}), 0.5, 10**6)
    assert settings_id(moved, "w") == identity
    others = [
        enlarged_settings(plain, FILE.model_copy(update={"sha256": "f" * 64}), 0.5, 10**6),
        enlarged_settings(plain, FILE, 0.6, 10**6),
        plain.model_copy(update={"max_pixels": 10**6}),
    ]
    assert len({settings_id(each, "w") for each in others} | {identity}) == 4


def test_a_request_has_the_dream_that_its_settings_name() -> None:
    photograph = Photograph(pixels(*LARGE), width=120, height=96)
    dream = Photograph(pixels(*SMALL), width=60, height=48)
    network, settings = tiny_network(), settings_for(0.5)
    for request in (DreamRequest(photograph, settings), DreamRequest(photograph, changed(), dream=dream)):
        with pytest.raises(InvalidInput, match="give both"):
            dream_photograph(network, request)
    with pytest.raises(InvalidInput, match="the dream has 120 x 96 pixels, and the photograph only 60 x 48"):
        dream_photograph(network, DreamRequest(dream, settings, dream=photograph))
    found = dream_photograph(network, DreamRequest(photograph, settings, dream=dream))
    assert found.pixels.shape == (*LARGE, 3)
    assert found.metadata()["settings"]["enlarge"] == {**FILE.model_dump(), "strength": 0.5}
    assert found.settings.step_size == changed().step_size, "the strength does not change the recorded step size"
