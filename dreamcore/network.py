"""A frozen network that returns the activations of chosen layers. Nothing behind the deepest chosen layer runs."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamcore.activation_maps import as_map, crop_padding
from dreamcore.engine import Convolution, optimize
from dreamcore.errors import InvalidInput
from dreamcore.spec import NetworkSpec
from dreamcore.targets import LOGITS

__all__ = ["LayerActivations", "Network", "index", "to_meta"]

MAX_CLASSIFIED_SIDE = 4
"""Longest side of an image that is classified, as a multiple of the training size of the network."""

SMALL_SIDE = 64
"""Side in pixels of images with which a network is examined, if the network accepts them."""

_BICUBIC: dict[str, Any] = {"mode": "bicubic", "antialias": True}


@dataclass(frozen=True, eq=False)
class LayerActivations:
    """The activations of a layer for those samples of a batch that reached the layer."""

    samples: list[int]
    """Indices of these samples in the batch."""
    features: Tensor
    """(len(samples), C, h, w), or (len(samples), C) for a layer without positions."""


class _StopForward(Exception):
    """Ends a forward pass when the activations of all requested layers are captured."""


class Network:
    """A frozen network in evaluation mode. Its input are RGB images in [0, 1].

    Layers are named as in `named_modules`; `logits` is the output of the network.

    Args:
        module: the classifier. Its weights are frozen in place.
        spec: layers, preprocessing and sizes of the network.
        labels: names of the classes by index; empty if the network is not a classifier.
        device: device on which the network runs, such as `cpu` or `cuda:0`.
        plain: run `module` itself and not an optimized copy.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: NetworkSpec,
        labels: Sequence[str] = (),
        device: str = "cpu",
        *,
        plain: bool = False,
    ) -> None:
        self.spec = spec
        self.labels = tuple(labels)
        self.device = torch.device(device)
        if self.device.type == "cuda":
            _disable_tf32()
        self.module = module.eval().requires_grad_(False).to(self.device).to(memory_format=torch.channels_last)
        self.mean = torch.tensor(spec.mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(spec.std, device=self.device).view(1, 3, 1, 1)
        self.plain = plain
        self._shortcuts: dict[str, bool] = {}
        self._backward_dtypes_of: dict[frozenset[str], list[str]] = {}

    def with_labels(self, labels: Sequence[str]) -> "Network":
        """Return this network with other names for its classes. Both share their weights.

        Raises:
            InvalidInput: the network has another number of classes.
        """
        self.spec.check_labels(labels)
        renamed = copy(self)
        renamed.labels = tuple(labels)
        return renamed

    @property
    def device_name(self) -> str:
        """Name of the GPU, or `cpu`."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @cached_property
    def _optimized(self) -> tuple[nn.Module, frozenset[str]]:
        """The optimized copy of the module, and the layers whose activations differ in the copy."""
        return optimize(self.module, self._small_side)

    @property
    def _probe_side(self) -> int:
        """Side in pixels of an image that the network certainly accepts."""
        return max(self.spec.size, self.spec.min_size)

    @property
    def _small_side(self) -> int:
        """The same of a small image, for passes that compute."""
        return math.ceil(max(SMALL_SIDE, self.spec.min_size) / self.spec.multiple) * self.spec.multiple

    def _module_for(self, layers: Collection[str]) -> nn.Module:
        """Return the module to run: the optimized copy, if all of `layers` have the same activations there."""
        if self.plain or not self._optimized[1].isdisjoint(layers):
            return self.module
        return self._optimized[0]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def precisions(self, wanted: Sequence[frozenset[str]]) -> list[str]:
        """Return the dtype of the arithmetic for each sample of a batch.

        Args:
            wanted: the layers of each sample.

        Returns:
            `float32` for example; or `float32/bfloat16`, if the backward pass uses another dtype than the forward pass.
        """
        forward = _dtype_name(self._dtype)
        if self._module_for(set().union(*wanted)) is self.module:
            return [forward] * len(wanted)
        return ["/".join([forward, *self._backward_dtypes(layers)]) for layers in wanted]

    def _backward_dtypes(self, layers: frozenset[str]) -> list[str]:
        """Return the dtypes, other than that of the forward pass, in the optimized backward pass from `layers`."""
        if layers not in self._backward_dtypes_of:
            names, module = set[str](), self._module_for(layers)
            with ExitStack() as hooks:
                for part in module.modules():
                    if isinstance(part, Convolution) and part.backward_dtype != self._dtype:
                        recorder = _backward_recorder(names, _dtype_name(part.backward_dtype))
                        hooks.enter_context(part.register_forward_hook(recorder))
                # Not on the meta device, where subtractions import PyTorch's compiler, which takes seconds.
                side = self._small_side
                image = torch.zeros(1, 3, side, side, device=self.device, requires_grad=True)
                activations = self.activations(image, layers)
                torch.autograd.grad([features.sum() for features in activations.values()], image)
            self._backward_dtypes_of[layers] = sorted(names)
        return self._backward_dtypes_of[layers]

    def without_weights(self, layers: Collection[str]) -> "Network":
        """Return a copy, on the meta device, of the module that runs for `layers`. It computes only shapes."""
        return Network(to_meta(self._module_for(layers)), self.spec, device="meta", plain=True)

    @cached_property
    def _structure(self) -> nn.Module:
        """The module on the meta device."""
        return self.without_weights(()).module

    def activations(self, images: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Return the activations of `layers`. Nothing behind the deepest of these layers runs.

        Args:
            images: (B, 3, H, W) in [0, 1], on the device of the network.
            layers: names of layers.

        Returns:
            The activations by layer, (B, C, h, w), or (B, C) for layers without positions. They are differentiable
            with respect to `images`.

        Raises:
            InvalidInput: the network has no such layer, or never runs it.

        Example:
            >>> import torch
            >>> from dreamcore.models import load_network
            >>> network = load_network("efficientnet_lite0")
            >>> activations = network.activations(torch.zeros(1, 3, 64, 96), ["blocks.2", "blocks.4"])
            >>> {layer: tuple(features.shape) for layer, features in sorted(activations.items())}
            {'blocks.2': (1, 40, 8, 12), 'blocks.4': (1, 112, 4, 6)}
        """
        activations = self.sample_activations(images, [frozenset(layers)] * len(images))
        return {name: each.features for name, each in activations.items()}

    def sample_activations(self, images: Tensor, wanted: Sequence[frozenset[str]]) -> dict[str, LayerActivations]:
        """Return the activations of the layers that each sample of a batch wants.

        A sample exits early: it leaves the batch at its deepest layer, unless a shortcut (skip connection) around this
        layer needs the whole batch.

        Args:
            images: (B, 3, H, W) in [0, 1], on the device of the network.
            wanted: the layers of each sample.

        Raises:
            InvalidInput: the network has no such layer, or never runs it.
        """
        padded = self._preprocess(images)
        module = self._module_for(set().union(*wanted))
        with self._capture(module, wanted) as activations:
            try:
                module(padded)
            except _StopForward:
                return {
                    name: LayerActivations(
                        each.samples,
                        crop_padding(as_map(each.features, padded, self.spec.layer(name).stride), images, padded),
                    )
                    for name, each in activations.items()
                }
        missing = set().union(*wanted) - set(activations)
        raise InvalidInput(f"{self.spec.model} never runs {', '.join(missing)}: choose other layers")

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Return the class probabilities (B, classes) of `images` (B, 3, H, W) in [0, 1], at the training size."""
        logits: Tensor = self._module_for(())(self._preprocess(self._to_training_size(images)))
        return logits.float().softmax(1)

    @torch.no_grad()
    def features(self, images: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Return the activations of `layers` for `images` (B, 3, H, W) in [0, 1], resized to the training size."""
        return self.activations(self._to_training_size(images), layers)

    def _to_training_size(self, images: Tensor) -> Tensor:
        """Resize `images` (B, 3, H, W): the shorter side becomes that of the images the network was trained on."""
        shortest = self.spec.size
        longest = shortest * MAX_CLASSIFIED_SIDE  # a strip a few pixels wide would exhaust the memory
        scale = shortest / min(images.shape[-2:])
        size = [min(max(shortest, round(side * scale)), longest) for side in images.shape[-2:]]
        return F.interpolate(images, size, **_BICUBIC)

    def _preprocess(self, images: Tensor) -> Tensor:
        """Normalize `images` (B, 3, H, W) in [0, 1], and pad them to sides that the network accepts.

        The padding mirrors the image at the right and at the bottom.
        """
        height, width = images.shape[-2:]
        bottom, right = -height % self.spec.multiple, -width % self.spec.multiple
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom), mode="reflect")
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @contextmanager
    def _capture(self, module: nn.Module, wanted: Sequence[frozenset[str]]) -> Iterator[dict[str, LayerActivations]]:
        """Capture the first activations of each wanted layer by forward hooks, and stop the pass after the last one.

        The hooks are removed at the end of the block, also after an exception.
        """
        activations: dict[str, LayerActivations] = {}
        inside = list(range(len(wanted)))  # indices of the samples that are still in the forward pass
        layers = sorted(set().union(*wanted))
        exits = set() if len(set(wanted)) == 1 else {layer for layer in layers if not self._has_shortcut(layer)}

        def capture(name: str, features: Tensor) -> Tensor | None:
            """Store activations. Return the rows of the samples that continue, or None if all continue."""
            nonlocal inside
            if name in activations:
                return None
            activations[name] = LayerActivations(inside, features)
            rows = [row for row, sample in enumerate(inside) if not wanted[sample] <= set(activations)]
            if not rows:
                raise _StopForward
            if len(rows) < len(inside) and name in exits:
                inside = [inside[row] for row in rows]
                return features.index_select(0, index(tuple(rows), features.device))
            activations[name] = LayerActivations(inside, features.clone())  # later modules may work in place
            return None

        with ExitStack() as hooks:
            for layer in layers:
                part = _submodule(module, self.spec.layer(layer).name)
                hooks.enter_context(part.register_forward_hook(_forward_hook(capture, layer)))
            yield activations

    def _has_shortcut(self, layer: str) -> bool:
        """Return whether a shortcut (skip connection) passes around `layer`: then no sample can leave the batch there.

        Tested once per layer on the meta device: of three samples, two continue behind the layer.
        """
        if layer not in self._shortcuts:
            part = _submodule(self._structure, layer)
            images = torch.zeros(3, 3, self._probe_side, self._probe_side, device="meta", dtype=self._dtype)
            with part.register_forward_hook(lambda _part, _inputs, output: output[:2]), torch.no_grad():
                try:
                    self._shortcuts[layer] = len(self._structure(images)) != 2
                except RuntimeError:  # the batch sizes 3 and 2 met
                    self._shortcuts[layer] = True
        return self._shortcuts[layer]


@lru_cache(maxsize=4096)
def index(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Return `numbers` as an index tensor on `device`, cached: a new tensor at each step would make a GPU wait."""
    return torch.tensor(numbers, device=device)


def _disable_tf32() -> None:
    """Make GPUs multiply float32 numbers in full precision.

    By default torch lets cuDNN round the inputs of convolutions to TF32, which has a 10-bit mantissa. Other ReLUs are
    then active, and less than 20 dB of the gradient remain.
    """
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined] # torch adds it at run time
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def to_meta(module: nn.Module) -> nn.Module:
    """Return a copy of `module` on the meta device. The original weights are not copied first."""
    tensors = [*module.parameters(), *module.buffers()]
    return deepcopy(module, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors})


def _submodule(module: nn.Module, layer: str) -> nn.Module:
    return module if layer == LOGITS else module.get_submodule(layer)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _backward_recorder(names: set[str], name: str) -> Any:
    """Return a forward hook that adds `name` to `names` when a gradient reaches the output of the module."""

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        output.register_hook(lambda _gradient: names.add(name))  # type: ignore[no-untyped-call]

    return hook


def _forward_hook(capture: Callable[[str, Tensor], Tensor | None], name: str) -> Any:
    return lambda _module, _inputs, output: capture(name, output)
