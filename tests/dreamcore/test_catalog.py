"""Cards: what is known of a network before it is loaded."""

from dataclasses import replace
from pathlib import Path

import pytest

from dreamcore.catalog import BUNDLED_SPEC, network_spec
from dreamcore.errors import InvalidInput
from dreamcore.settings import BUNDLED
from dreamcore.spec import Layer, NetworkSpec
from dreamcore.tracing import trace_network
from tests.support.tiny import tiny_network


def test_the_bundled_card_is_what_a_survey_finds() -> None:
    """If not, the network's library changed it: write `trace_network(BUNDLED).to_json()` into the card."""
    assert network_spec(BUNDLED) == trace_network(BUNDLED)
    assert network_spec(BUNDLED).to_json() == BUNDLED_SPEC.read_text()


@pytest.mark.parametrize("known", [tiny_network().spec, network_spec(BUNDLED)], ids=lambda known: known.model)
def test_a_card_survives_its_json(known: NetworkSpec) -> None:
    assert NetworkSpec.from_json(known.to_json()) == known


def test_a_layer_is_found_by_its_name() -> None:
    layer = network_spec(BUNDLED).layer("blocks.4")
    assert (layer.channels, layer.stride) == (112, 16)


@pytest.mark.parametrize(
    ("layer", "hint"), [("block.4", r"nearest: blocks\.4, "), ("%%%%", "none is spelt like it")], ids=str
)
def test_an_unknown_layer_names_the_nearest(layer: str, hint: str) -> None:
    with pytest.raises(InvalidInput, match=f"{BUNDLED} has no layer '{layer}' .*{hint}.*`dreamgrid layers {BUNDLED}`"):
        network_spec(BUNDLED).layer(layer)


def test_an_unknown_channel_tells_how_many_there_are() -> None:
    network_spec(BUNDLED).check_channels("blocks.4", [0, 111])
    with pytest.raises(InvalidInput, match=r"blocks\.4 of efficientnet_lite0 has no channel 112: it has 112"):
        network_spec(BUNDLED).check_channels("blocks.4", [0, 112])
    with pytest.raises(InvalidInput, match="no layer"):
        network_spec(BUNDLED).check_channels("nothing", [])


def test_other_networks_are_surveyed_once() -> None:
    assert network_spec("resnet18") is network_spec("resnet18")
    assert network_spec("resnet18") == trace_network("resnet18")


def test_the_stages_of_the_bundled_network() -> None:
    stages = network_spec(BUNDLED).stages()
    assert [stage.name for stage in stages] == [f"blocks.{number}" for number in range(7)]
    assert [stage.stride for stage in stages] == [2, 4, 8, 16, 16, 32, 32]
    assert [stage.receptive_field for stage in stages] == [7, 19, 67, 147, 339, 787, 851]


def test_a_network_without_parts_has_a_stage_for_each_stride() -> None:
    layers = [Layer("a", "Conv2d", 8, 2, 10, 5), Layer("b", "ReLU", 8, 2, 10, 5), Layer("c", "Conv2d", 8, 4, 20, 9)]
    whole = Layer("pool", "AdaptiveAvgPool2d", 8, 32, 20)
    assert replace(network_spec(BUNDLED), layers=(*layers, whole)).stages() == layers[1:]


@pytest.mark.parametrize("stage", network_spec(BUNDLED).stages(), ids=lambda stage: stage.name)
def test_the_documented_stages_are_those_of_the_card(stage: Layer) -> None:
    page = (Path(__file__).parents[2] / "docs" / "layers.md").read_text()
    assert f"\n| `{stage.name}` | {stage.channels} | {stage.stride} | {stage.receptive_field} | " in page
