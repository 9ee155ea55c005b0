"""Read the spec of a network from its structure, by passing an image through it on PyTorch's meta device.

On the meta device nothing is computed and no weights are allocated. A custom module that cannot run there is traced
with a small real image instead.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dreamcore.errors import InvalidInput
from dreamcore.network import Network, to_meta
from dreamcore.receptive_field import ReceptiveFields
from dreamcore.spec import Layer, NetworkSpec
from dreamcore.targets import LOGITS
from dreamcore.zoo import build, preprocessing, weights_identity

__all__ = ["activation_sizes", "structure_of", "trace_module", "trace_network"]

PROBE_SIDE = 224
"""Side in pixels of the image that is passed through a network to find its layers."""
COARSEST_MULTIPLE = 32
"""Largest multiple that is tried for the sides of images."""

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

    A layer is every submodule that returns a tensor `(B, C, H, W)`, and `logits` if the module returns `(B, C)`.

    Args:
        module: a network in evaluation mode, on the CPU or on the meta device, that takes normalised images
            `(B, 3, H, W)` of several sizes.
        model: the name of the network in the spec.
        weights: the identity of the weights in the spec.
        mean: mean of the training images, per channel, in [0, 1].
        std: standard deviation of the training images, per channel.
        size: side of the training images in pixels.

    Raises:
        InvalidInput: the module accepts only images of one size, or none of its layers returns `(B, C, H, W)`.
    """
    one, other = _layers(module, PROBE_SIDE), _layers(module, PROBE_SIDE + COARSEST_MULTIPLE)
    if one is None or other is None:
        _check_runs(module, model)
        raise InvalidInput(f"{model} takes images of one size only: choose a convolutional network")
    # Some layers of transformers have the channels in the last dimension. There the second one grows with the image.
    layers = tuple(layer for name, layer in one.items() if name in other and other[name].channels == layer.channels)
    if not layers:
        raise InvalidInput(f"no layer of {model} returns a tensor (B, C, H, W): choose a convolutional network")
    multiple = _multiple(module)
    return NetworkSpec(model, weights, mean, std, size, _min_size(module, multiple), layers, multiple)


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
    with _NoWeights():
        return build(model, pretrained=False).eval().to("meta")


def _layers(module: nn.Module, side: int) -> dict[str, Layer] | None:
    """Return every layer by its name, in the order in which they run; None if images of `side` are rejected."""
    layers: dict[str, Layer] = {}
    spent = 0
    image = _probe(module, side)
    fields = ReceptiveFields(image)

    def note(name: str, layer: nn.Module, output: object) -> None:
        nonlocal spent
        if not name and isinstance(output, Tensor) and output.ndim == 2:
            layers[LOGITS] = Layer(LOGITS, type(layer).__name__, output.shape[1], side, round(spent / side**2))
        if not isinstance(output, Tensor) or output.ndim != 4:
            return
        if isinstance(layer, nn.Conv2d):
            spent += output.numel() * layer.weight[0].numel()
        if name and not isinstance(layer, nn.Identity):
            field = fields.of(output)
            stride, receptive = (field.stride, field.side) if field else (round(side / output.shape[-1]), None)
            cost = round(spent / side**2)
            layers.setdefault(name, Layer(name, type(layer).__name__, output.shape[1], stride, cost, receptive))

    def hook(name: str) -> Any:
        return lambda layer, _inputs, output: note(name, layer, output)

    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            hooks.enter_context(layer.register_forward_hook(hook(name)))
        with fields:
            return layers if _failure(module, image) is None else None


def _multiple(module: nn.Module) -> int:
    """Return the multiple that sides must have: 1, unless branches with different strides need equal sizes.

    Sides just above and just below a multiple of 32 are tried, because strides round up or down.
    """
    multiple = 1
    while multiple < COARSEST_MULTIPLE and not (
        _accepts(module, PROBE_SIDE + multiple) and _accepts(module, PROBE_SIDE + COARSEST_MULTIPLE - multiple)
    ):
        multiple *= 2
    return multiple


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
