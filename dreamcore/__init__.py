"""DeepDream as a library: images in; dreams, scores and classes out.

    from PIL import Image
    from dreamcore import dream

    result = dream(Image.open("cat.jpg"))
    result.image.save("dream.png")

`docs/python.md` shows how to use it. This package uses no S3, no Prefect and no command line, and it configures no
logging. PyTorch is imported when a function that computes is used for the first time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dreamcore.api import dream
    from dreamcore.catalog import network_spec
    from dreamcore.errors import DreamgridError, ImageError, InvalidInput, Unavailable
    from dreamcore.grid import Grid
    from dreamcore.models import load_network, network_from_module
    from dreamcore.noise import noise_image
    from dreamcore.results import Dream
    from dreamcore.settings import DreamSettings

    __version__: str

__all__ = [
    "Dream",
    "DreamSettings",
    "DreamgridError",
    "Grid",
    "ImageError",
    "InvalidInput",
    "Unavailable",
    "__version__",
    "dream",
    "load_network",
    "network_from_module",
    "network_spec",
    "noise_image",
]

_MODULES = {
    "Dream": "results",
    "DreamSettings": "settings",
    "DreamgridError": "errors",
    "Grid": "grid",
    "ImageError": "errors",
    "InvalidInput": "errors",
    "Unavailable": "errors",
    "dream": "api",
    "load_network": "models",
    "network_from_module": "models",
    "network_spec": "catalog",
    "noise_image": "noise",
}
"""The module of each public name."""


def __getattr__(name: str) -> object:
    """Import a public name when it is used for the first time."""
    if name == "__version__":
        from importlib.metadata import version

        found: object = version("dreamgrid")
    elif name in _MODULES:
        found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
