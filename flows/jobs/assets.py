"""The files that settings and jobs refer to: guides, masks, weights and labels.

Guides, masks, weights and dreams to enlarge are identified by their SHA-256. Labels do not change a dream.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dreamcore.catalog import network_spec, resolve_layers, weights_identity_of
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.fields import Reference
from dreamcore.images import Photograph
from dreamcore.labels import read_labels
from dreamcore.settings import DreamSettings, settings_id
from dreamcore.sizes import REFERENCE_PIXELS
from flows.decoding.decoder import decode
from flows.s3.layout import parse_uri
from flows.s3.retry_policy import FAIL_FAST

if TYPE_CHECKING:
    from dreamcore.network import Network
    from flows.s3.storage import Storage

__all__ = [
    "FILES",
    "can_repeat",
    "check_labels",
    "load_dream",
    "load_guide_and_mask",
    "load_image",
    "network_for",
    "read",
    "resolve",
    "resolve_files",
]

FILES = ("guide", "mask", "weights", "enlarge")
"""The settings that refer to a file."""


def _fail_fast_storage() -> "Storage":
    """Return a storage whose requests fail within seconds, because a user waits for the result of a check."""
    from flows.s3.storage import Storage  # imports boto3, which a dream of local files does not need

    return Storage(FAIL_FAST)


def _shared_storage() -> "Storage":
    """Return the storage of this process."""
    from flows.s3.storage import storage

    return storage()


def resolve(
    settings: DreamSettings, *, local: bool = False, open_storage: "Callable[[], Storage]" = _fail_fast_storage
) -> DreamSettings:
    """Return the settings with every layer named and the SHA-256 of every file filled in.

    Args:
        settings: the settings as the user wrote them.
        local: whether files may be on this machine. The workers of a run may be on other machines.
        open_storage: returns the access to S3; called only if a file is in S3.

    Raises:
        InvalidInput: a network, layer, channel or file does not exist, a file does not have the SHA-256 that the
            settings name, or a guide or mask is not an image.
        Unavailable: S3 failed.
    """
    return resolve_files(resolve_layers(settings), local=local, open_storage=open_storage)


def can_repeat(settings: DreamSettings, identity: str, store: "Storage") -> bool:
    """Return whether recorded settings still have their `settings_id`: the same algorithm, network and files.

    Raises:
        Unavailable: S3 failed.
    """
    try:
        resolved = resolve(settings, open_storage=lambda: store)
        return settings_id(resolved, weights_identity_of(resolved)) == identity
    except InvalidInput:
        return False


def resolve_files(
    settings: DreamSettings, *, local: bool = False, open_storage: "Callable[[], Storage]" = _fail_fast_storage
) -> DreamSettings:
    """Return the settings with the SHA-256 of every file filled in. Arguments and errors are those of `resolve`."""
    for name in FILES:
        reference = getattr(settings, name)
        if reference is None:
            continue
        if not local:
            _check_is_in_s3(reference, name)
        sha256 = _sha256(reference, name, open_storage)
        settings = settings.model_copy(update={name: reference.model_copy(update={"sha256": sha256})})
    return settings


def _check_is_in_s3(reference: Reference, name: str) -> None:
    if not reference.uri.startswith("s3://"):
        raise InvalidInput(f"{name}: {reference.uri!r} is not an S3 address, and a run reads files only from S3")


def check_labels(
    labels: Reference | None,
    settings: Sequence[DreamSettings],
    open_storage: "Callable[[], Storage]" = _fail_fast_storage,
) -> None:
    """Check the labels file of a job, without weights.

    Args:
        labels: the file; None if the job has none.
        settings: every point of the job's grid.
        open_storage: returns the access to S3.

    Raises:
        InvalidInput: the file is not in S3 or is no labels file, or a network with its own weights has another number
            of classes.
        Unavailable: S3 failed.
    """
    if labels is None:
        return
    _check_is_in_s3(labels, "labels")
    names = read_labels(read(labels, "labels", open_storage), f"labels: {labels.uri}")
    with _naming(labels):
        for model in {each.model for each in settings if not each.weights}:
            network_spec(model).check_labels(names)


@lru_cache(maxsize=64)
def _sha256(reference: Reference, name: str, open_storage: "Callable[[], Storage]") -> str:
    """Return the SHA-256 of a file, which is read once per process. A guide or a mask is decoded to check it."""
    data = read(reference, name, open_storage)
    if name != "weights":
        _decode(data, reference, name)
    return hashlib.sha256(data).hexdigest()


def read(reference: Reference, name: str, open_storage: "Callable[[], Storage]" = _shared_storage) -> bytes:
    """Read a file in S3 or on this machine.

    Args:
        reference: the address of the file, and its SHA-256 if it is known.
        name: the setting that refers to the file; error messages start with it.
        open_storage: returns the access to S3; called only if the file is in S3.

    Raises:
        InvalidInput: the file does not exist, or does not have the SHA-256 of the reference.
        Unavailable: S3 failed.
    """
    data = _read(reference.uri, name, open_storage)
    found = hashlib.sha256(data).hexdigest()
    if reference.sha256 not in (None, found):
        raise InvalidInput(
            f"{name}: {reference.uri} has the SHA-256 {found[:16]}..., not {str(reference.sha256)[:16]}...: put the "
            "right file there, or correct the digest"
        )
    return data


def _read(uri: str, name: str, open_storage: "Callable[[], Storage]") -> bytes:
    if not uri.startswith("s3://"):
        try:
            return Path(uri).read_bytes()
        except OSError as error:
            raise InvalidInput(f"{name}: {uri} cannot be read: {error.strerror}") from error
    try:
        parse_uri(uri)
    except ValueError as error:
        raise InvalidInput(f"{name}: {error}") from error
    data = open_storage().read(uri)
    if data is None:
        raise InvalidInput(f"{name}: {uri} does not exist")
    return data


@lru_cache(maxsize=16)
def load_image(reference: Reference, name: str) -> Photograph:
    """Read and decode a guide or a mask, once per process.

    Args:
        reference: the file, with its SHA-256.
        name: `guide` or `mask`; error messages start with it.

    Raises:
        InvalidInput: the file does not exist, does not have the SHA-256 of the reference, or is not an image.
        Unavailable: S3 failed.
    """
    return _decode(read(reference, name), reference, name)


def _decode(data: bytes, reference: Reference, name: str) -> Photograph:
    try:
        return decode(data, max_pixels=REFERENCE_PIXELS)
    except ImageError as error:
        raise InvalidInput(f"{name}: {reference.uri}: {error}") from error


def load_guide_and_mask(settings: DreamSettings) -> tuple[Photograph | None, Photograph | None]:
    """Return the guide and the mask of resolved settings, each None if the settings have none. See `load_image`."""
    guide = load_image(settings.guide, "guide") if settings.guide else None
    mask = load_image(settings.mask, "mask") if settings.mask else None
    return guide, mask


def load_dream(settings: DreamSettings, open_storage: "Callable[[], Storage]" = _shared_storage) -> Photograph | None:
    """Return the dream that these settings enlarge, at its full size; None if they enlarge none.

    Args:
        settings: resolved settings.
        open_storage: returns the access to S3; called only if the dream is in S3.

    Raises:
        InvalidInput: the file does not exist, has another SHA-256 than the settings, or is not an image.
        Unavailable: S3 failed.
    """
    reference = settings.enlarge
    if reference is None:
        return None
    try:
        return decode(read(reference, "enlarge", open_storage))
    except ImageError as error:
        raise InvalidInput(f"enlarge: {reference.uri}: {error}") from error


@lru_cache(maxsize=4)
def _load_network_with(model: str, weights: Reference, device: str) -> "Network":
    from dreamcore.models import load_network_with

    data = read(weights, "weights")
    return load_network_with(model, data, str(weights.sha256), weights.uri, device)


@lru_cache(maxsize=8)
def _with_labels(network: "Network", labels: Reference) -> "Network":
    names = read_labels(read(labels, "labels"), f"labels: {labels.uri}")
    with _naming(labels):
        return network.with_labels(names)


@contextmanager
def _naming(labels: Reference) -> Iterator[None]:
    """Put the labels file before the message of an error."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"labels: {labels.uri}: {error}") from error


def network_for(settings: DreamSettings, device: str, labels: Reference | None = None) -> "Network":
    """Return the network of resolved settings with its weights. Networks are loaded once per process.

    Args:
        settings: resolved settings.
        device: where the network computes, such as `cpu` or `cuda:0`.
        labels: a file with the names of the classes; None for the names that the library knows.

    Raises:
        InvalidInput: the weights file does not have the SHA-256 of the settings, or does not fit the network. Or the
            labels file does not exist, is no labels file, or has another number of names than the network has classes.
        Unavailable: S3 failed, or the library's weights cannot be downloaded.
    """
    from dreamcore.models import load_network  # imports torch, which a process that only checks settings avoids

    if settings.weights:
        network = _load_network_with(settings.model, settings.weights, device)
        for target in settings.layers:  # custom weights may have other classes than the network's own
            network.spec.check_channels(target.layer, target.channels)
    else:
        network = load_network(settings.model, device)
    return _with_labels(network, labels) if labels else network
