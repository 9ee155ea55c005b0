"""What is known about a network without its weights: its layers, and the cost and receptive field of each layer."""

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from dreamcore.errors import InvalidInput
from dreamcore.targets import LOGITS, Target

__all__ = ["CUSTOM", "Layer", "NetworkSpec"]

CUSTOM = "custom:"
"""The names of networks that were made from a module begin with this, such as `custom:VGG`."""


@dataclass(frozen=True)
class Layer:
    """One layer of a network."""

    name: str
    """Dotted module name, as in `nn.Module.named_modules`."""
    kind: str
    """Class of the module, such as `Conv2d`."""
    channels: int
    stride: int
    """Distance of neighbouring positions of the layer, in pixels of the image."""
    cost: int
    """Multiply-adds per pixel of the image, from the image up to this layer. The attention of a transformer needs more
    in larger images; its cost is that of an image of 224 pixels."""
    receptive_field: int | None = None
    """Side in pixels of the part of the image that influences one position; None: the whole image."""


@dataclass(frozen=True)
class NetworkSpec:
    """What is known about a network without its weights."""

    model: str
    weights: str
    """Identity of the weights: the SHA-256 of their file, or the library's versioned name for them."""
    mean: tuple[float, float, float]
    """Mean of the training images, per channel, in [0, 1]."""
    std: tuple[float, float, float]
    """Standard deviation of the training images, per channel."""
    size: int
    """Side of the training images, in pixels."""
    min_size: int
    """Smallest side of an image that the network accepts, in pixels."""
    layers: tuple[Layer, ...]
    """The layers in the order in which they run."""
    multiple: int = 1
    """The network accepts sides that are multiples of this. Images are padded to the next multiple."""
    transformer: bool = False
    """The network is a vision transformer: its layers return tokens, and each position depends on the whole image."""

    def layer(self, name: str) -> Layer:
        """Return the layer called `name`.

        Example:
            >>> from dreamcore import network_spec
            >>> network_spec("efficientnet_lite0").layer("blocks.4").channels
            112

        Raises:
            InvalidInput: the network has no such layer. The message names the nearest layers.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        near = difflib.get_close_matches(name, [layer.name for layer in self.layers], n=5, cutoff=0.3)
        hint = f"; did you mean {', '.join(near)}?" if near else "."
        raise InvalidInput(f"layer {name!r} does not exist in {self.model}{hint} {self._where_layers_are_listed()}")

    def _where_layers_are_listed(self) -> str:
        if self.model.startswith(CUSTOM):
            return "`network_from_module(module).spec.layers` lists all layers"
        return f"`dreamgrid layers {self.model}` lists all layers"

    @property
    def classes(self) -> int:
        """Number of classes; 0 if the network is not a classifier."""
        return next((layer.channels for layer in self.layers if layer.name == LOGITS), 0)

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raise `InvalidInput` unless there is one name for each class."""
        if len(labels) != self.classes:
            raise InvalidInput(
                f"there are {len(labels)} names of classes, but {self.model} has {self.classes} classes: give one name "
                "for each class, in their order"
            )

    def check_channels(self, layer: str, channels: Iterable[int]) -> None:
        """Raise `InvalidInput` if the network has no such layer or the layer has no such channel."""
        found = self.layer(layer)
        for channel in channels:
            if channel >= found.channels:
                raise InvalidInput(
                    f"channel {channel} does not exist in {layer} of {self.model}: "
                    f"choose one from 0 to {found.channels - 1}"
                )

    def stages(self) -> list[Layer]:
        """Return the main parts of the network, in order.

        A stage is a module that contains modules. The stages are those at the smallest depth of nesting that has at
        least four of them: `layer1` to `layer4` of a ResNet, or the convolutions and `inception3a` to `inception5b` of
        a GoogLeNet. If no depth has four (as in a VGG), the stages are the last layers at each stride. Layers whose
        receptive field is the whole image are not stages, except in a vision transformer, whose stages are its blocks.
        """
        local = [layer for layer in self.layers if layer.receptive_field or self.transformer]
        parents = {layer.name.rpartition(".")[0] for layer in self.layers}
        for depth in range(max(layer.name.count(".") for layer in self.layers)):
            parts = [layer for layer in local if layer.name.count(".") == depth and layer.name in parents]
            if len(parts) >= 4:
                return parts
        return list({layer.stride: layer for layer in local if layer.name not in parents}.values())

    def resolve_depth(self, target: Target) -> Target:
        """Replace a depth such as `65%` by the name of the nearest stage. Return any other target unchanged.

        The depth of a layer is its share of the network's multiply-adds.

        Raises:
            InvalidInput: the depth is over 100%, or the network has no stages.
        """
        depth = re.fullmatch(r"(\d+(?:\.\d+)?)%", target.layer)
        if depth is None:
            return target
        if float(depth[1]) > 100:
            raise InvalidInput(f"depth {target.layer} does not exist: a depth is between 0% and 100%")
        if not self.stages():
            raise InvalidInput(
                f"no layer of {self.model} has a limited receptive field: name a layer instead of the depth "
                f"{target.layer}. {self._where_layers_are_listed()}"
            )
        cost = float(depth[1]) / 100 * max(layer.cost for layer in self.layers)
        nearest = min(self.stages(), key=lambda stage: abs(stage.cost - cost))
        return target.model_copy(update={"layer": nearest.name})

    def to_json(self) -> str:
        """Return the spec as JSON text with one layer per line."""
        fields = asdict(self)
        rows = ",\n  ".join(json.dumps(list(layer.values())) for layer in fields.pop("layers"))
        return json.dumps(fields)[:-1] + f',\n "layers": [\n  {rows}\n]}}\n'

    @classmethod
    def from_json(cls, text: str) -> "NetworkSpec":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        layers = tuple(Layer(*row) for row in fields.pop("layers"))
        mean, std = tuple(fields.pop("mean")), tuple(fields.pop("std"))
        return cls(**fields, mean=mean, std=std, layers=layers)
