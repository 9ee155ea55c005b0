"""What to excite: layers of a network, channels of them, single places, and mixes; as people write it.

Imports no torch, so that planning a run is cheap.
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

LOGITS = "logits"
"""The layer behind all layers: what the network answers of each class, before it becomes a probability."""


class Frozen(BaseModel):
    """A value: immutable, compared by content, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


Fraction = Annotated[float, Field(ge=0, le=1)]


class Target(Frozen):
    """One thing to excite: a layer of the network, some of its channels, or one place, with a weight in the mix."""

    layer: str = Field(min_length=1)
    """Dotted module name, such as `blocks.4`."""
    channels: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Channels of the layer; none named means all of them."""
    at: tuple[Fraction, Fraction] | None = None
    """One place of the picture, across and down, each from 0 to 1; with one channel it is a neuron."""
    weight: float = 1.0
    """Weight in the mix; a negative one suppresses."""

    @model_validator(mode="after")
    def _can_be_excited(self) -> Self:
        if self.weight == 0:
            raise ValueError(f"the weight of {self.layer} is 0: leave the layer out instead")
        if self.layer == LOGITS and self.at:
            raise ValueError(f"{LOGITS} are of the whole picture: leave the place @{self.at[0]:g},{self.at[1]:g} out")
        return self

    @property
    def name(self) -> str:
        """The target without its weight, as `blocks.4`, `blocks.4:12,17` or `blocks.4:12@0.5,0.3`."""
        channels = ":" + ",".join(map(str, self.channels)) if self.channels else ""
        place = f"@{self.at[0]:g},{self.at[1]:g}" if self.at else ""
        return self.layer + channels + place

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.name}={self.weight:g}"


_TARGET = re.compile(
    r"(?P<layer>[^:@=+\s]+)(:(?P<channels>\d+(,\d+)*))?(@(?P<at>[\d.]+,[\d.]+))?(=(?P<weight>[^:=+\s]+))?"
)


def _parse_target(text: str) -> dict[str, Any]:
    match = _TARGET.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is no target: write LAYER, LAYER=WEIGHT, LAYER:CHANNEL,CHANNEL or LAYER@ACROSS,DOWN"
        )
    channels = [int(c) for c in match["channels"].split(",")] if match["channels"] else []
    at = match["at"].split(",") if match["at"] else None
    return {"layer": match["layer"], "channels": channels, "at": at, "weight": match["weight"] or 1.0}


def _read_objective(value: object) -> object:
    """Everything that people write for an objective, as a list of targets."""
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
                f"{value!r} is no objective: write a layer (blocks.4) or a mix ({{blocks.3: 0.3, blocks.4: 1}})"
            )


def _as_sequence(value: object) -> Iterable[object]:
    return value if isinstance(value, (list, tuple)) else [value]


def canonical_order(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """The order of a mix does not matter, so it must not change the identity either."""
    if not targets:
        raise ValueError("an objective needs at least one layer")
    targets = tuple(t.model_copy(update={"channels": tuple(sorted(set(t.channels)))}) for t in targets)
    names = [target.name for target in targets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]} is in the mix twice: give it one weight")
    return tuple(sorted(targets, key=lambda target: target.name))


_WRITTEN: list[dict[str, Any]] = [
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
_TARGETS = {"type": "array", "title": "Targets", "items": {"anyOf": _WRITTEN}, "minItems": 1}

Layers = Annotated[
    tuple[Target, ...],
    BeforeValidator(_read_objective),
    AfterValidator(canonical_order),
    WithJsonSchema({"title": "Layers", "anyOf": [*_WRITTEN, _TARGETS]}),
]


def layers_label(objective: tuple[Target, ...]) -> str:
    """An objective as people write it: `blocks.3=0.3+blocks.4`."""
    return "+".join(map(str, objective))
