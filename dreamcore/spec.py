"""Cards: what is known of a network without loading its weights: its layers, and what each of them costs."""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from dreamcore.errors import InvalidInput
from dreamcore.targets import Target


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
class NetworkSpec:
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

    def check_channels(self, layer: str, channels: Iterable[int]) -> None:
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

    def resolve_depth(self, target: Target) -> Target:
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
    def from_json(cls, text: str) -> "NetworkSpec":
        """The inverse of `to_json`."""
        card = json.loads(text)
        layers = tuple(Layer(*row) for row in card.pop("layers"))
        mean, std = tuple(card.pop("mean")), tuple(card.pop("std"))
        return cls(**card, mean=mean, std=std, layers=layers)
