"""How much of the picture one position of a layer sees: its receptive field, followed from operation to operation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class Span:
    """Along one axis, position i of a layer sees the pixels from `first + i * stride` to `last + i * stride`."""

    first: float = 0
    last: float = 0
    stride: float = 1

    def window(self, kernel: int, stride: int, padding: int = 0, dilation: int = 1) -> "Span":
        """What a window sees that slides over these positions."""
        before, after = -padding, (kernel - 1) * dilation - padding
        return Span(self.first + before * self.stride, self.last + after * self.stride, self.stride * stride)

    def upsampled(self, factor: float, reach: float) -> "Span":
        """What the positions between these see, made of those up to `reach` away."""
        before = reach or 1 - 1 / factor
        return Span(self.first - before * self.stride, self.last + reach * self.stride, self.stride / factor)

    def and_also(self, other: "Span") -> "Span":
        """What is seen where two branches meet."""
        return Span(min(self.first, other.first), max(self.last, other.last), max(self.stride, other.stride))


@dataclass(frozen=True)
class Field:
    """What the positions of a layer see of the picture, down and across."""

    down: Span = Span()
    across: Span = Span()

    @property
    def side(self) -> int:
        """The longer side, in pixels."""
        return math.ceil(max(span.last - span.first for span in (self.down, self.across))) + 1

    @property
    def stride(self) -> int:
        """Pixels from one position to the next."""
        return round(max(self.down.stride, self.across.stride))

    def and_also(self, other: "Field") -> "Field":
        """What is seen where two branches meet."""
        return Field(self.down.and_also(other.down), self.across.and_also(other.across))


class ReceptiveFields(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """While it is entered, follows what is seen by the positions of every tensor that `picture` (B, 3, H, W) becomes.

    The field is the theoretical one, from the kernels, strides, dilations and paddings of the operations themselves:
    weights do not matter, nor how the network's modules are written, and the meta device will do. Where branches meet
    (a residual, a concatenation) it spans what any of them sees, so it is that of the deepest path. Global pooling and
    attention see the whole picture. A gate with one position for the whole picture (squeeze-and-excitation) does not
    widen the field of what it scales: it tells how strongly to answer, not to what.
    """

    def __init__(self, picture: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fields = WeakTensorKeyDictionary()
        self._fields[picture] = Field()

    def of(self, tensor: Tensor) -> Field | None:
        """What one position of `tensor` sees; None: the whole picture."""
        field: Field | None = self._fields.get(tensor)  # type: ignore[no-untyped-call]
        return field

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        made_of = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor) and each in self._fields]
        if made_of:
            named = {each.name: each.default_value for each in func._schema.arguments}
            named |= {**dict(zip(named, args, strict=False)), **(kwargs or {})}
            field = _field(func.overloadpacket.__name__, named, self._before(made_of), answer)
            for each in tree_leaves(answer):
                if isinstance(each, Tensor):
                    self._fields[each] = field
        return answer

    def _before(self, made_of: Sequence[Tensor]) -> Field | None:
        """The field of what goes into an operation, gates left out."""
        scaled = [each for each in made_of if each.shape[-2:] != (1, 1)] or made_of
        first, *others = (self.of(each) for each in scaled)
        for other in others:
            first = first and other and first.and_also(other)
        return first


def _field(operation: str, named: Mapping[str, Any], seen: Field | None, answer: Any) -> Field | None:
    """What an operation of ATen sees, given its arguments by name and what goes into it sees."""
    if seen is None:
        return None
    match operation:
        case "convolution":
            size = tuple(named["weight"].shape[2:])
            return None if named["transposed"] else _slide(seen, {**named, "kernel_size": size})
        case "max_pool2d_with_indices" | "avg_pool2d":
            return _slide(seen, {**named, "stride": named["stride"] or named["kernel_size"]})
        case "constant_pad_nd" | "reflection_pad2d" | "replication_pad2d":
            sides: list[int] = [*(named.get("pad") or named["padding"]), 0, 0]  # left, right, upper, lower
            return _slide(seen, {"padding": (sides[2], sides[0])})
        case "pixel_unshuffle":
            return _slide(seen, {"kernel_size": named["downscale_factor"], "stride": named["downscale_factor"]})
        case "slice":
            start, step = named["start"] or 0, named["step"]
            moved = [span.window(1, step, -start) for span in (seen.down, seen.across)]
            axis = named["dim"] % named["self"].ndim
            return Field(moved[0] if axis == 2 else seen.down, moved[1] if axis == 3 else seen.across)
        case "upsample_nearest2d" | "upsample_bilinear2d" | "upsample_bicubic2d":
            reach = {"upsample_nearest2d": 0, "upsample_bilinear2d": 1}.get(operation, 2)
            factors = [new / old for new, old in zip(answer.shape[-2:], named["self"].shape[-2:], strict=True)]
            return Field(seen.down.upsampled(factors[0], reach), seen.across.upsampled(factors[1], reach))
        case "mean" | "sum" | "amax" if _pools_space(named):
            return None
        case "_adaptive_avg_pool2d" | "adaptive_max_pool2d" | "bmm" | "baddbmm":
            return None
        case _:
            return None if operation.startswith("_scaled_dot_product") else seen


def _pools_space(named: Mapping[str, Any]) -> bool:
    axes, dims = named["self"].ndim, named.get("dim")
    return not dims or any(dim % axes in (2, 3) for dim in dims)


def _slide(seen: Field, window: Mapping[str, Any]) -> Field:
    """What a window sees; its sizes are one number for both axes, or one for each."""

    def along(axis: int) -> list[int]:
        sizes = (window.get(name, usual) for name, usual in _WINDOW)
        return [size if isinstance(size, int) else size[axis if len(size) > 1 else 0] for size in sizes]

    return Field(seen.down.window(*along(0)), seen.across.window(*along(1)))


_WINDOW = (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
