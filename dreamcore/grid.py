"""Grids of settings: axes that are combined, and single points.

This module imports no torch, so that planning a run stays fast.
"""

import itertools
import math
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from dreamcore.fields import (
    L2,
    Carry,
    Clip,
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
    Transforms,
    Weights,
)
from dreamcore.presets import PRESET, PresetName
from dreamcore.settings import DreamSettings, expand_preset
from dreamcore.targets import Frozen, Layers

__all__ = ["MAX_GRID_POINTS", "Axis", "Grid", "Point"]

MAX_GRID_POINTS = 10_000
"""Largest number of points in a grid, duplicates included."""

_T = TypeVar("_T")


def _as_list(value: object) -> object:
    """Wrap a single value of an axis in a tuple."""
    return value if value is None or isinstance(value, (list, tuple)) else (value,)


def _not_empty(values: tuple[_T, ...] | None) -> tuple[_T, ...] | None:
    if values is not None and not values:
        raise ValueError("the list is empty; give at least one value or remove the axis")
    return values


def _as_json(point: dict[str, Any]) -> dict[str, Any]:
    """Return a point with canonical values, so that equal points compare equal however they are written."""
    try:
        point = expand_preset(point) if "preset" in point else point
        settings = DreamSettings.model_validate(point)
    except ValidationError as error:
        raise ValueError("; ".join(map(_message, error.errors()))) from error
    return settings.model_dump(mode="json", include=set(point))


def _message(detail: Any) -> str:
    field, message = ".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else str(message)


Point = Annotated[dict[str, Any], AfterValidator(_as_json)]
"""Field type of a single point: fields of `DreamSettings`, and optionally `preset`."""


class _OneOrMany:
    """Let the JSON schema of an axis accept one value as well as a list, with the description of the value."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        many, null = handler(schema)["anyOf"]
        one = many["items"]
        description = {"description": one["description"]} if "description" in one else {}
        choices = [{**many, "title": "List", "minItems": 1}, {"title": "One value", **one}, null]
        return {"anyOf": choices, **description}


Axis = Annotated[tuple[_T, ...] | None, BeforeValidator(_as_list), AfterValidator(_not_empty), _OneOrMany()]
"""Field type of an axis: one value or a list of values; None leaves the setting at its default."""


class Grid(Frozen):
    """A set of settings: every combination of the values on the axes, then the single points.

    A setting without an axis has the default of `DreamSettings`.
    """

    preset: Axis[PresetName] = Field(default=None, description=PRESET)
    model: Axis[Model] = None
    weights: Axis[Weights] = None
    layers: Axis[Layers] = Field(default=None, description="What to excite: each entry is a layer, or a mix of layers.")
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
    transforms: Axis[Transforms] = None
    tile: Axis[Tile] = None
    measure: Axis[Measure] = None
    gradient: Axis[Gradient] = None
    normalise: Axis[Normalise] = None
    total_variation: Axis[TotalVariation] = None
    l2: Axis[L2] = None
    carry: Axis[Carry] = None
    seed: Axis[Seed] = None
    points: tuple[Point, ...] = Field(
        default=(), description="Single settings in addition to the combinations of the axes."
    )

    @model_validator(mode="after")
    def _is_affordable(self) -> Self:
        size = math.prod(len(values) for values in self._axes().values()) + len(self.points)
        if size > MAX_GRID_POINTS:
            raise ValueError(
                f"the grid has {size:,} points, but at most {MAX_GRID_POINTS:,} are allowed; shorten an axis"
            )
        return self

    def _axes(self) -> dict[str, tuple[Any, ...]]:
        axes = {name: getattr(self, name) for name in Grid.model_fields if name != "points"}
        return {name: values for name, values in axes.items() if values is not None}

    def expand(self, **fixed: object) -> tuple[DreamSettings, ...]:
        """Return the settings of the grid without duplicates, in a stable order.

        The last axis varies fastest. The single points come last.

        Args:
            fixed: fields of `DreamSettings` for all settings of the grid. Axes and points override them.

        Raises:
            ValidationError: two values contradict each other in one of the combinations.

        Example:
            >>> grid = Grid(octaves=[3, 4], steps=[10, 20], points=[{"steps": 50}])
            >>> [(settings.octaves, settings.steps) for settings in grid.expand()]
            [(3, 10), (3, 20), (4, 10), (4, 20), (6, 50)]
        """
        axes = self._axes()
        combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        points: list[dict[str, Any]] = [*(combinations if axes or not self.points else []), *self.points]
        return tuple(dict.fromkeys(DreamSettings.model_validate({**fixed, **point}) for point in points))
