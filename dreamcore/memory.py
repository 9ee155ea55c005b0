"""The memory of one step, and the tile size and batch size that fit into a memory limit."""

import math
from collections.abc import Collection
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from dreamcore.efficientnet_lite import SCALES
from dreamcore.network import Network
from dreamcore.settings import MIN_TILE
from dreamcore.spec import NetworkSpec
from dreamcore.tiles import MULTIPLE

__all__ = [
    "ALLOCATOR_OVERHEAD",
    "FULL_SIZE_IMAGES",
    "Allocations",
    "bytes_per_pixel",
    "certainly_fits",
    "choose_batch_size",
    "choose_tile",
]

PROBE_SIDE = 256
"""Side in pixels of the image with which the memory per pixel is measured."""
TRANSFORMER_PROBE_SIDE = 1024
"""The same for vision transformers: attention that is not fused needs more bytes per pixel in larger images."""
ALLOCATOR_OVERHEAD = 1.5
"""Ratio of the real memory to that of the tensors: workspaces of convolutions, and fragmentation."""
FULL_SIZE_IMAGES = 7
"""Images of full size in memory besides the tile in the network: the dream, its gradient and their frequency bands."""

_BYTES_PER_PIXEL = 3 * 4
"""Of an RGB image in float32."""
_ROUGH_FACTOR = 3
"""Ratio of a rough estimate to the activations of all layers. A step needs about as much as all activations, and up to
twice as much if convolutions are not folded."""


class Allocations(TorchDispatchMode):
    """Counts, while active, the bytes of the living tensors that operations created. The meta device suffices.

    Example:
        >>> import torch
        >>> with Allocations() as allocations:
        ...     x = torch.zeros(1000, device="meta") + 1
        >>> allocations.peak
        8000
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler at the first operation, which takes seconds

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages = WeakIdKeyDictionary()
        self.peak = 0
        """Largest number of bytes so far."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and record the storages of its outputs."""
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self._storages.values()))  # type: ignore[no-untyped-call]
        return output


class _FusedAttention(TorchFunctionMode):
    """Computes attention, while active, by the fused kernel, as CPUs and GPUs do. The meta device itself does not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention and given.get("attn_mask") is None:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]
        return func(*args, **given)


def bytes_per_pixel(network: Network, layers: Collection[str]) -> float:
    """Return the memory of one step up to `layers`, forward and backward, in bytes per pixel of the image.

    The memory is measured once, on the structure of the module that runs for `layers`.
    """
    measured = _measured.setdefault(network, {})
    key = frozenset(layers)
    if key not in measured:
        measured[key] = _measure(network, key)
    return measured[key]


_measured: WeakKeyDictionary[Network, dict[frozenset[str], float]] = WeakKeyDictionary()


def _measure(network: Network, layers: Collection[str]) -> float:
    structure = network.without_weights(layers)
    side = max(TRANSFORMER_PROBE_SIDE if network.spec.transformer else PROBE_SIDE, network.spec.min_size)
    with _FusedAttention(), Allocations() as allocations:
        image = torch.zeros(1, 3, side, side, device="meta", requires_grad=True)
        activations = structure.activations(image, layers)
        score = sum(features.square().sum() for features in activations.values())
        torch.autograd.grad(score, image)  # type: ignore[arg-type]
    return ALLOCATOR_OVERHEAD * float(allocations.peak) / side**2


def certainly_fits(spec: NetworkSpec, size: tuple[int, int], count: int, max_memory: int) -> bool:
    """Return whether a step of some images fits by a rough estimate, so that the memory need not be measured.

    The measurement makes PyTorch import its compiler, which takes longer than the dream of a small image. The estimate
    is for the packaged networks. All others have imported the compiler already, because timm and torchvision do.

    Args:
        spec: the network.
        size: height and width of the images in pixels.
        count: number of images.
        max_memory: limit in bytes, without the memory of the network.
    """
    if spec.model not in SCALES:
        return False
    numbers = sum(layer.channels / layer.stride**2 for layer in spec.layers)
    per_pixel = _ROUGH_FACTOR * 4 * numbers + FULL_SIZE_IMAGES * _BYTES_PER_PIXEL
    return count * size[0] * size[1] * per_pixel <= max_memory


def choose_tile(network: Network, layers: Collection[str], size: tuple[int, int], max_memory: int) -> int:
    """Return the side in pixels of the largest memory tiles that fit.

    Args:
        network: the network to dream with.
        layers: the layers to excite.
        size: height and width of the image in pixels.
        max_memory: limit in bytes, without the memory of the network.

    Returns:
        A multiple of 32, or 0 if the whole image fits. If not even the smallest tile fits, its side is returned.
    """
    pixels = size[0] * size[1]
    per_pixel = bytes_per_pixel(network, layers)
    available = max_memory - FULL_SIZE_IMAGES * _BYTES_PER_PIXEL * pixels
    if per_pixel * pixels <= available:
        return 0
    smallest = math.ceil(max(MIN_TILE, network.spec.min_size) / MULTIPLE) * MULTIPLE
    return max(smallest, math.isqrt(max(0, int(available / per_pixel))) // MULTIPLE * MULTIPLE)


def choose_batch_size(network: Network, layers: Collection[str], size: tuple[int, int], max_memory: int) -> int:
    """Return how many images fit into memory together, at least 1.

    Args:
        network: the network to dream with.
        layers: the layers to excite.
        size: height and width of the images in pixels.
        max_memory: limit in bytes, without the memory of the network.
    """
    per_pixel = bytes_per_pixel(network, layers) + FULL_SIZE_IMAGES * _BYTES_PER_PIXEL
    return max(1, int(max_memory / (per_pixel * size[0] * size[1])))
