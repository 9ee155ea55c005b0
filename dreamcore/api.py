"""Dream images in one call: from images and a network to results, without files or storage."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, overload
from weakref import WeakKeyDictionary

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from dreamcore.ascent import OnStep
from dreamcore.batch import DreamRequest, Limits, dream_photographs
from dreamcore.catalog import resolve_layers
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.fields import Reference
from dreamcore.images import Photograph
from dreamcore.inputs import ImageLike, read_image, read_images, read_mask
from dreamcore.memory import bytes_per_pixel, choose_batch_size
from dreamcore.models import IMAGENET_MEAN, IMAGENET_STD, check_device, custom_name, load_network, network_from_module
from dreamcore.network import Network
from dreamcore.octaves import octave_sizes
from dreamcore.overrides import choose_settings
from dreamcore.ranking import choose_channels
from dreamcore.results import Dream
from dreamcore.settings import DreamSettings
from dreamcore.sizes import REFERENCE_PIXELS, default_batch_size, parse_size
from dreamcore.spec import CUSTOM
from dreamcore.zoo import PACKAGED

__all__ = ["dream"]


# The options are listed once, in the implementation; `dream` checks their names when it runs.
@overload
def dream(image: Image.Image | NDArray[Any], **options: Any) -> Dream: ...
@overload
def dream(image: Sequence[ImageLike], **options: Any) -> list[Dream]: ...
@overload
def dream(image: Tensor, **options: Any) -> Any: ...
def dream(
    image: ImageLike | Sequence[ImageLike],
    *,
    network: str | Network | nn.Module | None = None,
    settings: DreamSettings | None = None,
    guide: ImageLike | None = None,
    mask: ImageLike | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device | None = None,
    max_memory: int | str | None = None,
    on_step: OnStep | None = None,
    **fields: Any,
) -> Dream | list[Dream]:
    """Dream one image or several.

    The same call gives the same pixels on the same machine.

    Example:
        >>> from PIL import Image
        >>> result = dream(Image.linear_gradient("L"), max_pixels=4096, octaves=1)
        >>> result.array.shape
        (64, 64, 3)
        >>> score = result.scores["blocks.4"]
        >>> score.after > score.before
        True

    Args:
        image: a Pillow image; an array `(H, W, 3)` of uint8, or of floats in [0, 1]; a tensor `(3, H, W)` of such
            values, or `(B, 3, H, W)`; or a list of images of any sizes and kinds. Images of one size are dreamt
            together. Pillow images are converted to RGB: EXIF orientation and colour profile are applied, transparency
            is laid over white. Floats are rounded to 8 bits.
        network: a name, such as `resnet50`; a network from `load_network` or `network_from_module`; or any module
            that takes images `(B, 3, H, W)`, which stays unchanged. By default the network that the settings name.
        settings: all settings at once.
        guide: an image. Features that resemble the guide's are excited.
        mask: an image, or an array or tensor `(H, W)`, that is stretched over every image. White areas change, black
            areas stay.
        mean: mean of the training images of a module, per channel, in [0, 1]; by default ImageNet's.
        std: standard deviation of the training images of a module, per channel; by default ImageNet's.
        device: `cpu`, `cuda` or `cuda:0`. By default the device of the network. A network by name runs on a GPU if
            there is one.
        max_memory: memory that dreaming may take, besides the network: bytes, or text such as `2GiB`. Images that
            need more are computed in memory tiles. By default there is no limit.
        on_step: called with the finished and the total number of steps of all images.
        fields: settings by name, such as `layers="blocks.4:12"`, `octaves=4`, `seed=7` or `preset="google2015"`. They
            override `settings`. Without `layers`, a network other than the bundled one excites a mix of its stages at
            41%, 63% and 87% of its depth.

    Returns:
        One `Dream` for one image; a list of them, in the order of the images, for a list or a tensor `(B, 3, H, W)`.

    Raises:
        InvalidInput: an argument is wrong. The message names it.
        ImageError: an image is too small for the network, does not fit into memory, or its ascent diverged.
        Unavailable: the weights of the network could not be downloaded.
    """
    # The caller may have turned gradients off.
    with torch.inference_mode(False), torch.enable_grad():
        memory = _read_max_memory(max_memory)
        chosen = choose_settings(settings, fields, _model_name(network))
        photographs, several = read_images(image, "image", chosen.max_pixels)
        references = _read_references(chosen, guide, mask)
        found = _find_network(network, chosen.model, device, mean, std)
        chosen = resolve_layers(_with_identities(chosen, references, found), found.spec)
        _check_sizes(photographs, chosen, found)
        _check_memory(found, chosen, memory)
        dreams = _dream_all(found, photographs, chosen, references, memory, on_step)
    return dreams if several else dreams[0]


# --- settings


def _model_name(network: str | Network | nn.Module | None) -> str | None:
    """Return the name of the given network."""
    match network:
        case None | str():
            return network
        case Network():
            return network.spec.model
        case nn.Module():
            return custom_name(network)
    raise InvalidInput(
        f"network is a {type(network).__name__}: give a name, a network from load_network, or a torch.nn.Module"
    )


def _read_references(
    settings: DreamSettings, guide: ImageLike | None, mask: ImageLike | None
) -> dict[str, Photograph | None]:
    """Read guide and mask.

    Raises:
        InvalidInput: the settings name a guide or mask, but the image is not given.
    """
    images = {
        "guide": None if guide is None else read_image(guide, "guide", REFERENCE_PIXELS),
        "mask": None if mask is None else read_mask(mask, "mask", REFERENCE_PIXELS),
    }
    for name, image in images.items():
        if image is None and (reference := getattr(settings, name)):
            raise InvalidInput(f"the settings name the {name} {reference.uri}: give its image as {name}=...")
    return images


def _with_identities(
    settings: DreamSettings, references: Mapping[str, Photograph | None], network: Network
) -> DreamSettings:
    """Return the settings with the digests of guide, mask and custom weights.

    Raises:
        InvalidInput: the settings name other weights than those of the network.
    """
    weights = network.spec.weights
    if settings.weights and settings.weights.sha256 != weights:
        raise InvalidInput(
            f"the settings name the weights {settings.weights.uri}, but the network has others: give "
            f"network=load_network({settings.model!r}, weights=PATH)"
        )
    identities = {name: _identity(name, getattr(settings, name), image) for name, image in references.items() if image}
    from_file = re.fullmatch("[0-9a-f]{64}", weights) and weights not in PACKAGED.values()
    if from_file and not settings.weights and not settings.model.startswith(CUSTOM):
        identities["weights"] = Reference(uri="weights", sha256=weights)
    return settings.model_copy(update=identities)


def _identity(name: str, reference: Reference | None, image: Photograph) -> Reference:
    """Return the reference to a guide or mask: the one in the settings, or the digest of the pixels."""
    if reference and reference.sha256 and reference.uri != name:
        return reference
    shape = str(image.pixels.shape).encode()
    return Reference(uri=name, sha256=hashlib.sha256(shape + image.pixels.tobytes()).hexdigest())


# --- network


def _find_network(
    network: str | Network | nn.Module | None,
    model: str,
    device: str | torch.device | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Network:
    """Return the network on its device."""
    where = None if device is None else check_device(device)
    if isinstance(network, nn.Module):
        mean = IMAGENET_MEAN if mean is None else mean
        return network_from_module(network, mean=mean, std=IMAGENET_STD if std is None else std, device=where)
    if mean is not None or std is not None:
        raise InvalidInput(f"mean and std are for modules, but {model} has its own: leave them out")
    if isinstance(network, Network):
        return network if where in (None, _name_of(network.device)) else _copy_to(network, str(where))
    if model.startswith(CUSTOM):
        raise InvalidInput(f"the settings name the network {model}: give its module as network=...")
    return load_network(model, where or ("cuda:0" if torch.cuda.is_available() else "cpu"))


def _name_of(device: torch.device) -> str:
    return check_device(device) if device.type == "cuda" else str(device)


_copies: WeakKeyDictionary[Network, dict[str, Network]] = WeakKeyDictionary()
"""Copies of networks on other devices."""


def _copy_to(network: Network, device: str) -> Network:
    """Return a copy of the network on another device. The network itself stays where it is."""
    copies = _copies.setdefault(network, {})
    if device not in copies:
        module = deepcopy(network.module)
        copies[device] = Network(module, network.spec, network.labels, device, plain=network.plain)
    return copies[device]


# --- the dreams


def _read_max_memory(max_memory: int | str | None) -> int | None:
    """Return the limit in bytes."""
    if max_memory is None:
        return None
    try:
        return parse_size(str(max_memory))
    except InvalidInput as error:
        raise InvalidInput(f"max_memory: {error}") from error


def _check_sizes(photographs: Mapping[str, Photograph], settings: DreamSettings, network: Network) -> None:
    """Raise `ImageError` if an image is too small, before any image is dreamt."""
    for name, photograph in photographs.items():
        try:
            _octaves(photograph, settings, network)
        except ImageError as error:
            raise ImageError(error.kind, f"{name}: {error}") from error


def _check_memory(network: Network, settings: DreamSettings, max_memory: int | None) -> None:
    """Raise `InvalidInput` if a limit is given but the memory that the network takes cannot be estimated."""
    if max_memory is None:
        return
    try:
        bytes_per_pixel(network, settings.layer_names)
    except Exception as error:  # the estimate runs the module's own code on the meta device
        raise InvalidInput(
            f"max_memory: the memory of {network.spec.model} cannot be estimated, because it does not run on the meta "
            "device: leave max_memory out, or lower max_pixels"
        ) from error


def _octaves(photograph: Photograph, settings: DreamSettings, network: Network) -> list[tuple[int, int]]:
    """Return height and width of each octave of an image."""
    height, width = photograph.pixels.shape[:2]
    return octave_sizes((height, width), settings, network.spec.min_size)


def _dream_all(
    network: Network,
    photographs: Mapping[str, Photograph],
    settings: DreamSettings,
    references: Mapping[str, Photograph | None],
    max_memory: int | None,
    on_step: OnStep | None,
) -> list[Dream]:
    """Dream the images in batches of one size, and return the results in the order of the images."""
    steps = {name: len(_octaves(each, settings, network)) * settings.steps for name, each in photographs.items()}
    progress = _Progress(on_step, sum(steps.values()))
    finished: dict[str, Dream] = {}
    for names in _batches(network, photographs, settings, max_memory):
        guide, mask = references["guide"], references["mask"]
        chosen = {name: choose_channels(network, settings, photographs[name].pixels) for name in names}
        requests = [DreamRequest(photographs[name], chosen[name], guide, mask) for name in names]
        with progress.batch(len(names), steps[names[0]]) as on_batch_step:
            dreams = dream_photographs(network, requests, Limits(max_memory), on_batch_step)
        for name, dreamt in zip(names, dreams, strict=True):
            if isinstance(dreamt, ImageError):
                raise ImageError(dreamt.kind, f"{name}: {dreamt}")
            finished[name] = dreamt
    return [finished[name] for name in photographs]


def _batches(
    network: Network, photographs: Mapping[str, Photograph], settings: DreamSettings, max_memory: int | None
) -> Iterator[list[str]]:
    """Group the images by size, and yield the names of each batch."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, photograph in photographs.items():
        groups.setdefault(photograph.pixels.shape, []).append(name)
    for names in groups.values():
        largest = max(_octaves(photographs[names[0]], settings, network))
        size = default_batch_size(network.device.type, largest[0] * largest[1])
        if max_memory is not None:
            size = min(size, choose_batch_size(network, settings.layer_names, largest, max_memory))
        for first in range(0, len(names), size):
            yield names[first : first + size]


class _Progress:
    """Adds up the steps of all batches for `on_step`. The number never falls, also if a batch is computed again."""

    def __init__(self, on_step: OnStep | None, total: int) -> None:
        self._on_step, self._total, self._finished = on_step, total, 0

    @contextmanager
    def batch(self, images: int, steps: int) -> Iterator[OnStep | None]:
        """Yield the callback for one batch of `images` with `steps` each."""
        if self._on_step is None:
            yield None
            return
        before = self._finished
        yield lambda done, _total: self._report(before + images * done)
        self._report(before + images * steps)  # an octave may have ended before its last step

    def _report(self, finished: int) -> None:
        if self._on_step and finished > self._finished:
            self._finished = finished
            self._on_step(finished, self._total)
