"""Receptive fields: which part of the image one position of a layer depends on.

The fields are computed operation by operation, as in Araujo, Norris and Sim, "Computing Receptive Fields of
Convolutional Neural Networks" (2019).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Field", "ReceptiveFields", "Span"]


@dataclass(frozen=True)
class Span:
    """The receptive field along one axis: position i depends on pixels `first + i * stride` to `last + i * stride`."""

    first: float = 0
    last: float = 0
    stride: float = 1

    def window(self, kernel: int, stride: int, padding: int = 0, dilation: int = 1) -> "Span":
        """Return the field of the output of a sliding window, such as a convolution or a pooling."""
        before, after = -padding, (kernel - 1) * dilation - padding
        return Span(self.first + before * self.stride, self.last + after * self.stride, self.stride * stride)

    def upsampled(self, factor: float, reach: float) -> "Span":
        """Return the field after upsampling by `factor`, which interpolates positions up to `reach` away."""
        before = reach or 1 - 1 / factor
        return Span(self.first - before * self.stride, self.last + reach * self.stride, self.stride / factor)

    def union(self, other: "Span") -> "Span":
        """Return the field of two branches that meet."""
        return Span(min(self.first, other.first), max(self.last, other.last), max(self.stride, other.stride))


@dataclass(frozen=True)
class Field:
    """The receptive field of the positions of a tensor, along both axes."""

    vertical: Span = Span()
    horizontal: Span = Span()

    @property
    def side(self) -> int:
        """Longer side of the field in pixels."""
        return math.ceil(max(span.last - span.first for span in (self.vertical, self.horizontal))) + 1

    @property
    def stride(self) -> int:
        """Pixels of the image from one position to the next."""
        return round(max(self.vertical.stride, self.horizontal.stride))

    def union(self, other: "Field") -> "Field":
        """Return the field of two branches that meet."""
        return Field(self.vertical.union(other.vertical), self.horizontal.union(other.horizontal))


class ReceptiveFields(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Tracks, while active, the receptive field of every tensor that is computed from an image.

    The field is the theoretical one. It follows from the kernels, strides, dilations and paddings of the operations,
    not from weights or from the code of the network's modules, so the meta device suffices.

    - Where branches meet (a residual, a concatenation), the field covers the fields of all branches.
    - After global pooling and attention, the field is the whole image.
    - A gate with one position for the whole image (squeeze-and-excitation) does not widen the field of the tensor that
      it scales. It changes how strongly a feature responds, not to what.

    Args:
        image: (B, 3, H, W).

    Example:
        >>> import torch
        >>> image = torch.zeros(1, 3, 64, 64, device="meta")
        >>> with ReceptiveFields(image) as fields, torch.no_grad():
        ...     features = torch.nn.Conv2d(3, 8, kernel_size=5, stride=2, device="meta")(image)
        >>> fields.of(features).side, fields.of(features).stride
        (5, 2)
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fields = WeakTensorKeyDictionary()
        self._fields[image] = Field()

    def of(self, tensor: Tensor) -> Field | None:
        """Return the field of one position of `tensor`; None: the whole image."""
        field: Field | None = self._fields.get(tensor)  # type: ignore[no-untyped-call]
        return field

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor) and each in self._fields]
        if inputs:
            arguments = {each.name: each.default_value for each in func._schema.arguments}
            arguments |= {**dict(zip(arguments, args, strict=False)), **(kwargs or {})}
            field = _output_field(func.overloadpacket.__name__, arguments, self._input_field(inputs), output)
            for each in tree_leaves(output):
                if isinstance(each, Tensor):
                    self._fields[each] = field
        return output

    def _input_field(self, inputs: Sequence[Tensor]) -> Field | None:
        """Return the union of the fields of `inputs`, without gates."""
        scaled = [each for each in inputs if each.shape[-2:] != (1, 1)] or inputs
        first, *others = (self.of(each) for each in scaled)
        for other in others:
            first = first and other and first.union(other)
        return first


def _output_field(operation: str, arguments: Mapping[str, Any], field: Field | None, output: Any) -> Field | None:
    """Return the field of the output of an ATen operation.

    Args:
        operation: name of the operation.
        arguments: its arguments by name.
        field: the field of its input.
        output: its output.
    """
    if field is None:
        return None
    match operation:
        case "convolution":
            size = tuple(arguments["weight"].shape[2:])
            return None if arguments["transposed"] else _slide(field, {**arguments, "kernel_size": size})
        case "max_pool2d_with_indices" | "avg_pool2d":
            return _slide(field, {**arguments, "stride": arguments["stride"] or arguments["kernel_size"]})
        case "constant_pad_nd" | "reflection_pad2d" | "replication_pad2d":
            sides: list[int] = [*(arguments.get("pad") or arguments["padding"]), 0, 0]  # left, right, top, bottom
            return _slide(field, {"padding": (sides[2], sides[0])})
        case "pixel_unshuffle":
            factor = arguments["downscale_factor"]
            return _slide(field, {"kernel_size": factor, "stride": factor})
        case "slice":
            start, step = arguments["start"] or 0, arguments["step"]
            moved = [span.window(1, step, -start) for span in (field.vertical, field.horizontal)]
            axis = arguments["dim"] % arguments["self"].ndim
            return Field(moved[0] if axis == 2 else field.vertical, moved[1] if axis == 3 else field.horizontal)
        case "upsample_nearest2d" | "upsample_bilinear2d" | "upsample_bicubic2d":
            reach = {"upsample_nearest2d": 0, "upsample_bilinear2d": 1}.get(operation, 2)
            sizes = zip(output.shape[-2:], arguments["self"].shape[-2:], strict=True)
            factors = [new / old for new, old in sizes]
            return Field(field.vertical.upsampled(factors[0], reach), field.horizontal.upsampled(factors[1], reach))
        case "mean" | "sum" | "amax" if _pools_space(arguments):
            return None
        case "_adaptive_avg_pool2d" | "adaptive_max_pool2d" | "bmm" | "baddbmm":
            return None
        case _:
            return None if operation.startswith("_scaled_dot_product") else field


def _pools_space(arguments: Mapping[str, Any]) -> bool:
    """Return whether a reduction includes a spatial axis."""
    axes, dims = arguments["self"].ndim, arguments.get("dim")
    return not dims or any(dim % axes in (2, 3) for dim in dims)


_WINDOW_DEFAULTS = (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1))


def _slide(field: Field, window: Mapping[str, Any]) -> Field:
    """Return the field after a sliding window. Each of its sizes is one number, or one for each axis."""

    def along(axis: int) -> list[int]:
        sizes = (window.get(name, default) for name, default in _WINDOW_DEFAULTS)
        return [size if isinstance(size, int) else size[axis if len(size) > 1 else 0] for size in sizes]

    return Field(field.vertical.window(*along(0)), field.horizontal.window(*along(1)))
