"""Many settings: axes that are crossed, and single points.

Imports no torch, so that planning a run is cheap.
"""

import itertools
import math
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from dreamcore.presets import PRESET, PresetName
from dreamcore.settings import (
    L2,
    Carry,
    Clip,
    DreamSettings,
    Flip,
    Gradient,
    Guide,
    Jitter,
    Mask,
    Measure,
    Model,
    Normalise,
    Octaves,
    OctavesAbove,
    OctaveScale,
    Resample,
    Rounding,
    Seed,
    Space,
    Steps,
    StepSize,
    StopAt,
    Tile,
    TotalVariation,
    Weights,
    expand_preset,
)
from dreamcore.targets import Frozen, Layers

MAX_GRID_POINTS = 10_000

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
        point = expand_preset(point) if "preset" in point else point
        settings = DreamSettings.model_validate(point)
    except ValidationError as error:
        raise ValueError("; ".join(map(_complaint, error.errors()))) from error
    return settings.model_dump(mode="json", include=set(point))


def _complaint(detail: Any) -> str:
    place, message = ".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else str(message)


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

    preset: Axis[PresetName] = Field(default=None, description=PRESET)
    model: Axis[Model] = None
    weights: Axis[Weights] = None
    layers: Axis[Layers] = Field(default=None, description="What to excite: each entry is a layer or a mix of layers.")
    guide: Axis[Guide] = None
    mask: Axis[Mask] = None
    octaves: Axis[Octaves] = None
    octave_scale: Axis[OctaveScale] = None
    octaves_above: Axis[OctavesAbove] = None
    rounding: Axis[Rounding] = None
    resample: Axis[Resample] = None
    steps: Axis[Steps] = None
    step_size: Axis[StepSize] = None
    space: Axis[Space] = None
    stop_at: Axis[StopAt] = None
    clip: Axis[Clip] = None
    jitter: Axis[Jitter] = None
    flip: Axis[Flip] = None
    tile: Axis[Tile] = None
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
