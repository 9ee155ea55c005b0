"""Targets, the parts of an objective: layers, channels and positions, with weights, and their text syntax.

A target is written `LAYER:CHANNELS@X,Y=WEIGHT`. Only the layer is required. A `+` joins targets to a mix. A layer may
also be a depth such as `65%`, a share of the network's multiply-adds.

This module imports no torch, so that planning a run stays fast.

Example:
    >>> from dreamcore.settings import DreamSettings
    >>> mix = DreamSettings(layers="blocks.3=0.3 + blocks.4:12@0.5,0.25").layers
    >>> mix[0]
    Target(layer='blocks.3', channels=(), at=None, weight=0.3)
    >>> mix[1]
    Target(layer='blocks.4', channels=(12,), at=(0.5, 0.25), weight=1.0)
    >>> layers_label(mix)
    'blocks.3=0.3+blocks.4:12@0.5,0.25'

    A mapping is another spelling of a mix:

    >>> layers_label(DreamSettings(layers={"blocks.3": 0.3, "blocks.4:12": -1}).layers)
    'blocks.3=0.3+blocks.4:12=-1'
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

__all__ = ["LOGITS", "Anchor", "AnchorLayer", "Frozen", "Layers", "Target", "canonical_order", "layers_label"]

LOGITS = "logits"
"""Name of the layer after all other layers: the score of each class before the softmax."""


class Frozen(BaseModel):
    """Base of all value classes: immutable, compared by content; unknown fields are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


_Fraction = Annotated[float, Field(ge=0, le=1)]


class Target(Frozen):
    """One part of an objective: a layer, some of its channels, or one position of it, with a weight.

    Raises:
        ValidationError: the weight is 0, or a position is given for the logits.

    Example:
        >>> print(Target(layer="blocks.4", channels=(12, 17), weight=-0.5))
        blocks.4:12,17=-0.5
    """

    layer: str = Field(min_length=1)
    """Dotted module name, such as `blocks.4`."""
    channels: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Channels of the layer, counted from 0; empty means all channels."""
    at: tuple[_Fraction, _Fraction] | None = None
    """Position (x, y) in the image, each from 0 to 1; with one channel this is a neuron."""
    weight: float = 1.0
    """Weight in the mix; a negative weight suppresses."""

    @model_validator(mode="after")
    def _can_be_excited(self) -> Self:
        if self.weight == 0:
            raise ValueError(f"the weight of {self.layer} is 0; remove the layer instead")
        if self.layer == LOGITS and self.at:
            raise ValueError(f"{LOGITS} have no position in the image; remove @{self.at[0]:g},{self.at[1]:g}")
        return self

    @property
    def name(self) -> str:
        """The target without its weight, such as `blocks.4`, `blocks.4:12,17` or `blocks.4:12@0.5,0.3`."""
        channels = ":" + ",".join(map(str, self.channels)) if self.channels else ""
        position = f"@{self.at[0]:g},{self.at[1]:g}" if self.at else ""
        return self.layer + channels + position

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.name}={self.weight:g}"


_TARGET = re.compile(
    r"(?P<layer>[^:@=+\s]+)(:(?P<channels>\d+(,\d+)*))?(@(?P<at>[\d.]+,[\d.]+))?(=(?P<weight>[^:=+\s]+))?"
)


def _parse_target(text: str) -> dict[str, Any]:
    match = _TARGET.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a target; write LAYER, LAYER=WEIGHT, LAYER:CHANNEL,CHANNEL or LAYER@X,Y")
    channels = [int(c) for c in match["channels"].split(",")] if match["channels"] else []
    at = match["at"].split(",") if match["at"] else None
    return {"layer": match["layer"], "channels": channels, "at": at, "weight": match["weight"] or 1.0}


def _read_objective(value: object) -> object:
    """Return an objective as a list of targets. The value may be text, a mapping, a target or a list of these."""
    match value:
        case str():
            return [_parse_target(part) for part in value.split("+")]
        case Mapping() if "layer" in value:
            return [value]
        case Mapping():
            return [{**_parse_target(str(name)), "weight": weight} for name, weight in value.items()]
        case list() | tuple():
            return [target for part in value for target in _as_sequence(_read_objective(part))]
        case Target():
            return [value]
        case _:
            raise ValueError(
                f"{value!r} is not an objective; write a layer (blocks.4) or a mix ({{blocks.3: 0.3, blocks.4: 1}})"
            )


def _as_sequence(value: object) -> Iterable[object]:
    return value if isinstance(value, (list, tuple)) else [value]


def canonical_order(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """Return `targets` in one fixed order, each with its channels sorted and without duplicates.

    The order of a mix does not change the image, so it must not change `settings_id` either.

    Raises:
        ValueError: there is no target, or one appears twice.
    """
    if not targets:
        raise ValueError("an objective needs at least one layer")
    targets = tuple(t.model_copy(update={"channels": tuple(sorted(set(t.channels)))}) for t in targets)
    names = [target.name for target in targets]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"{duplicates[0]} is in the mix twice; give it one weight")
    return tuple(sorted(targets, key=lambda target: target.name))


_SPELLINGS: list[dict[str, Any]] = [
    {
        "type": "string",
        "title": "Text",
        "description": "blocks.4, blocks.3=0.3+blocks.4, blocks.4:12@0.5,0.3",
    },
    {"type": "object", "title": "Mix", "additionalProperties": {"type": "number"}},
    {
        "type": "object",
        "title": "Target",
        "properties": {
            "layer": {"type": "string"},
            "channels": {"type": "array", "items": {"type": "integer"}},
            "at": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
            "weight": {"type": "number"},
        },
        "required": ["layer"],
        "additionalProperties": False,
    },
]
_TARGETS = {"type": "array", "title": "Targets", "items": {"anyOf": _SPELLINGS}, "minItems": 1}

Layers = Annotated[
    tuple[Target, ...],
    BeforeValidator(_read_objective),
    AfterValidator(canonical_order),
    WithJsonSchema({"title": "Layers", "anyOf": [*_SPELLINGS, _TARGETS]}),
]
"""Field type of an objective. It accepts text, a mapping of targets to weights, a target, or a list of these."""


def layers_label(objective: tuple[Target, ...]) -> str:
    """Return an objective in the text syntax, such as `blocks.3=0.3+blocks.4`."""
    return "+".join(map(str, objective))


class Anchor(Frozen):
    """A layer at which the activations of the dream stay near those of the source image."""

    layer: str = Field(min_length=1)
    """Dotted module name, such as `blocks.3`, or a depth such as `50%`."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the relative distance in the score."""

    def __str__(self) -> str:
        return self.layer if self.weight == 1 else f"{self.layer}={self.weight:g}"


def _read_anchor(value: object) -> object:
    """Return the fields of an anchor that is written as `LAYER` or `LAYER=WEIGHT`."""
    if not isinstance(value, str):
        return value
    fields = _parse_target(value)
    if fields["channels"] or fields["at"]:
        raise ValueError(f"{value!r} has channels or a place; write LAYER or LAYER=WEIGHT")
    return {"layer": fields["layer"], "weight": fields["weight"]}


AnchorLayer = Annotated[Anchor, BeforeValidator(_read_anchor, json_schema_input_type=str)]
"""Field type of an anchor. It accepts an `Anchor` or the text `LAYER` or `LAYER=WEIGHT`."""
