"""A network made fast: the same answers, sooner. The plain network stays the reference of every test.

Batch normalisations are folded into the convolutions before them, and the ReLU behind these, too, where it is a module.
On processors convolutions go to oneDNN straight, forward and back: on one thread torch would take an old matrix product
for those of one pixel, at less than half the speed, and the way back to the picture is a convolution, too. Processors
that multiply bfloat16 take gradients in it through large convolutions.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

FEW = 4
"""Channels of a picture, or little more."""

CEILINGS: dict[type[nn.Module], float] = {nn.ReLU: math.inf, nn.ReLU6: 6.0}
"""What activations cut off at; all of them begin at 0."""

LARGE = 100
"""Multiply-adds for each number that goes into a convolution or comes out of it, from which on it is large: fewer are
not worth the way to another type and back."""

BatchNorm = nn.modules.batchnorm._BatchNorm
Pair = tuple[int, int]


def optimize(module: nn.Module, side: int) -> tuple[nn.Module, frozenset[str]]:
    """A copy of a frozen network in evaluation mode that answers the same, sooner; it shares weights where it can.

    Args:
        module: the network; it stays as it is.
        side: of a picture that it takes, in pixels.

    Returns:
        The copy, and the names of those layers that do not answer the same in it: convolutions which took in the
        normalisation behind them, and what lay between that and an activation which they took in, too.
    """
    quick = deepcopy(module, {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]})
    behind: dict[str, FoldedNormRemainder] = {}
    changed: set[str] = set()
    for convolution, norm in _foldable(module, side).items():
        behind[convolution] = FoldedNormRemainder(quick.get_submodule(norm))
        _replace_module(quick, convolution, _folded(quick.get_submodule(convolution), quick.get_submodule(norm)))
        _replace_module(quick, norm, behind[convolution])
        changed |= {convolution, *(f"{norm}.{name}" for name, _ in behind[convolution].named_children())}
    for name, part in list(quick.named_modules()):
        if torch.backends.mkldnn.is_available() and _is_plain_convolution(part):  # type: ignore[no-untyped-call]
            ceiling = behind[name].take_ceiling() if name in behind else None
            _replace_module(
                quick, name, StemConvolution(part, ceiling) if _is_stem(part) else Convolution(part, ceiling)
            )
        elif hasattr(part, "inplace") and not isinstance(part, nn.ReLU):
            part.inplace = False  # whose gradient needs what went in, they would copy it first
    return quick.eval().requires_grad_(False), frozenset(changed)


def _is_plain_convolution(part: nn.Module) -> bool:
    """Whether a module is a convolution as all are; with those that make their weights anew, nothing is won."""
    plain = type(part) is nn.Conv2d and part.padding_mode == "zeros" and not isinstance(part.padding, str)
    return plain or type(part) is Conv2dSame


def _is_stem(convolution: nn.Conv2d) -> bool:
    across, down = _pair(convolution.stride)
    return (
        across == down > 1
        and convolution.in_channels <= FEW
        and convolution.groups == 1
        and set(_pair(convolution.dilation)) == {1}
    )


def _replace_module(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, part)


# --- normalisations


class FoldedNormRemainder(nn.Module):
    """What is left of a normalisation that was folded: what it did besides, by the same names (timm's activations)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name, part in norm.named_children():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """Pass on what the convolution answers, through the parts that are left, in their order."""
        for part in self.children():
            x = part(x)
        return x

    def take_ceiling(self) -> float | None:
        """Take away the ReLU that is all that is left, and give what it cuts off at; None where there is none."""
        parts = {name: part for name, part in self.named_children() if not isinstance(part, nn.Identity)}
        ceilings = [CEILINGS.get(type(part)) for part in parts.values()]
        if len(ceilings) != 1 or ceilings[0] is None:
            return None
        _replace_module(self, next(iter(parts)), nn.Identity())
        return ceilings[0]


def _folded(convolution: Any, norm: Any) -> nn.Conv2d:
    """The convolution with the normalisation behind it taken in."""
    copy: nn.Conv2d = deepcopy(convolution)
    copy.weight, copy.bias = fuse_conv_bn_weights(
        copy.weight, copy.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return copy


class _Uses(TorchDispatchMode):
    """While it is entered, counts how often each tensor goes into an operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.of[tensor] = self.of.get(tensor, 0) + 1  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _foldable(module: nn.Module, side: int) -> dict[str, str]:
    """Convolutions whose answer goes into a normalisation and nowhere else, each with the name of that.

    Seen in the network's structure as a picture passes through it, however its code is written.
    """
    structure = deepcopy(module).to("meta")
    calls: dict[str, int] = {}
    made: list[tuple[str, Tensor]] = []
    pairs: list[tuple[str, str, Tensor]] = []

    def after_convolution(name: str, answer: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        made.append((name, answer))

    def before_norm(name: str, seen: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        pairs.extend((convolution, name, answer) for convolution, answer in made if answer is seen)

    for name, part in structure.named_modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda _part, _inputs, answer, name=name: after_convolution(name, answer))
        elif isinstance(part, BatchNorm) and part.track_running_stats and part.affine:
            part.register_forward_pre_hook(lambda _part, inputs, name=name: before_norm(name, inputs[0]))
    with torch.no_grad(), _Uses() as uses:
        structure(torch.zeros(1, 3, side, side, device="meta", dtype=next(module.parameters()).dtype))
    return {
        convolution: norm
        for convolution, norm, answer in pairs
        if uses.of[answer] == 1 and calls[convolution] == calls[norm] == 1
    }


# --- convolutions


class _Padded(nn.Module):
    """What convolutions have in common before they convolve: their form, and TensorFlow's padding where that is it."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = map(_pair, (plain.kernel_size, plain.stride, plain.dilation))
        self.same = isinstance(plain, Conv2dSame)
        """Padded by the size of the picture, and not once more."""
        self.padding = (0, 0) if self.same or isinstance(plain.padding, str) else _pair(plain.padding)

    def padded(self, x: Tensor) -> Tensor:
        """`x` (B, C, H, W), mostly as it is."""
        return pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation)) if self.same else x


class Convolution(_Padded):
    """A frozen convolution, of pictures of 32-bit numbers on processors by oneDNN, otherwise as torch does it.

    Args:
        plain: the convolution.
        ceiling: its answers are cut off below 0 and above this; None: they are not.
    """

    def __init__(self, plain: nn.Conv2d, ceiling: float | None = None) -> None:
        super().__init__(plain)
        self.ceiling = ceiling
        self.weight, self.bias, self.groups = plain.weight, plain.bias, plain.groups
        reach = [dilation * (kernel - 1) for dilation, kernel in zip(self.dilation, self.kernel_size, strict=True)]
        self.backward_padding = reach[0] - self.padding[0], reach[1] - self.padding[1]
        on_processor = plain.weight.device.type == "cpu"
        self.backward_as_forward_conv = on_processor and self.stride == (1, 1) and min(self.backward_padding) >= 0
        self.register_buffer(
            "backward_weight", _transposed_weights(plain) if self.backward_as_forward_conv else None, persistent=False
        )

    @property
    def backward_dtype(self) -> torch.dtype:
        """The type in which gradients are taken through it."""
        weight: Tensor = self.backward_weight if self.backward_as_forward_conv else self.weight  # type: ignore[assignment]
        return weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (B, C, H, W)."""
        x = self.padded(x)
        if x.device.type == "cpu" and x.dtype == torch.float32:
            return _Convolve.apply(x, self)  # type: ignore[no-any-return]
        x = nn.functional.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        # In place: nothing else looks at what a convolution answers, and memory is what bounds the batches of a GPU.
        return x if self.ceiling is None else nn.functional.hardtanh(x, 0, self.ceiling, inplace=True)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Convolution) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        form = layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups
        if layer.ceiling is None:
            return torch.mkldnn_convolution(x, *form)
        answer: Tensor = torch.ops.mkldnn._convolution_pointwise(x, *form, "hardtanh", (0.0, layer.ceiling), "")
        ctx.save_for_backward(answer)
        return answer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layer: Convolution = ctx.layer
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        if layer.ceiling is not None:
            gradient = torch.ops.aten.hardtanh_backward(gradient, *ctx.saved_tensors, 0.0, layer.ceiling)
        if layer.backward_as_forward_conv:
            weight: Tensor = layer.backward_weight  # type: ignore[assignment]
            back = torch.mkldnn_convolution(
                gradient.to(weight.dtype), weight, None, layer.backward_padding, (1, 1), layer.dilation, layer.groups
            )
            return back.to(gradient.dtype), None
        seen = torch.empty(ctx.shape, memory_format=torch.channels_last)  # only its shape is looked at
        (back, _, _) = torch.ops.aten.convolution_backward(
            gradient, seen, layer.weight, None, layer.stride, layer.padding, layer.dilation,
            False, (0, 0), layer.groups, (True, False, False),
        )  # fmt: skip
        return back, None


class StemConvolution(_Padded):
    """A frozen convolution of few channels and a stride, as one without a stride of the pixels of each stride's square.

    The same sums in another order: a picture (B, 3, H, W) is folded into (B, 3 s s, H / s, W / s), which fills the
    vectors of a processor on the way back.
    """

    def __init__(self, plain: nn.Conv2d, ceiling: float | None = None) -> None:
        super().__init__(plain)
        side = self.stride[0]
        more = [-kernel % side for kernel in self.kernel_size]
        weight = nn.functional.pad(plain.weight.detach(), (0, more[1], 0, more[0]))
        unfolded = nn.Conv2d(plain.in_channels * side**2, plain.out_channels, 1, bias=False)
        unfolded.weight = nn.Parameter(nn.functional.pixel_unshuffle(weight, side), requires_grad=False)
        unfolded.kernel_size = _pair(unfolded.weight.shape[2:])
        unfolded.bias = plain.bias
        self.unfolded = Convolution(unfolded, ceiling)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (B, C, H, W)."""
        x = self.padded(x)
        side = self.stride[0]
        missing = []
        for length, kernel, padding in zip(x.shape[2:], self.kernel_size, self.padding, strict=True):
            positions = (length + 2 * padding - kernel) // side + 1
            needed = (positions - 1 + math.ceil(kernel / side)) * side
            missing.append(needed - length - padding)
        x = nn.functional.pad(x, (self.padding[1], missing[1], self.padding[0], missing[0]))
        x = nn.functional.pixel_unshuffle(x, side).contiguous(memory_format=torch.channels_last)
        return self.unfolded(x)  # type: ignore[no-any-return]


def _transposed_weights(plain: nn.Conv2d) -> Tensor:
    """The weights with which a convolution of the gradient is the gradient of the convolution."""
    out, into, *kernel = plain.weight.shape
    grouped = plain.weight.detach().view(plain.groups, out // plain.groups, into, *kernel).transpose(1, 2)
    turned = grouped.reshape(plain.groups * into, out // plain.groups, *kernel).flip(2, 3)
    turned = turned.to(torch.bfloat16 if _has_bfloat16_backward(plain) else turned.dtype)
    return turned.contiguous(memory_format=torch.channels_last)


def _has_bfloat16_backward(plain: nn.Conv2d) -> bool:
    """Whether a gradient is taken through a convolution in bfloat16, which halves the time where that is its products.

    Only back: there half precision leaves an error of 1 % of the gradient (40 dB and more). On the way forward, where
    activations are cut off, it would turn so many on and off that less than 10 dB are left.
    """
    into, out = plain.in_channels, plain.out_channels
    large = plain.groups == 1 and into * out * math.prod(_pair(plain.kernel_size)) >= LARGE * (into + out)
    return large and plain.weight.dtype == torch.float32 and supports_bfloat16()


@cache
def supports_bfloat16() -> bool:
    """Whether this processor has instructions for it: without, oneDNN takes longer than for 32 bits."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    has_them = known.get("avx512_bf16", False) or known.get("amx_bf16", False)
    return has_them and torch.backends.mkldnn.is_available()  # type: ignore[no-any-return, no-untyped-call]


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
