"""Presets, each against a reimplementation of its program that shares no code with `dreamcore`."""

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
from tests.support.references import ProgramRun
from tests.support.tiny import picture, tiny_network

pytestmark = pytest.mark.slow

LAYERS = {
    "google2015": "body",
    "tf2": "body+deep",
    "tf2_tiled": "body+deep",
    "keras": "stem+body=1.5+body_bend=2+deep=2.5",
    "gordic": "body_bend",
}
PROGRAMS = list(LAYERS)
"""The DeepDream programs. `test_fourier.py` compares the preset `lucid` with its program."""
STEPS = 6
"""Steps to compare in an octave; after more steps, rounding errors grow too large."""


def settings_of(preset: str, **fields: object) -> DreamSettings:
    return DreamSettings.model_validate({"preset": preset, "model": "tiny", "layers": LAYERS[preset], **fields})


def run_program(preset: str, start: Tensor, settings: DreamSettings, double: bool) -> ProgramRun:
    """Run the reimplemented program on the tiny network, with the jitter of `View`."""
    network = tiny_network()
    if double:
        network.module.double()

    def activations(images: Tensor) -> Mapping[str, Tensor]:
        return network.activations(images, {target.layer for target in settings.layers})

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


def run_preset(start: Tensor, settings: DreamSettings, double: bool, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return the image (3, h, w) after each step of each octave."""
    network = tiny_network()
    if double:
        network.module.double()
    after: list[Tensor] = []
    clip = _Batch.clip

    def clip_and_record(self: _Batch, dreams: Tensor) -> Tensor:
        after.append(clip(self, dreams)[0].clone())
        return after[-1][None]

    monkeypatch.setattr(_Batch, "clip", clip_and_record)
    ascend(network, [Sample(start, settings)])
    return after


def psnr(one: Tensor, other: Tensor) -> float:
    """Return the PSNR of images in [0, 1], in dB."""
    error = (one - other).square().mean().item()
    return -10 * math.log10(error) if error else math.inf


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 60), (torch.float64, 120)], ids=["float32", "float64"])
@pytest.mark.parametrize("preset", PROGRAMS)
def test_every_step_of_the_first_octave_equals_the_program(
    preset: str, dtype: torch.dtype, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (600, 700) if preset == "tf2_tiled" else (233, 291)  # the last tiles are partial
    steps = 3 if preset == "tf2_tiled" else STEPS
    start, settings = picture(*size)[0].to(dtype), settings_of(preset, steps=steps)
    expected = run_program(preset, start, settings, dtype == torch.float64)
    found = run_preset(start, settings, dtype == torch.float64, monkeypatch)
    assert octave_sizes(size, settings) == expected.shapes
    assert len(expected.first) == steps
    for step, (one, other) in enumerate(zip(expected.first, found, strict=False)):
        assert one.shape == other.shape
        assert psnr(one, other) > least, f"step {step}"
        assert psnr(start if one.shape == start.shape else one * 0, other) < 60, "the step changes the image"


@pytest.mark.parametrize("preset", PROGRAMS)
def test_the_whole_dream_equals_the_program(preset: str) -> None:
    """One step per octave in float64 also compares the transition between octaves."""
    start, settings = picture(230, 270)[0].double(), settings_of(preset, steps=1)
    network = tiny_network()
    network.module.double()
    result = ascend(network, [Sample(start, settings)]).images[0]
    assert psnr(run_program(preset, start, settings, True).result, result) > (60 if preset == "tf2" else 120)


def test_keras_ends_an_octave_when_its_loss_exceeds_fifteen(monkeypatch: pytest.MonkeyPatch) -> None:
    start = picture(133, 171)[0].double()
    settings = settings_of("keras", layers="stem=300+deep=300", steps=20)
    expected = run_program("keras", start, settings, True)
    assert 0 < len(expected.first) < 20
    found = run_preset(start, settings, True, monkeypatch)
    shape = expected.first[0].shape
    assert len([each for each in found if each.shape == shape]) == len(expected.first)
    assert psnr(expected.first[-1], found[len(expected.first) - 1]) > 120


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_excites_the_layers_of_its_program_on_its_network(preset: PresetName) -> None:
    program = PRESETS[preset]
    settings = DreamSettings.model_validate({"preset": preset, "model": program.model})
    assert resolve_layers(settings).layers == DreamSettings.model_validate({"layers": program.layers}).layers
    costs = {layer.name: layer.cost for layer in network_spec(program.model).layers}
    targets = DreamSettings.model_validate({"layers": program.depths}).layers
    depths = sorted((float(target.layer.rstrip("%")), target.weight) for target in targets)
    expected = sorted((100 * costs[target.layer] / max(costs.values()), target.weight) for target in settings.layers)
    assert [depth for depth, _ in depths] == pytest.approx([depth for depth, _ in expected], abs=0.6)
    assert [weight for _, weight in depths] == [weight for _, weight in expected]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", ["efficientnet_lite0", "resnet18", "alexnet"])
def test_a_preset_excites_layers_at_the_same_depth_on_other_networks(preset: str, model: str) -> None:
    settings = resolve_layers(DreamSettings.model_validate({"preset": preset, "model": model}))
    assert sum(target.weight for target in settings.layers) == sum(
        target.weight for target in DreamSettings.model_validate({"preset": preset, "model": model}).layers
    )
    for target in settings.layers:
        assert network_spec(model).layer(target.layer).receptive_field


def test_explicit_settings_override_the_preset() -> None:
    settings = DreamSettings.model_validate({"preset": "gordic", "steps": 3, "layers": "blocks.2"})
    assert (settings.steps, settings.octave_scale, settings.layers[0].layer) == (3, 1.8, "blocks.2")


def test_an_unknown_preset_is_rejected_with_the_names_of_all_presets() -> None:
    with pytest.raises(ValueError, match="no preset 'google'; choose google2015, tf2, tf2_tiled, keras, gordic, lucid"):
        DreamSettings.model_validate({"preset": "google"})


def test_preset_names_are_the_keys_of_the_table() -> None:
    assert get_args(PresetName) == tuple(PRESETS)


def test_depths_whose_weights_cancel_are_rejected() -> None:
    with pytest.raises(InvalidInput, match="add up to 0"):
        resolve_layers(DreamSettings.model_validate({"layers": "62%+64%=-1"}))
