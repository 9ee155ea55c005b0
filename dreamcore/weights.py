"""Weights from the bytes of a file: held against their digest first, then read without running anything."""

import hashlib
import io
import pickle
import warnings
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor, nn

from dreamcore.errors import InvalidInput

NESTS = ("state_dict", "model_state_dict", "model")
"""Under these keys people save a network's tensors beside what else they know of its training."""
DEEPEST = 3
"""So many nests in one another are unwrapped; a pickle can hold itself."""
DATA_PARALLEL = "module."
"""`nn.DataParallel` puts this before the name of every tensor."""
OF_BATCHES = ".num_batches_tracked"
"""A counter that is used in training alone: files made before there was one, or by others, lack it."""


def read_tensors(data: bytes, sha256: str, name: str) -> dict[str, Tensor]:
    """The tensors in a file of weights, by name.

    Args:
        data: the file: safetensors, or what `torch.save` made of a state dict.
        sha256: the SHA-256 that the file must have, in hex.
        name: what messages call the file.

    Returns:
        The tensors on the CPU, taken out of the nests and prefixes that people save them with.

    Raises:
        InvalidInput: the file is another one, is no file of weights, or holds more than tensors; nothing of it ran.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        raise InvalidInput(
            f"{name} is not the file that was asked for: its SHA-256 is {found[:12]}..., not {sha256[:12].lower()}...; "
            "bring that file back, or ask for this one by what `sha256sum` says of it"
        )
    content = _unwrapped(_parsed(data, name))
    if not isinstance(content, Mapping) or not content:
        raise InvalidInput(f"{name} is no file of weights: there are no tensors by name in it")
    for key, entry in content.items():
        if not isinstance(key, str) or not _is_plain(entry):
            raise InvalidInput(f"{name} holds more than plain tensors: {key!r} is a {type(entry).__name__}; {_REMEDY}")
    prefix = DATA_PARALLEL if all(key.startswith(DATA_PARALLEL) for key in content) else ""
    return {key.removeprefix(prefix): tensor.detach() for key, tensor in content.items()}


def class_count(module: nn.Module, tensors: Mapping[str, Tensor]) -> int | None:
    """How many classes `tensors` are made for, where they look like those of `module` but for the number of rows."""
    rows = set()
    for key, own in module.state_dict().items():
        theirs = tensors.get(key, own)
        if theirs.shape != own.shape:
            if not theirs.ndim or theirs.shape[1:] != own.shape[1:]:
                return None
            rows.add(len(theirs))
    return (rows.pop() or None) if len(rows) == 1 else None


def mismatch(module: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    """Why `tensors` are not those of `module`, by the first that is missing, misshaped or one too many; None if not."""
    state = module.state_dict()
    for key, own in state.items():
        theirs = tensors.get(key)
        if theirs is None:
            if not key.endswith(OF_BATCHES):
                return f"it has no {key}"
        elif theirs.shape != own.shape:
            return f"its {key} is {_spelt(theirs)}, not {_spelt(own)}"
        elif theirs.is_floating_point() != own.is_floating_point():
            return f"its {key} is {theirs.dtype}, not {own.dtype}"
    extra = next((key for key in tensors if key not in state), None)
    return None if extra is None else f"the network has no {extra}"


def assign(tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    """Write `tensors`, of which there is no `mismatch`, into `module`.

    Not by `load_state_dict`: some modules take part in it and refuse what carries no version, as safetensors do.
    """
    with torch.no_grad():
        for key, own in module.state_dict().items():
            if key in tensors:
                own.copy_(tensors[key])


_REMEDY = "save the network's tensors alone, with torch.save(network.state_dict(), ...) or as safetensors"


def _parsed(data: bytes, name: str) -> object:
    """What the file holds; a pickle may only make tensors and the plainest containers."""
    try:
        if _is_safetensors(data):
            return safetensors.torch.load(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles and tensors of rare kinds, which are held against ours here
            content: object = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
            return content
    except Exception as error:  # a parser raises whatever it stumbles over in bytes that are not its own
        if isinstance(error, pickle.UnpicklingError) and data.startswith((b"PK", b"\x80")):  # a zip file or a pickle
            raise InvalidInput(
                f"{name} holds more than tensors, or is damaged; nothing of it ran: {_REMEDY}"
            ) from error
        raise InvalidInput(f"{name} is no file of weights, or a damaged one: {_REMEDY}") from error


def _is_safetensors(data: bytes) -> bool:
    """Whether this is a header of JSON behind its length; neither a zip file nor a pickle begins like that."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def _unwrapped(content: object) -> object:
    for _ in range(DEEPEST):
        nests = [content[nest] for nest in NESTS if nest in content] if isinstance(content, Mapping) else []
        content = next((nest for nest in nests if isinstance(nest, Mapping)), content)
    return content


def _is_plain(entry: object) -> bool:
    """Whether this is a tensor that holds a number for each of its places."""
    return isinstance(entry, Tensor) and entry.layout == torch.strided and not (entry.is_meta or entry.is_nested)


def _spelt(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
