"""The engine: a faster copy of a network with the same activations. The tests compare it with the original network.

- Batch normalizations are folded into the convolutions before them, and so are the ReLUs after them that are modules.
- On CPUs, convolutions call oneDNN directly, forward and backward. On one thread torch would compute 1x1 convolutions
  by an older matrix product, at less than half the speed.
- The backward pass of a convolution with respect to its input is computed as a forward convolution.
- Zeros in the kernel stand for TensorFlow's asymmetric padding, which would copy the largest activations.
- On CPUs with bfloat16 instructions, the backward pass of large convolutions uses bfloat16.
- On GPUs, a fused activation keeps its output for the gradient and not its input.
"""

import math
import sys
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dreamcore.efficientnet_lite import Conv2dSame, missing_pixels, pad_same
from dreamcore.folding import FoldedNormRemainder, find_foldable, fold, replace_module

__all__ = ["Convolution", "StemConvolution", "optimize", "supports_bfloat16"]

MAX_STEM_CHANNELS = 4
"""A convolution with at most this many input channels reads the image itself (3 channels)."""

MIN_INTENSITY = 100
"""Multiply-adds per input and output number from which a convolution is large: below this, the conversion to bfloat16
and back costs more than it saves."""

_Pair = tuple[int, int]


def optimize(module: nn.Module, side: int) -> tuple[nn.Module, frozenset[str]]:
    """Return a faster copy of a frozen network in evaluation mode.

    The copy shares weights with `module` where possible.

    Args:
        module: the network; it is not changed.
        side: side in pixels of an image that the network accepts.

    Returns:
        The copy, and the names of the layers whose activations differ in the copy: convolutions that absorbed the
        batch normalization after them, and the modules between that normalization and an absorbed activation.
    """
    optimized = deepcopy(module, {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]})
    remainders: dict[str, FoldedNormRemainder] = {}
    changed: set[str] = set()
    for convolution, norm in find_foldable(module, side).items():
        remainders[convolution] = FoldedNormRemainder(optimized.get_submodule(norm))
        folded = fold(optimized.get_submodule(convolution), optimized.get_submodule(norm))
        replace_module(optimized, convolution, folded)
        replace_module(optimized, norm, remainders[convolution])
        changed |= {convolution, *(f"{norm}.{name}" for name, _ in remainders[convolution].named_children())}
    for name, part in list(optimized.named_modules()):
        if torch.backends.mkldnn.is_available() and _is_plain_convolution(part):  # type: ignore[no-untyped-call]
            ceiling = remainders[name].take_ceiling() if name in remainders else None
            kind = StemConvolution if _is_stem(part) else Convolution
            replace_module(optimized, name, kind(part, ceiling))
        elif hasattr(part, "inplace") and not isinstance(part, nn.ReLU):
            part.inplace = False  # their gradient needs the input, so working in place would need a copy first
    return optimized.eval().requires_grad_(False), frozenset(changed)


def _is_plain_convolution(part: nn.Module) -> bool:
    """Return whether the engine can replace this module.

    Convolutions that recompute their weights on each call would not become faster.
    """
    plain = type(part) is nn.Conv2d and part.padding_mode == "zeros" and not isinstance(part.padding, str)
    return plain or _is_same_padded(part)


def _is_same_padded(part: nn.Module) -> bool:
    """Return whether a module is a convolution with TensorFlow's "same" padding, of this package or of timm."""
    timm = sys.modules.get("timm.layers.conv2d_same")  # a network of timm has imported it
    return type(part) is Conv2dSame or (timm is not None and type(part) is timm.Conv2dSame)


def _is_stem(convolution: nn.Conv2d) -> bool:
    """Return whether `StemConvolution` can compute this convolution: few input channels and a square stride."""
    vertical, horizontal = _pair(convolution.stride)
    return (
        vertical == horizontal > 1
        and convolution.in_channels <= MAX_STEM_CHANNELS
        and convolution.groups == 1
        and set(_pair(convolution.dilation)) == {1}
    )


class _PaddedConvolution(nn.Module):
    """The geometry of a convolution, and TensorFlow's "same" padding if the convolution uses it."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = map(_pair, (plain.kernel_size, plain.stride, plain.dilation))
        self.same = _is_same_padded(plain)
        """The padding depends on the size of the input, and `pad` applies it."""
        self.padding = (0, 0) if self.same or isinstance(plain.padding, str) else _pair(plain.padding)

    def pad(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W) with "same" padding if the convolution uses it."""
        return pad_same(x, self.kernel_size, self.stride, self.dilation) if self.same else x


class Convolution(_PaddedConvolution):
    """A frozen convolution. Float32 images on CPUs go through oneDNN, all others through torch.

    Args:
        plain: the convolution to compute.
        ceiling: clamp the output to [0, `ceiling`]; None: do not clamp.
    """

    def __init__(self, plain: nn.Conv2d, ceiling: float | None = None) -> None:
        super().__init__(plain)
        self.ceiling = ceiling
        self.weight, self.bias, self.groups = plain.weight, plain.bias, plain.groups
        reach = [dilation * (kernel - 1) for dilation, kernel in zip(self.dilation, self.kernel_size, strict=True)]
        self.backward_padding = reach[0] - self.padding[0], reach[1] - self.padding[1]
        self.on_cpu = plain.weight.device.type == "cpu"
        """Whether the convolution is made for CPUs. The copy on the meta device, which measures memory, keeps this."""
        self.backward_as_forward_conv = self.on_cpu and self.stride == (1, 1) and min(self.backward_padding) >= 0
        self.register_buffer(
            "backward_weight", _transposed_weights(plain) if self.backward_as_forward_conv else None, persistent=False
        )
        self.pads_in_kernel = self.same and self.stride != (1, 1) and self.dilation == (1, 1)
        """Whether zeros in the kernel stand for the asymmetric part of the padding."""
        self._wider: dict[_Pair, Tensor] = {}

    @property
    def backward_dtype(self) -> torch.dtype:
        """The dtype of the backward pass."""
        weight: Tensor = self.backward_weight if self.backward_as_forward_conv else self.weight  # type: ignore[assignment]
        return weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (B, C, H, W)."""
        if x.device.type == "cpu" and x.dtype == torch.float32:
            if self.pads_in_kernel:
                return _OneDnnConvolution.apply(x, self, *self._pad_kernel(x))  # type: ignore[no-any-return]
            return _OneDnnConvolution.apply(self.pad(x), self, self.weight, self.padding)  # type: ignore[no-any-return]
        x = self.pad(x)
        x = nn.functional.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if self.ceiling is None:
            return x
        if self.on_cpu:  # in float64, and on the meta device: the memory that is measured there decides about tiles
            return nn.functional.hardtanh(x, 0, self.ceiling, inplace=True)
        return _Clamp.apply(x, self.ceiling)  # type: ignore[no-any-return]

    def _pad_kernel(self, x: Tensor) -> tuple[Tensor, _Pair]:
        """Return the weights and the padding of both sides that replace "same" padding of `x` (B, C, H, W).

        "Same" padding may add one zero more at the end of a direction than at its beginning. Instead, as many zeros as
        at the end are added on both sides, and the kernel begins with a zero: the sums are the same.
        """
        sizes = zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
        rows, columns = (missing_pixels(*each) for each in sizes)
        zeros = rows % 2, columns % 2
        if zeros not in self._wider:
            wider = nn.functional.pad(self.weight, (zeros[1], 0, zeros[0], 0))
            self._wider[zeros] = wider.contiguous(memory_format=torch.channels_last)
        return self._wider[zeros], (rows - rows // 2, columns - columns // 2)


class _Clamp(torch.autograd.Function):
    """Clamps a tensor to [0, ceiling] in place, and keeps only the result for the gradient.

    It has the values and gradients of `hardtanh`. That function, with `inplace=True`, first copies its input for the
    gradient. On a GPU, memory limits the batch size, and the copy takes time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ceiling: float) -> Tensor:
        ctx.ceiling = ceiling
        x.clamp_(0, ceiling)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.ops.aten.hardtanh_backward(gradients[0], *ctx.saved_tensors, 0.0, ctx.ceiling), None


class _OneDnnConvolution(torch.autograd.Function):
    """A convolution by oneDNN, with the gradient with respect to its input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Convolution, weight: Tensor, padding: _Pair) -> Tensor:
        ctx.layer, ctx.shape, ctx.weight, ctx.padding = layer, x.shape, weight, padding
        arguments = weight, layer.bias, padding, layer.stride, layer.dilation, layer.groups
        if layer.ceiling is None:
            return torch.mkldnn_convolution(x, *arguments)
        clamp = "hardtanh", (0.0, layer.ceiling), ""
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(x, *arguments, *clamp)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        layer: Convolution = ctx.layer
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        if layer.ceiling is not None:
            gradient = torch.ops.aten.hardtanh_backward(gradient, *ctx.saved_tensors, 0.0, layer.ceiling)
        if layer.backward_as_forward_conv:
            weight: Tensor = layer.backward_weight  # type: ignore[assignment]
            input_gradient = torch.mkldnn_convolution(
                gradient.to(weight.dtype), weight, None, layer.backward_padding, (1, 1), layer.dilation, layer.groups
            )
            return input_gradient.to(gradient.dtype), None, None, None
        x = torch.empty(ctx.shape, memory_format=torch.channels_last)  # only the shape is used
        (input_gradient, _, _) = torch.ops.aten.convolution_backward(
            gradient, x, ctx.weight, None, layer.stride, ctx.padding, layer.dilation,
            False, (0, 0), layer.groups, (True, False, False),
        )  # fmt: skip
        return input_gradient, None, None, None


class StemConvolution(_PaddedConvolution):
    """A frozen strided convolution with few input channels, computed as a convolution without a stride.

    The image (B, 3, H, W) is unshuffled into (B, 3 s s, H / s, W / s), where s is the stride. The sums are the same in
    another order, and the additional channels fill the vector registers of a CPU in the backward pass.

    Args:
        plain: the convolution to compute; its stride is the same in both directions, its dilation and groups are 1.
        ceiling: clamp the output to [0, `ceiling`]; None: do not clamp.
    """

    def __init__(self, plain: nn.Conv2d, ceiling: float | None = None) -> None:
        super().__init__(plain)
        stride = self.stride[0]
        extra = [-kernel % stride for kernel in self.kernel_size]  # to the next multiple of the stride
        weight = nn.functional.pad(plain.weight.detach(), (0, extra[1], 0, extra[0]))
        unshuffled = nn.Conv2d(plain.in_channels * stride**2, plain.out_channels, 1, bias=False)
        unshuffled.weight = nn.Parameter(nn.functional.pixel_unshuffle(weight, stride), requires_grad=False)
        unshuffled.kernel_size = _pair(unshuffled.weight.shape[2:])
        unshuffled.bias = plain.bias
        self.unshuffled = Convolution(unshuffled, ceiling)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (B, C, H, W)."""
        x = self.pad(x)
        stride = self.stride[0]
        end_padding = []  # at the bottom and at the right, so that all windows are complete
        for length, kernel, padding in zip(x.shape[2:], self.kernel_size, self.padding, strict=True):
            positions = (length + 2 * padding - kernel) // stride + 1
            needed = (positions - 1 + math.ceil(kernel / stride)) * stride
            end_padding.append(needed - length - padding)
        x = nn.functional.pad(x, (self.padding[1], end_padding[1], self.padding[0], end_padding[0]))
        x = nn.functional.pixel_unshuffle(x, stride).contiguous(memory_format=torch.channels_last)
        return self.unshuffled(x)  # type: ignore[no-any-return]


def _transposed_weights(plain: nn.Conv2d) -> Tensor:
    """Return the weights with which a convolution of the output gradient gives the input gradient.

    Input and output channels are exchanged, and the kernels are rotated by 180 degrees.
    """
    channels_out, channels_in, *kernel = plain.weight.shape  # channels_in: of one group
    grouped = plain.weight.detach().view(plain.groups, channels_out // plain.groups, channels_in, *kernel)
    transposed = grouped.transpose(1, 2)
    weight = transposed.reshape(plain.groups * channels_in, channels_out // plain.groups, *kernel).flip(2, 3)
    weight = weight.to(torch.bfloat16 if _has_bfloat16_backward(plain) else weight.dtype)
    return weight.contiguous(memory_format=torch.channels_last)


def _has_bfloat16_backward(plain: nn.Conv2d) -> bool:
    """Return whether the backward pass of a convolution uses bfloat16, which halves the time of large convolutions.

    Only the backward pass: its error is 1 % of the gradient (40 dB and more). In the forward pass, bfloat16 would turn
    so many ReLUs on and off that less than 10 dB of the gradient would remain.
    """
    channels_in, channels_out = plain.in_channels, plain.out_channels
    multiply_adds = channels_in * channels_out * math.prod(_pair(plain.kernel_size))
    large = plain.groups == 1 and multiply_adds >= MIN_INTENSITY * (channels_in + channels_out)
    return large and plain.weight.dtype == torch.float32 and supports_bfloat16()


@cache
def supports_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 instructions. Without them oneDNN is slower in bfloat16 than in float32.

    The variable ATEN_CPU_CAPABILITY=avx2 hides them, for measurements: then this returns False.
    """
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT", "NO AVX"):
        return False
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    has_instructions = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return has_instructions and torch.backends.mkldnn.is_available()  # type: ignore[no-any-return, no-untyped-call]


def _pair(value: int | Sequence[int]) -> _Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
