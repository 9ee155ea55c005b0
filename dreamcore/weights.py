"""Read weights from the bytes of a file: check the digest first, then parse without running any code of the file."""

import hashlib
import io
import pickle
import warnings
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor, nn

from dreamcore.errors import InvalidInput

__all__ = ["assign", "class_count", "mismatch", "read_tensors"]

NESTS = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs save a state dict beside other entries."""
MAX_NESTING = 3
"""Nested state dicts are unwrapped at most this many times. A pickle can contain itself."""
DATA_PARALLEL = "module."
"""`nn.DataParallel` puts this prefix before the name of every tensor."""
PARALLEL_FEATURES = "features.module."
"""The same prefix if only the convolutions of an AlexNet or a VGG were trained in parallel."""
BATCH_COUNTER = ".num_batches_tracked"
"""A counter that only training uses. Some files lack it."""
_REMEDY = "save only the tensors, with torch.save(network.state_dict(), ...) or as safetensors"


def read_tensors(data: bytes, sha256: str, name: str) -> dict[str, Tensor]:
    """Return the tensors in a weights file, by name.

    Args:
        data: the file: safetensors, or what `torch.save` made of a state dict.
        sha256: the SHA-256 that the file must have, in hex.
        name: the name of the file in messages.

    Returns:
        The tensors on the CPU. Common wrappers around the state dict and prefixes of the names are removed.

    Raises:
        InvalidInput: the file has another SHA-256, is not a weights file, or contains more than tensors. No code of
            the file was run.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        raise InvalidInput(
            f"{name} has changed: its SHA-256 is {found[:12]}..., not {sha256[:12].lower()}...; restore the file, or "
            "give the new SHA-256 (`sha256sum` prints it)"
        )
    content = _unwrapped(_parsed(data, name))
    if not isinstance(content, Mapping) or not content:
        raise InvalidInput(f"{name} is not a weights file: it contains no named tensors")
    for key, entry in content.items():
        if not isinstance(key, str) or not _is_plain(entry):
            raise InvalidInput(
                f"{name} contains more than plain tensors: {key!r} is a {type(entry).__name__}; {_REMEDY}"
            )
    prefix = DATA_PARALLEL if all(key.startswith(DATA_PARALLEL) for key in content) else ""
    return {
        key.removeprefix(prefix).replace(PARALLEL_FEATURES, "features."): tensor.detach()
        for key, tensor in content.items()
    }


def class_count(module: nn.Module, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of `tensors`, if their shapes differ from those of `module`.

    The result is None if the shapes are equal, or if more than the number of classes differs.
    """
    rows = set()
    for key, own in module.state_dict().items():
        theirs = tensors.get(key, own)
        if theirs.shape != own.shape:
            if not theirs.ndim or theirs.shape[1:] != own.shape[1:]:
                return None
            rows.add(len(theirs))
    return (rows.pop() or None) if len(rows) == 1 else None


def mismatch(module: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    """Return the first difference between `tensors` and the tensors of `module`; None if they fit.

    A difference is a tensor that is missing, has another shape or kind of number, or does not exist in the module.
    """
    state = module.state_dict()
    for key, own in state.items():
        theirs = tensors.get(key)
        if theirs is None:
            if not key.endswith(BATCH_COUNTER):
                return f"it has no {key}"
        elif theirs.shape != own.shape:
            return f"its {key} is {_format_shape(theirs)}, not {_format_shape(own)}"
        elif theirs.is_floating_point() != own.is_floating_point():
            return f"its {key} is {theirs.dtype}, not {own.dtype}"
    extra = next((key for key in tensors if key not in state), None)
    return None if extra is None else f"the network has no {extra}"


def assign(tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    """Copy `tensors` into `module`. They must fit: `mismatch` returns None.

    `load_state_dict` is not used: some modules override it and reject state dicts without a version, such as those
    from safetensors.
    """
    with torch.no_grad():
        for key, own in module.state_dict().items():
            if key in tensors:
                own.copy_(tensors[key])


def _parsed(data: bytes, name: str) -> object:
    """Return the content of the file. A pickle may create only tensors and plain containers."""
    try:
        if _is_safetensors(data):
            return safetensors.torch.load(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles and rare kinds of tensors, which are checked here
            content: object = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
            return content
    except Exception as error:  # a parser may raise anything for bytes of another format
        if isinstance(error, pickle.UnpicklingError) and data.startswith((b"PK", b"\x80")):  # a zip file or a pickle
            raise InvalidInput(
                f"{name} contains more than tensors, or is damaged; no code of it was run: {_REMEDY}"
            ) from error
        raise InvalidInput(f"{name} is not a weights file, or is damaged: {_REMEDY}") from error


def _is_safetensors(data: bytes) -> bool:
    """Return whether the data begin with a length and a JSON header. No zip file or pickle begins like this."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def _unwrapped(content: object) -> object:
    """Return the innermost state dict of nested ones."""
    for _ in range(MAX_NESTING):
        nests = [content[nest] for nest in NESTS if nest in content] if isinstance(content, Mapping) else []
        content = next((nest for nest in nests if isinstance(nest, Mapping)), content)
    return content


def _is_plain(entry: object) -> bool:
    """Return whether this is a dense tensor with data."""
    return isinstance(entry, Tensor) and entry.layout == torch.strided and not (entry.is_meta or entry.is_nested)


def _format_shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
