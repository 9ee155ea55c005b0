"""Dreaming stays within its memory limit, and continues in smaller batches and tiles if memory still runs out."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamcore.batch import Dream, DreamRequest, Limits, dream_photographs, observe_photographs
from dreamcore.catalog import network_spec
from dreamcore.errors import ImageError
from dreamcore.images import Photograph
from dreamcore.memory import (
    ALLOCATOR_OVERHEAD,
    FULL_SIZE_IMAGES,
    Allocations,
    bytes_per_pixel,
    certainly_fits,
    choose_batch_size,
    choose_tile,
)
from dreamcore.models import load_network
from dreamcore.network import Network
from dreamcore.settings import BUNDLED
from dreamcore.zoo import build
from tests.support.architectures import network
from tests.support.command import REPOSITORY
from tests.support.tiny import changed, picture, pixels, tiny_network

pytestmark = pytest.mark.slow

GIB = 2**30


def bundled() -> Network:
    return load_network(BUNDLED)


# --- the memory of a step


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_allocations_count_the_bytes_of_living_tensors(device: str) -> None:
    with Allocations() as allocations:
        one = torch.zeros(1000, device=device)
        other = one + 1
        assert allocations.peak == 8000
        del other
        doubles = torch.zeros(500, dtype=torch.double, device=device)
        assert allocations.peak == 8000
        doubles.view(5, 100)[1:].add_(1)
        one[:10].mul_(2)
        assert allocations.peak == 8000
        torch.zeros(250, device=device)
        assert allocations.peak == 9000
        for _ in range(3):
            torch.zeros(250, device=device)
    assert allocations.peak == 9000


def test_allocations_count_the_tensors_that_the_backward_pass_needs() -> None:
    image = torch.zeros(1000, device="meta", requires_grad=True)
    with Allocations() as allocations:
        (image.exp().exp().exp()).sum()
    assert allocations.peak == 3 * 4000 + 4
    with Allocations() as allocations, torch.no_grad():
        (image.exp().exp().exp()).sum()
    assert allocations.peak <= 2 * 4000 + 4


def test_deeper_layers_need_more_bytes_per_pixel() -> None:
    network = bundled()
    depths = [bytes_per_pixel(network, {stage.name}) for stage in network.spec.stages()]
    assert depths == sorted(set(depths))
    assert 1.0 * 1024 < bytes_per_pixel(network, {"blocks.4"}) < 2.2 * 1024
    assert depths[4] <= bytes_per_pixel(network, {"blocks.1", "blocks.4"}) < 1.05 * depths[4]


@pytest.mark.parametrize("layer", ["layer3.0.bn1", "layer3.0.conv1"])
def test_bytes_per_pixel_are_measured_on_the_module_that_runs(layer: str) -> None:
    """A folded convolution runs in the plain network, which needs nearly twice the memory."""
    planned, image = bytes_per_pixel(network("resnet18"), {layer}), picture(256, 256).requires_grad_()
    with Allocations() as allocations:
        features = network("resnet18").activations(image, [layer])[layer]
        torch.autograd.grad(features.square().sum(), image)
    assert planned == pytest.approx(ALLOCATOR_OVERHEAD * allocations.peak / 256**2, rel=0.2)


@pytest.mark.parametrize("layer", ["blocks.6", "blocks.6.0.conv_pwl"])  # the second one is not folded
@pytest.mark.parametrize("model", [BUNDLED, "efficientnet_lite2"])
def test_the_rough_estimate_is_above_the_measured_memory(model: str, layer: str) -> None:
    spec = network_spec(model)
    needed = int(bytes_per_pixel(Network(build(model, pretrained=False), spec), {layer}) * 480 * 640)
    assert not certainly_fits(spec, (480, 640), 1, needed)
    assert certainly_fits(spec, (480, 640), 1, 5 * needed)
    assert not certainly_fits(spec, (480, 640), 5, 5 * needed)


# --- tiles and batches


def test_an_image_that_does_not_fit_is_split_into_the_largest_tiles_that_fit() -> None:
    network, layers, size = bundled(), {"blocks.4"}, (3000, 4000)
    per_pixel = bytes_per_pixel(network, layers)
    sides = [choose_tile(network, layers, size, gib * GIB) for gib in (64, 8, 4, 3, 2)]
    assert sides[0] == 0
    assert sides[1:] == sorted(set(sides[1:]), reverse=True)
    assert all(side % 32 == 0 and side >= 64 for side in sides[1:])
    assert all(per_pixel * side**2 < gib * GIB for gib, side in zip((8, 4, 3, 2), sides[1:], strict=True))
    assert choose_tile(network, layers, size, 1) == 64
    assert choose_tile(network, layers, (300, 400), GIB) == 0


def test_tiles_are_smaller_for_larger_images_and_deeper_layers() -> None:
    def side(layer: str, size: tuple[int, int]) -> int:
        return choose_tile(bundled(), {layer}, size, 2 * GIB)

    assert side("blocks.4", (2000, 3000)) > side("blocks.4", (3000, 4000))
    assert side("blocks.1", (2000, 3000)) > side("blocks.4", (2000, 3000))


def test_the_batch_size_is_what_fits_into_memory() -> None:
    network, layers = bundled(), {"blocks.4"}
    batches = [choose_batch_size(network, layers, (480, 640), gib * GIB) for gib in (1, 2, 4, 8)]
    assert batches == sorted(batches)
    assert batches[3] == pytest.approx(8 * batches[0], abs=8)
    assert choose_batch_size(network, layers, (480, 640), 1) == 1
    assert choose_batch_size(network, layers, (240, 320), 2 * GIB) == pytest.approx(4 * batches[1], abs=4)


def test_no_size_needs_both_batches_and_tiles() -> None:
    network, found = tiny_network(), []
    for size in ((480, 640), (800, 1000), (2000, 1500)):
        batched = choose_batch_size(network, {"deep"}, size, GIB // 4) > 1
        tiled = choose_tile(network, {"deep"}, size, GIB // 4) > 0
        found.append((batched, tiled))
    assert found == [(True, False), (False, False), (False, True)]


def request(number: int, size: tuple[int, int] = (48, 64), **fields: Any) -> DreamRequest:
    return DreamRequest(Photograph(pixels(*size, seed=number), width=size[1], height=size[0]), changed(**fields))


def successful(results: list[Dream | ImageError]) -> list[Dream]:
    """Check that all results are dreams, and return them."""
    dreams = [each for each in results if isinstance(each, Dream)]
    assert len(dreams) == len(results), results
    return dreams


def max_difference(one: Dream, other: Dream) -> int:
    """Return the largest difference of two dreams, in 8-bit levels."""
    return int(np.abs(one.pixels.astype(int) - other.pixels).max())


def test_a_memory_limit_changes_batches_and_tiles_but_not_the_dreams() -> None:
    network, requests = tiny_network(), [request(number) for number in range(5)]
    bytes_per_image = 48 * 64 * (bytes_per_pixel(network, {"deep"}) + FULL_SIZE_IMAGES * 12)
    unlimited = successful(dream_photographs(network, requests))
    limited = successful(dream_photographs(network, requests, Limits(max_memory=int(2.5 * bytes_per_image))))
    assert [dream.batch for dream in unlimited] == [5] * 5
    assert [dream.batch for dream in limited] == [2, 2, 2, 2, 1]
    assert all(dream.tile is None for dream in limited)
    assert all(max_difference(one, other) <= 1 for one, other in zip(unlimited, limited, strict=True))
    (tiled,) = successful(dream_photographs(network, [request(0, (192, 256))], Limits(max_memory=6_000_000)))
    assert tiled.tile is not None
    assert 64 <= tiled.tile < 256


# --- if memory runs out


class LimitedMemory(nn.Module):
    """An activation that fails if its input, over the whole batch, has more than `positions` positions."""

    def __init__(self, positions: int, fail: Callable[[], object]) -> None:
        super().__init__()
        self.positions, self.fail = positions, fail

    def forward(self, activations: Tensor) -> Tensor:
        if len(activations) * activations[0, 0].numel() > self.positions and activations.device.type != "meta":
            self.fail()
        return nn.functional.silu(activations)


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def in_python() -> None:
    raise MemoryError


def on_a_cpu() -> None:
    """Allocate more than any machine has, so that torch raises its real error."""
    torch.empty(2**60, dtype=torch.uint8)


FAILURES = pytest.mark.parametrize("fail", [on_a_gpu, in_python, on_a_cpu])


@FAILURES
def test_a_batch_that_does_not_fit_is_halved(fail: Callable[[], object]) -> None:
    """Three photographs fit, half of eight do not."""
    limited = tiny_network(lambda: LimitedMemory(3 * 24 * 32, fail))
    requests = [request(number, seed=number) for number in range(8)]
    dreams = successful(dream_photographs(limited, requests))
    assert [dream.request for dream in dreams] == requests
    assert [dream.batch for dream in dreams] == [2] * 8
    unlimited = successful(dream_photographs(tiny_network(), requests))
    assert all(max_difference(one, other) <= 1 for one, other in zip(dreams, unlimited, strict=True))


@pytest.mark.parametrize(
    "message",
    [
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_batch_is_halved_if_a_gpu_library_runs_out_of_memory(message: str) -> None:
    def in_a_library() -> None:
        raise RuntimeError(message)

    requests = [request(number, octaves=1, steps=1) for number in range(2)]
    dreams = successful(dream_photographs(tiny_network(lambda: LimitedMemory(24 * 32, in_a_library)), requests))
    assert [dream.batch for dream in dreams] == [1, 1]


@FAILURES
def test_photographs_that_do_not_fit_are_observed_in_halves_and_then_in_tiles(fail: Callable[[], object]) -> None:
    targets = changed().layers
    for positions, size, tolerance in ((3 * 24 * 32, (48, 64), 1e-4), (48 * 64, (192, 256), 0.1)):
        requests = [request(number, size) for number in range(5)]
        limited = tiny_network(lambda limit=positions: LimitedMemory(limit, fail))  # type: ignore[misc]
        for each, observation in zip(requests, observe_photographs(limited, requests, targets), strict=True):
            (alone,) = observe_photographs(tiny_network(), [each], targets)
            assert observation.scores == pytest.approx(alone.scores, abs=tolerance)
            assert dict(observation.classes) == pytest.approx(dict(alone.classes), abs=1e-4)


@FAILURES
def test_a_photograph_that_does_not_fit_is_dreamt_in_tiles(fail: Callable[[], object]) -> None:
    limited = tiny_network(lambda: LimitedMemory(48 * 64, fail))
    (dream,) = successful(dream_photographs(limited, [request(0, (192, 256), octaves=1)]))
    assert dream.tile is not None
    assert 64 <= dream.tile <= 128
    assert dream.pixels.shape == (192, 256, 3)
    (whole,) = successful(dream_photographs(tiny_network(), [request(0, (192, 256), octaves=1)]))
    assert whole.tile is None
    (before,) = whole.before.scores.values()
    (after,) = whole.after.scores.values()
    (after_tiled,) = dream.after.scores.values()
    assert after_tiled - before > 0.8 * (after - before) > 0


def test_a_batch_of_large_photographs_is_split_into_single_tiled_ones() -> None:
    limited = tiny_network(lambda: LimitedMemory(48 * 64, on_a_gpu))
    dreams = successful(dream_photographs(limited, [request(number, (192, 256), octaves=1) for number in range(3)]))
    assert all(dream.batch == 1 and dream.tile for dream in dreams)


@FAILURES
def test_a_photograph_that_never_fits_is_an_image_error(fail: Callable[[], object]) -> None:
    for fields in ({}, {"tile": 64}):
        requests = [request(number, (192, 256), **fields) for number in range(2)]
        results = dream_photographs(tiny_network(lambda: LimitedMemory(0, fail)), requests)
        assert [each.kind for each in results if isinstance(each, ImageError)] == ["out_of_memory"] * 2


def test_other_runtime_errors_are_raised() -> None:
    def broken() -> None:
        raise RuntimeError("expected 8 channels")

    with pytest.raises(RuntimeError, match="expected 8 channels"):
        dream_photographs(tiny_network(lambda: LimitedMemory(0, broken)), [request(0), request(1)])


# --- real memory

LARGE_DREAM = """
import sys
import numpy as np
import torch
import torch._dynamo  # measuring the memory imports PyTorch's compiler, which does not count
from pathlib import Path
from dreamcore.images import Photograph
from dreamcore.models import load_network
from dreamcore.batch import Limits, DreamRequest, dream_photograph
from dreamcore.settings import BUNDLED, DreamSettings
from flows.machine.worker_process import disable_heap_trimming

def status_bytes(name):
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index(name + ":") + 1]) * 1024

height, width, max_memory = map(int, sys.argv[1:])
disable_heap_trimming(max_memory)
torch.set_num_threads(1)
network = load_network(BUNDLED)
blocks = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
pixels = blocks.repeat(16, axis=0).repeat(16, axis=1)
settings = DreamSettings(octaves=1, steps=1, max_pixels=height * width)
before = status_bytes("VmRSS")
request = DreamRequest(Photograph(pixels, width, height), settings)
dream = dream_photograph(network, request, Limits(max_memory=max_memory))
assert dream.pixels.shape == pixels.shape and (dream.pixels != pixels).mean() > 0.5
print(status_bytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("height", "width", "limit"), [(1504, 2000, GIB // 2), pytest.param(3008, 4000, GIB, marks=pytest.mark.soak)]
)
def test_a_large_photograph_stays_within_the_memory_limit(height: int, width: int, limit: int) -> None:
    """Three megapixels need less than 512 MiB, twelve less than 1 GiB. A separate process measures this dream alone."""
    command = [sys.executable, "-c", LARGE_DREAM, str(height), str(width), str(limit)]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < limit
