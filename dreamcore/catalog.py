"""The spec of each network by name, and settings checked against it.

The spec of the bundled network is a file in this package, so that planning with this network does not import torch. The
spec of any other network is read from the structure of the network, without its weights, and kept in the user's cache.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from dreamcore.errors import InvalidInput
from dreamcore.settings import BUNDLED, DreamSettings
from dreamcore.spec import Layer, NetworkSpec
from dreamcore.spec_cache import keep_spec, read_spec
from dreamcore.sweeps import Rank, Ranking, ranked, sweep_channels
from dreamcore.targets import LOGITS, Target, canonical_order

__all__ = [
    "BUNDLED",
    "BUNDLED_SPEC",
    "expand_layers",
    "network_spec",
    "resolve_layers",
    "weights_identity_of",
    "with_channels",
]

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
    if known := read_spec(model):
        return known
    from dreamcore.tracing import trace_network  # imports torch, which planning must not if the spec is known

    return keep_spec(trace_network(model))


def resolve_layers(settings: DreamSettings, spec: NetworkSpec | None = None) -> DreamSettings:
    """Check the layers of the settings against the network, and replace depths such as `65%` by layer names.

    A target such as `blocks.4:(top16)`, whose channels depend on the photograph, keeps its text.

    Args:
        settings: the settings of one dream.
        spec: the network; by default the one that the settings name.

    Raises:
        InvalidInput: the network, a layer or a channel does not exist, the layers are a sweep over several objectives,
            `tile` is smaller than the network accepts, a direction is used with a guide, or two depths stand for one
            layer with weights that add up to 0.
    """
    known, settings = _prepared(settings, spec)
    targets = [_single(known.resolve_depth(target), known) for target in settings.layers]
    return settings.model_copy(update={"layers": _merged(targets, settings, known, spec)})


def expand_layers(
    settings: DreamSettings, spec: NetworkSpec | None = None
) -> Iterator[tuple[DreamSettings, Rank | None]]:
    """Yield the settings that a sweep over channels stands for, with their layers resolved as by `resolve_layers`.

    For a sweep that depends on the photograph, such as `blocks.4:top16`, these are the settings of all channels of the
    layer, each with the rank that says which photographs they are for.

    Args:
        settings: settings, with or without a sweep.
        spec: the network; by default the one that the settings name.

    Raises:
        InvalidInput: as `resolve_layers`; or photographs would choose channels that are excited together.

    Example:
        >>> from dreamcore.settings import DreamSettings
        >>> from dreamcore.targets import layers_label
        >>> swept = expand_layers(DreamSettings(layers="blocks.4:7-9@0.5,0.5=2 + blocks.1=-0.5"))
        >>> [layers_label(settings.layers) for settings, _ in swept][:2]
        ['blocks.1=-0.5+blocks.4:7@0.5,0.5=2', 'blocks.1=-0.5+blocks.4:8@0.5,0.5=2']
    """
    known, settings = _prepared(settings, spec)
    targets = [known.resolve_depth(target) for target in settings.layers]
    place = next((place for place, target in enumerate(targets) if target.sweep), None)
    if place is None:
        yield settings.model_copy(update={"layers": _merged(targets, settings, known, spec)}), None
        return
    swept, layer = targets[place], known.layer(targets[place].layer)
    _check_count(swept, layer)
    if settings.weights and spec is None and layer.name == LOGITS and "-" not in swept.sweep:
        raise InvalidInput(f"{swept.name} needs the number of classes, which custom weights may change: write a range")
    if swept.sweep.startswith("("):
        raise InvalidInput(
            f"{swept.name} takes other channels together for each photograph, which a run cannot do: write "
            f"{swept.layer}:{swept.sweep.strip('()')} for one dream of each channel"
        )
    order = ranked(swept.sweep)
    for channel in sweep_channels(swept.sweep, layer.channels):
        one = [*targets[:place], with_channels(swept, [channel]), *targets[place + 1 :]]
        rank = Rank(Ranking(*order, layer.name, swept.at), channel) if order else None
        yield settings.model_copy(update={"layers": _merged(one, settings, known, spec)}), rank


def _prepared(settings: DreamSettings, spec: NetworkSpec | None) -> tuple[NetworkSpec, DreamSettings]:
    """Return the network of the settings, and the settings with everything checked and resolved except `layers`."""
    known = spec or network_spec(settings.model)
    if 0 < settings.tile < known.min_size:
        raise InvalidInput(f"tile is {settings.tile} pixels: {known.model} needs {known.min_size} on each side")
    directions = [target.name for target in settings.layers if target.direction or target.cosine]
    if settings.guide and directions:
        raise InvalidInput(f"{directions[0]} is a direction, which a guide replaces: leave out one of the two")
    if anchor := settings.stay_near:
        layer = known.resolve_depth(Target(layer=anchor.layer)).layer
        known.check_channels(layer, ())
        settings = settings.model_copy(update={"stay_near": anchor.model_copy(update={"layer": layer})})
    return known, settings


def _single(target: Target, spec: NetworkSpec) -> Target:
    """Return the target with the only channel of its sweep, unless that channel depends on the photograph.

    Raises:
        InvalidInput: the target is a sweep over several channels.
    """
    if not target.sweep:
        return target
    layer = spec.layer(target.layer)
    _check_count(target, layer)
    order = ranked(target.sweep)
    count = order[1] if order else len(sweep_channels(target.sweep, layer.channels))
    if not target.sweep.startswith("(") and count > 1:
        together = f"{target.layer}:({target.sweep})" if target.sweep != "*" else target.layer
        raise InvalidInput(
            f"{target.name} stands for {count} objectives, and one dream has one: use `dreamgrid run`, which makes a "
            f"dream of each channel, or write {together} for the channels together"
        )
    return target if order else with_channels(target, sweep_channels(target.sweep, layer.channels))


def with_channels(target: Target, channels: Iterable[int]) -> Target:
    """Return the target with these channels instead of its sweep."""
    return canonical_order((target.model_copy(update={"sweep": "", "channels": tuple(channels)}),))[0]


def _check_count(target: Target, layer: Layer) -> None:
    """Raise `InvalidInput` if a sweep takes more channels than the layer has."""
    order = ranked(target.sweep)
    if order and order[1] > layer.channels:
        raise InvalidInput(f"{target.name} takes more channels than {layer.name} has: it has {layer.channels}")


def _merged(
    targets: Sequence[Target], settings: DreamSettings, known: NetworkSpec, given: NetworkSpec | None
) -> tuple[Target, ...]:
    """Return the targets in canonical order after a check of their channels. Equal targets are added up.

    Args:
        targets: targets with layer names.
        settings: the settings that they belong to.
        known: the network.
        given: None if `known` is only the spec of the network's own weights.
    """
    # Custom weights may have another number of classes, which only the loaded network knows.
    unknown_classes = settings.weights is not None and given is None
    merged: dict[str, Target] = {}
    for target in targets:
        if not (unknown_classes and target.layer == LOGITS):
            known.check_channels(target.layer, target.channels)
        twin = merged.get(target.name)  # two depths may have the same nearest stage
        weight = target.weight + (twin.weight if twin else 0)
        merged[target.name] = target.model_copy(update={"weight": weight})
    if cancelled := [name for name, target in merged.items() if not target.weight]:
        raise InvalidInput(f"the weights of {cancelled[0]} of {settings.model} add up to 0: change a weight or a depth")
    return canonical_order(tuple(merged.values()))


def weights_identity_of(settings: DreamSettings) -> str:
    """Return the identity of the weights that the settings name: the SHA-256 of a file, or the library's name."""
    return (
        settings.weights.sha256
        if settings.weights and settings.weights.sha256
        else network_spec(settings.model).weights
    )
