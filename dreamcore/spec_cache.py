"""Specs of networks in the user's cache. With a spec from the cache, planning a run imports no torch.

A spec counts only for the versions of the libraries that build the network, and for the code that traces it.
"""

import hashlib
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dreamcore import user_cache
from dreamcore.spec import NetworkSpec

__all__ = ["keep_spec", "read_spec"]

_LIBRARIES = ("torch", "torchvision", "timm")
_CODE = ("network", "receptive_field", "spec", "tracing", "zoo")
"""The modules of this package that determine a spec."""


def read_spec(model: str) -> NetworkSpec | None:
    """Return the spec of a network from the cache; None if the cache has none."""
    try:
        text = user_cache.read(_name(model))
        return NetworkSpec.from_json(text) if text else None
    except (ValueError, TypeError, KeyError, AttributeError):  # damaged
        return None
    except PackageNotFoundError:  # a library without its version
        return None


def keep_spec(spec: NetworkSpec) -> NetworkSpec:
    """Keep a spec in the cache, and return it.

    Networks whose weights are installed as packages are left out: building them checks the file of the weights.
    """
    if spec.weights.startswith(tuple(f"{library}:" for library in _LIBRARIES)):
        with suppress(PackageNotFoundError):
            user_cache.keep(_name(spec.model), spec.to_json())
    return spec


def _name(model: str) -> str:
    """Return the file of a network in the cache."""
    return f"specs/{hashlib.sha256(f'{_origin()} {model}'.encode()).hexdigest()[:32]}.json"


@lru_cache(maxsize=1)
def _origin() -> str:
    """Return what determines the specs of all networks: the versions of the libraries, and the tracing code."""
    versions = [version(library) for library in _LIBRARIES]
    code = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in _CODE]
    return " ".join([*versions, hashlib.sha256(b"".join(code)).hexdigest()])
