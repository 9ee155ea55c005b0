"""What settings rest on besides the photograph: guides, masks and weights, held against their SHA-256."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dreamcore.catalog import resolve_layers
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.images import Photograph
from dreamcore.settings import DreamSettings, Reference
from flows.decoder import decode
from flows.layout import parse_uri
from flows.storage import FAIL_FAST, Storage, storage

if TYPE_CHECKING:
    from dreamcore.network import Network

MAX_PIXELS = 4_000_000
"""Guides and masks with more pixels are shrunk to this many."""


def resolve(settings: DreamSettings, *, local: bool = False) -> DreamSettings:
    """The settings with all that they leave open: every layer by its name, every file by what it holds.

    Args:
        settings: as people wrote them.
        local: whether files of this machine will do; a run's workers may be on others.

    Raises:
        InvalidInput: there is no such network, layer, channel or file, or a file is not what it should be.
    """
    settings = resolve_layers(settings)
    for name in ("guide", "mask", "weights"):
        reference = getattr(settings, name)
        if reference is None:
            continue
        if not (local or reference.uri.startswith("s3://")):
            raise InvalidInput(f"{name}: {reference.uri!r} is no S3 address, and a run reads nothing else")
        sha256 = _digest(reference, name)
        settings = settings.model_copy(update={name: reference.model_copy(update={"sha256": sha256})})
    return settings


@lru_cache(maxsize=64)
def _digest(reference: Reference, name: str) -> str:
    """SHA-256 of a file, read once a process, and decoded if it is to be a picture."""
    data = read(reference, name, lambda: Storage(FAIL_FAST))  # whoever wrote the settings waits for the answer
    if name != "weights":
        _decoded(data, reference, name)
    return hashlib.sha256(data).hexdigest()


def read(reference: Reference, name: str, store: Callable[[], Storage] = storage) -> bytes:
    """The bytes of a file in S3 or on this machine.

    Args:
        reference: where it is, and perhaps its digest.
        name: of the setting.
        store: gives the S3 to ask, if it is there.

    Raises:
        InvalidInput: there is no such file, or it does not hold what `reference` says.
        Unavailable: the store is in trouble.
    """
    data = _read(reference.uri, name, store)
    found = hashlib.sha256(data).hexdigest()
    if reference.sha256 not in (None, found):
        raise InvalidInput(
            f"{name}: {reference.uri} has the SHA-256 {found[:16]}..., not {str(reference.sha256)[:16]}...: put the "
            "right file there, or correct the digest"
        )
    return data


def _read(uri: str, name: str, store: Callable[[], Storage]) -> bytes:
    if not uri.startswith("s3://"):
        try:
            return Path(uri).read_bytes()
        except OSError as error:
            raise InvalidInput(f"{name}: {uri} cannot be read: {error.strerror}") from error
    try:
        parse_uri(uri)
    except ValueError as error:
        raise InvalidInput(f"{name}: {error}") from error
    data = store().read(uri)
    if data is None:
        raise InvalidInput(f"{name}: there is no {uri}")
    return data


@lru_cache(maxsize=16)
def load_picture(reference: Reference, name: str) -> Photograph:
    """A guide or a mask, read once a process.

    Raises:
        InvalidInput: there is no such file, it is not what it should be, or no picture.
    """
    return _decoded(read(reference, name), reference, name)


def _decoded(data: bytes, reference: Reference, name: str) -> Photograph:
    try:
        return decode(data, max_pixels=MAX_PIXELS)
    except ImageError as error:
        raise InvalidInput(f"{name}: {reference.uri}: {error}") from error


def load_guide_and_mask(settings: DreamSettings) -> tuple[Photograph | None, Photograph | None]:
    """Guide and mask of settled settings."""
    guide = load_picture(settings.guide, "guide") if settings.guide else None
    mask = load_picture(settings.mask, "mask") if settings.mask else None
    return guide, mask


@lru_cache(maxsize=4)
def _load_network_with(model: str, weights: Reference, device: str) -> "Network":
    from dreamcore.models import load_network_with

    data = read(weights, "weights")
    return load_network_with(model, data, str(weights.sha256), weights.uri, device)


def network_for(settings: DreamSettings, device: str) -> "Network":
    """The network that settled settings name, with its weights, loaded once a process.

    Raises:
        InvalidInput: the weights are not what they should be, or do not fit.
        Unavailable: the weights could not be had.
    """
    from dreamcore.models import load_network  # imports torch, which whoever only checks settings can do without

    if not settings.weights:
        return load_network(settings.model, device)
    network = _load_network_with(settings.model, settings.weights, device)
    for target in settings.layers:  # weights of one's own may be for other classes
        network.spec.check_channels(target.layer, target.channels)
    return network
