"""Dreaming takes no more memory than it may, and goes on in smaller pieces where memory runs out all the same."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamcore.batch import Dream, DreamRequest, Limits, dream_photographs, observe_photographs
from dreamcore.errors import ImageError
from dreamcore.images import Photograph
from dreamcore.memory import BESIDES, WHOLE_PICTURES, Allocations, bytes_per_pixel, choose_batch_size, choose_tile
from dreamcore.models import load_network
from dreamcore.network import Network
from dreamcore.settings import BUNDLED
from tests.conftest import REPOSITORY
from tests.support.architectures import network
from tests.support.tiny import changed, picture, pixels, tiny_network

GIB = 2**30


def bundled() -> Network:
    return load_network(BUNDLED)


# --- how much memory a step takes


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_allocations_are_the_bytes_that_are_held_at_once(device: str) -> None:
    with Allocations() as allocations:
        one = torch.zeros(1000, device=device)
        other = one + 1
        assert allocations.peak == 8000
        del other
        wide = torch.zeros(500, dtype=torch.double, device=device)
        assert allocations.peak == 8000
        wide.view(5, 100)[1:].add_(1)
        one[:10].mul_(2)
        assert allocations.peak == 8000
        torch.zeros(250, device=device)
        assert allocations.peak == 9000
        for _ in range(3):
            torch.zeros(250, device=device)
    assert allocations.peak == 9000


def test_allocations_hold_what_the_gradient_will_need() -> None:
    picture = torch.zeros(1000, device="meta", requires_grad=True)
    with Allocations() as allocations:
        (picture.exp().exp().exp()).sum()
    assert allocations.peak == 3 * 4000 + 4
    with Allocations() as allocations, torch.no_grad():
        (picture.exp().exp().exp()).sum()
    assert allocations.peak <= 2 * 4000 + 4


def test_a_pixel_takes_more_the_deeper_the_layer() -> None:
    network = bundled()
    depths = [bytes_per_pixel(network, {stage.name}) for stage in network.spec.stages()]
    assert depths == sorted(set(depths))
    assert 1.0 * 1024 < bytes_per_pixel(network, {"blocks.4"}) < 2.2 * 1024
    assert depths[4] <= bytes_per_pixel(network, {"blocks.1", "blocks.4"}) < 1.05 * depths[4]


@pytest.mark.parametrize("layer", ["layer3.0.bn1", "layer3.0.conv1"])
def test_what_a_pixel_takes_is_measured_on_the_network_that_runs(layer: str) -> None:
    """A convolution that took in its normalisation is asked in the plain network, which takes nearly twice as much."""
    planned, seen = bytes_per_pixel(network("resnet18"), {layer}), picture(256, 256).requires_grad_()
    with Allocations() as allocations:
        answer = network("resnet18").activations(seen, [layer])[layer]
        torch.autograd.grad(answer.square().sum(), seen)
    assert planned == pytest.approx(BESIDES * allocations.peak / 256**2, rel=0.2)


# --- tiles and batches


def test_a_picture_that_fits_is_dreamt_whole_and_a_larger_one_in_tiles_of_what_there_is() -> None:
    network, layers, size = bundled(), {"blocks.4"}, (3000, 4000)
    a_pixel = bytes_per_pixel(network, layers)
    sides = [choose_tile(network, layers, size, gib * GIB) for gib in (64, 8, 4, 3, 2)]
    assert sides[0] == 0
    assert sides[1:] == sorted(set(sides[1:]), reverse=True)
    assert all(side % 32 == 0 and side >= 64 for side in sides[1:])
    assert all(a_pixel * side**2 < gib * GIB for gib, side in zip((8, 4, 3, 2), sides[1:], strict=True))
    assert choose_tile(network, layers, size, 1) == 64
    assert choose_tile(network, layers, (300, 400), GIB) == 0


def test_less_is_left_for_tiles_of_a_larger_picture_and_of_a_deeper_layer() -> None:
    def side(layer: str, size: tuple[int, int]) -> int:
        return choose_tile(bundled(), {layer}, size, 2 * GIB)

    assert side("blocks.4", (2000, 3000)) > side("blocks.4", (3000, 4000))
    assert side("blocks.1", (2000, 3000)) > side("blocks.4", (2000, 3000))


def test_so_many_pictures_are_dreamt_at_once_as_fit() -> None:
    network, layers = bundled(), {"blocks.4"}
    batches = [choose_batch_size(network, layers, (480, 640), gib * GIB) for gib in (1, 2, 4, 8)]
    assert batches == sorted(batches)
    assert batches[3] == pytest.approx(8 * batches[0], abs=8)
    assert choose_batch_size(network, layers, (480, 640), 1) == 1
    assert choose_batch_size(network, layers, (240, 320), 2 * GIB) == pytest.approx(4 * batches[1], abs=4)


def test_pictures_that_fit_twice_need_no_tiles() -> None:
    network, found = tiny_network(), []
    for size in ((480, 640), (800, 1000), (2000, 1500)):
        several = choose_batch_size(network, {"deep"}, size, GIB // 4) > 1
        found.append((several, choose_tile(network, {"deep"}, size, GIB // 4) > 0))
    assert found == [(True, False), (False, False), (False, True)]


def order(number: int, size: tuple[int, int] = (48, 64), **fields: Any) -> DreamRequest:
    return DreamRequest(Photograph(pixels(*size, seed=number), width=size[1], height=size[0]), changed(**fields))


def finished(outcomes: list[Dream | ImageError]) -> list[Dream]:
    dreamt = [each for each in outcomes if isinstance(each, Dream)]
    assert len(dreamt) == len(outcomes), outcomes
    return dreamt


def levels(one: Dream, other: Dream) -> int:
    """The largest difference of two dreams, in 8-bit levels."""
    return int(np.abs(one.pixels.astype(int) - other.pixels).max())


def test_a_limit_makes_batches_and_tiles_smaller_and_no_other_dreams() -> None:
    network, orders = tiny_network(), [order(number) for number in range(5)]
    a_picture = 48 * 64 * (bytes_per_pixel(network, {"deep"}) + WHOLE_PICTURES * 12)
    free = finished(dream_photographs(network, orders))
    limited = finished(dream_photographs(network, orders, Limits(max_memory=int(2.5 * a_picture))))
    assert [dreamt.batch for dreamt in free] == [5] * 5
    assert [dreamt.batch for dreamt in limited] == [2, 2, 2, 2, 1]
    assert all(dreamt.tile is None for dreamt in limited)
    assert all(levels(one, other) <= 1 for one, other in zip(free, limited, strict=True))
    (tiled,) = finished(dream_photographs(network, [order(0, (192, 256))], Limits(max_memory=6_000_000)))
    assert tiled.tile is not None
    assert 64 <= tiled.tile < 256


# --- where memory runs out all the same


class OutOfMemory(nn.Module):
    """Holds so many positions at once and no more."""

    def __init__(self, positions: int, trouble: Callable[[], object]) -> None:
        super().__init__()
        self.positions, self.trouble = positions, trouble

    def forward(self, activations: Tensor) -> Tensor:
        if len(activations) * activations[0, 0].numel() > self.positions and activations.device.type != "meta":
            self.trouble()
        return nn.functional.silu(activations)


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def in_python() -> None:
    raise MemoryError


def on_a_processor() -> None:
    """In earnest: no machine has so much."""
    torch.empty(2**60, dtype=torch.uint8)


TROUBLES = pytest.mark.parametrize("trouble", [on_a_gpu, in_python, on_a_processor])


@TROUBLES
def test_a_batch_that_does_not_fit_is_dreamt_in_halves(trouble: Callable[[], object]) -> None:
    """Three photographs fit; half of eight do not."""
    cramped = tiny_network(lambda: OutOfMemory(3 * 24 * 32, trouble))
    orders = [order(number, seed=number) for number in range(8)]
    dreamt = finished(dream_photographs(cramped, orders))
    assert [each.request for each in dreamt] == orders
    assert [each.batch for each in dreamt] == [2] * 8
    roomy = finished(dream_photographs(tiny_network(), orders))
    assert all(levels(one, other) <= 1 for one, other in zip(dreamt, roomy, strict=True))


@pytest.mark.parametrize(
    "message",
    [
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_so_is_one_for_which_the_libraries_of_a_gpu_have_no_memory(message: str) -> None:
    def in_a_library() -> None:
        raise RuntimeError(message)

    orders = [order(number, octaves=1, steps=1) for number in range(2)]
    dreamt = finished(dream_photographs(tiny_network(lambda: OutOfMemory(24 * 32, in_a_library)), orders))
    assert [each.batch for each in dreamt] == [1, 1]


@TROUBLES
def test_photographs_that_do_not_fit_are_seen_in_halves_and_singly_in_tiles(trouble: Callable[[], object]) -> None:
    targets = changed().layers
    for positions, size, tolerance in ((3 * 24 * 32, (48, 64), 1e-4), (48 * 64, (192, 256), 0.1)):
        orders = [order(number, size) for number in range(5)]
        found = observe_photographs(tiny_network(lambda room=positions: OutOfMemory(room, trouble)), orders, targets)  # type: ignore[misc]
        for each, observation in zip(orders, found, strict=True):
            (alone,) = observe_photographs(tiny_network(), [each], targets)
            assert observation.scores == pytest.approx(alone.scores, abs=tolerance)
            assert dict(observation.classes) == pytest.approx(dict(alone.classes), abs=1e-4)


@TROUBLES
def test_a_photograph_that_does_not_fit_is_dreamt_in_tiles(trouble: Callable[[], object]) -> None:
    cramped = tiny_network(lambda: OutOfMemory(48 * 64, trouble))
    (dreamt,) = finished(dream_photographs(cramped, [order(0, (192, 256), octaves=1)]))
    assert dreamt.tile is not None
    assert 64 <= dreamt.tile <= 128
    assert dreamt.pixels.shape == (192, 256, 3)
    (whole,) = finished(dream_photographs(tiny_network(), [order(0, (192, 256), octaves=1)]))
    assert whole.tile is None
    (known,) = whole.after.scores.values()
    (found,) = dreamt.after.scores.values()
    (before,) = whole.before.scores.values()
    assert found - before > 0.8 * (known - before) > 0


def test_a_batch_of_large_photographs_ends_in_tiles_of_single_ones() -> None:
    cramped = tiny_network(lambda: OutOfMemory(48 * 64, on_a_gpu))
    dreamt = finished(dream_photographs(cramped, [order(number, (192, 256), octaves=1) for number in range(3)]))
    assert all(each.batch == 1 and each.tile for each in dreamt)


@TROUBLES
def test_what_never_fits_is_trouble_with_the_photograph(trouble: Callable[[], object]) -> None:
    for fields in ({}, {"tile": 64}):
        orders = [order(number, (192, 256), **fields) for number in range(2)]
        outcomes = dream_photographs(tiny_network(lambda: OutOfMemory(0, trouble)), orders)
        assert [each.kind for each in outcomes if isinstance(each, ImageError)] == ["out_of_memory"] * 2


def test_other_trouble_is_no_matter_of_memory() -> None:
    def broken() -> None:
        raise RuntimeError("expected 8 channels")

    with pytest.raises(RuntimeError, match="expected 8 channels"):
        dream_photographs(tiny_network(lambda: OutOfMemory(0, broken)), [order(0), order(1)])


# --- in earnest

LARGE = """
import sys
import numpy as np
import torch
from pathlib import Path
from dreamcore.images import Photograph
from dreamcore.models import load_network
from dreamcore.batch import Limits, DreamRequest, dream_photograph
from dreamcore.settings import BUNDLED, DreamSettings
from flows.worker_process import disable_heap_trimming

def told(name):
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index(name + ":") + 1]) * 1024

height, width, max_memory = map(int, sys.argv[1:])
disable_heap_trimming(max_memory)
torch.set_num_threads(1)
network = load_network(BUNDLED)
blocks = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
pixels = blocks.repeat(16, axis=0).repeat(16, axis=1)
settings = DreamSettings(octaves=1, steps=1, max_pixels=height * width)
before = told("VmRSS")
request = DreamRequest(Photograph(pixels, width, height), settings)
dreamt = dream_photograph(network, request, Limits(max_memory=max_memory))
assert dreamt.pixels.shape == pixels.shape and (dreamt.pixels != pixels).mean() > 0.5
print(told("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_photograph_is_dreamt_in_the_memory_that_it_may_take() -> None:
    """Twelve megapixels in 1 GiB, as 24 in 2; in a process of its own, whose peak is that of the dream."""
    arguments = [sys.executable, "-c", LARGE, "3008", "4000", str(GIB)]
    run = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < GIB
