"""The spec of each network by name, and settings checked against it.

The spec of the bundled network is a file in this package, so that planning with this network does not import torch. The
spec of any other network is read from the structure of the network, without its weights.
"""

from functools import lru_cache
from pathlib import Path

from dreamcore.errors import InvalidInput
from dreamcore.settings import BUNDLED, DreamSettings
from dreamcore.spec import NetworkSpec
from dreamcore.targets import LOGITS, Target, canonical_order

__all__ = ["BUNDLED", "BUNDLED_SPEC", "network_spec", "resolve_layers", "weights_identity_of"]

BUNDLED_SPEC = Path(__file__).with_name(f"{BUNDLED}.json")
"""The file with the spec of the bundled network."""


@lru_cache
def network_spec(model: str) -> NetworkSpec:
    """Return what is known about the network called `model`: its layers, sizes and the identity of its weights.

    No weights are loaded or downloaded.

    Example:
        >>> [stage.name for stage in network_spec("efficientnet_lite0").stages()][:3]
        ['blocks.0', 'blocks.1', 'blocks.2']

    Raises:
        InvalidInput: no network has this name (the message names the nearest ones), the package with its weights is
            not installed, or the network accepts only images of one size.
    """
    if model == BUNDLED:
        return NetworkSpec.from_json(BUNDLED_SPEC.read_text(encoding="utf-8"))
    from dreamcore.tracing import trace_network  # imports torch, which planning with the bundled network must not

    return trace_network(model)


def resolve_layers(settings: DreamSettings, spec: NetworkSpec | None = None) -> DreamSettings:
    """Check the layers of the settings against the network, and replace depths such as `65%` by layer names.

    Args:
        settings: the settings.
        spec: the network; by default the one that the settings name.

    Raises:
        InvalidInput: the network, a layer or a channel does not exist, `tile` is smaller than the network accepts, or
            two depths stand for one layer with weights that add up to 0.
    """
    known = spec or network_spec(settings.model)
    if 0 < settings.tile < known.min_size:
        raise InvalidInput(f"tile is {settings.tile} pixels: {known.model} needs {known.min_size} on each side")
    # Custom weights may have another number of classes, which only the loaded network knows.
    unknown_classes = settings.weights is not None and spec is None
    targets: dict[str, Target] = {}
    for target in map(known.resolve_depth, settings.layers):
        if not (unknown_classes and target.layer == LOGITS):
            known.check_channels(target.layer, target.channels)
        twin = targets.get(target.name)  # two depths may have the same nearest stage
        weight = target.weight + (twin.weight if twin else 0)
        targets[target.name] = target.model_copy(update={"weight": weight})
    if cancelled := [name for name, target in targets.items() if not target.weight]:
        raise InvalidInput(f"the weights of {cancelled[0]} of {settings.model} add up to 0: change a weight or a depth")
    anchor = settings.stay_near
    if anchor:
        layer = known.resolve_depth(Target(layer=anchor.layer)).layer
        known.check_channels(layer, ())
        anchor = anchor.model_copy(update={"layer": layer})
    return settings.model_copy(update={"layers": canonical_order(tuple(targets.values())), "stay_near": anchor})


def weights_identity_of(settings: DreamSettings) -> str:
    """Return the identity of the weights that the settings name: the SHA-256 of a file, or the library's name."""
    return (
        settings.weights.sha256
        if settings.weights and settings.weights.sha256
        else network_spec(settings.model).weights
    )
