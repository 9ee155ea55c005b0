"""What there is to dream with: networks, their layers and what each layer costs.

The bundled network's card lies beside this file, so that planning with it imports no torch; the card of any
other network is read off the network itself, without its weights.
"""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from dreamcore.errors import InvalidInput
from dreamcore.objectives import LOGITS, Target, in_canonical_order
from dreamcore.settings import BUNDLED, DreamSettings

BUNDLED_CARD = Path(__file__).with_name(f"{BUNDLED}.json")


@dataclass(frozen=True)
class Layer:
    """One layer of a network, in the order in which a picture passes through."""

    name: str
    """Dotted module name, as in `named_modules`."""
    kind: str
    """Class of the module, such as `Conv2d`."""
    channels: int
    stride: int
    """Pixels of the picture to one position of the layer, along a side."""
    cost: int
    """Multiply-adds for each pixel of the picture, from the picture up to this layer."""
    receptive_field: int | None = None
    """Side in pixels of the part of the picture that one position sees; None: the whole picture."""


@dataclass(frozen=True)
class Card:
    """What is known of a network without loading its weights."""

    model: str
    weights: str
    """Identity of the weights: the SHA-256 of their file, or the library's versioned name for them."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    """Side of the pictures that the network learnt from, in pixels."""
    min_size: int
    """Smallest side of a picture that the network takes, in pixels."""
    layers: tuple[Layer, ...]
    multiple: int = 1
    """The network takes sides that are multiples of this; pictures are padded to the next one."""

    def layer(self, name: str) -> Layer:
        """The layer called `name`.

        Raises:
            InvalidInput: the network has no such layer; the message names the nearest ones.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        near = difflib.get_close_matches(name, [layer.name for layer in self.layers], n=5, cutoff=0.3)
        hint = f"nearest: {', '.join(near)}" if near else "none is spelt like it"
        raise InvalidInput(f"{self.model} has no layer {name!r} ({hint}); `dreamgrid layers {self.model}` lists all")

    def check(self, layer: str, channels: Iterable[int]) -> None:
        """Raise `InvalidInput` when the network has no such layer or the layer no such channel."""
        found = self.layer(layer)
        for channel in channels:
            if channel >= found.channels:
                raise InvalidInput(
                    f"{layer} of {self.model} has no channel {channel}: it has {found.channels}, counted from 0"
                )

    def stages(self) -> list[Layer]:
        """The parts to compare a network by, in order.

        They are the modules made of modules at the least depth that has four of them or more (`layer1` to `layer4` of
        a ResNet, `inception3a` to `inception5b` of GoogLeNet with the convolutions before); where no depth has (VGG),
        the last layer at each stride. Layers that see the whole picture are left out.
        """
        local = [layer for layer in self.layers if layer.receptive_field]
        made_of_modules = {layer.name.rpartition(".")[0] for layer in self.layers}
        for depth in range(max(layer.name.count(".") for layer in self.layers)):
            parts = [each for each in local if each.name.count(".") == depth and each.name in made_of_modules]
            if len(parts) >= 4:
                return parts
        return list({layer.stride: layer for layer in local if layer.name not in made_of_modules}.values())

    def named(self, target: Target) -> Target:
        """The target itself, or with a depth such as `65%` replaced by the name of the stage that is nearest to it.

        Depth is the share of the network's multiply-adds up to a layer.
        """
        depth = re.fullmatch(r"(\d+(?:\.\d+)?)%", target.layer)
        if depth is None:
            return target
        if float(depth[1]) > 100:
            raise InvalidInput(f"there is no depth {target.layer}: a network ends at 100%")
        cost = float(depth[1]) / 100 * max(layer.cost for layer in self.layers)
        nearest = min(self.stages(), key=lambda stage: abs(stage.cost - cost))
        return target.model_copy(update={"layer": nearest.name})

    def to_json(self) -> str:
        """The card as text, one layer a line."""
        card = asdict(self)
        rows = ",\n  ".join(json.dumps(list(layer.values())) for layer in card.pop("layers"))
        return json.dumps(card)[:-1] + f',\n "layers": [\n  {rows}\n]}}\n'

    @classmethod
    def from_json(cls, text: str) -> "Card":
        """The inverse of `to_json`."""
        card = json.loads(text)
        layers = tuple(Layer(*row) for row in card.pop("layers"))
        mean, std = tuple(card.pop("mean")), tuple(card.pop("std"))
        return cls(**card, mean=mean, std=std, layers=layers)


@lru_cache
def card(model: str) -> Card:
    """The card of the network called `model`.

    Raises:
        InvalidInput: no network has this name; the message names the nearest ones.
    """
    if model == BUNDLED:
        return Card.from_json(BUNDLED_CARD.read_text())
    from dreamcore.survey import survey  # imports torch, which planning with the bundled network must not

    return survey(model)


def complete(settings: DreamSettings) -> DreamSettings:
    """The settings with every layer by its name, held against the network.

    Raises:
        InvalidInput: there is no such network, layer or channel.
    """
    known = card(settings.model)
    if 0 < settings.tile < known.min_size:
        raise InvalidInput(f"tile is {settings.tile} pixels: {known.model} needs {known.min_size} on each side")
    targets: dict[str, Target] = {}
    for target in map(known.named, settings.layers):
        if not (settings.weights and target.layer == LOGITS):  # of how many classes its own weights are, they tell
            known.check(target.layer, target.channels)
        twin = targets.get(target.name)  # of two depths the same stage may be nearest
        weight = target.weight + (twin.weight if twin else 0)
        targets[target.name] = target.model_copy(update={"weight": weight})
    if cancelled := [name for name, target in targets.items() if not target.weight]:
        raise InvalidInput(f"{cancelled[0]} of {settings.model} stands for layers whose weights add up to 0")
    return settings.model_copy(update={"layers": in_canonical_order(tuple(targets.values()))})


def weights_of(settings: DreamSettings) -> str:
    """Identity of the weights that the settings dream with."""
    return settings.weights.sha256 if settings.weights and settings.weights.sha256 else card(settings.model).weights
