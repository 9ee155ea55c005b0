"""The fast network answers what the plain one does, and so does the way back to the picture."""

import math
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
from dreamcore.engine import CEILINGS, Convolution, StemConvolution, optimize, supports_bfloat16
from dreamcore.models import load_network
from dreamcore.network import Network
from dreamcore.zoo import build
from tests.support.architectures import MIDDLES
from tests.support.tiny import changed, picture, tiny_network


def pair(model: str) -> tuple[Network, Network]:
    """A network of seeded random weights with busy normalisations, fast and plain."""
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


@pytest.mark.parametrize("model", MIDDLES)
def test_one_step_is_that_of_the_plain_network(model: str) -> None:
    quick, plain = pair(model)
    settings = changed(model=model, layers=MIDDLES[model], octaves=1, steps=1, gradient="plain")
    one, other = (ascend(network, [Sample(picture(96, 100)[0], settings)]).images for network in (quick, plain))
    assert (other - picture(96, 100)).abs().max() > 0.01
    assert -10 * math.log10((one - other).square().mean().item() + 1e-20) > 60


@pytest.mark.parametrize("model", ["resnet18", "timm/tf_efficientnet_lite0"])
def test_one_step_in_numbers_of_64_bits_is_that_of_the_plain_network(model: str) -> None:
    """They go through convolutions, and what is cut off behind these, as those of 32 bits do on a GPU."""
    quick, plain = pair(model)
    plain.module.double()
    seen = picture(96, 100)[0].double()
    settings = changed(model=model, layers=MIDDLES[model], octaves=1, steps=1, gradient="plain")
    one, other = (ascend(network, [Sample(seen, settings)]).images for network in (quick, plain))
    assert (other - seen).abs().max() > 0.01
    assert -10 * math.log10((one - other).square().mean().item() + 1e-20) > 160


@pytest.mark.parametrize("size", [(300, 451), (65, 97), (224, 224)])
def test_one_step_of_the_bundled_network_is_that_of_the_plain_one(size: tuple[int, int]) -> None:
    quick = load_network("efficientnet_lite0")
    plain = Network(quick.module, quick.spec, plain=True)
    settings = changed(layers="blocks.4+blocks.2=0.5", octaves=1, steps=1)
    one, other = (ascend(network, [Sample(picture(*size)[0], settings)]).images for network in (quick, plain))
    assert -10 * math.log10((one - other).square().mean().item() + 1e-20) > 60


HEAVY = pytest.mark.parametrize("model", ["googlenet", "resnet18", "alexnet"])


def gradient(network: Network, layer: str) -> Tensor:
    """Of the score at a layer with respect to the picture."""
    seen = picture(96, 100).requires_grad_()
    score = network.activations(seen, [layer])[layer].square().mean().log()
    return torch.autograd.grad(score, seen)[0]


def decibels(one: Tensor, other: Tensor) -> float:
    """How large a gradient is to its difference from another."""
    return 10 * math.log10(one.square().mean() / ((one - other).square().mean() + 1e-20))


@HEAVY
@pytest.mark.skipif(not supports_bfloat16(), reason="this processor has no instructions for it")
def test_a_gradient_in_half_precision_is_the_whole_one_to_a_percent(model: str) -> None:
    """The pictures of a step then agree far better than the 60 dB above."""
    half, plain = pair(model)
    wanted = [frozenset({MIDDLES[model]})]
    assert (half.precisions(wanted), plain.precisions(wanted)) == (["float32/bfloat16"], ["float32"])
    assert 38 < decibels(gradient(plain, MIDDLES[model]), gradient(half, MIDDLES[model])) < 60


@HEAVY
def test_other_processors_take_gradients_in_whole_precision(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamcore.engine.supports_bfloat16", lambda: False)
    quick, plain = pair(model)
    assert quick.precisions([frozenset({MIDDLES[model]})]) == ["float32"]
    assert decibels(gradient(plain, MIDDLES[model]), gradient(quick, MIDDLES[model])) > 70


def test_the_bundled_network_has_no_convolution_worth_half_precision_up_to_its_default_layer() -> None:
    network = load_network("efficientnet_lite0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamcore.engine.supports_bfloat16", lambda: False)
        whole = Network(network.module, network.spec)
        expected = gradient(whole, "blocks.4")
    assert torch.equal(gradient(network, "blocks.4"), expected)
    assert network.precisions([frozenset({"blocks.4"})]) == ["float32"]


def test_the_precision_of_a_dream_is_that_of_the_convolutions_that_its_own_gradient_goes_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of other branches, behind its layer and of others in its batch are none of its own."""
    monkeypatch.setattr("dreamcore.engine.supports_bfloat16", lambda: True)
    network, _ = pair("squeezenet1_1")
    wanted = [frozenset({f"features.3.{part}"}) for part in ("squeeze", "expand1x1", "expand3x3")]
    assert network.precisions(wanted) == ["float32", "float32", "float32/bfloat16"]


def test_where_the_plain_network_runs_all_arithmetic_is_of_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamcore.engine.supports_bfloat16", lambda: True)
    network, _ = pair("resnet18")
    assert network.precisions([frozenset({"layer2"}), frozenset({"layer1.0.conv1"})]) == ["float32", "float32"]
    assert network.precisions([frozenset({"layer2"})]) == ["float32/bfloat16"]


@pytest.mark.parametrize(
    "model",
    ["resnet18", "googlenet", pytest.param("densenet121", marks=pytest.mark.soak), "timm/tf_efficientnet_lite0"],
)
def test_every_layer_answers_as_in_the_plain_network(model: str) -> None:
    quick, plain = pair(model)
    layers = [layer.name for layer in plain.spec.layers][::7]
    for layer in layers:
        one, other = (network.activations(picture(96, 96), [layer])[layer] for network in (quick, plain))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


def test_a_convolution_that_took_in_a_normalisation_is_asked_in_the_plain_network() -> None:
    quick, plain = pair("resnet18")
    _, folded = optimize(plain.module, 224)
    assert {"conv1", "layer1.0.conv1", "layer2.0.downsample.0"} <= folded
    one, other = (network.activations(picture(), ["conv1"])["conv1"] for network in (quick, plain))
    assert torch.equal(one, other)


def test_an_activation_behind_a_normalisation_goes_into_the_convolution_and_is_still_asked_for() -> None:
    quick, plain = pair("timm/tf_efficientnet_lite0")
    fast, folded = optimize(plain.module, 224)
    assert fast.get_submodule("blocks.1.0.conv_pw").ceiling == 6
    assert isinstance(fast.get_submodule("blocks.1.0.bn1.act"), nn.Identity)
    assert {"blocks.1.0.conv_pw", "blocks.1.0.bn1.drop"} <= folded
    for layer in ("blocks.1.0.bn1", "blocks.1.0.conv_pw"):
        one, other = (network.activations(picture(96, 96), [layer])[layer] for network in (quick, plain))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_plain_network_stays_as_it_is() -> None:
    _, plain = pair("resnet18")
    before = {name: tensor.clone() for name, tensor in plain.module.state_dict().items()}
    optimize(plain.module, 224)
    after = plain.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


class Twice(nn.Module):
    """Convolutions that may not take in the normalisation behind them, and one that may."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.used_besides, self.called_twice = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.one, self.two, self.three = (nn.BatchNorm2d(3) for _ in range(3))
        for norm in (self.one, self.two, self.three):
            norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.free(x))
        besides = self.used_besides(x)
        x = self.two(besides) + besides
        return self.called_twice(self.three(self.called_twice(x)))  # type: ignore[no-any-return]


def test_only_a_convolution_whose_answer_goes_nowhere_else_is_folded() -> None:
    module = Twice().eval().requires_grad_(False)
    quick, folded = optimize(module, 16)
    assert folded == {"free"}
    torch.testing.assert_close(quick(picture(16, 20)), module(picture(16, 20)), rtol=1e-4, atol=1e-5)


def gradients(convolve: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    answer = convolve(x)
    weights = torch.randn(answer.shape, generator=torch.Generator().manual_seed(1)).to(x)
    return answer, torch.autograd.grad((answer * weights).sum(), x)[0]


CONVOLUTIONS = st.fixed_dictionaries(
    {
        "kernel_size": st.tuples(st.integers(1, 5), st.integers(1, 5)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "dilation": st.integers(1, 2),
        "bias": st.booleans(),
    }
)


BENDS = st.sampled_from([None, nn.ReLU(), nn.ReLU6()])


@settings(max_examples=60)
@given(
    CONVOLUTIONS, st.sampled_from([(3, 8, 1), (8, 6, 2), (6, 6, 6), (4, 8, 4), (16, 4, 1)]), st.integers(9, 14), BENDS
)
def test_any_convolution_and_its_gradient_are_those_of_torch(
    form: dict[str, object], channels: tuple[int, int, int], side: int, bend: nn.Module | None
) -> None:
    into, out, groups = channels
    plain = nn.Conv2d(into, out, groups=groups, **form).requires_grad_(False)  # type: ignore[arg-type]
    x = torch.randn(2, into, side, side + 3).contiguous(memory_format=torch.channels_last)
    quick = Convolution(plain, CEILINGS[type(bend)] if bend else None)
    truth = nn.Sequential(plain, bend) if bend else plain
    for one, other in zip(gradients(quick, 3 * x), gradients(truth, 3 * x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@settings(max_examples=60)
@given(st.integers(1, 7), st.integers(2, 4), st.integers(0, 3), st.booleans(), st.integers(11, 16), st.booleans())
def test_the_first_convolution_is_the_same_without_its_stride(
    kernel: int, stride: int, padding: int, bias: bool, side: int, same: bool
) -> None:
    assume(same or padding < kernel)
    kind = Conv2dSame if same else nn.Conv2d
    plain = kind(3, 8, kernel, stride, padding, bias=bias).requires_grad_(False)
    x = torch.randn(2, 3, side, side + 3).contiguous(memory_format=torch.channels_last)
    for one, other in zip(gradients(StemConvolution(plain), x), gradients(plain, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_numbers_of_64_bits_are_convolved_as_torch_does_it() -> None:
    plain = nn.Conv2d(3, 8, 3).double().requires_grad_(False)
    x = torch.randn(1, 3, 9, 9, dtype=torch.double)
    assert torch.equal(Convolution(plain)(x), F.conv2d(x, plain.weight, plain.bias))


def test_gpus_multiply_all_bits() -> None:
    """Where there is a GPU or not; and convolutions still run with these settings."""
    operations = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]  # type: ignore[attr-defined]
    before = [operation.fp32_precision for operation in operations]
    try:
        with suppress(RuntimeError, AssertionError):  # there is none
            Network(nn.Conv2d(3, 8, 3), tiny_network().spec, device="cuda")
        assert [operation.fp32_precision for operation in operations] == ["ieee", "ieee"]
        assert F.conv2d(picture(), torch.ones(1, 3, 1, 1)).isfinite().all()
    finally:
        for operation, precision in zip(operations, before, strict=True):
            operation.fp32_precision = precision
