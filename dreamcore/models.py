"""Load networks with their weights: by name, with weights from a file, or from a module."""

import hashlib
import pickle
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from dreamcore.catalog import network_spec
from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.network import Network
from dreamcore.settings import BUNDLED
from dreamcore.spec import CUSTOM, NetworkSpec
from dreamcore.targets import LOGITS
from dreamcore.tracing import structure_of, trace_module
from dreamcore.weights import assign, class_count, mismatch, read_tensors
from dreamcore.zoo import build, classes_of, imagenet_labels

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "check_device",
    "custom_name",
    "load_network",
    "load_network_with",
    "network_from_module",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of the ImageNet images, per channel, in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the ImageNet images, per channel."""

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Prefixes of the auxiliary heads of GoogLeNet and Inception v3. They never run here, and some files lack them."""
TEST_SIDE = 64
"""Side in pixels of the image on which the fast copy of a custom module is compared with the module."""
TOLERANCE = 1e-3
"""Largest relative difference between the activations of a custom module and of its fast copy."""


def check_device(device: str | torch.device) -> str:
    """Return the name of a device in the form `cpu` or `cuda:0`.

    Raises:
        InvalidInput: the device does not exist on this machine, or is neither a CPU nor a CUDA device.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInput(f"device is {device!r}: give cpu, cuda, or one GPU such as cuda:0") from error
    if found.type == "cpu":
        return "cpu"
    if found.type != "cuda":
        raise InvalidInput(f"device is {device!r}: give cpu, cuda, or one GPU such as cuda:0")
    if not torch.cuda.is_available():
        raise InvalidInput(
            f"device is {device!r}, but PyTorch finds no usable GPU here: give device='cpu', or install a PyTorch "
            "build that fits the GPU's driver"
        )
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= torch.cuda.device_count():
        raise InvalidInput(
            f"device is {device!r}, but the GPUs here are cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        )
    return f"cuda:{index}"


def load_network(
    model: str, device: str | torch.device = "cpu", *, weights: str | PathLike[str] | None = None
) -> Network:
    """Load the network called `model` with its weights. Each network is loaded once per process and then cached.

    Example:
        >>> network = load_network("efficientnet_lite0")
        >>> network.spec.layer("blocks.4").channels
        112

    Args:
        model: `efficientnet_lite0` (bundled), `efficientnet_lite1` or `efficientnet_lite2` (extras), the name of a
            torchvision classification network, or `timm/NAME`.
        device: where the network runs: `cpu`, `cuda` or `cuda:0`.
        weights: a file with custom weights on this machine: safetensors, or the state dict that `torch.save` wrote. It
            may have another number of classes. By default the library's own weights, which are downloaded once.

    Raises:
        InvalidInput: no network has this name, its package is not installed, the device does not exist, or the
            weights are damaged, unreadable or those of another network.
        Unavailable: the weights could not be downloaded.
    """
    where = check_device(device)
    if weights is None:
        return _load_default(model, where)
    return _load_file(model, Path(weights), hashlib.sha256(_read_file(Path(weights))).hexdigest(), where)


def load_network_with(model: str, data: bytes, sha256: str, name: str, device: str = "cpu") -> Network:
    """Load the network called `model` with weights from the bytes of a file. Nothing is downloaded.

    If the file has another number of classes, the network gets that number of classes.

    Args:
        model: a name as for `load_network`.
        data: the file: safetensors, or what `torch.save` made of a state dict.
        sha256: the SHA-256 that the file must have, in hex.
        name: the name of the file in messages.
        device: where the network runs, such as `cpu` or `cuda:0`.

    Returns:
        A network with the spec of `model`, except for its weights, which are `sha256`, and its number of classes.

    Raises:
        InvalidInput: no network has this name, its package is not installed, or the file has another SHA-256, is not a
            weights file, contains more than tensors, or belongs to another network.
    """
    known = network_spec(model)
    tensors = read_tensors(data, sha256, name)
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(AUXILIARY)}
    module = build(model, pretrained=False)
    classes = class_count(module, tensors)
    if classes:
        module = build(model, pretrained=False, classes=classes)
    if reason := mismatch(module, tensors):
        raise InvalidInput(f"{name} does not fit {model}: {reason}; give the network that the file was saved from")
    assign(tensors, module)
    labels = _class_labels(classes or classes_of(model, module))
    network = Network(module, replace(known, weights=sha256.lower()), labels, device)
    if classes:
        network.spec = _with_counted_channels(network)
    return network


def network_from_module(
    module: nn.Module,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    labels: Sequence[str] | None = None,
    device: str | torch.device | None = None,
) -> Network:
    """Make a network of any module that takes images `(B, 3, H, W)`, such as one that you trained.

    The layers are found by tracing. The network is a frozen copy of the module in evaluation mode and float32; the
    module itself stays unchanged. The copy is reused as long as the module has the same weights.

    Args:
        module: a convolutional network that accepts images of several sizes. If it returns `(B, classes)`, its output
            is the layer `logits`.
        mean: mean of the training images, per channel, in [0, 1]. The network gets `(image - mean) / std`.
        std: standard deviation of the training images, per channel.
        labels: names of the classes. By default those of ImageNet for 1000 classes, and numbers otherwise.
        device: where the network runs; by default where the module is.

    Returns:
        A network called `custom:<class of the module>`. The identity of its weights is the SHA-256 of the state dict,
        mean and std.

    Raises:
        InvalidInput: the module has no parameters, cannot be copied, rejects images, accepts images of only one size,
            has no layer `(B, C, H, W)`, or passes no gradient to the image. Or mean, std or labels do not fit.
    """
    model = custom_name(module)
    first = next(module.parameters(), None)
    if first is None:
        raise InvalidInput(f"{model} has no parameters: give a trained network")
    normalisation = _check_normalisation("mean", mean), _check_normalisation("std", std)
    weights = _state_digest(module, normalisation)
    where = str(first.device) if device is None else check_device(device)
    key = weights, str(module), tuple(labels) if labels is not None else None, where
    known = _custom.get(module)  # type: ignore[no-untyped-call]
    if known is None or known[0] != key:
        known = _custom[module] = key, _trace_copy(module, model, weights, normalisation, labels, where)
    network: Network = known[1]
    return network


def custom_name(module: nn.Module) -> str:
    """Return the name of the network of a custom module: `custom:<class of the module>`."""
    return f"{CUSTOM}{type(module).__name__}"


_custom = WeakIdKeyDictionary()
"""The latest network of each module, with what it depends on."""


@lru_cache(maxsize=4)
def _load_default(model: str, device: str) -> Network:
    """Load a network with the library's own weights."""
    known = network_spec(model)
    try:
        module = build(model, pretrained=True)
    except pickle.UnpicklingError as error:
        raise InvalidInput(
            f"the weights file of {model} contains more than tensors and was not loaded: delete it from the cache of "
            "torch.hub, and it is downloaded again"
        ) from error
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise Unavailable(
            f"the weights of {model} could not be downloaded ({reason}): try again with an internet connection, or use "
            f"{BUNDLED}, which needs no download"
        ) from error
    return Network(module, known, labels=_class_labels(classes_of(model, module)), device=device)


@lru_cache(maxsize=4)
def _load_file(model: str, path: Path, sha256: str, device: str) -> Network:
    """Load a network with weights from a file; `sha256` makes a changed file another entry of the cache."""
    return load_network_with(model, _read_file(path), sha256, str(path), device)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"weights: {path} cannot be read ({error.strerror}): give the path of a file") from error


def _class_labels(classes: int) -> Sequence[str]:
    """Return ImageNet's class names for 1000 classes, and numbers for any other number of classes."""
    categories = imagenet_labels()
    return categories if classes == len(categories) else [f"class {index}" for index in range(classes)]


@torch.no_grad()
def _with_counted_channels(network: Network) -> NetworkSpec:
    """Return the spec of a network with the number of channels that each layer really has."""
    side = network.spec.min_size
    names = [layer.name for layer in network.spec.layers]
    activations = network.activations(torch.zeros(1, 3, side, side, device=network.device), names)
    layers = tuple(replace(layer, channels=activations[layer.name].shape[1]) for layer in network.spec.layers)
    return replace(network.spec, layers=layers)


# --- custom modules

_Triple = tuple[float, float, float]


def _check_normalisation(name: str, values: Sequence[float]) -> _Triple:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not all(-1e6 < number < 1e6 for number in numbers):
        raise InvalidInput(f"{name} is {values!r}: give three numbers, one per colour channel")
    if name == "std" and min(numbers) <= 0:
        raise InvalidInput(f"std is {values!r}: give three numbers above 0")
    return numbers[0], numbers[1], numbers[2]


def _state_digest(module: nn.Module, normalisation: tuple[_Triple, _Triple]) -> str:
    """Return the SHA-256 of a module's state dict and normalisation, in hex."""
    found = hashlib.sha256(repr(normalisation).encode())
    for name, entry in module.state_dict().items():
        if isinstance(entry, Tensor):
            found.update(f"{name} {entry.dtype} {tuple(entry.shape)}".encode())
            found.update(entry.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _trace_copy(
    module: nn.Module,
    model: str,
    weights: str,
    normalisation: tuple[_Triple, _Triple],
    labels: Sequence[str] | None,
    device: str,
) -> Network:
    """Make a network of a copy of the module, with a fast copy where it gives the same activations."""
    try:
        copy = deepcopy(module).float().cpu().eval().requires_grad_(False)
    except Exception as error:  # modules may define how they are copied
        raise InvalidInput(f"{model} cannot be copied ({error}): give a module that copy.deepcopy can copy") from error
    structure = structure_of(copy)
    mean, std = normalisation
    spec = trace_module(structure or copy, model, weights, mean=mean, std=std)
    if labels is None:
        labels = _class_labels(spec.layer(LOGITS).channels) if spec.layers[-1].name == LOGITS else ()
    elif spec.layers[-1].name != LOGITS or len(labels) != spec.layers[-1].channels:
        raise InvalidInput(f"labels are {len(labels)} names, but {model} does not return that number of classes")
    plain = Network(copy, spec, labels, device, plain=True)
    _check_gradient(plain)
    if structure is None:
        return plain
    fast = Network(copy, spec, labels, device)
    return fast if _agree(fast, plain) else plain


def _test_image(network: Network) -> Tensor:
    """Return an image (1, 3, H, W) of noise that the network accepts."""
    side = max(TEST_SIDE, network.spec.min_size)
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return noise.to(network.device)


def _check_gradient(network: Network) -> None:
    """Raise `InvalidInput` if the first layer passes no gradient to the image."""
    first = network.spec.layers[0].name
    if not network.activations(_test_image(network).requires_grad_(), [first])[first].requires_grad:
        raise InvalidInput(
            f"{network.spec.model} passes no gradient to the image: remove torch.no_grad() and detach() from its "
            "forward method"
        )


@torch.no_grad()
def _agree(fast: Network, plain: Network) -> bool:
    """Return whether two networks give the same activations in the last layer."""
    last = plain.spec.layers[-1].name
    expected = plain.activations(_test_image(plain), [last])[last]
    try:
        found = fast.activations(_test_image(fast), [last])[last]
    except Exception:  # a module may use attributes that the replaced layers lack
        return False
    return bool((found - expected).norm() <= TOLERANCE * expected.norm())
