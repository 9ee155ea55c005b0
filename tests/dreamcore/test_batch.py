"""The dream of one photograph, its measurements and its metadata."""

from dataclasses import asdict, fields

import pytest
import torch
from torch import nn

from dreamcore.batch import Dream, DreamRequest, dream_photograph
from dreamcore.errors import ImageError
from dreamcore.images import Format, Photograph, encode, read_metadata
from dreamcore.observation import Observation
from dreamcore.settings import ALGORITHM_VERSION, DreamSettings, settings_id
from flows.destination.manifest import Row
from tests.support.tiny import SETTINGS, changed, pixels, tiny_network

PHOTOGRAPH = Photograph(pixels(), width=640, height=480)


@pytest.fixture(scope="module")
def dream() -> Dream:
    return dream_photograph(tiny_network(), DreamRequest(PHOTOGRAPH, changed(layers="stem=0.5+deep:2,3")))


def test_measurements_are_columns_of_the_manifest(dream: Dream) -> None:
    assert set(asdict(dream.measurements)) <= {field.name for field in fields(Row)}


def test_measurements_hold_sizes_scores_and_classes(dream: Dream) -> None:
    measurements = asdict(dream.measurements)
    assert (measurements["source_width"], measurements["source_height"]) == (640, 480)
    assert (measurements["width"], measurements["height"]) == (64, 48)
    assert (measurements["device"], measurements["precision"], measurements["batch"]) == ("cpu", "float32", 1)
    assert measurements["score_after"] > measurements["score_before"]
    deep, stem = measurements["layer_scores"]
    assert (deep["layer"], stem["layer"]) == ("deep:2,3", "stem")
    assert measurements["score_before"] == pytest.approx(deep["before"] + 0.5 * stem["before"])
    assert measurements["score_after"] == pytest.approx(deep["after"] + 0.5 * stem["after"])
    assert len(measurements["classes_before"]) == len(measurements["classes_after"]) == 5
    assert set(measurements["classes_after"][0]) == {"label", "p"}


@pytest.mark.parametrize("format", ["png", "webp", "jpg"])
def test_an_image_file_contains_everything_to_reproduce_the_dream(dream: Dream, format: Format) -> None:
    metadata = dream.metadata()
    inside = read_metadata(encode(dream.pixels, format, 95, metadata))
    assert inside == metadata
    settings = DreamSettings.model_validate(inside["settings"])
    assert settings == dream.settings
    assert inside["settings_id"] == settings_id(settings, "tiny weights")
    assert inside["weights_sha256"] == "tiny weights"
    assert inside["algorithm_version"] == ALGORITHM_VERSION
    assert asdict(dream.measurements).items() <= inside.items()


def test_a_known_observation_is_not_computed_again() -> None:
    known = Observation({"deep": 1.5}, [("nothing", 1.0)])
    dream = dream_photograph(tiny_network(), DreamRequest(PHOTOGRAPH, SETTINGS, before=known))
    assert dream.before is known
    assert asdict(dream.measurements)["score_before"] == 1.5


def test_the_same_request_gives_the_same_pixels() -> None:
    one, other = (dream_photograph(tiny_network(), DreamRequest(PHOTOGRAPH, SETTINGS)) for _ in range(2))
    assert (one.pixels == other.pixels).all()
    assert (one.pixels != PHOTOGRAPH.pixels).any()


def test_an_ascent_that_diverges_is_an_image_error() -> None:
    class Diverging(nn.Module):
        def forward(self, activations: torch.Tensor) -> torch.Tensor:
            return activations / 0

    with pytest.raises(ImageError, match="lower step_size") as caught:
        dream_photograph(tiny_network(Diverging), DreamRequest(PHOTOGRAPH, SETTINGS))
    assert caught.value.kind == "non_finite"


def test_a_photograph_too_small_for_the_network_is_refused() -> None:
    with pytest.raises(ImageError) as caught:
        dream_photograph(tiny_network(min_size=49), DreamRequest(PHOTOGRAPH, SETTINGS))
    assert caught.value.kind == "too_small"
