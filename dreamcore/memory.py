"""How much memory a step takes, and so how many pixels of how many pictures may be dreamt at once."""

import math
from collections.abc import Collection
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from dreamcore.network import Network
from dreamcore.settings import MIN_TILE
from dreamcore.tiles import MULTIPLE

PROBE = 256
"""Side in pixels of the picture that shows what a pixel takes."""
BESIDES = 1.5
"""Real memory to that of the tensors: what convolutions take for themselves, holes between tensors of many sizes."""
WHOLE_PICTURES = 7
"""Pictures of full size that are held besides the tile that is in the network: the dream, its gradient, their bands."""


class Allocations(TorchDispatchMode):
    """While it is entered, counts the bytes of the tensors that are made and still there; the meta device will do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages = WeakIdKeyDictionary()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what torch does, and count what came of it."""
        answer = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(answer):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self._storages.values()))  # type: ignore[no-untyped-call]
        return answer


def bytes_per_pixel(network: Network, layers: Collection[str]) -> float:
    """Memory of one step up to `layers`, forward and back, for each pixel: measured on what runs for them."""
    known = _measured.setdefault(network, {})
    key = frozenset(layers)
    if key not in known:
        known[key] = _measure(network, key)
    return known[key]


_measured: WeakKeyDictionary[Network, dict[frozenset[str], float]] = WeakKeyDictionary()


def _measure(network: Network, layers: Collection[str]) -> float:
    structure = network.without_weights(layers)
    side = max(PROBE, network.spec.min_size)
    with Allocations() as allocations:
        picture = torch.zeros(1, 3, side, side, device="meta", requires_grad=True)
        activations = structure.activations(picture, layers)
        torch.autograd.grad(sum(answer.square().sum() for answer in activations.values()), picture)  # type: ignore[arg-type]
    return BESIDES * float(allocations.peak) / side**2


def choose_tile(network: Network, layers: Collection[str], size: tuple[int, int], max_memory: int) -> int:
    """Side of the largest tile in which a picture of `size` (H, W) is dreamt in `max_memory` bytes; 0: all at once."""
    pixels = size[0] * size[1]
    a_pixel = bytes_per_pixel(network, layers)
    left = max_memory - WHOLE_PICTURES * 3 * 4 * pixels
    if a_pixel * pixels <= left:
        return 0
    least = math.ceil(max(MIN_TILE, network.spec.min_size) / MULTIPLE) * MULTIPLE
    return max(least, math.isqrt(max(0, int(left / a_pixel))) // MULTIPLE * MULTIPLE)


def choose_batch_size(network: Network, layers: Collection[str], size: tuple[int, int], max_memory: int) -> int:
    """How many pictures of `size` (H, W) may be dreamt at once in `max_memory` bytes; at least one."""
    a_pixel = bytes_per_pixel(network, layers) + WHOLE_PICTURES * 3 * 4
    return max(1, int(max_memory / (a_pixel * size[0] * size[1])))
