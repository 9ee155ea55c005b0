"""The optimized network has the activations and gradients of the plain network."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from dreamcore.ascent import Sample, ascend
from dreamcore.catalog import network_spec
from dreamcore.engine import Convolution, StemConvolution, optimize, supports_bfloat16
from dreamcore.folding import CEILINGS
from dreamcore.memory import Allocations
from dreamcore.models import load_network
from dreamcore.network import Network
from dreamcore.zoo import build
from tests.support.architectures import MIDDLES
from tests.support.tiny import changed, picture, tiny_network

pytestmark = pytest.mark.slow


def pair(model: str) -> tuple[Network, Network]:
    """Return a network with seeded random weights and non-trivial batch normalizations, optimized and plain."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(model, pretrained=False)
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                part.weight.data.uniform_(0.5, 1.5)
                part.bias.data.normal_(0, 0.1)
    return Network(module, network_spec(model)), Network(module, network_spec(model), plain=True)


def psnr(one: Tensor, other: Tensor) -> float:
    """Return the peak signal-to-noise ratio of images in [0, 1], in dB."""
    return -10 * math.log10((one - other).square().mean().item() + 1e-20)


@pytest.mark.parametrize("model", MIDDLES)
def test_one_step_agrees_with_the_plain_network(model: str) -> None:
    optimized, plain = pair(model)
    settings = changed(model=model, layers=MIDDLES[model], octaves=1, steps=1, gradient="plain")
    images = [ascend(network, [Sample(picture(96, 100)[0], settings)]).images for network in (optimized, plain)]
    assert (images[1] - picture(96, 100)).abs().max() > 0.01
    assert psnr(*images) > 60


@pytest.mark.parametrize("model", ["resnet18", "timm/tf_efficientnet_lite0"])
def test_one_step_in_float64_agrees_with_the_plain_network(model: str) -> None:
    """Float64 takes the same path through convolutions and clamps as float32 does on a GPU."""
    optimized, plain = pair(model)
    plain.module.double()
    as_on_a_gpu(optimized._optimized[0])
    image = picture(96, 100)[0].double()
    settings = changed(model=model, layers=MIDDLES[model], octaves=1, steps=1, gradient="plain")
    images = [ascend(network, [Sample(image, settings)]).images for network in (optimized, plain)]
    assert (images[1] - image).abs().max() > 0.01
    assert psnr(*images) > 160


def as_on_a_gpu(module: nn.Module) -> None:
    """Let the convolutions in float64 compute as they do on a GPU."""
    for part in module.modules():
        if isinstance(part, Convolution):
            part.on_cpu = False


@pytest.mark.parametrize("ceiling", [6.0, math.inf])
def test_a_clamp_on_a_gpu_equals_hardtanh_to_the_bit_and_copies_nothing(ceiling: float) -> None:
    plain = nn.Conv2d(1, 1, 1, bias=False, dtype=torch.double).requires_grad_(False)
    plain.weight.fill_(1)
    x = torch.tensor([-2, -0.0, 0, 1e-300, 3, 6, 6.5, math.inf, -math.inf, math.nan], dtype=torch.double).view(
        1, 1, 1, -1
    )
    found = []
    for on_cpu in (True, False):
        convolution = Convolution(plain, ceiling)
        convolution.on_cpu = on_cpu
        image = x.clone().requires_grad_()
        with Allocations() as allocations:
            output = convolution(image)
            taken = allocations.peak
            (gradient,) = torch.autograd.grad(output, image, torch.full_like(output, 2))
        found.append((output.view(torch.long), gradient.view(torch.long), taken // x.nbytes))
    assert all(torch.equal(one, other) for one, other in zip(found[0][:2], found[1][:2], strict=True))
    assert [copies for _, _, copies in found] == [2, 1]


@pytest.mark.parametrize("size", [(300, 451), (65, 97), (224, 224)])
def test_one_step_of_the_bundled_network_agrees_with_the_plain_network(size: tuple[int, int]) -> None:
    optimized = load_network("efficientnet_lite0")
    plain = Network(optimized.module, optimized.spec, plain=True)
    settings = changed(layers="blocks.4+blocks.2=0.5", octaves=1, steps=1)
    images = [ascend(network, [Sample(picture(*size)[0], settings)]).images for network in (optimized, plain)]
    assert psnr(*images) > 60


WITH_LARGE_CONVOLUTIONS = pytest.mark.parametrize("model", ["googlenet", "resnet18", "alexnet"])


def gradient(network: Network, layer: str) -> Tensor:
    """Return the gradient of the score of a layer with respect to the image."""
    image = picture(96, 100).requires_grad_()
    score = network.activations(image, [layer])[layer].square().mean().log()
    return torch.autograd.grad(score, image)[0]


def snr(one: Tensor, other: Tensor) -> float:
    """Return the ratio of a gradient to its difference from another gradient, in dB."""
    return 10 * math.log10(one.square().mean() / ((one - other).square().mean() + 1e-20))


@WITH_LARGE_CONVOLUTIONS
@pytest.mark.skipif(not supports_bfloat16(), reason="this CPU has no bfloat16 instructions")
def test_a_bfloat16_gradient_is_within_one_percent_of_the_float32_gradient(model: str) -> None:
    """The images after a step then agree far better than the 60 dB above."""
    half, plain = pair(model)
    wanted = [frozenset({MIDDLES[model]})]
    assert (half.precisions(wanted), plain.precisions(wanted)) == (["float32/bfloat16"], ["float32"])
    assert 38 < snr(gradient(plain, MIDDLES[model]), gradient(half, MIDDLES[model])) < 60


@WITH_LARGE_CONVOLUTIONS
def test_cpus_without_bfloat16_take_gradients_in_float32(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamcore.engine.supports_bfloat16", lambda: False)
    optimized, plain = pair(model)
    assert optimized.precisions([frozenset({MIDDLES[model]})]) == ["float32"]
    assert snr(gradient(plain, MIDDLES[model]), gradient(optimized, MIDDLES[model])) > 70


def test_a_hidden_avx512_hides_bfloat16() -> None:
    """So the speed of a processor without it can be measured on one that has it."""
    code = "from dreamcore.engine import supports_bfloat16; print(supports_bfloat16())"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_the_bundled_network_uses_no_bfloat16_up_to_its_default_layer() -> None:
    network = load_network("efficientnet_lite0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamcore.engine.supports_bfloat16", lambda: False)
        expected = gradient(Network(network.module, network.spec), "blocks.4")
    assert torch.equal(gradient(network, "blocks.4"), expected)
    assert network.precisions([frozenset({"blocks.4"})]) == ["float32"]


def test_the_precision_of_a_sample_depends_only_on_the_convolutions_in_its_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Convolutions of other branches, of deeper layers and of other samples do not count."""
    monkeypatch.setattr("dreamcore.engine.supports_bfloat16", lambda: True)
    network, _ = pair("squeezenet1_1")
    wanted = [frozenset({f"features.3.{part}"}) for part in ("squeeze", "expand1x1", "expand3x3")]
    assert network.precisions(wanted) == ["float32", "float32", "float32/bfloat16"]


def test_the_precision_of_the_plain_network_is_that_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamcore.engine.supports_bfloat16", lambda: True)
    network, _ = pair("resnet18")
    assert network.precisions([frozenset({"layer2"}), frozenset({"layer1.0.conv1"})]) == ["float32", "float32"]
    assert network.precisions([frozenset({"layer2"})]) == ["float32/bfloat16"]


@pytest.mark.parametrize(
    "model",
    ["resnet18", "googlenet", pytest.param("densenet121", marks=pytest.mark.soak), "timm/tf_efficientnet_lite0"],
)
def test_the_activations_of_every_layer_agree_with_the_plain_network(model: str) -> None:
    optimized, plain = pair(model)
    layers = [layer.name for layer in plain.spec.layers][::7]
    for layer in layers:
        one, other = (network.activations(picture(96, 96), [layer])[layer] for network in (optimized, plain))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


def test_activations_of_a_folded_convolution_come_from_the_plain_network() -> None:
    optimized, plain = pair("resnet18")
    _, folded = optimize(plain.module, 224)
    assert {"conv1", "layer1.0.conv1", "layer2.0.downsample.0"} <= folded
    one, other = (network.activations(picture(), ["conv1"])["conv1"] for network in (optimized, plain))
    assert torch.equal(one, other)


def test_a_relu_after_a_folded_normalization_is_folded_too_and_stays_a_valid_target() -> None:
    optimized, plain = pair("timm/tf_efficientnet_lite0")
    module, folded = optimize(plain.module, 224)
    assert module.get_submodule("blocks.1.0.conv_pw").ceiling == 6
    assert isinstance(module.get_submodule("blocks.1.0.bn1.act"), nn.Identity)
    assert {"blocks.1.0.conv_pw", "blocks.1.0.bn1.drop"} <= folded
    for layer in ("blocks.1.0.bn1", "blocks.1.0.conv_pw"):
        one, other = (network.activations(picture(96, 96), [layer])[layer] for network in (optimized, plain))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_optimizing_does_not_change_the_plain_network() -> None:
    _, plain = pair("resnet18")
    before = {name: tensor.clone() for name, tensor in plain.module.state_dict().items()}
    optimize(plain.module, 224)
    after = plain.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


class PartlyFoldable(nn.Module):
    """One convolution that can be folded, and two that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.foldable, self.used_twice, self.called_twice = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.one, self.two, self.three = (nn.BatchNorm2d(3) for _ in range(3))
        for norm in (self.one, self.two, self.three):
            norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.foldable(x))
        shared = self.used_twice(x)
        x = self.two(shared) + shared
        return self.called_twice(self.three(self.called_twice(x)))  # type: ignore[no-any-return]


def test_only_a_convolution_whose_output_goes_nowhere_else_is_folded() -> None:
    module = PartlyFoldable().eval().requires_grad_(False)
    optimized, folded = optimize(module, 16)
    assert folded == {"foldable"}
    torch.testing.assert_close(optimized(picture(16, 20)), module(picture(16, 20)), rtol=1e-4, atol=1e-5)


def output_and_gradient(convolve: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    output = convolve(x)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(x)
    return output, torch.autograd.grad((output * weights).sum(), x)[0]


GEOMETRIES = st.fixed_dictionaries(
    {
        "kernel_size": st.tuples(st.integers(1, 5), st.integers(1, 5)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "dilation": st.integers(1, 2),
        "bias": st.booleans(),
    }
)


CHANNELS_AND_GROUPS = st.sampled_from([(3, 8, 1), (8, 6, 2), (6, 6, 6), (4, 8, 4), (16, 4, 1)])
ACTIVATIONS = st.sampled_from([None, nn.ReLU(), nn.ReLU6()])


@settings(max_examples=60)
@given(GEOMETRIES, CHANNELS_AND_GROUPS, st.integers(9, 14), ACTIVATIONS)
def test_any_convolution_and_its_gradient_agree_with_torch(
    geometry: dict[str, object], channels: tuple[int, int, int], side: int, activation: nn.Module | None
) -> None:
    channels_in, channels_out, groups = channels
    plain = nn.Conv2d(channels_in, channels_out, groups=groups, **geometry).requires_grad_(False)  # type: ignore[arg-type]
    x = 3 * torch.randn(2, channels_in, side, side + 3).contiguous(memory_format=torch.channels_last)
    convolution = Convolution(plain, CEILINGS[type(activation)] if activation else None)
    reference = nn.Sequential(plain, activation) if activation else plain
    for one, other in zip(output_and_gradient(convolution, x), output_and_gradient(reference, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@settings(max_examples=60)
@given(
    # Larger kernels of the channels below would take gradients in bfloat16.
    *(st.tuples(st.integers(1, 5), st.integers(1, 5)), st.tuples(st.integers(1, 3), st.integers(1, 3))),
    *(CHANNELS_AND_GROUPS, st.integers(9, 14), st.integers(9, 14)),
)
def test_same_padding_and_its_gradient_agree_with_torch(
    kernel: tuple[int, int], stride: tuple[int, int], channels: tuple[int, int, int], height: int, width: int
) -> None:
    channels_in, channels_out, groups = channels
    plain = Conv2dSame(channels_in, channels_out, kernel, stride, groups=groups).requires_grad_(False)
    x = torch.randn(2, channels_in, height, width).contiguous(memory_format=torch.channels_last)
    convolution = Convolution(plain)
    for one, other in zip(output_and_gradient(convolution, x), output_and_gradient(plain, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@settings(max_examples=60)
@given(st.integers(1, 7), st.integers(2, 4), st.integers(0, 3), st.booleans(), st.integers(11, 16), st.booleans())
def test_a_stem_convolution_and_its_gradient_agree_with_torch(
    kernel: int, stride: int, padding: int, bias: bool, side: int, same: bool
) -> None:
    assume(same or padding < kernel)
    kind = Conv2dSame if same else nn.Conv2d
    plain = kind(3, 8, kernel, stride, padding, bias=bias).requires_grad_(False)
    x = torch.randn(2, 3, side, side + 3).contiguous(memory_format=torch.channels_last)
    stem = StemConvolution(plain)
    for one, other in zip(output_and_gradient(stem, x), output_and_gradient(plain, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_float64_is_convolved_by_torch() -> None:
    plain = nn.Conv2d(3, 8, 3).double().requires_grad_(False)
    x = torch.randn(1, 3, 9, 9, dtype=torch.double)
    assert torch.equal(Convolution(plain)(x), F.conv2d(x, plain.weight, plain.bias))


def test_a_network_on_a_gpu_disables_tf32() -> None:
    """Also tested without a GPU; convolutions still run with these settings."""
    operations = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]  # type: ignore[attr-defined]
    before = [operation.fp32_precision for operation in operations]
    try:
        with suppress(RuntimeError, AssertionError):  # no GPU here
            Network(nn.Conv2d(3, 8, 3), tiny_network().spec, device="cuda")
        assert [operation.fp32_precision for operation in operations] == ["ieee", "ieee"]
        assert F.conv2d(picture(), torch.ones(1, 3, 1, 1)).isfinite().all()
    finally:
        for operation, precision in zip(operations, before, strict=True):
            operation.fp32_precision = precision
