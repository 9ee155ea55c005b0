"""What there is to dream with: the card of each network by its name, and settings held against it.

The bundled network's card lies beside this file, so that planning with it imports no torch; the card of any
other network is read off the network itself, without its weights.
"""

from functools import lru_cache
from pathlib import Path

from dreamcore.errors import InvalidInput
from dreamcore.settings import BUNDLED, DreamSettings
from dreamcore.spec import NetworkSpec
from dreamcore.targets import LOGITS, Target, canonical_order

BUNDLED_SPEC = Path(__file__).with_name(f"{BUNDLED}.json")


@lru_cache
def network_spec(model: str) -> NetworkSpec:
    """The card of the network called `model`.

    Raises:
        InvalidInput: no network has this name; the message names the nearest ones.
    """
    if model == BUNDLED:
        return NetworkSpec.from_json(BUNDLED_SPEC.read_text())
    from dreamcore.tracing import trace_network  # imports torch, which planning with the bundled network must not

    return trace_network(model)


def resolve_layers(settings: DreamSettings) -> DreamSettings:
    """The settings with every layer by its name, held against the network.

    Raises:
        InvalidInput: there is no such network, layer or channel.
    """
    known = network_spec(settings.model)
    if 0 < settings.tile < known.min_size:
        raise InvalidInput(f"tile is {settings.tile} pixels: {known.model} needs {known.min_size} on each side")
    targets: dict[str, Target] = {}
    for target in map(known.resolve_depth, settings.layers):
        if not (settings.weights and target.layer == LOGITS):  # of how many classes its own weights are, they tell
            known.check_channels(target.layer, target.channels)
        twin = targets.get(target.name)  # of two depths the same stage may be nearest
        weight = target.weight + (twin.weight if twin else 0)
        targets[target.name] = target.model_copy(update={"weight": weight})
    if cancelled := [name for name, target in targets.items() if not target.weight]:
        raise InvalidInput(f"{cancelled[0]} of {settings.model} stands for layers whose weights add up to 0")
    return settings.model_copy(update={"layers": canonical_order(tuple(targets.values()))})


def weights_identity_of(settings: DreamSettings) -> str:
    """Identity of the weights that the settings dream with."""
    return (
        settings.weights.sha256
        if settings.weights and settings.weights.sha256
        else network_spec(settings.model).weights
    )
