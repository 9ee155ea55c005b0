"""Cards, read off the structure of a network: nothing is computed and no weights are allocated."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dreamcore.errors import InvalidInput
from dreamcore.network import Network
from dreamcore.receptive_field import ReceptiveFields
from dreamcore.spec import Layer, NetworkSpec
from dreamcore.targets import LOGITS
from dreamcore.zoo import build, preprocessing, weights_identity

PROBE_SIDE = 224
"""Side of the picture, in pixels, with which a network is surveyed."""
COARSEST_MULTIPLE = 32
"""Networks that take only sides that are multiples of something take multiples of this."""


def trace_network(model: str) -> NetworkSpec:
    """Read the card of `model` off its structure; no weights are loaded or even allocated.

    Raises:
        InvalidInput: no network has this name, and the message names the nearest ones; or the package that brings its
            weights is not installed; or it cannot dream.
    """
    module = _without_weights(model)
    weights = weights_identity(model, module)
    one, other = _answers(module, PROBE_SIDE), _answers(module, PROBE_SIDE + COARSEST_MULTIPLE)
    if not one or not other:
        raise InvalidInput(f"{model} takes pictures of one size only: choose a convolutional network")
    # Some layers of transformers hold their channels last: what is in the channels' place grows with the picture.
    layers = tuple(layer for name, layer in one.items() if name in other and other[name].channels == layer.channels)
    multiple = _multiple(module)
    mean, std, size = preprocessing(model, module)
    return NetworkSpec(model, weights, mean, std, size, _min_size(module, multiple), layers, multiple)


def activation_sizes(known: NetworkSpec, height: int, width: int) -> dict[str, tuple[int, int]]:
    """Height and width of what each layer on a card activations to a picture of `height` x `width`; computes nothing.

    Raises:
        InvalidInput: the picture is smaller than the network takes.
    """
    if min(height, width) < known.min_size:
        raise InvalidInput(f"{width}x{height} pixels: {known.model} needs {known.min_size} on each side")
    network = Network(_without_weights(known.model), known, device="meta", plain=True)
    with torch.no_grad():
        picture = torch.zeros(1, 3, height, width, device="meta")
        activations = network.activations(picture, {layer.name for layer in known.layers})
    return {name: tuple(answer.shape[2:]) or (1, 1) for name, answer in activations.items()}  # type: ignore[misc]


class _NoWeights(TorchFunctionMode):
    """Parameters, which layers make by `torch.empty`, are not allocated; a constructor's own arithmetic is done."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        elsewhere = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **elsewhere})


def _without_weights(model: str) -> nn.Module:
    """The structure of `model`, to be shown tensors on the meta device."""
    with _NoWeights():
        return build(model, pretrained=False).eval().to("meta")


def _answers(module: nn.Module, side: int) -> dict[str, Layer]:
    """Return every module whose output is a feature map, in order; empty if the network rejects images of `side`."""
    layers: dict[str, Layer] = {}
    spent = 0
    picture = torch.zeros(1, 3, side, side, device="meta")
    fields = ReceptiveFields(picture)

    def note(name: str, layer: nn.Module, answer: object) -> None:
        nonlocal spent
        if not name and isinstance(answer, Tensor) and answer.ndim == 2:
            layers[LOGITS] = Layer(LOGITS, type(layer).__name__, answer.shape[1], side, round(spent / side**2))
        if not isinstance(answer, Tensor) or answer.ndim != 4:
            return
        if isinstance(layer, nn.Conv2d):
            spent += answer.numel() * layer.weight[0].numel()
        if name and not isinstance(layer, nn.Identity):
            field = fields.of(answer)
            stride, sees = (field.stride, field.side) if field else (round(side / answer.shape[-1]), None)
            cost = round(spent / side**2)
            layers.setdefault(name, Layer(name, type(layer).__name__, answer.shape[1], stride, cost, sees))

    def hook(name: str) -> Any:
        return lambda layer, _inputs, answer: note(name, layer, answer)

    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            hooks.enter_context(layer.register_forward_hook(hook(name)))
        with fields:
            return layers if _takes(module, picture) else {}


def _multiple(module: nn.Module) -> int:
    """Of what the sides of pictures must be multiples: 1 unless branches of other strides do not fit together again.

    Tried on both sides of a multiple of 32, since strides round up in some networks and down in others.
    """
    multiple = 1
    while multiple < COARSEST_MULTIPLE and not (
        _takes_side(module, PROBE_SIDE + multiple) and _takes_side(module, PROBE_SIDE + COARSEST_MULTIPLE - multiple)
    ):
        multiple *= 2
    return multiple


def _min_size(module: nn.Module, multiple: int) -> int:
    """Smallest side that passes through the whole network, by bisection without computing anything."""
    low, high = 0, PROBE_SIDE // multiple
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _takes_side(module, middle * multiple) else (middle, high)
    return high * multiple


def _takes_side(module: nn.Module, side: int) -> bool:
    return _takes(module, torch.zeros(1, 3, side, side, device="meta"))


def _takes(module: nn.Module, picture: Tensor) -> bool:
    try:
        with torch.no_grad():
            module(picture)
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True
