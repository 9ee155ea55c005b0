"""The whole dream on a GPU that is not there: all tensors are on the GPU, and no step makes it wait for the CPU."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from dreamcore.ascent import Sample, ascend
from dreamcore.network import Network
from dreamcore.settings import BUNDLED, DreamSettings
from dreamcore.stopping import GPU_INTERVAL
from tests.support.fake_gpu import Crossings, fake_gpu, fake_network

pytestmark = pytest.mark.slow

STEPS = 2
MIXED = ("blocks.1", "blocks.0:3,5=0.5+blocks.1", "blocks.0@0.5,0.5", "blocks.1:3*2,5*-1^2")
"""Layers of a batch whose samples leave the network at different layers."""


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[None]:
    with fake_gpu():
        yield


@cache
def network(model: str = BUNDLED) -> Network:
    return fake_network(model)


def image(channels: int = 3, height: int = 64, width: int = 96) -> Tensor:
    return torch.rand(channels, height, width, device="cuda")


def samples(*layers: str, **fields: Any) -> list[Sample]:
    """Return one sample for each of `layers`, each with its own seed."""
    shared = {"octaves": 1, "steps": STEPS, **fields}
    return [Sample(image(), DreamSettings(layers=each, seed=seed, **shared)) for seed, each in enumerate(layers)]


def rehearse(batch: list[Sample], tile_size: int = 0) -> None:
    """Dream, and check that all results are on the GPU and that nothing crosses after the first step."""
    found = network(batch[0].settings.model)
    counts: list[int] = []
    with Crossings() as recorder:
        result = ascend(found, batch, tile_size, lambda *_: counts.append(len(recorder.operations)))
    assert len(counts) >= 2
    assert recorder.operations[counts[0] : counts[-1]] == []
    results = (result.images, result.measured, result.octave_scores)
    assert {each.device for each in results} == {torch.device("cuda", 0)}
    assert result.images.shape == (len(batch), *batch[0].image.shape)


def test_crossings_and_mixed_devices_and_waits_are_found() -> None:
    with Crossings() as recorder:
        image()[[0, 1]]
        image().add(torch.tensor(1.0))
        image().add(1.0)
        image()[torch.zeros(1, dtype=torch.long, device="cuda")]
    assert recorder.operations == ["aten._to_copy.default", "aten.add.Tensor"]
    with pytest.raises(Exception, match="at least two devices, cuda:0 and cpu"):
        image() + torch.rand(3, 64, 96)
    with pytest.raises(DataDependentOutputException):
        bool(image().isfinite().all())


def test_the_default_settings() -> None:
    settings = DreamSettings(octaves=2, steps=STEPS)
    rehearse([Sample(image(), settings), Sample(image(), settings)])
    assert network().classify(image()[None]).device.type == "cuda"


@pytest.mark.parametrize(
    ("tile_size", "fields"),
    [
        (0, {"octaves": 2, "flip": True}),
        (64, {"gradient": "gaussian", "total_variation": 0.1, "measure": "inner_mean_square", "normalise": "adam"}),
        (0, {"space": "fourier", "normalise": "adam", "stay_near": "blocks.0"}),
        (64, {"octaves": 2, "steps": 1, "octaves_above": 1, "space": "network", "carry": "result_8bit"}),
    ],
    ids=str,
)
def test_a_mixed_batch(tile_size: int, fields: dict[str, Any]) -> None:
    batch = samples(*MIXED, **fields)
    guided = replace(batch[0], guide=image(), mask=image(1))
    rehearse([guided, *batch[1:3], replace(batch[3], mask=image(1))], tile_size)


@pytest.mark.parametrize(
    "fields",
    [{"tile": 64}, {"transforms": "lucid"}, {"contrast": 1.2, "keep_colors": 0.5, "blend": 0.1, "calm": 0.1}],
    ids=str,
)
def test_other_settings(fields: dict[str, Any]) -> None:
    rehearse(samples("blocks.1", "blocks.1", **fields))


def test_an_enlarged_dream_and_diverse_samples() -> None:
    batch = samples("blocks.1", "blocks.1")
    rehearse([replace(each, dream=image(3, 32, 48), diversity=10.0) for each in batch])


def test_a_transformer() -> None:
    rehearse(samples("blocks.1", "blocks.0", model="timm/test_vit"))


def test_a_gpu_waits_for_the_end_of_an_octave_in_few_steps() -> None:
    rehearse(samples("blocks.0", stop_at=3.0))
    steps: list[int] = []
    batch = samples("blocks.0", stop_at=3.0, steps=GPU_INTERVAL + 1)
    with pytest.raises(DataDependentOutputException):  # the first check
        ascend(network(), batch, on_step=lambda step, _: steps.append(step))
    assert steps[-1] == GPU_INTERVAL
