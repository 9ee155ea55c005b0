"""Specs of networks: reading, writing, layers, stages."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dreamcore import spec_cache
from dreamcore.catalog import BUNDLED_SPEC, network_spec
from dreamcore.errors import InvalidInput
from dreamcore.settings import BUNDLED
from dreamcore.spec import Layer, NetworkSpec
from dreamcore.targets import Target
from dreamcore.tracing import trace_network
from tests.support.tiny import tiny_network


def test_the_bundled_spec_equals_a_fresh_trace() -> None:
    """If it does not, timm changed the network: write `trace_network(BUNDLED).to_json()` into the file."""
    assert network_spec(BUNDLED) == trace_network(BUNDLED)
    assert network_spec(BUNDLED).to_json() == BUNDLED_SPEC.read_text()


@pytest.mark.parametrize("known", [tiny_network().spec, network_spec(BUNDLED)], ids=lambda known: known.model)
def test_a_spec_is_read_back_from_its_json(known: NetworkSpec) -> None:
    assert NetworkSpec.from_json(known.to_json()) == known


def test_a_layer_is_found_by_name() -> None:
    layer = network_spec(BUNDLED).layer("blocks.4")
    assert (layer.channels, layer.stride) == (112, 16)


@pytest.mark.parametrize(
    ("layer", "hint"), [("block.4", r"; did you mean blocks\.4, [^?]*\?"), ("%%%%", r"\.")], ids=str
)
def test_an_unknown_layer_names_the_nearest_layers(layer: str, hint: str) -> None:
    message = f"^layer '{layer}' does not exist in {BUNDLED}{hint} `dreamgrid layers {BUNDLED}` lists all layers$"
    with pytest.raises(InvalidInput, match=message):
        network_spec(BUNDLED).layer(layer)


def test_an_unknown_layer_of_a_custom_network_names_the_function_that_lists_them() -> None:
    custom = replace(network_spec(BUNDLED), model="custom:Net")
    with pytest.raises(
        InvalidInput, match=r"in custom:Net; did you mean .*`network_from_module\(module\)\.spec\.layers`"
    ):
        custom.layer("block.4")


def test_an_unknown_channel_names_the_range_of_channels() -> None:
    network_spec(BUNDLED).check_channels("blocks.4", [0, 111])
    with pytest.raises(
        InvalidInput, match=r"channel 112 does not exist in blocks\.4 of efficientnet_lite0: choose one from 0 to 111"
    ):
        network_spec(BUNDLED).check_channels("blocks.4", [0, 112])
    with pytest.raises(InvalidInput, match="does not exist"):
        network_spec(BUNDLED).check_channels("nothing", [])


def test_other_networks_are_traced_once() -> None:
    assert network_spec("resnet18") is network_spec("resnet18")
    assert network_spec("resnet18") == trace_network("resnet18")


PLANNING = """
import sys
from dreamcore.catalog import network_spec
print(len(network_spec("resnet18").layers), "torch" in sys.modules)
"""


def test_the_spec_of_another_network_is_kept_for_the_next_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known = trace_network("resnet18")
    network_spec.cache_clear()
    assert network_spec("resnet18") == known
    (kept,) = tmp_path.glob("dreamgrid/specs/*.json")
    assert NetworkSpec.from_json(kept.read_text()) == known
    command = [sys.executable, "-c", PLANNING]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(known.layers)} False\n"
    for damaged in ("{}", "[", "[]"):
        kept.write_text(damaged)
        assert spec_cache.read_spec("resnet18") is None


def test_a_kept_spec_counts_only_for_the_same_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known = replace(tiny_network().spec, weights="timm:tiny.in1k")
    spec_cache.keep_spec(known)
    assert spec_cache.read_spec("tiny") == known
    with monkeypatch.context() as patch:
        patch.setattr(spec_cache, "version", lambda library: f"9.9 of {library}")
        spec_cache._origin.cache_clear()
        assert spec_cache.read_spec("tiny") is None
    spec_cache._origin.cache_clear()
    assert spec_cache.read_spec("tiny") == known


def test_the_stages_of_the_bundled_network_are_its_blocks() -> None:
    stages = network_spec(BUNDLED).stages()
    assert [stage.name for stage in stages] == [f"blocks.{number}" for number in range(7)]
    assert [stage.stride for stage in stages] == [2, 4, 8, 16, 16, 32, 32]
    assert [stage.receptive_field for stage in stages] == [7, 19, 67, 147, 339, 787, 851]


def test_a_network_without_nested_modules_has_one_stage_per_stride() -> None:
    layers = [Layer("a", "Conv2d", 8, 2, 10, 5), Layer("b", "ReLU", 8, 2, 10, 5), Layer("c", "Conv2d", 8, 4, 20, 9)]
    whole = Layer("pool", "AdaptiveAvgPool2d", 8, 32, 20)
    assert replace(network_spec(BUNDLED), layers=(*layers, whole)).stages() == layers[1:]


def test_a_depth_needs_a_stage() -> None:
    whole = replace(network_spec(BUNDLED), layers=(Layer("pool", "AdaptiveAvgPool2d", 8, 32, 20),))
    with pytest.raises(
        InvalidInput, match="no layer of efficientnet_lite0 has a limited receptive field: name a layer"
    ):
        whole.resolve_depth(Target(layer="65%"))


@pytest.mark.parametrize("stage", network_spec(BUNDLED).stages(), ids=lambda stage: stage.name)
def test_the_documented_stages_are_those_of_the_spec(stage: Layer) -> None:
    page = (Path(__file__).parents[2] / "docs" / "layers.md").read_text()
    assert f"\n| `{stage.name}` | {stage.channels} | {stage.stride} | {stage.receptive_field} | " in page
