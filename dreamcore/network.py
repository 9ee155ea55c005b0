"""A frozen network, asked for what its layers answer; nothing behind the deepest layer asked for runs."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamcore.engine import Convolution, optimize
from dreamcore.errors import InvalidInput
from dreamcore.spec import NetworkSpec
from dreamcore.targets import LOGITS

LONGEST = 4
"""A picture is shown to the classifier at most so many times longer than the network's own pictures."""


@dataclass(frozen=True, eq=False)
class LayerActivations:
    """What a layer activations to those samples of a batch that came as far."""

    samples: list[int]
    """Their numbers in the batch."""
    features: Tensor
    """(len(samples), C, h, w), or (len(samples), C) of the whole picture."""


class _StopForward(Exception):
    """Ends a forward pass when every sample has had the activations of all its layers."""


class Network:
    """A frozen network in evaluation mode that takes pictures in [0, 1].

    Args:
        module: the classifier; its weights are frozen in place.
        card: what is known of it.
        labels: names of its classes, by index; none when it is no classifier.
        device: where it runs.
        plain: whether to run the module as it is, and not a copy of it that is made fast.
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
            _multiply_all_bits()
        self.module = module.eval().requires_grad_(False).to(self.device).to(memory_format=torch.channels_last)
        self.mean = torch.tensor(spec.mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(spec.std, device=self.device).view(1, 3, 1, 1)
        self.plain = plain
        self._shortcuts: dict[str, bool] = {}
        self._known_backward_dtypes: dict[frozenset[str], list[str]] = {}

    @cached_property
    def _quick(self) -> tuple[nn.Module, frozenset[str]]:
        """The module made fast, and which of its layers do not answer the same."""
        return optimize(self.module, max(self.spec.size, self.spec.min_size))

    def _running(self, layers: Collection[str]) -> nn.Module:
        """The module to run: the fast one, if it activations the same in all of `layers`."""
        if self.plain or not self._quick[1].isdisjoint(layers):
            return self.module
        return self._quick[0]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def precisions(self, wanted: Sequence[frozenset[str]]) -> list[str]:
        """Type of the arithmetic for each sample of a batch, of which each wants layers of its own.

        As `float32`, or forward and back, `float32/bfloat16`, where its gradient goes back in another.
        """
        forward = _name(self._dtype)
        if self._running(set().union(*wanted)) is self.module:
            return [forward] * len(wanted)
        return ["/".join([forward, *self._backward_dtypes(layers)]) for layers in wanted]

    def _backward_dtypes(self, layers: frozenset[str]) -> list[str]:
        """Other types than that of the way forward, in which the fast network takes the gradient of `layers`."""
        if layers not in self._known_backward_dtypes:
            structure, types = self.without_weights(layers), set[str]()
            for part in structure.module.modules():
                if isinstance(part, Convolution) and part.backward_dtype != self._dtype:
                    part.register_forward_hook(_noting(types, _name(part.backward_dtype)))
            side = max(self.spec.size, self.spec.min_size)
            picture = torch.zeros(1, 3, side, side, device="meta", requires_grad=True)
            activations = structure.activations(picture, layers)
            torch.autograd.grad([answer.sum() for answer in activations.values()], picture)
            self._known_backward_dtypes[layers] = sorted(types)
        return self._known_backward_dtypes[layers]

    def without_weights(self, layers: Collection[str]) -> "Network":
        """What runs for `layers`, fast or plain, without its weights: it computes nothing but sizes."""
        return Network(_without_weights(self._running(layers)), self.spec, device="meta", plain=True)

    @cached_property
    def _structure(self) -> nn.Module:
        return self.without_weights(()).module

    def activations(self, pictures: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """What `layers` answer to `pictures` (B, 3, H, W) in [0, 1]; nothing behind the deepest of them runs.

        Raises:
            InvalidInput: the network has no such layer, or never runs it.
        """
        activations = self.sample_activations(pictures, [frozenset(layers)] * len(pictures))
        return {name: answer.features for name, answer in activations.items()}

    def sample_activations(self, pictures: Tensor, wanted: Sequence[frozenset[str]]) -> dict[str, LayerActivations]:
        """What layers answer to `pictures` (B, 3, H, W) in [0, 1], of which each wants layers of its own.

        A sample leaves the network at its deepest layer, unless a shortcut around that layer needs the whole batch.

        Raises:
            InvalidInput: the network has no such layer, or never runs it.
        """
        padded = self._prepared(pictures)
        running = self._running(set().union(*wanted))
        with self._listening(running, wanted) as activations:
            try:
                running(padded)
            except _StopForward:
                return {
                    name: LayerActivations(answer.samples, _cropped(answer.features, pictures, padded))
                    for name, answer in activations.items()
                }
        missing = set().union(*wanted) - set(activations)
        raise InvalidInput(f"{self.spec.model} never runs {', '.join(missing)}: choose other layers")

    @torch.no_grad()
    def classify(self, pictures: Tensor) -> Tensor:
        """Probabilities (B, classes) of what is in `pictures` (B, 3, H, W), seen at the size the network learnt at."""
        logits: Tensor = self._running(())(
            self._prepared(F.interpolate(pictures, self._own_size(pictures), **_SMOOTHLY))
        )
        return logits.float().softmax(1)

    @torch.no_grad()
    def features(self, pictures: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """What `layers` answer to `pictures` (B, 3, H, W), seen at the size the network learnt at."""
        return self.activations(F.interpolate(pictures, self._own_size(pictures), **_SMOOTHLY), layers)

    def _own_size(self, pictures: Tensor) -> list[int]:
        """The size of `pictures` with the shorter side as the network learnt it."""
        least, longest = self.spec.size, self.spec.size * LONGEST  # a strip of pixels would take all memory
        scale = least / min(pictures.shape[-2:])
        return [min(max(least, round(side * scale)), longest) for side in pictures.shape[-2:]]

    def _prepared(self, pictures: Tensor) -> Tensor:
        """Pictures as the network learnt to see them; mirrored beyond right and lower edge up to a size it takes."""
        height, width = pictures.shape[-2:]
        below, beside = -height % self.spec.multiple, -width % self.spec.multiple
        if below or beside:
            pictures = F.pad(pictures, (0, beside, 0, below), mode="reflect")
        return ((pictures - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @contextmanager
    def _listening(self, running: nn.Module, wanted: Sequence[frozenset[str]]) -> Iterator[dict[str, LayerActivations]]:
        """Collect what each layer activations first, and stop at the last; the hooks go, however the block ends."""
        activations: dict[str, LayerActivations] = {}
        inside = list(range(len(wanted)))  # the samples that are still in the network
        layers = sorted(set().union(*wanted))
        may_leave = set() if len(set(wanted)) == 1 else {each for each in layers if not self._has_shortcut(each)}

        def keep(name: str, features: Tensor) -> Tensor | None:
            """Note an answer; give what goes on behind the layer, where that is not all of it."""
            nonlocal inside
            if name in activations:
                return None
            activations[name] = LayerActivations(inside, features)
            going = [row for row, sample in enumerate(inside) if not wanted[sample] <= set(activations)]
            if not going:
                raise _StopForward
            if len(going) < len(inside) and name in may_leave:
                inside = [inside[row] for row in going]
                return features.index_select(0, index(tuple(going), features.device))
            activations[name] = LayerActivations(inside, features.clone())  # what runs after it may write into it
            return None

        with ExitStack() as hooks:
            for layer in layers:
                module = _part(running, self.spec.layer(layer).name)
                hooks.enter_context(module.register_forward_hook(_hook(keep, layer)))
            yield activations

    def _has_shortcut(self, layer: str) -> bool:
        """Whether anything passes by `layer`: then what is behind it needs as many samples as came in.

        ObjectInfo out once, by showing the network's structure three samples of which two go on.
        """
        if layer not in self._shortcuts:
            module = _part(self._structure, layer)
            side = max(self.spec.size, self.spec.min_size)
            with module.register_forward_hook(lambda _module, _inputs, answer: answer[:2]), torch.no_grad():
                try:
                    answer = self._structure(torch.zeros(3, 3, side, side, device="meta", dtype=self._dtype))
                    self._shortcuts[layer] = len(answer) != 2
                except RuntimeError:  # three and two samples do not go together
                    self._shortcuts[layer] = True
        return self._shortcuts[layer]


@lru_cache(maxsize=4096)
def index(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers to index by, kept on their device: a GPU would have to wait for those that are made at each step."""
    return torch.tensor(numbers, device=device)


_SMOOTHLY: dict[str, Any] = {"mode": "bicubic", "antialias": True}


def _multiply_all_bits() -> None:
    """Let GPUs multiply numbers of 32 bits as they are.

    By itself torch has cuDNN round those of convolutions to TF32, whose fractions have 10 bits: where activations are
    cut off others are then, and no 20 dB are left of a gradient.
    """
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined] # torch puts it there when it runs
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def _without_weights(module: nn.Module) -> nn.Module:
    tensors = [*module.parameters(), *module.buffers()]
    return deepcopy(module, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors})


def _part(module: nn.Module, layer: str) -> nn.Module:
    return module if layer == LOGITS else module.get_submodule(layer)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _noting(names: set[str], name: str) -> Any:
    """A hook that puts `name` among `names` when a gradient comes back to what the module activations."""

    def listen(_module: nn.Module, _inputs: object, answer: Tensor) -> None:
        answer.register_hook(lambda _gradient: names.add(name))  # type: ignore[no-untyped-call]

    return listen


def _hook(keep: Callable[[str, Tensor], Tensor | None], name: str) -> Any:
    return lambda _module, _inputs, answer: keep(name, answer)


def _cropped(answer: Tensor, pictures: Tensor, padded: Tensor) -> Tensor:
    """Those positions of `answer` (B, C, h, w) that lie on the pictures, however little, and not beside them."""
    if answer.ndim != 4:
        return answer  # of the whole picture
    sides = [
        math.ceil(positions * side / whole)
        for positions, side, whole in zip(answer.shape[-2:], pictures.shape[-2:], padded.shape[-2:], strict=True)
    ]
    return answer[..., : sides[0], : sides[1]]
