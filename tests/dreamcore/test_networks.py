"""Networks of many architectures dream, with random weights, whatever their differences."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dreamcore.errors import ImageError, InvalidInput
from dreamcore.network import Network
from dreamcore.observation import observe
from dreamcore.tracing import activation_sizes, trace_network
from dreamcore.zoo import build
from tests.support.architectures import MIDDLES, network
from tests.support.tiny import changed, dreams, picture

pytestmark = pytest.mark.slow

SLOW = {"densenet121", "vgg16", "timm/hrnet_w18"}


@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=[pytest.mark.soak] if model in SLOW else []) for model in MIDDLES]
)
def test_a_dream_raises_the_score(model: str) -> None:
    settings = changed(model=model, layers=MIDDLES[model], octaves=1, steps=10)
    images = [picture(96, 96), dreams(network(model), picture(96, 96), settings)]
    before, after = (observe(network(model), image, settings.layers, settings.measure)[0] for image in images)
    assert images[1].isfinite().all()
    assert after.score(settings.layers) > before.score(settings.layers) + 0.01


@pytest.mark.parametrize("model", MIDDLES)
def test_a_network_dreams_at_its_minimum_size_and_not_below(model: str) -> None:
    settings = changed(model=model, layers=MIDDLES[model], octaves=1, steps=1)
    min_size = network(model).spec.min_size
    assert dreams(network(model), picture(min_size, min_size + 1), settings).isfinite().all()
    if min_size > 1:
        with pytest.raises(ImageError, match=f"the network needs {min_size} on each side"):
            dreams(network(model), picture(min_size - 1, 96), settings)


def test_octaves_below_the_minimum_size_are_skipped() -> None:
    min_sizes = {model: network(model).spec.min_size for model in ("alexnet", "inception_v3", "resnet18")}
    assert min_sizes == {"alexnet": 63, "inception_v3": 75, "resnet18": 1}
    for model, octaves in (("alexnet", 2), ("inception_v3", 1), ("resnet18", 3)):
        settings = changed(model=model, layers=MIDDLES[model], octaves=3, octave_scale=1.4, steps=1)
        planned: set[int] = set()
        dreams(network(model), picture(96, 96), settings, on_step=lambda _done, steps, to=planned: to.add(steps))
        assert planned == {octaves}


def test_a_network_with_a_fixed_input_size_is_rejected() -> None:
    with pytest.raises(InvalidInput, match="vit_b_16 takes images of one size only: choose a convolutional network"):
        trace_network("vit_b_16")


# --- networks whose input sides must be multiples of a number


@pytest.mark.parametrize("model", ["timm/dla34", "timm/hrnet_w18"])
def test_an_image_is_padded_to_a_size_that_the_network_accepts(model: str) -> None:
    assert (network(model).spec.multiple, network(model).spec.min_size) == (32, 32)
    layer = MIDDLES[model]
    stride = network(model).spec.layer(layer).stride
    image = picture(96, 128)
    whole = network(model).activations(image, {layer})[layer]
    mirrored = torch.cat([image[..., :70, :], image[..., 43:69, :].flip(2)], dim=2)
    cropped = network(model).activations(image[..., :70, :], {layer})[layer]
    assert cropped.shape[-2:] == (-(-70 // stride), 128 // stride)
    assert whole.shape[-2:] == (96 // stride, 128 // stride)
    torch.testing.assert_close(
        cropped, network(model).activations(mirrored, {layer})[layer][..., : len(cropped[0, 0]), :]
    )


def test_other_networks_need_no_padding() -> None:
    assert {network(model).spec.multiple for model in MIDDLES} == {1, 32}
    assert [model for model in MIDDLES if network(model).spec.multiple > 1] == ["timm/dla34", "timm/hrnet_w18"]


def test_activation_sizes_are_known_without_computing_activations() -> None:
    for model in ("vgg16", "timm/hrnet_w18"):
        features = network(model).activations(picture(70, 90), {MIDDLES[model]})[MIDDLES[model]]
        assert activation_sizes(network(model).spec, 70, 90)[MIDDLES[model]] == features.shape[-2:]
    with pytest.raises(InvalidInput, match="90x20 pixels: vgg16 needs 32 on each side"):
        activation_sizes(network("vgg16").spec, 20, 90)


# --- networks with weights from TensorFlow


@pytest.mark.parametrize("pretrained", [False, True], ids=["random", "pretrained"])
@pytest.mark.parametrize("model", ["googlenet", "inception_v3"])
def test_a_network_from_tensorflow_is_normalized_as_in_training(
    model: str, pretrained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Black is -1 and white is 1, whichever way the network was built, and auxiliary heads are no layers."""
    weights = torchvision.models.get_model_weights(model).DEFAULT
    drawn = torchvision.models.get_model(model, init_weights=False, aux_logits=True).state_dict()
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_args, **_options: drawn)
    built = Network(build(model, pretrained=pretrained), network(model).spec, plain=True)
    received: list[Tensor] = []
    first = next(module for module in built.module.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda _module, inputs: received.append(inputs[0]))
    levels = torch.tensor([0.0, 0.5, 1.0])
    assert built.classify(levels.view(3, 1, 1, 1).expand(3, 3, 80, 80)).shape == (3, 1000)
    for channel in range(3):
        torch.testing.assert_close(received[0][:, channel, 9, 9], levels * 2 - 1, atol=1e-5, rtol=0)
    assert not any("aux" in layer.name.lower() for layer in built.spec.layers)


# --- receptive fields


def make_convolutions_means(module: nn.Module) -> None:
    """Make all weights positive and every convolution a mean, so that every pixel in the field has a gradient."""
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            each.weight.fill_(1 / each.weight[0].numel())
            if each.bias is not None:
                each.bias.zero_()


@pytest.mark.parametrize(
    ("model", "layer", "side"),
    [
        ("resnet18", "layer2", 99),  # shortcuts with and without a convolution
        ("squeezenet1_1", "features.7", 63),  # concatenated branches, pools that round up
        ("googlenet", "inception3b", 59),
        ("mnasnet1_0", "layers.9", 107),
        ("timm/tf_efficientnet_lite0", "blocks.2", 67),  # padding that depends on the size
        ("timm/dla34", "level3", 159),
    ],
)
def test_the_receptive_field_is_where_a_position_has_a_gradient(
    model: str, layer: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mean_pool(x: Tensor, kernel: int, stride: int, padding: int, _d: int, ceil_mode: bool, **_o: object) -> Tensor:
        return F.avg_pool2d(x, kernel, stride, padding, ceil_mode)

    monkeypatch.setattr(F, "max_pool2d", mean_pool)  # only the largest value has a gradient in max pooling
    measured = Network(build(model, pretrained=False).double(), network(model).spec, plain=True)
    make_convolutions_means(measured.module)
    measured.mean, measured.std = measured.mean.double() * 0, measured.std.double() * 0 + 1
    image = torch.full((1, 3, 256, 256), 0.5, dtype=torch.double, requires_grad=True)
    features = measured.activations(image, {layer})[layer]
    middle = features.shape[-1] // 2
    (gradient,) = torch.autograd.grad(features[0, :, middle, middle].sum(), image)
    reached = gradient[0].abs().sum(0).nonzero()
    sides = (reached.max(0).values - reached.min(0).values + 1).tolist()
    assert sides == [side, side] == [measured.spec.layer(layer).receptive_field] * 2


@pytest.mark.parametrize(
    ("model", "layer", "side"),
    [("vgg16", "features.30", 212), ("alexnet", "features.12", 195), ("resnet18", "layer4", 435),
     ("inception_v3", "Mixed_7c", 1311), ("efficientnet_b0", "features.8", 851), ("resnet18", "avgpool", None)],
)  # fmt: skip
def test_receptive_fields_agree_with_published_values(model: str, layer: str, side: int | None) -> None:
    """VGG-16, AlexNet and Inception v3: Araujo, Norris and Sim, "Computing Receptive Fields ..." (2019)."""
    assert network(model).spec.layer(layer).receptive_field == side


def test_squeeze_and_excitation_does_not_widen_the_receptive_field() -> None:
    spec = network("mobilenet_v3_large").spec
    assert spec.layer("features.4.block.2").kind == "SqueezeExcitation"
    assert spec.layer("features.4.block.2").receptive_field == 35
    assert spec.layer("features.4.block.2.fc1").receptive_field is None


@pytest.mark.parametrize(
    ("model", "first", "last", "count"),
    [
        ("timm/tf_efficientnet_lite0", "blocks.0", "blocks.6", 7),
        ("resnet18", "layer1", "layer4", 4),
        ("googlenet", "conv1", "inception5b", 12),
        ("densenet121", "features.denseblock1", "features.denseblock4", 7),
        ("vgg16", "features.3", "features.30", 6),
        ("timm/resnetv2_50", "stages.0", "stages.3", 4),
    ],
)
def test_stages_are_the_main_parts_of_a_network(model: str, first: str, last: str, count: int) -> None:
    stages = [layer.name for layer in network(model).spec.stages()]
    assert (stages[0], stages[-1], len(stages)) == (first, last, count)
