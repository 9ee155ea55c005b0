"""One photograph, dreamt, and what is told of it."""

from dataclasses import asdict, fields

import pytest
import torch
from torch import nn

from dreamcore.batch import Dream, DreamRequest, dream_photograph
from dreamcore.errors import ImageError
from dreamcore.images import Format, Photograph, encode, read_metadata
from dreamcore.observation import Observation
from dreamcore.settings import ALGORITHM_VERSION, DreamSettings, settings_id
from flows.manifest import Row
from tests.support.tiny import SETTINGS, changed, pixels, tiny_network

PHOTOGRAPH = Photograph(pixels(), width=640, height=480)


@pytest.fixture(scope="module")
def dreamt() -> Dream:
    return dream_photograph(tiny_network(), DreamRequest(PHOTOGRAPH, changed(layers="stem=0.5+deep:2,3")))


def test_what_was_measured_goes_by_the_manifests_names(dreamt: Dream) -> None:
    assert set(asdict(dreamt.measurements)) <= {field.name for field in fields(Row)}


def test_measures_tell_sizes_scores_and_classes(dreamt: Dream) -> None:
    measures = asdict(dreamt.measurements)
    assert (measures["source_width"], measures["source_height"]) == (640, 480)
    assert (measures["width"], measures["height"]) == (64, 48)
    assert (measures["device"], measures["precision"], measures["batch"]) == ("cpu", "float32", 1)
    assert measures["score_after"] > measures["score_before"]
    deep, stem = measures["layer_scores"]
    assert (deep["layer"], stem["layer"]) == ("deep:2,3", "stem")
    assert measures["score_before"] == pytest.approx(deep["before"] + 0.5 * stem["before"])
    assert measures["score_after"] == pytest.approx(deep["after"] + 0.5 * stem["after"])
    assert len(measures["classes_before"]) == len(measures["classes_after"]) == 5
    assert set(measures["classes_after"][0]) == {"label", "p"}


@pytest.mark.parametrize("format", ["png", "webp", "jpg"])
def test_a_picture_carries_all_that_is_needed_to_dream_it_again(dreamt: Dream, format: Format) -> None:
    description = dreamt.metadata()
    inside = read_metadata(encode(dreamt.pixels, format, 95, description))
    assert inside == description
    settings = DreamSettings.model_validate(inside["settings"])
    assert settings == dreamt.settings
    assert inside["settings_id"] == settings_id(settings, "tiny weights")
    assert inside["weights_sha256"] == "tiny weights"
    assert inside["algorithm_version"] == ALGORITHM_VERSION
    assert asdict(dreamt.measurements).items() <= inside.items()


def test_what_is_known_already_is_not_looked_at_again() -> None:
    known = Observation({"deep": 1.5}, [("nothing", 1.0)])
    dreamt = dream_photograph(tiny_network(), DreamRequest(PHOTOGRAPH, SETTINGS, before=known))
    assert dreamt.before is known
    assert asdict(dreamt.measurements)["score_before"] == 1.5


def test_dreaming_the_same_twice_gives_the_same_pixels() -> None:
    one, other = (dream_photograph(tiny_network(), DreamRequest(PHOTOGRAPH, SETTINGS)) for _ in range(2))
    assert (one.pixels == other.pixels).all()
    assert (one.pixels != PHOTOGRAPH.pixels).any()


def test_a_network_that_breaks_down_is_trouble_with_the_photograph() -> None:
    class Broken(nn.Module):
        def forward(self, activations: torch.Tensor) -> torch.Tensor:
            return activations / 0

    with pytest.raises(ImageError, match="lower step_size") as caught:
        dream_photograph(tiny_network(Broken), DreamRequest(PHOTOGRAPH, SETTINGS))
    assert caught.value.kind == "non_finite"


def test_a_photograph_too_small_for_the_network_is_refused() -> None:
    with pytest.raises(ImageError) as caught:
        dream_photograph(tiny_network(min_size=49), DreamRequest(PHOTOGRAPH, SETTINGS))
    assert caught.value.kind == "too_small"
