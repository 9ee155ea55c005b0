"""Batch normalization folding: which convolutions can absorb the batch normalization after them, and how.

In evaluation mode a batch normalization multiplies and shifts each channel. The convolution before it can do both with
other weights and another bias (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018, section 3.2).
"""

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["CEILINGS", "FoldedNormRemainder", "find_foldable", "fold", "replace_module"]

CEILINGS: dict[type[nn.Module], float] = {nn.ReLU: math.inf, nn.ReLU6: 6.0}
"""Activations that clamp from 0 to this value."""

_BatchNorm = nn.modules.batchnorm._BatchNorm


class FoldedNormRemainder(nn.Module):
    """What remains of a batch normalization after folding: its submodules, under the same names.

    timm's normalizations contain an activation and a dropout, which still have to run.

    Args:
        norm: the batch normalization that was folded.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name, module in norm.named_children():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the remaining submodules to `x` (B, C, H, W), in their order."""
        for module in self.children():
            x = module(x)
        return x

    def take_ceiling(self) -> float | None:
        """Remove the ReLU, if nothing else remains, and return its ceiling; None if there is no such ReLU."""
        remaining = {name: module for name, module in self.named_children() if not isinstance(module, nn.Identity)}
        ceilings = [CEILINGS.get(type(module)) for module in remaining.values()]
        if len(ceilings) != 1 or ceilings[0] is None:
            return None
        replace_module(self, next(iter(remaining)), nn.Identity())
        return ceilings[0]


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Replace the submodule of `root` with the dotted name `name`."""
    parent, _, attribute = name.rpartition(".")
    setattr(root.get_submodule(parent), attribute, new)


def fold(convolution: Any, norm: Any) -> nn.Conv2d:
    """Return a copy of `convolution` that computes the convolution and the batch normalization `norm`."""
    copy: nn.Conv2d = deepcopy(convolution)
    copy.weight, copy.bias = fuse_conv_bn_weights(
        copy.weight, copy.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return copy


def find_foldable(module: nn.Module, side: int) -> dict[str, str]:
    """Return the convolutions that can be folded, each with the name of the batch normalization after it.

    The output of such a convolution goes into the normalization and nowhere else, and both modules run once. This is
    observed in a forward pass, so it does not depend on how the network's code is written. On a CPU, the network itself
    runs. On the meta device, normalizations would make PyTorch import its compiler, which takes seconds.

    Args:
        module: the network, in evaluation mode.
        side: side in pixels of an image that the network accepts.
    """
    tensors = [*module.parameters(), *module.buffers()]
    device = "cpu" if all(tensor.device.type == "cpu" for tensor in tensors) else "meta"
    structure = deepcopy(module, {id(tensor): tensor.to(device) for tensor in tensors})
    calls: dict[str, int] = {}
    outputs: list[tuple[str, Tensor]] = []
    pairs: list[tuple[str, str, Tensor]] = []

    def after_convolution(name: str, output: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        outputs.append((name, output))

    def before_norm(name: str, x: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        pairs.extend((convolution, name, output) for convolution, output in outputs if output is x)

    for name, part in structure.named_modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda _part, _inputs, output, name=name: after_convolution(name, output))
        elif isinstance(part, _BatchNorm) and part.track_running_stats and part.affine:
            part.register_forward_pre_hook(lambda _part, inputs, name=name: before_norm(name, inputs[0]))
    with torch.no_grad(), _UseCounter() as uses:
        structure(torch.zeros(1, 3, side, side, device=device, dtype=tensors[0].dtype))
    return {
        convolution: norm
        for convolution, norm, output in pairs
        if uses.counts[output] == 1 and calls[convolution] == calls[norm] == 1
    }


class _UseCounter(TorchDispatchMode):
    """Counts, while active, how often each tensor is an input of an operation."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler at the first operation, which takes seconds

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.counts[tensor] = self.counts.get(tensor, 0) + 1  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))
