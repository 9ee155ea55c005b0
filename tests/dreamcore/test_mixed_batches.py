"""Batches of samples with different settings: each sample gives the dream that it gives alone."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dreamcore.ascent import Sample, ascend
from dreamcore.batch import Dream, DreamRequest, dream_photographs
from dreamcore.errors import ImageError
from dreamcore.images import Photograph
from dreamcore.models import load_network
from dreamcore.network import Network
from dreamcore.settings import BUNDLED, batch_key
from flows.results.redream import threads
from tests.support.architectures import network
from tests.support.tiny import SETTINGS, changed, picture, pixels, tiny_network

pytestmark = pytest.mark.slow


def sample(number: int = 0, size: tuple[int, int] = (48, 64), /, **fields: Any) -> Sample:
    """Return a sample with image `number`. `guide` and `mask` are the seeds of their images."""
    guide, mask = (fields.pop(name, None) for name in ("guide", "mask"))
    return Sample(
        picture(*size, seed=number)[0],
        changed(**fields),
        None if guide is None else picture(40, 40, seed=100 + guide)[0],
        None if mask is None else (picture(*size, seed=200 + mask)[0, :1] * 4 - 1.5).clamp(0, 1),
    )


def in_float64(each: Sample) -> Sample:
    guide = None if each.guide is None else each.guide.double()
    return Sample(each.image.double(), each.settings, guide, each.mask)


def psnr(one: Tensor, other: Tensor) -> float:
    """Return the PSNR in dB."""
    return float(10 * torch.log10(1 / (one - other).double().square().mean().clamp_min(1e-30)))


def lowest_psnr(network: Network, samples: Sequence[Sample]) -> float:
    """Return the lowest PSNR, in dB, between a dream of the batch and the dream of its sample alone."""
    together = ascend(network, samples).images
    return min(psnr(one, ascend(network, [each]).images[0]) for one, each in zip(together, samples, strict=True))


DIFFERENCES: dict[str, list[dict[str, Any]]] = {
    "images": [{}, {}, {}],
    "seed": [{}, {"seed": 1}, {"seed": 2}],
    "jitter": [{}, {"jitter": 0}, {"jitter": 30}],
    "step_size": [{}, {"step_size": 0.001}, {"step_size": 0.05}],
    "layers": [{}, {"layers": "stem"}, {"layers": "body"}],
    "channels": [{}, {"layers": "deep:3"}, {"layers": "deep:1,4,9"}],
    "weights": [{}, {"layers": "deep=-1"}, {"layers": "deep=-1+body=0.5"}],
    "mixes": [{"layers": "stem+deep"}, {"layers": "stem:2=0.1+body=-1+deep:1"}, {"layers": "body"}],
    "classes": [{}, {"layers": "logits:3"}, {"layers": "logits:5+stem"}],
    "positions": [{}, {"layers": "deep:3@0.2,0.7"}, {"layers": "body:1@0.9,0.1+deep"}],
    "flip": [{}, {"flip": True}, {"flip": True, "seed": 3}],
    "stop_at": [{}, {"stop_at": -5.5}, {"stop_at": -5.2}],
    "penalties": [{}, {"total_variation": 5}, {"l2": 100}],
    "guides": [{}, {"guide": 1}, {"guide": 2, "layers": "body"}],
    "masks": [{}, {"mask": 1}, {"mask": 2}],
    "spectra": [{"space": "fourier", **each} for each in ({}, {"mask": 1}, {"seed": 2, "step_size": 0.05})],
    "penalties of spectra": [{"space": "fourier", **each} for each in ({}, {"total_variation": 5}, {"l2": 100})],
    "transforms": [{"transforms": "lucid", **each} for each in ({}, {"seed": 1}, {"seed": 2, "flip": True})],
    "anchors": [{}, {"stay_near": "stem=2"}, {"stay_near": "body=5", "layers": "deep:3"}],
    "crops": [{"transforms": "crops", **each} for each in ({}, {"seed": 1}, {"layers": "deep@0.4,0.6"})],
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_each_sample_gives_the_dream_that_it_gives_alone(name: str) -> None:
    """The agreement of 120 dB in float64 shows that only rounding differs in float32."""
    for octaves, steps in ((1, 1), (2, 5)):
        samples = [sample(n, octaves=octaves, steps=steps, **fields) for n, fields in enumerate(DIFFERENCES[name])]
        assert len({batch_key(each.settings) for each in samples}) == 1
        assert lowest_psnr(tiny_network(), samples) > 60
        exact = tiny_network()
        exact.module.double()
        assert lowest_psnr(exact, [in_float64(each) for each in samples]) > 120


def test_one_image_gives_different_dreams_for_different_settings() -> None:
    """Without this, the other tests would pass if the settings of a sample were ignored."""
    for several in list(DIFFERENCES.values())[1:]:
        images = ascend(tiny_network(), [sample(0, **fields) for fields in several]).images
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert psnr(images[one], images[other]) < 50


OBJECTIVES = ["stem", "deep", "deep:3", "body=-1", "stem:1,2+deep", "body@0.3,0.6", "logits:3", "stem+logits:1=0.5"]
SHARED = st.fixed_dictionaries(
    {
        "measure": st.sampled_from(["log_mean_square", "mean_square", "mean"]),
        "gradient": st.sampled_from(["laplacian", "gaussian", "plain"]),
        "normalise": st.sampled_from(["mean_abs", "std", "adam"]),
        "space": st.sampled_from(["picture", "network", "fourier"]),
        "carry": st.sampled_from(["detail", "result"]),
        "clip": st.booleans(),
        "transforms": st.sampled_from(["shift", "lucid", "crops"]),
        "octaves": st.integers(1, 2),
        "steps": st.integers(0, 3),
    }
)
SEPARATE = st.fixed_dictionaries(
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


@hypothesis_settings(max_examples=60)
@given(SHARED, st.lists(SEPARATE, min_size=2, max_size=4), st.tuples(st.integers(33, 50), st.integers(33, 50)))
def test_each_sample_of_a_random_batch_gives_the_dream_that_it_gives_alone(
    shared: dict[str, Any], several: list[dict[str, Any]], size: tuple[int, int]
) -> None:
    exact = tiny_network()
    exact.module.double()
    samples = [in_float64(sample(n, size, **{**shared, **separate})) for n, separate in enumerate(several)]
    assert lowest_psnr(exact, samples) > 120


def test_the_same_batch_gives_the_same_bits() -> None:
    samples = [sample(n, **fields) for n, several in enumerate(DIFFERENCES.values()) for fields in several]
    one, other = (ascend(tiny_network(), samples) for _ in range(2))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.octave_scores, other.octave_scores)


def test_a_dream_of_the_bundled_network_has_the_same_bits_in_a_batch_and_alone() -> None:
    samples = [sample(number, (96, 131), model=BUNDLED, layers="blocks.4", seed=number) for number in range(3)]
    with threads(1):  # like a worker
        together = ascend(load_network(BUNDLED), samples)
        for number, each in enumerate(samples):
            alone = ascend(load_network(BUNDLED), [each])
            assert torch.equal(together.images[number], alone.images[0])
            assert torch.equal(together.measured[number], alone.measured[0])


# --- the layer at which a sample leaves the network


def samples_by_module(network: Network, objectives: Sequence[str], side: int = 64) -> dict[str, int]:
    """Return the number of samples that each module gets in one step of a batch with these objectives."""
    counts: dict[str, set[int]] = {}

    def note(name: str, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].device.type != "meta":  # meta tensors are used to find shortcuts only
            counts.setdefault(name, set()).add(len(inputs[0]))

    hooks = [
        module.register_forward_pre_hook(lambda _module, inputs, name=name: note(name, inputs))
        for name, module in network.module.named_modules()
    ]
    model = network.spec.model
    several = [
        sample(n, (side, side), model=model, layers=layers, octaves=1, steps=1) for n, layers in enumerate(objectives)
    ]
    ascend(network, several)
    for hook in hooks:
        hook.remove()
    assert all(len(found) == 1 for found in counts.values())
    return {name: found.pop() for name, found in counts.items()}


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        (["stem", "deep", "deep"], {"stem": 3, "stem_bend": 2, "body": 2, "body_bend": 2, "deep": 2}),
        (["deep", "body", "stem"], {"stem": 3, "stem_bend": 2, "body": 2, "body_bend": 1, "deep": 1}),
        (["stem+deep", "stem"], {"stem": 2, "stem_bend": 1, "body": 1, "body_bend": 1, "deep": 1}),
        (["stem", "stem"], {"stem": 2}),
        (["stem", "logits:1"], {"stem": 2, "stem_bend": 1, "head": 1}),
    ],
)
def test_a_sample_leaves_the_network_at_its_deepest_layer(objectives: list[str], expected: dict[str, int]) -> None:
    counts = samples_by_module(tiny_network(), objectives)
    assert {name: counts[name] for name in expected} == expected
    assert "deep_bend" not in counts or any("logits" in objective for objective in objectives)


def test_a_sample_does_not_leave_at_a_layer_with_a_shortcut() -> None:
    """It leaves at the next layer of an objective that has no shortcut."""
    residual = Network(network("resnet18").module, network("resnet18").spec, plain=True)
    counts = samples_by_module(residual, ["layer1.0.conv1", "layer2.0.conv1"])
    assert (counts["layer1.0.bn1"], counts["layer1.1.conv1"], counts["layer2.0.conv1"]) == (2, 2, 2)
    counts = samples_by_module(residual, ["layer1.0.conv1", "layer1", "layer2.0.conv1"])
    assert (counts["layer1.0.bn1"], counts["layer1.1.conv1"], counts["layer2.0.conv1"]) == (3, 3, 1)


@pytest.mark.parametrize(
    "objectives",
    [
        ["layer1.0.conv1", "layer2.0.conv1", "layer1"],
        ["layer1.0.relu", "layer1.0.conv2+layer2", "layer1.0.bn1", "logits:7"],
        ["conv1", "bn1", "relu"],
    ],
)
def test_each_sample_gives_the_dream_that_it_gives_alone_with_shortcuts(objectives: list[str]) -> None:
    """`relu` runs several times in one block and works in place."""
    samples = [
        sample(n, model="resnet18", layers=layers, octaves=1, steps=2, step_size=0.005)
        for n, layers in enumerate(objectives)
    ]
    assert lowest_psnr(network("resnet18"), samples) > 60


@pytest.mark.parametrize(
    ("model", "layer", "shortcut"),
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
def test_shortcuts_are_detected(model: str, layer: str, shortcut: bool) -> None:
    assert network(model)._has_shortcut(layer) is shortcut


# --- dream_photographs


def request_of(number: int, **fields: Any) -> DreamRequest:
    return DreamRequest(Photograph(pixels(seed=number), width=64, height=48), changed(**fields))


def levels(one: Dream | ImageError, other: Dream | ImageError) -> int:
    """Return the largest difference of two dreams, in 8-bit levels."""
    assert isinstance(one, Dream)
    assert isinstance(other, Dream)
    return int(np.abs(one.pixels.astype(int) - other.pixels).max())


def test_dreams_are_in_the_order_of_the_requests_with_their_measurements() -> None:
    requests = [request_of(1), request_of(2, layers="stem:2+deep", seed=4), request_of(3, layers="logits:3")]
    together = dream_photographs(tiny_network(), requests)
    for dream, each in zip(together, requests, strict=True):
        (alone,) = dream_photographs(tiny_network(), [each])
        assert levels(dream, alone) <= 1
        assert isinstance(dream, Dream)
        assert isinstance(alone, Dream)
        assert dream.request is each
        assert (dream.batch, alone.batch) == (3, 1)
        assert dream.octave_scores == pytest.approx(alone.octave_scores, abs=1e-3)
        assert dream.after.scores == pytest.approx(alone.after.scores, abs=1e-3)
        # `before` contains the targets of all samples.
        before = {name: dream.before.scores[name] for name in alone.before.scores}
        assert before == pytest.approx(alone.before.scores, abs=1e-3)
        assert dream.after.classes[0][0] == alone.after.classes[0][0]
        json.dumps(dream.metadata(), allow_nan=False)


class Contrast(nn.Module):
    """Divide by zero if a sample is flat, so that only its activations are infinite."""

    def forward(self, activations: Tensor) -> Tensor:
        inner = activations[..., 2:-2, 2:-2]  # without the edges, where zero padding gives contrast
        flat = (inner.amax((2, 3)) - inner.amin((2, 3))).amax(1) < 1e-4
        return nn.functional.silu(activations) / torch.where(flat, 0.0, 1.0).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    "fields", [{}, {"total_variation": 1, "l2": 1}, {"normalise": "adam"}, {"stop_at": 0}], ids=str
)
def test_a_sample_that_diverges_does_not_change_the_others(fields: dict[str, Any]) -> None:
    network = tiny_network(Contrast)
    healthy = [request_of(number, **fields) for number in (1, 2, 3)]
    white = DreamRequest(Photograph(np.full((48, 64, 3), 255, np.uint8), width=64, height=48), changed(**fields))
    first, error, last = dream_photographs(network, [healthy[0], white, healthy[2]])
    assert isinstance(error, ImageError)
    assert error.kind == "non_finite"
    expected = dream_photographs(network, healthy)
    assert (levels(first, expected[0]), levels(last, expected[2])) == (0, 0)
    for dream, each in ((first, healthy[0]), (last, healthy[2])):
        assert levels(dream, dream_photographs(network, [each])[0]) <= 1


def test_each_image_too_small_for_the_network_gives_an_error() -> None:
    errors = dream_photographs(tiny_network(min_size=49), [request_of(1), request_of(2)])
    assert [error.kind for error in errors if isinstance(error, ImageError)] == ["too_small"] * 2


def test_batch_key_depends_on_shared_settings_only() -> None:
    assert batch_key(changed(octaves=3)) != batch_key(SETTINGS)
    assert batch_key(changed(steps=3)) != batch_key(SETTINGS)
    assert batch_key(changed(tile=64)) != batch_key(SETTINGS)
    assert batch_key(changed(output={"format": "jpg"})) == batch_key(SETTINGS)
