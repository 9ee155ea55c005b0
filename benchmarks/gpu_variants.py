"""Variants of a step on a GPU that may become part of the engine once they were measured. None of them is in use."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from benchmarks.contenders import Step, Subject, network_for, step_of
from benchmarks.published import score
from dreamcore.engine import Convolution, StemConvolution
from dreamcore.folding import replace_module
from dreamcore.network import Network

CONTENDERS = (
    TF32, HALF_BACKWARD, FUSED, GRAPH, COMPILED,
) = (
    "engine, TF32",
    "engine, bfloat16 backward",
    "engine, bias and clamp in one kernel",
    "engine, CUDA graph",
    "engine, torch.compile",
)  # fmt: skip
InPlace = Callable[[Tensor, Tensor, float], None]
"""Changes a tensor by a bias and a ceiling."""
BLOCK = 1024
"""Numbers that one program of the Triton kernel computes."""


def variant(name: str, subject: Subject, device: str) -> Step:
    """Return the variant called `name`, one of `CONTENDERS`. All but `TF32` and `HALF_BACKWARD` run on a GPU only."""
    network = network_for(subject, device)
    if name == COMPILED:
        return compiled(network, subject.layer)
    module = network._optimized[0]
    if name in (HALF_BACKWARD, FUSED):
        kind = _HalfBackward if name == HALF_BACKWARD else _Fused
        for path, part in list(module.named_modules()):
            if isinstance(part, Convolution):
                replace_module(module, path, kind(part))
    step = step_of(network, subject.layer)
    return {TF32: in_tf32, GRAPH: in_graph}.get(name, lambda same: same)(step)


def compiled(network: Network, layer: str, compiler: Callable[..., Any] = torch.compile) -> Step:
    """Return a step whose forward pass, and with it the backward pass, is compiled for each shape of the images."""
    leaves = {"leaf_modules": [Convolution, StemConvolution]}
    extractor = create_feature_extractor(network._optimized[0], {layer: "features"}, tracer_kwargs=leaves)
    extractor.eval().requires_grad_(False)
    forward = compiler(lambda images: score(extractor(network._preprocess(images))["features"]), dynamic=False)

    def step(images: Tensor) -> Tensor:
        images = images.detach().clone().requires_grad_()
        return torch.autograd.grad(forward(images), images)[0]

    return step


def in_tf32(step: Step) -> Step:
    """Return the step with matrix products and convolutions in TF32."""

    def run(images: Tensor) -> Tensor:
        with _precision("tf32"):
            return step(images)

    return run


@contextmanager
def _precision(kind: str) -> Iterator[None]:
    backends: tuple[Any, ...] = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = kind
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def in_graph(step: Step) -> Step:
    """Return the step as a CUDA graph, captured for the first images. Later images must have the same shape."""
    captured: list[tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = []

    def run(images: Tensor) -> Tensor:
        if not captured:
            captured.append(_capture(step, images))
        graph, given, gradient = captured[0]
        given.copy_(images)
        graph.replay()
        return gradient

    return run


def _capture(step: Step, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
    """Return a graph, the tensor that it reads, and the gradient that it writes."""
    given, stream = images.clone(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # cuDNN chooses its kernels, and caches fill
        for _ in range(3):
            step(given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradient = step(given)
    return graph, given, gradient


class _HalfBackward(nn.Module):
    """A convolution of the engine whose gradient passes back in bfloat16, unless it is depthwise."""

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        self.convolution = convolution
        self.backward_weight = convolution.weight.to(torch.bfloat16 if convolution.groups == 1 else torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return _HalfGradient.apply(self.convolution.pad(x), self)  # type: ignore[no-any-return]


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, variant: _HalfBackward) -> Tensor:
        ctx.variant, ctx.shape = variant, x.shape
        output = _convolve(variant.convolution, x, variant.convolution.bias)
        if variant.convolution.ceiling is not None:
            output.clamp_(0, variant.convolution.ceiling)
            ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layer, weight = ctx.variant.convolution, ctx.variant.backward_weight
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        if layer.ceiling is not None:
            gradient = torch.ops.aten.hardtanh_backward(gradient, *ctx.saved_tensors, 0.0, layer.ceiling)
        layout = {"dtype": weight.dtype, "device": gradient.device, "memory_format": torch.channels_last}
        x = torch.empty(ctx.shape, **layout)  # only the shape is used
        (found, _, _) = torch.ops.aten.convolution_backward(
            gradient.to(weight.dtype), x, weight, None, layer.stride, layer.padding, layer.dilation,
            False, (0, 0), layer.groups, (True, False, False),
        )  # fmt: skip
        return found.to(gradient.dtype), None


class _Fused(nn.Module):
    """A convolution of the engine whose bias and clamp are one kernel of Triton instead of two of torch."""

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        self.convolution, self.add_and_clamp = convolution, _kernel()

    def forward(self, x: Tensor) -> Tensor:
        layer = self.convolution
        if layer.bias is None or layer.ceiling is None:
            return layer(x)  # type: ignore[no-any-return]
        output = _convolve(layer, layer.pad(x), None)
        return _FusedClamp.apply(output, layer, self.add_and_clamp)  # type: ignore[no-any-return]


class _FusedClamp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: Convolution, add_and_clamp: Callable[[Tensor, Tensor, float], None]
    ) -> Tensor:
        assert layer.bias is not None
        assert layer.ceiling is not None
        ctx.ceiling = layer.ceiling
        if x.is_contiguous(memory_format=torch.channels_last):
            add_and_clamp(x, layer.bias, layer.ceiling)
        else:
            x.add_(layer.bias.view(-1, 1, 1)).clamp_(0, layer.ceiling)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return torch.ops.aten.hardtanh_backward(gradients[0], *ctx.saved_tensors, 0.0, ctx.ceiling), None, None


def _convolve(layer: Convolution, x: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.conv2d(x, layer.weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _kernel() -> InPlace:
    """Return a function that adds a bias (C,) to a tensor (B, C, H, W) in channels last and clamps it, in place."""
    import triton  # type: ignore[import-untyped]  # only where there is a GPU
    import triton.language as tl  # type: ignore[import-untyped]

    @triton.jit  # type: ignore[untyped-decorator]
    def kernel(x, bias, count, ceiling, channels: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        inside = at < count
        value = tl.load(x + at, inside) + tl.load(bias + at % channels, inside)
        tl.store(x + at, tl.minimum(tl.maximum(value, 0.0), ceiling), inside)

    def add_and_clamp(x: Tensor, bias: Tensor, ceiling: float) -> None:
        blocks = (triton.cdiv(x.numel(), BLOCK),)
        kernel[blocks](x, bias, x.numel(), ceiling, x.shape[1], BLOCK)

    return add_and_clamp
