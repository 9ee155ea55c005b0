"""The published programs, each against an account of it that shares no line with the product."""

import math
from collections.abc import Mapping
from typing import get_args

import pytest
import torch
from torch import Tensor

from dreamcore.ascent import Sample, _Batch, ascend
from dreamcore.catalog import network_spec, resolve_layers
from dreamcore.errors import InvalidInput
from dreamcore.octaves import octave_sizes
from dreamcore.presets import PRESETS, PresetName
from dreamcore.settings import DreamSettings
from dreamcore.views import View
from tests.support import references
from tests.support.references import Told
from tests.support.tiny import picture, tiny_network

LAYERS = {
    "google2015": "body",
    "tf2": "body+deep",
    "tf2_tiled": "body+deep",
    "keras": "stem+body=1.5+body_bend=2+deep=2.5",
    "gordic": "body_bend",
}
STEPS = 6
"""Of an octave, before the last digits of the arithmetic grow to be seen."""


def settings_of(preset: str, **fields: object) -> DreamSettings:
    return DreamSettings.model_validate({"preset": preset, "model": "tiny", "layers": LAYERS[preset], **fields})


def told(preset: str, start: Tensor, settings: DreamSettings, double: bool) -> Told:
    """The published program, shown the same network, and jitter that is ours."""
    network = tiny_network()
    if double:
        network.module.double()

    def activations(pictures: Tensor) -> Mapping[str, Tensor]:
        return network.activations(pictures, {target.layer for target in settings.layers})

    def offsets(octave: int, step: int) -> tuple[int, int]:
        view = View.choose(settings, octave, step)
        return view.down, view.right

    names = [target.layer for target in settings.layers]
    weights = {target.layer: target.weight for target in settings.layers}
    match preset:
        case "keras":
            return references.keras(activations, weights, start, offsets, steps=settings.steps)
        case "gordic":
            mean, std = network.mean.flatten().to(start), network.std.flatten().to(start)
            return references.gordic(activations, names, start, offsets, mean, std, steps=settings.steps)
    programs = {"google2015": references.google2015, "tf2": references.tf2, "tf2_tiled": references.tf2_tiled}
    return programs[preset](activations, names, start, offsets, steps=settings.steps)


def ours(start: Tensor, settings: DreamSettings, double: bool, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The picture after each step, octave after octave."""
    network = tiny_network()
    if double:
        network.module.double()
    after: list[Tensor] = []
    within_bounds = _Batch.clip

    def kept(self: _Batch, dreams: Tensor) -> Tensor:
        after.append(within_bounds(self, dreams)[0].clone())
        return after[-1][None]

    monkeypatch.setattr(_Batch, "clip", kept)
    ascend(network, [Sample(start, settings)])
    return after


def psnr(one: Tensor, other: Tensor) -> float:
    """Of pictures in [0, 1], in dB."""
    error = (one - other).square().mean().item()
    return -10 * math.log10(error) if error else math.inf


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 60), (torch.float64, 120)], ids=["float32", "float64"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_step_of_the_first_octave_is_the_published_one(
    preset: str, dtype: torch.dtype, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (600, 700) if preset == "tf2_tiled" else (233, 291)  # tiles, of which the last are parts
    steps = 3 if preset == "tf2_tiled" else STEPS
    start, settings = picture(*size)[0].to(dtype), settings_of(preset, steps=steps)
    expected = told(preset, start, settings, dtype == torch.float64)
    found = ours(start, settings, dtype == torch.float64, monkeypatch)
    assert octave_sizes(size, settings) == expected.shapes
    assert len(expected.first) == steps
    for step, (one, other) in enumerate(zip(expected.first, found, strict=False)):
        assert one.shape == other.shape
        assert psnr(one, other) > least, f"step {step}"
        assert psnr(start if one.shape == start.shape else one * 0, other) < 60, "it moved"


@pytest.mark.parametrize("preset", PRESETS)
def test_the_whole_dream_is_the_published_one(preset: str) -> None:
    """One step an octave, in float64: what goes from an octave to the next is published, too."""
    start, settings = picture(230, 270)[0].double(), settings_of(preset, steps=1)
    network = tiny_network()
    network.module.double()
    result = ascend(network, [Sample(start, settings)]).images[0]
    assert psnr(told(preset, start, settings, True).result, result) > (60 if preset == "tf2" else 120)


def test_keras_ends_an_octave_when_its_loss_passes_fifteen(monkeypatch: pytest.MonkeyPatch) -> None:
    start = picture(133, 171)[0].double()
    settings = settings_of("keras", layers="stem=300+deep=300", steps=20)
    expected = told("keras", start, settings, True)
    assert 0 < len(expected.first) < 20
    found = ours(start, settings, True, monkeypatch)
    shape = expected.first[0].shape
    assert len([each for each in found if each.shape == shape]) == len(expected.first)
    assert psnr(expected.first[-1], found[len(expected.first) - 1]) > 120


@pytest.mark.parametrize("preset", PRESETS)
def test_on_the_network_of_its_authors_a_preset_excites_their_layers(preset: PresetName) -> None:
    known = PRESETS[preset]
    settings = DreamSettings.model_validate({"preset": preset, "model": known.model})
    assert resolve_layers(settings).layers == DreamSettings.model_validate({"layers": known.layers}).layers
    costs = {layer.name: layer.cost for layer in network_spec(known.model).layers}
    targets = DreamSettings.model_validate({"layers": known.depths}).layers
    depths = sorted((float(target.layer.rstrip("%")), target.weight) for target in targets)
    theirs = sorted((100 * costs[target.layer] / max(costs.values()), target.weight) for target in settings.layers)
    assert [depth for depth, _ in depths] == pytest.approx([depth for depth, _ in theirs], abs=0.6)
    assert [weight for _, weight in depths] == [weight for _, weight in theirs]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", ["efficientnet_lite0", "resnet18", "alexnet"])
def test_elsewhere_layers_of_the_same_depth_stand_in(preset: str, model: str) -> None:
    settings = resolve_layers(DreamSettings.model_validate({"preset": preset, "model": model}))
    assert sum(target.weight for target in settings.layers) == sum(
        target.weight for target in DreamSettings.model_validate({"preset": preset, "model": model}).layers
    )
    for target in settings.layers:
        assert network_spec(model).layer(target.layer).receptive_field


def test_what_is_given_goes_before_what_the_preset_says() -> None:
    settings = DreamSettings.model_validate({"preset": "gordic", "steps": 3, "layers": "blocks.2"})
    assert (settings.steps, settings.octave_scale, settings.layers[0].layer) == (3, 1.8, "blocks.2")


def test_a_preset_that_is_not_known_names_those_that_are() -> None:
    with pytest.raises(ValueError, match="no preset 'google'; choose google2015, tf2, tf2_tiled, keras, gordic"):
        DreamSettings.model_validate({"preset": "google"})


def test_the_names_are_the_tables() -> None:
    assert get_args(PresetName) == tuple(PRESETS)


def test_depths_that_cancel_each_other_out_are_refused() -> None:
    with pytest.raises(InvalidInput, match="add up to 0"):
        resolve_layers(DreamSettings.model_validate({"layers": "62%+64%=-1"}))
