"""Networks by name, with their weights: the libraries' own, or those in a file of one's own."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
import torchvision

from dreamcore.catalog import network_spec
from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.network import Network
from dreamcore.settings import BUNDLED
from dreamcore.spec import NetworkSpec
from dreamcore.weights import assign, class_count, mismatch, read_tensors
from dreamcore.zoo import build, classes_of

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
    known = network_spec(model)
    try:
        module = build(model, pretrained=True)
    except pickle.UnpicklingError as error:
        raise InvalidInput(f"the file of weights of {model} holds more than tensors, and was not loaded") from error
    except (OSError, RuntimeError) as error:
        raise Unavailable(
            f"the weights of {model} could not be had ({str(error).partition(chr(10))[0]}): they are downloaded once, "
            f"so try again with a connection to the internet, or use {BUNDLED}, which needs none"
        ) from error
    return Network(module, known, labels=_labels(classes_of(model, module)), device=device)


def load_network_with(model: str, data: bytes, sha256: str, name: str, device: str = "cpu") -> Network:
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
    known = network_spec(model)
    tensors = read_tensors(data, sha256, name)
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(AUXILIARY)}
    module = build(model, pretrained=False)
    classes = class_count(module, tensors)
    if classes:
        module = build(model, pretrained=False, classes=classes)
    if reason := mismatch(module, tensors):
        raise InvalidInput(f"{name} does not fit {model}: {reason}; name the network that the file was made for")
    assign(tensors, module)
    labels = _labels(classes or classes_of(model, module))
    network = Network(module, replace(known, weights=sha256.lower()), labels, device)
    if classes:
        network.spec = _recounted(network)
    return network


def _labels(classes: int) -> Sequence[str]:
    """ImageNet's class names for a thousand classes; others go by number."""
    categories: Sequence[str] = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    return categories if classes == len(categories) else [f"class {index}" for index in range(classes)]


@torch.no_grad()
def _recounted(network: Network) -> NetworkSpec:
    """The network's card with as many channels on each layer as it activations."""
    side = network.spec.min_size
    names = [layer.name for layer in network.spec.layers]
    activations = network.activations(torch.zeros(1, 3, side, side, device=network.device), names)
    layers = tuple(replace(layer, channels=activations[layer.name].shape[1]) for layer in network.spec.layers)
    return replace(network.spec, layers=layers)
