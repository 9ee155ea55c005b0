"""Targets, the parts of an objective: layers, channels and positions, with weights, and their text syntax.

A target is written `LAYER:CHANNELS^POWER@X,Y=WEIGHT`. Only the layer is required. A `+` joins targets to a mix. A layer
may also be a depth such as `65%`, a share of the network's multiply-adds. `docs/settings.md` has a table of the syntax.

This module imports no torch, so that planning a run stays fast.

Example:
    >>> from dreamcore.settings import DreamSettings
    >>> mix = DreamSettings(layers="blocks.3=0.3 + blocks.4:12@0.5,0.25").layers
    >>> mix[0]
    Target(layer='blocks.3', channels=(), at=None, weight=0.3, direction=(), cosine=0.0, sweep='')
    >>> mix[1].channels, mix[1].at, mix[1].weight
    ((12,), (0.5, 0.25), 1.0)
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
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from dreamcore.sweeps import Channels, read_channels

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
    direction: tuple[float, ...] = ()
    """Coefficient of each channel. The channels are then one direction in the space of the layer's channels."""
    cosine: float = Field(default=0.0, ge=0)
    """Power of the cosine similarity by which a direction is multiplied; 0 leaves it out."""
    sweep: str = ""
    """Text for channels that are not known yet, such as `*`, `0-63`, `top16` or `(top16)`; see `sweeps`."""

    @field_validator("sweep")
    @classmethod
    def _check_sweep(cls, sweep: str) -> str:
        if sweep and read_channels(sweep).sweep != sweep:
            raise ValueError(f"{sweep!r} is not a sweep; write *, 0-63, top16 or weakest16")
        return sweep

    @model_validator(mode="after")
    def _can_be_excited(self) -> Self:
        if self.weight == 0:
            raise ValueError(f"the weight of {self.layer} is 0; remove the layer instead")
        if self.sweep and (self.channels or self.direction):
            raise ValueError(f"{self.layer} has channels and the sweep {self.sweep}; give only one of them")
        if self.direction and len(self.direction) != len(self.channels):
            raise ValueError(f"the direction of {self.layer} needs one coefficient for each of its channels")
        if self.direction and len(set(self.channels)) < len(self.channels):
            raise ValueError(f"the direction of {self.layer} names a channel twice; give it one coefficient")
        if 0 in self.direction:
            raise ValueError(f"the direction of {self.layer} has a coefficient 0; remove its channel instead")
        if self.cosine and not (self.channels or self.sweep):
            raise ValueError(f"{self.layer}^{self.cosine:g} needs a direction: write {self.layer}:12^{self.cosine:g}")
        if self.layer == LOGITS and self.at:
            raise ValueError(f"{LOGITS} have no position in the image; remove @{self.at[0]:g},{self.at[1]:g}")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_new_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out fields that targets of earlier versions did not have, so that no identity changes."""
        new = [name for name in ("direction", "cosine", "sweep") if not getattr(self, name)]
        return {name: value for name, value in serialize(self).items() if name not in new}

    @property
    def name(self) -> str:
        """The target without its weight, such as `blocks.4`, `blocks.4:12,17` or `blocks.4:12@0.5,0.3`."""
        factors = [f"*{factor:g}" for factor in self.direction] or [""] * len(self.channels)
        channels = ",".join(f"{channel}{factor}" for channel, factor in zip(self.channels, factors, strict=True))
        chosen = channels or self.sweep
        cosine = f"^{self.cosine:g}" if self.cosine else ""
        position = f"@{self.at[0]:g},{self.at[1]:g}" if self.at else ""
        return self.layer + (f":{chosen}" if chosen else "") + cosine + position

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.name}={self.weight:g}"


_TARGET = re.compile(
    r"(?P<layer>[^:@=+^\s]+)(:(?P<channels>[^:@=+^\s]+))?(\^(?P<cosine>[\d.]+))?"
    r"(@(?P<at>[\d.]+,[\d.]+))?(=(?P<weight>[^:=+\s]+))?"
)


def _parse_target(text: str) -> dict[str, Any]:
    match = _TARGET.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a target; write LAYER, LAYER=WEIGHT, LAYER:CHANNEL,CHANNEL or LAYER@X,Y")
    try:
        chosen = (read_channels(match["channels"]) if match["channels"] else Channels())._asdict()
    except ValueError as error:
        raise ValueError(f"{text!r} is not a target; {error}") from error
    at = match["at"].split(",") if match["at"] else None
    return {**chosen, "layer": match["layer"], "cosine": match["cosine"] or 0, "at": at, "weight": match["weight"] or 1}


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
        ValueError: there is no target, one appears twice, or several have a sweep.
    """
    if not targets:
        raise ValueError("an objective needs at least one layer")
    targets = tuple(map(_with_sorted_channels, targets))
    sweeps = [target.name for target in targets if target.sweep]
    if len(sweeps) > 1:
        raise ValueError(f"{' and '.join(sweeps)} are both sweeps, but a mix may have one: name channels in the others")
    names = [target.name for target in targets]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"{duplicates[0]} is in the mix twice; give it one weight")
    return tuple(sorted(targets, key=lambda target: target.name))


def _with_sorted_channels(target: Target) -> Target:
    if target.direction:
        pairs = sorted(zip(target.channels, target.direction, strict=True))
    else:
        pairs = [(channel, 1.0) for channel in sorted(set(target.channels))]
    is_direction = target.direction or target.cosine
    return target.model_copy(
        update={
            "channels": tuple(channel for channel, _ in pairs),
            "direction": tuple(factor for _, factor in pairs) if is_direction else (),
        }
    )


_SPELLINGS: list[dict[str, Any]] = [
    {
        "type": "string",
        "title": "Text",
        "description": "blocks.4, blocks.3=0.3+blocks.4, blocks.4:12@0.5,0.3, blocks.4:12*0.8,17*-0.3, blocks.4:0-63",
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
            "direction": {"type": "array", "items": {"type": "number"}},
            "cosine": {"type": "number", "minimum": 0},
            "sweep": {"type": "string"},
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
    if any(fields[name] for name in ("channels", "sweep", "cosine", "at")):
        raise ValueError(f"{value!r} has channels or a place; write LAYER or LAYER=WEIGHT")
    return {"layer": fields["layer"], "weight": fields["weight"]}


AnchorLayer = Annotated[Anchor, BeforeValidator(_read_anchor, json_schema_input_type=str)]
"""Field type of an anchor. It accepts an `Anchor` or the text `LAYER` or `LAYER=WEIGHT`."""
