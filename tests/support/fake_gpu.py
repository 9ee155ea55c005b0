"""A GPU that is not there: torch keeps the shapes, layouts and devices of tensors on `cuda:0`, and no values.

Tensors on two devices in one operation raise an error. So does reading a value, for which the CPU would have to wait.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreamcore import color_correlation, gradients, objective, views
from dreamcore.catalog import network_spec
from dreamcore.network import Network, index
from dreamcore.zoo import build

_CACHES: tuple[Any, ...] = (
    *(index, objective._tensor, objective._number, views._offsets),
    *(color_correlation._matrices, gradients._cascade),
)
"""What keeps small tensors on the GPU from step to step."""


class Crossings(TorchDispatchMode):
    """Records, while active, the operations between tensors of the CPU and of the GPU: one of them waits for the other.

    `views.to_device` is left out, because a GPU does not wait for copies from pinned memory.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        devices = {each.device.type for each in tree_leaves((args, kwargs, output)) if isinstance(each, Tensor)}
        if {"cpu", "cuda"} <= devices:
            self.operations.append(str(func))
        return output


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Create all tensors of this block as fake tensors, and take gradients of those on the GPU."""
    try:
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            mock.patch("torch.autograd.grad", _gradients),
            _fake_to_device(),
        ):
            yield
    finally:
        for cache in _CACHES:
            cache.cache_clear()


def fake_network(model: str) -> Network:
    """Return a network on the GPU. It is made on the meta device, where it gets the structure that it has on a GPU."""
    with unset_fake_temporarily():
        found = Network(build(model, pretrained=False).to("meta"), network_spec(model), device="meta")
        modules = [*found._optimized[0].modules(), *found.module.modules()]
        assert found._structure, "computed now, because it stays on the meta device"
    for part in modules:
        for tensors in (part._parameters, part._buffers):
            tensors.update({name: _on_gpu(each) for name, each in tensors.items() if each is not None})
    found.device = torch.device("cuda:0")
    found.mean, found.std = (torch.zeros(1, 3, 1, 1, device=found.device) for _ in range(2))
    return found


def _on_gpu(tensor: Tensor) -> nn.Parameter:
    """Return a tensor of the same shape and layout on the GPU."""
    moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    return nn.Parameter(moved, requires_grad=False)


@contextmanager
def _fake_to_device() -> Iterator[None]:
    """Replace `to_device`: without a driver there is no pinned memory."""

    def empty(numbers: Tensor, device: torch.device) -> Tensor:
        return torch.empty(numbers.shape, dtype=numbers.dtype, device=device)

    with mock.patch("dreamcore.views.to_device", empty), mock.patch("dreamcore.transforms.to_device", empty):
        yield


def _gradients(output: Tensor, image: Tensor, gradient: Tensor | None = None) -> tuple[Tensor]:
    """Return what `torch.autograd.grad` returns. Its own loop over the nodes asks the driver of the GPU for streams."""
    known = {output.grad_fn: {output.output_nr: torch.ones_like(output) if gradient is None else gradient}}
    for node in _nodes(output.grad_fn):
        if node not in known:
            continue
        received = known.pop(node)
        if hasattr(node, "variable"):
            if node.variable is image:
                return (received[0],)
            continue
        with torch.no_grad():
            parts = _call(node, [received.get(number) for number in range(len(node._input_metadata))])
            for (following, number), part in zip(node.next_functions, parts, strict=False):  # tensors only
                if following is not None and part is not None:
                    sums = known.setdefault(following, {})
                    sums[number] = sums[number] + part if number in sums else part
    raise AssertionError("the output does not depend on the image")


def _call(node: Any, received: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return the gradients with respect to the inputs of a node."""
    call: Any = node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node
    parts = call(*received)
    return parts if isinstance(parts, tuple) else (parts,)


def _nodes(root: Any) -> list[Any]:
    """Return the nodes of a graph, each before those that it passes gradients to, and the leaves last."""
    order, seen, waiting = list[Any](), set[Any](), [(root, False)]
    while waiting:
        node, is_done = waiting.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            waiting.append((node, True))
            waiting += [(following, False) for following, _ in node.next_functions if following is not None]
    return order[::-1]
