"""What to dream: the settings of one dream, the grid of many, and their identity.

Imports no torch, so that planning a run is cheap.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

ALGORITHM_VERSION = 1
"""Raised whenever the same settings would give another picture; part of every `settings_id`."""

MAX_GRID_POINTS = 10_000

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


def _in_canonical_order(targets: tuple[Target, ...]) -> tuple[Target, ...]:
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

Objective = Annotated[
    tuple[Target, ...],
    BeforeValidator(_read_objective),
    AfterValidator(_in_canonical_order),
    WithJsonSchema({"title": "Objective", "anyOf": [*_WRITTEN, _TARGETS]}),
]


def objective_label(objective: tuple[Target, ...]) -> str:
    """An objective as people write it: `blocks.3=0.3+blocks.4`."""
    return "+".join(map(str, objective))


def format_of(suffix: str) -> str:
    """The output format that a file's suffix asks for, such as `jpg` for `.JPEG`; it may be no format of ours."""
    return suffix.lstrip(".").lower().replace("jpeg", "jpg")


class Output(Frozen):
    """The file a dream becomes."""

    format: Literal["png", "webp", "jpg"] = "png"
    """File format."""
    quality: int = Field(default=95, ge=1, le=100)
    """Of jpg and webp (100 is lossless webp); png is always lossless."""

    @model_validator(mode="before")
    @classmethod
    def _png_has_no_quality(cls, value: object) -> object:
        """A quality that changes no byte must not change the identity."""
        if isinstance(value, Mapping) and value.get("format", "png") == "png":
            return {name: entry for name, entry in value.items() if name != "quality"}
        return value


Model = Annotated[
    str, Field(min_length=1, description="Network: efficientnet_lite0 (bundled), a torchvision name, or timm/NAME.")
]
Octaves = Annotated[int, Field(ge=1, le=32, description="Scales, from coarse to fine; more gives larger creatures.")]
OctaveScale = Annotated[float, Field(gt=1, le=4, description="Ratio of the sizes of neighbouring octaves.")]
Steps = Annotated[int, Field(ge=0, le=10_000, description="Steps up the gradient in each octave.")]
StepSize = Annotated[
    float, Field(gt=0, le=1, description="Mean change of a pixel in one step, where 1 is black to white.")
]
Jitter = Annotated[int, Field(ge=0, le=4096, description="Largest random shift before each step, in pixels.")]
Measure = Annotated[
    Literal["log_mean_square", "mean_square", "half_sum_square", "l2_norm", "mean"],
    Field(description="What is measured of a target's activations; the logarithm makes a mix independent of scales."),
]
Gradient = Annotated[
    Literal["laplacian", "gaussian", "plain"],
    Field(description="laplacian evens out its bands: large, soft creatures; gaussian smooths it; plain is 2015."),
]
Normalise = Annotated[
    Literal["mean_abs", "std", "zero_mean_std", "rms", "adam"],
    Field(description="What the gradient is divided by before the step, or Adam's moments of it."),
]
Carry = Annotated[
    Literal["detail", "result"],
    Field(description="What goes from an octave to the next: what was dreamt into it, or the picture as it is."),
]
Flip = Annotated[bool, Field(description="Mirror the picture before about half of the steps.")]
TotalVariation = Annotated[float, Field(ge=0, description="Weight of the total variation, held against the score.")]
L2 = Annotated[float, Field(ge=0, description="Weight of the picture's mean squared change, held against the score.")]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="Seed of jitter and flips.")]
MaxPixels = Annotated[int, Field(ge=1, description="Photographs with more pixels are shrunk to this many.")]


class DreamSettings(Frozen):
    """All that changes the picture of one dream, and nothing else. The defaults make a good dream."""

    model: Model = "efficientnet_lite0"
    layers: Objective = Field(
        default=(Target(layer="blocks.4"),), description="What to excite: a layer, or a mix of layers."
    )
    octaves: Octaves = 6
    octave_scale: OctaveScale = 1.4
    steps: Steps = 10
    step_size: StepSize = 0.01
    jitter: Jitter = 32
    flip: Flip = False
    measure: Measure = "log_mean_square"
    gradient: Gradient = "laplacian"
    normalise: Normalise = "mean_abs"
    total_variation: TotalVariation = 0.0
    l2: L2 = 0.0
    carry: Carry = "detail"
    seed: Seed = 0
    max_pixels: MaxPixels = 1_000_000
    output: Output = Output()

    def canonical_json(self) -> str:
        """The one spelling of these settings, whatever way they were written."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def digest(*parts: object) -> str:
    """First 16 hex digits of the SHA-256 of `parts` as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_id(settings: DreamSettings, weights: str) -> str:
    """Identity of a picture's settings: 16 hex digits.

    What is at its default does not count, so that a setting that is new leaves the identity of all that was dreamt
    without it. A default that changes must therefore raise `ALGORITHM_VERSION`.

    Args:
        settings: the settings.
        weights: identity of the network's weights: their SHA-256, or the library's versioned name for them.
    """
    chosen = settings.model_dump(mode="json", exclude_defaults=True)
    return digest(chosen, weights, ALGORITHM_VERSION)


def result_id(source_etag: str, settings_id: str) -> str:
    """Identity of the dream of one version of a photograph under some settings: 16 hex digits."""
    return digest(source_etag, settings_id)


_T = TypeVar("_T")


def _as_list(value: object) -> object:
    """One value stands for a list of one."""
    return value if value is None or isinstance(value, (list, tuple)) else (value,)


def _not_empty(values: tuple[_T, ...] | None) -> tuple[_T, ...] | None:
    if values is not None and not values:
        raise ValueError("the list is empty, so the grid would hold no settings: give a value or leave the axis out")
    return values


def _as_json(point: dict[str, Any]) -> dict[str, Any]:
    """A point in its one spelling, whatever way it was written."""
    try:
        settings = DreamSettings.model_validate(point)
    except ValidationError as error:
        wrong = [".".join(map(str, detail["loc"])) + ": " + detail["msg"] for detail in error.errors()]
        raise ValueError("; ".join(wrong)) from error
    return settings.model_dump(mode="json", include=set(point))


Point = Annotated[dict[str, Any], AfterValidator(_as_json)]


class _OneOrMany:
    """In a form, too, an axis takes one value as well as a list, and says what its values say."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        many, nothing = handler(schema)["anyOf"]
        one = many["items"]
        said = {"description": one["description"]} if "description" in one else {}
        return {"anyOf": [{**many, "title": "List", "minItems": 1}, {"title": "One value", **one}, nothing], **said}


Axis = Annotated[tuple[_T, ...] | None, BeforeValidator(_as_list), AfterValidator(_not_empty), _OneOrMany()]


class Grid(Frozen):
    """Many settings: every combination of the values on the axes, then the explicit points.

    An axis that is left out stays at the default of `DreamSettings`.
    """

    model: Axis[Model] = None
    layers: Axis[Objective] = Field(
        default=None, description="What to excite: each entry is a layer or a mix of layers."
    )
    octaves: Axis[Octaves] = None
    octave_scale: Axis[OctaveScale] = None
    steps: Axis[Steps] = None
    step_size: Axis[StepSize] = None
    jitter: Axis[Jitter] = None
    flip: Axis[Flip] = None
    measure: Axis[Measure] = None
    gradient: Axis[Gradient] = None
    normalise: Axis[Normalise] = None
    total_variation: Axis[TotalVariation] = None
    l2: Axis[L2] = None
    carry: Axis[Carry] = None
    seed: Axis[Seed] = None
    points: tuple[Point, ...] = Field(default=(), description="Single settings besides the axes' combinations.")

    @model_validator(mode="after")
    def _is_affordable(self) -> Self:
        size = math.prod(len(values) for values in self._axes().values()) + len(self.points)
        if size > MAX_GRID_POINTS:
            raise ValueError(f"the grid has {size:,} points, {MAX_GRID_POINTS:,} are allowed: shorten an axis")
        return self

    def _axes(self) -> dict[str, tuple[Any, ...]]:
        axes = {name: getattr(self, name) for name in Grid.model_fields if name != "points"}
        return {name: values for name, values in axes.items() if values is not None}

    def expand(self, **fixed: object) -> tuple[DreamSettings, ...]:
        """All settings of the grid in a stable order, each once.

        The last axis varies fastest, the explicit points come last.

        Args:
            fixed: fields of `DreamSettings` that are the same everywhere (a point may override them).
        """
        axes = self._axes()
        crossed = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        points: list[dict[str, Any]] = [*(crossed if axes or not self.points else []), *self.points]
        return tuple(dict.fromkeys(DreamSettings.model_validate({**fixed, **point}) for point in points))
