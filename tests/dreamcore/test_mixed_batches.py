"""One batch holds photographs of one size and settings of one network, and each is dreamt as it would be alone."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as rules
from hypothesis import strategies as st
from torch import Tensor, nn

from dreamcore.ascent import Sample, ascend
from dreamcore.batch import Dream, DreamRequest, dream_photographs
from dreamcore.errors import ImageError
from dreamcore.images import Photograph
from dreamcore.models import load_network
from dreamcore.network import Network
from dreamcore.settings import BUNDLED, batch_key
from flows.redream import threads
from tests.support.architectures import network
from tests.support.tiny import SETTINGS, changed, picture, pixels, tiny_network


def sample(number: int = 0, size: tuple[int, int] = (48, 64), /, **fields: Any) -> Sample:
    """A photograph of its own; `guide` and `mask` stand for pictures by their seeds."""
    guide, mask = (fields.pop(name, None) for name in ("guide", "mask"))
    return Sample(
        picture(*size, seed=number)[0],
        changed(**fields),
        None if guide is None else picture(40, 40, seed=100 + guide)[0],
        None if mask is None else (picture(*size, seed=200 + mask)[0, :1] * 4 - 1.5).clamp(0, 1),
    )


def doubled(each: Sample) -> Sample:
    guide = None if each.guide is None else each.guide.double()
    return Sample(each.image.double(), each.settings, guide, each.mask)


def apart(one: Tensor, other: Tensor) -> float:
    """PSNR in decibels."""
    return float(10 * torch.log10(1 / (one - other).double().square().mean().clamp_min(1e-30)))


def worst(seeing: Network, samples: Sequence[Sample]) -> float:
    """How far the sample that differs most from its dream alone is from it, in decibels."""
    together = ascend(seeing, samples).images
    return min(apart(one, ascend(seeing, [each]).images[0]) for one, each in zip(together, samples, strict=True))


MAY_DIFFER: dict[str, list[dict[str, Any]]] = {
    "photographs": [{}, {}, {}],
    "seed": [{}, {"seed": 1}, {"seed": 2}],
    "jitter": [{}, {"jitter": 0}, {"jitter": 30}],
    "step_size": [{}, {"step_size": 0.001}, {"step_size": 0.05}],
    "layers": [{}, {"layers": "stem"}, {"layers": "body"}],
    "channels": [{}, {"layers": "deep:3"}, {"layers": "deep:1,4,9"}],
    "weights": [{}, {"layers": "deep=-1"}, {"layers": "deep=-1+body=0.5"}],
    "mixes": [{"layers": "stem+deep"}, {"layers": "stem:2=0.1+body=-1+deep:1"}, {"layers": "body"}],
    "classes": [{}, {"layers": "logits:3"}, {"layers": "logits:5+stem"}],
    "places": [{}, {"layers": "deep:3@0.2,0.7"}, {"layers": "body:1@0.9,0.1+deep"}],
    "flip": [{}, {"flip": True}, {"flip": True, "seed": 3}],
    "stop_at": [{}, {"stop_at": -5.5}, {"stop_at": -5.2}],
    "penalties": [{}, {"total_variation": 5}, {"l2": 100}],
    "guides": [{}, {"guide": 1}, {"guide": 2, "layers": "body"}],
    "masks": [{}, {"mask": 1}, {"mask": 2}],
}


@pytest.mark.parametrize("differing", MAY_DIFFER)
def test_each_sample_is_dreamt_as_it_is_alone(differing: str) -> None:
    """In float64 to the last digits, so that nothing but rounding can be what differs in float32."""
    for octaves, steps in ((1, 1), (2, 5)):
        several = MAY_DIFFER[differing]
        samples = [sample(n, octaves=octaves, steps=steps, **fields) for n, fields in enumerate(several)]
        assert len({batch_key(each.settings) for each in samples}) == 1
        assert worst(tiny_network(), samples) > 60
        exact = tiny_network()
        exact.module.double()
        assert worst(exact, [doubled(each) for each in samples]) > 120


def test_the_same_photograph_becomes_as_many_dreams_as_there_are_settings() -> None:
    """Else nothing above would tell whether a sample's own settings are heeded."""
    for several in list(MAY_DIFFER.values())[1:]:
        dreamt = ascend(tiny_network(), [sample(0, **fields) for fields in several]).images
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert apart(dreamt[one], dreamt[other]) < 50


OBJECTIVES = ["stem", "deep", "deep:3", "body=-1", "stem:1,2+deep", "body@0.3,0.6", "logits:3", "stem+logits:1=0.5"]
BATCH_FIELDS = st.fixed_dictionaries(
    {
        "measure": st.sampled_from(["log_mean_square", "mean_square", "mean"]),
        "gradient": st.sampled_from(["laplacian", "gaussian", "plain"]),
        "normalise": st.sampled_from(["mean_abs", "std", "adam"]),
        "space": st.sampled_from(["picture", "network"]),
        "carry": st.sampled_from(["detail", "result"]),
        "clip": st.booleans(),
        "octaves": st.integers(1, 2),
        "steps": st.integers(0, 3),
    }
)
OWN = st.fixed_dictionaries(
    {},
    optional={
        "layers": st.sampled_from(OBJECTIVES),
        "seed": st.integers(0, 2**63 - 1),
        "jitter": st.integers(0, 40),
        "step_size": st.floats(1e-4, 0.05),
        "flip": st.booleans(),
        "stop_at": st.floats(-6, 6),
        "total_variation": st.floats(0, 2),
        "l2": st.floats(0, 50),
        "guide": st.integers(0, 1),
        "mask": st.integers(0, 1),
    },
)


@rules(max_examples=60)
@given(BATCH_FIELDS, st.lists(OWN, min_size=2, max_size=4), st.tuples(st.integers(33, 50), st.integers(33, 50)))
def test_any_mixture_is_dreamt_as_its_samples_are_alone(
    alike: dict[str, Any], several: list[dict[str, Any]], size: tuple[int, int]
) -> None:
    exact = tiny_network()
    exact.module.double()
    samples = [doubled(sample(n, size, **{**alike, **own})) for n, own in enumerate(several)]
    assert worst(exact, samples) > 120


def test_the_same_batch_gives_the_same_bits() -> None:
    samples = [sample(n, **fields) for n, several in enumerate(MAY_DIFFER.values()) for fields in several]
    one, other = (ascend(tiny_network(), samples) for _ in range(2))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.octave_scores, other.octave_scores)


def test_a_dream_of_the_bundled_network_is_the_one_that_it_is_alone_to_the_bit() -> None:
    samples = [sample(number, (96, 131), model=BUNDLED, layers="blocks.4", seed=number) for number in range(3)]
    with threads(1):  # as a worker
        together = ascend(load_network(BUNDLED), samples)
        for number, each in enumerate(samples):
            alone = ascend(load_network(BUNDLED), [each])
            assert torch.equal(together.images[number], alone.images[0])
            assert torch.equal(together.measured[number], alone.measured[0])


# --- where samples leave the network


def counted(seeing: Network, objectives: Sequence[str], side: int = 64) -> dict[str, int]:
    """How many samples each module is shown in one step of a batch with these objectives."""
    counts: dict[str, set[int]] = {}

    def note(name: str, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].device.type != "meta":  # there the network is only asked for its shortcuts
            counts.setdefault(name, set()).add(len(inputs[0]))

    hooks = [
        module.register_forward_pre_hook(lambda _module, inputs, name=name: note(name, inputs))
        for name, module in seeing.module.named_modules()
    ]
    model = seeing.spec.model
    several = [
        sample(n, (side, side), model=model, layers=layers, octaves=1, steps=1) for n, layers in enumerate(objectives)
    ]
    ascend(seeing, several)
    for hook in hooks:
        hook.remove()
    assert all(len(found) == 1 for found in counts.values())
    return {name: found.pop() for name, found in counts.items()}


@pytest.mark.parametrize(
    ("objectives", "shown"),
    [
        (["stem", "deep", "deep"], {"stem": 3, "stem_bend": 2, "body": 2, "body_bend": 2, "deep": 2}),
        (["deep", "body", "stem"], {"stem": 3, "stem_bend": 2, "body": 2, "body_bend": 1, "deep": 1}),
        (["stem+deep", "stem"], {"stem": 2, "stem_bend": 1, "body": 1, "body_bend": 1, "deep": 1}),
        (["stem", "stem"], {"stem": 2}),
        (["stem", "logits:1"], {"stem": 2, "stem_bend": 1, "head": 1}),
    ],
)
def test_a_sample_leaves_at_its_own_layer(objectives: list[str], shown: dict[str, int]) -> None:
    counts = counted(tiny_network(), objectives)
    assert {name: counts[name] for name in shown} == shown
    assert "deep_bend" not in counts or any("logits" in objective for objective in objectives)


def test_where_a_shortcut_passes_a_layer_by_its_sample_stays_in_the_batch() -> None:
    """It leaves at the next layer that is asked for and not passed by."""
    residual = Network(network("resnet18").module, network("resnet18").spec, plain=True)
    counts = counted(residual, ["layer1.0.conv1", "layer2.0.conv1"])
    assert (counts["layer1.0.bn1"], counts["layer1.1.conv1"], counts["layer2.0.conv1"]) == (2, 2, 2)
    counts = counted(residual, ["layer1.0.conv1", "layer1", "layer2.0.conv1"])
    assert (counts["layer1.0.bn1"], counts["layer1.1.conv1"], counts["layer2.0.conv1"]) == (3, 3, 1)


@pytest.mark.parametrize(
    "objectives",
    [
        ["layer1.0.conv1", "layer2.0.conv1", "layer1"],
        ["layer1.0.relu", "layer1.0.conv2+layer2", "layer1.0.bn1", "logits:7"],
        ["conv1", "bn1", "relu"],
    ],
)
def test_a_batch_with_shortcuts_is_dreamt_as_its_samples_are_alone(objectives: list[str]) -> None:
    """`relu` runs several times in one block, and overwrites what it is given."""
    samples = [
        sample(n, model="resnet18", layers=layers, octaves=1, steps=2, step_size=0.005)
        for n, layers in enumerate(objectives)
    ]
    assert worst(network("resnet18"), samples) > 60


@pytest.mark.parametrize(
    ("model", "layer", "passed_by"),
    [
        ("resnet18", "layer1", False),
        ("resnet18", "layer1.0.conv1", True),
        ("resnet18", "layer2.0.downsample", True),
        ("googlenet", "inception4a", False),
        ("googlenet", "inception4a.branch1", True),
        ("densenet121", "features.denseblock1", False),
        ("densenet121", "features.denseblock1.denselayer1", True),
        ("timm/tf_efficientnet_lite0", "blocks.2", False),
        ("timm/tf_efficientnet_lite0", "blocks.2.1.conv_dw", True),
        ("timm/tf_efficientnet_lite0", "logits", False),
    ],
)
def test_shortcuts_are_found_where_they_are(model: str, layer: str, passed_by: bool) -> None:
    assert network(model)._has_shortcut(layer) is passed_by


# --- photographs


def order(number: int, **fields: Any) -> DreamRequest:
    return DreamRequest(Photograph(pixels(seed=number), width=64, height=48), changed(**fields))


def levels(one: Dream | ImageError, other: Dream | ImageError) -> int:
    """The largest difference of two dreams, in 8-bit levels."""
    assert isinstance(one, Dream)
    assert isinstance(other, Dream)
    return int(np.abs(one.pixels.astype(int) - other.pixels).max())


def test_photographs_come_back_in_their_order_each_with_its_own_measures() -> None:
    orders = [order(1), order(2, layers="stem:2+deep", seed=4), order(3, layers="logits:3")]
    together = dream_photographs(tiny_network(), orders)
    for dreamt, each in zip(together, orders, strict=True):
        (alone,) = dream_photographs(tiny_network(), [each])
        assert levels(dreamt, alone) <= 1
        assert isinstance(dreamt, Dream)
        assert isinstance(alone, Dream)
        assert dreamt.request is each
        assert (dreamt.batch, alone.batch) == (3, 1)
        assert dreamt.octave_scores == pytest.approx(alone.octave_scores, abs=1e-3)
        assert dreamt.after.scores == pytest.approx(alone.after.scores, abs=1e-3)
        before = {name: dreamt.before.scores[name] for name in alone.before.scores}  # the others' are measured, too
        assert before == pytest.approx(alone.before.scores, abs=1e-3)
        assert dreamt.after.classes[0][0] == alone.after.classes[0][0]
        json.dumps(dreamt.metadata(), allow_nan=False)


class Contrast(nn.Module):
    """Divides by zero where a sample is flat: a network that only pictures with something in them can pass."""

    def forward(self, activations: Tensor) -> Tensor:
        inner = activations[..., 2:-2, 2:-2]  # zeros beyond the edges give those some contrast
        flat = (inner.amax((2, 3)) - inner.amin((2, 3))).amax(1) < 1e-4
        return nn.functional.silu(activations) / torch.where(flat, 0.0, 1.0).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    "fields", [{}, {"total_variation": 1, "l2": 1}, {"normalise": "adam"}, {"stop_at": 0}], ids=str
)
def test_a_photograph_that_leaves_the_finite_numbers_harms_no_neighbour(fields: dict[str, Any]) -> None:
    network = tiny_network(Contrast)
    healthy = [order(number, **fields) for number in (1, 2, 3)]
    white = DreamRequest(Photograph(np.full((48, 64, 3), 255, np.uint8), width=64, height=48), changed(**fields))
    first, error, last = dream_photographs(network, [healthy[0], white, healthy[2]])
    assert isinstance(error, ImageError)
    assert error.kind == "non_finite"
    expected = dream_photographs(network, healthy)
    assert (levels(first, expected[0]), levels(last, expected[2])) == (0, 0)
    for dreamt, each in ((first, healthy[0]), (last, healthy[2])):
        assert levels(dreamt, dream_photographs(network, [each])[0]) <= 1


def test_a_batch_too_small_for_the_network_is_as_many_errors() -> None:
    errors = dream_photographs(tiny_network(min_size=49), [order(1), order(2)])
    assert [error.kind for error in errors if isinstance(error, ImageError)] == ["too_small"] * 2


def test_settings_of_one_batch_share_what_shapes_the_batch() -> None:
    assert batch_key(changed(octaves=3)) != batch_key(SETTINGS)
    assert batch_key(changed(steps=3)) != batch_key(SETTINGS)
    assert batch_key(changed(tile=64)) != batch_key(SETTINGS)
    assert batch_key(changed(output={"format": "jpg"})) == batch_key(SETTINGS)
