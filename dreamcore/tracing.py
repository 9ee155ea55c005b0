"""Read the spec of a network from its structure, by passing an image through it on PyTorch's meta device.

On the meta device nothing is computed and no weights are allocated. A custom module that cannot run there is traced
with a small real image instead.
"""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dreamcore.errors import InvalidInput
from dreamcore.network import Network, to_meta
from dreamcore.receptive_field import ReceptiveFields
from dreamcore.spec import Layer, NetworkSpec
from dreamcore.targets import LOGITS
from dreamcore.zoo import build, preprocessing, weights_identity

__all__ = ["activation_sizes", "structure_of", "trace_module", "trace_network"]

PROBE_SIDE = 224
"""Side in pixels of the image that is passed through a network to find its layers."""
COARSEST_STRIDE = 32
"""Strides of networks round up or down between multiples of this, in pixels."""
MULTIPLES = (1, 2, 4, 8, 16, 32, 14, 28)
"""Multiples that are tried for the sides of images, in this order: powers of two, then the patches of transformers."""
MIN_BLOCKS = 4
"""A vision transformer has at least this many blocks that return tokens."""

_REMEDY = "choose a convolutional network, or a vision transformer such as timm/vit_small_patch16_224"

_Triple = tuple[float, float, float]


def trace_network(model: str) -> NetworkSpec:
    """Return the spec of the network called `model`. No weights are loaded or allocated.

    Raises:
        InvalidInput: no network has this name (the message names the nearest ones), the package with its weights is
            not installed, or the network accepts only images of one size.
    """
    module = _without_weights(model)
    mean, std, size = preprocessing(model, module)
    return trace_module(module, model, weights_identity(model, module), mean=mean, std=std, size=size)


def trace_module(
    module: nn.Module, model: str, weights: str, *, mean: _Triple, std: _Triple, size: int = PROBE_SIDE
) -> NetworkSpec:
    """Return the spec of a module. Its parameters stay unchanged.

    A layer is every submodule that returns a map `(B, C, H, W)`, and `logits` if the module returns `(B, C)`. In a
    vision transformer, it is also every submodule that returns tokens `(B, N, C)`: one token for each patch of the
    image, in rows, behind any others such as the class token.

    Args:
        module: a network in evaluation mode, on the CPU or on the meta device, that takes normalised images
            `(B, 3, H, W)` of several sizes.
        model: the name of the network in the spec.
        weights: the identity of the weights in the spec.
        mean: mean of the training images, per channel, in [0, 1].
        std: standard deviation of the training images, per channel.
        size: side of the training images in pixels.

    Raises:
        InvalidInput: the module accepts only images of one size, or none of its layers returns a map or tokens.
    """
    multiple = _multiple(module)
    one, other = (_trace(module, side) if multiple else None for side in (PROBE_SIDE, PROBE_SIDE + _step(multiple)))
    if not (multiple and one and other):
        _check_runs(module, model)
        raise InvalidInput(f"{model} takes images of one size only: {_REMEDY}")
    layers = one.layers_shared_with(other)
    if patches := one.patches(layers, multiple):
        multiple = max(multiple, patches)
        layers = one.as_transformer(layers)
    else:
        layers = tuple(layer for layer in layers if layer.name not in one.prefixes)
    if not layers:
        raise InvalidInput(f"no layer of {model} returns a tensor (B, C, H, W): {_REMEDY}")
    min_size = _min_size(module, multiple)
    return NetworkSpec(model, weights, mean, std, size, min_size, layers, multiple, transformer=patches > 0)


def structure_of(module: nn.Module) -> nn.Module | None:
    """Return a copy of the module without weights, on the meta device; None if the module cannot run there."""
    structure = to_meta(module)
    return structure if _accepts(structure, PROBE_SIDE) else None


def activation_sizes(known: NetworkSpec, height: int, width: int) -> dict[str, tuple[int, int]]:
    """Return height and width of the activations of each layer, for an image of `height` x `width`; compute nothing.

    Args:
        known: the spec of a network that `network_spec` knows by name.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Raises:
        InvalidInput: the image is smaller than the network accepts.
    """
    if min(height, width) < known.min_size:
        raise InvalidInput(f"{width}x{height} pixels: {known.model} needs {known.min_size} on each side")
    network = Network(_without_weights(known.model), known, device="meta", plain=True)
    with torch.no_grad():
        image = torch.zeros(1, 3, height, width, device="meta")
        activations = network.activations(image, {layer.name for layer in known.layers})
    return {name: tuple(each.shape[2:]) or (1, 1) for name, each in activations.items()}  # type: ignore[misc]


class _NoWeights(TorchFunctionMode):
    """Do not allocate parameters, which layers create by `torch.empty`. Other tensors of a constructor are computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **device})


def _without_weights(model: str) -> nn.Module:
    """Return the structure of `model` on the meta device."""
    try:
        with _NoWeights():
            module = build(model, pretrained=False)
    except RuntimeError:  # constructors of hybrids run a part of the network, which needs the weights
        module = build(model, pretrained=False)
    return module.eval().to("meta")


class _MultiplyAdds(TorchDispatchMode):
    """Counts, while active, the multiply-adds of convolutions, matrix products and attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.count += formula(*args, **(kwargs or {}), out_val=output) // 2
        return output


@dataclass
class _Trace:
    """What a forward pass of an image of `side` pixels shows."""

    side: int
    layers: dict[str, Layer] = field(default_factory=dict)
    """Layers by name, in the order in which they run. Costs are those of convolutions."""
    prefixes: dict[str, int] = field(default_factory=dict)
    """Layers that return tokens, each with the number of tokens before those of the patches."""
    oblong: set[str] = field(default_factory=set)
    """Layers that return `(B, C, H, W)` with other proportions than the image, such as the heads of attention."""
    costs: dict[str, int] = field(default_factory=dict)
    """Multiply-adds per pixel of all operations, from the image up to each layer."""

    def layers_shared_with(self, other: "_Trace") -> tuple[Layer, ...]:
        """Return the layers whose positions follow the size of the image in both traces.

        Some layers have the channels in the last dimension, where the second one grows with the image.
        """
        return tuple(
            layer
            for name, layer in self.layers.items()
            if (twin := other.layers.get(name))
            and twin.channels == layer.channels
            and (
                name not in self.prefixes or (twin.stride, other.prefixes[name]) == (layer.stride, self.prefixes[name])
            )
        )

    def patches(self, layers: Sequence[Layer], multiple: int) -> int:
        """Return the side of the patches, in pixels, if `layers` are those of a vision transformer; otherwise 0.

        A vision transformer needs whole patches, or has a class token or registers. Networks that mix convolutions with
        attention have neither. Only their maps `(B, C, H, W)` are layers.
        """
        tokens = [layer for layer in layers if layer.name in self.prefixes]
        stride = max((layer.stride for layer in tokens), default=0)
        if not (stride == multiple or any(self.prefixes[layer.name] for layer in tokens)):
            return 0
        parents = {name.rpartition(".")[0] for name in self.layers}
        depths = Counter(layer.name.count(".") for layer in tokens if layer.name in parents)
        return stride if max(depths.values(), default=0) >= MIN_BLOCKS else 0

    def as_transformer(self, layers: Sequence[Layer]) -> tuple[Layer, ...]:
        """Return the layers with the costs of all operations. A transformer has almost no convolutions."""
        return tuple(replace(layer, cost=self.costs[layer.name]) for layer in layers if layer.name not in self.oblong)


def _trace(module: nn.Module, side: int) -> _Trace | None:
    """Return the layers of a module; None if images of `side` pixels are rejected."""
    trace = _Trace(side)
    spent = 0
    image = _probe(module, side)
    fields, operations = ReceptiveFields(image), _MultiplyAdds()

    def note(name: str, layer: nn.Module, output: object) -> None:
        nonlocal spent
        if not isinstance(output, Tensor):
            return
        trace.costs[name or LOGITS] = round(operations.count / side**2)
        if not name and output.ndim == 2:
            trace.layers[LOGITS] = Layer(LOGITS, type(layer).__name__, output.shape[1], side, round(spent / side**2))
        if isinstance(layer, nn.Conv2d) and output.ndim == 4:
            spent += output.numel() * layer.weight[0].numel()
        if not name or name in trace.layers or isinstance(layer, nn.Identity):
            return
        if output.ndim == 4:
            channels, positions = output.shape[1], output.shape[-1]
            if output.shape[2] != positions:
                trace.oblong.add(name)
        elif output.ndim == 3 and len(output) == 1 and not isinstance(layer, nn.Dropout):
            channels, positions = output.shape[2], math.isqrt(output.shape[1])  # the others fill less than two rows
            trace.prefixes[name] = output.shape[1] - positions**2
        else:
            return
        found, stride = fields.of(output), round(side / positions)
        if name in trace.prefixes and found and found.stride != stride:
            found = None  # patches that were cut out by a reshape have lost their field
        stride, receptive = (found.stride, found.side) if found else (stride, None)
        trace.layers[name] = Layer(name, type(layer).__name__, channels, stride, round(spent / side**2), receptive)

    def hook(name: str) -> Any:
        return lambda layer, _inputs, output: note(name, layer, output)

    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            hooks.enter_context(layer.register_forward_hook(hook(name)))
        with fields, operations:
            return trace if _failure(module, image) is None else None


def _step(multiple: int | None) -> int:
    """Return the pixels by which the second traced image is larger than the first one."""
    return multiple * math.ceil(COARSEST_STRIDE / multiple) if multiple else 0


def _multiple(module: nn.Module) -> int | None:
    """Return the multiple that sides must have, or None if the module takes images of one size only.

    It is 1, unless branches with different strides need equal sizes, or patches must be whole. Sides just above and
    just below a multiple of 32 are tried, because strides round up or down.
    """
    for multiple in MULTIPLES:
        if _accepts(module, PROBE_SIDE + multiple) and _accepts(module, PROBE_SIDE + _step(multiple) - multiple):
            return multiple
    return None


def _min_size(module: nn.Module, multiple: int) -> int:
    """Return the smallest side that passes through the whole network, found by bisection."""
    low, high = 0, PROBE_SIDE // multiple
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _accepts(module, middle * multiple) else (middle, high)
    return high * multiple


def _check_runs(module: nn.Module, model: str) -> None:
    """Raise `InvalidInput` with the module's own error if it rejects images of `PROBE_SIDE`."""
    if error := _failure(module, _probe(module, PROBE_SIDE)):
        reason = str(error).partition("\n")[0]
        raise InvalidInput(
            f"{model} cannot process an image (1, 3, {PROBE_SIDE}, {PROBE_SIDE}) ({type(error).__name__}: {reason}): "
            "give a convolutional network that takes images of several sizes"
        )


def _accepts(module: nn.Module, side: int) -> bool:
    return _failure(module, _probe(module, side)) is None


def _probe(module: nn.Module, side: int) -> Tensor:
    """Return an image (1, 3, side, side) on the device of the module."""
    return torch.zeros(1, 3, side, side, device=next(module.parameters()).device)


def _failure(module: nn.Module, image: Tensor) -> Exception | None:
    """Return the exception that the module raises for `image` (1, 3, H, W), if it raises one."""
    try:
        with torch.no_grad():
            module(image)
    except Exception as error:  # a custom module raises whatever its code raises
        return error
    return None
