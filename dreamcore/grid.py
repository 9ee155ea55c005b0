"""Grids of settings: axes that are combined, and single points.

The axis of a number accepts ranges such as `4-8`, which are expanded here. A sweep over channels such as `blocks.4:*`
stays one value until `catalog.expand_layers` expands it, because it depends on the network.

This module imports no torch, so that planning a run stays fast.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from dreamcore.fields import (
    L2,
    Blend,
    Calm,
    Carry,
    Clip,
    Color,
    Contrast,
    Flip,
    Gradient,
    Guide,
    Jitter,
    KeepColors,
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
    SoftClip,
    Space,
    StayNear,
    Steps,
    StepSize,
    StopAt,
    Tile,
    TotalVariation,
    Transforms,
    Weights,
)
from dreamcore.looks import LOOK, LookName
from dreamcore.presets import PRESET, PresetName
from dreamcore.settings import DreamSettings, expand_names
from dreamcore.sweeps import MAX_GRID_POINTS, read_range
from dreamcore.targets import Frozen, Layers

__all__ = ["MAX_GRID_POINTS", "Axis", "FloatAxis", "Grid", "IntegerAxis", "Point"]

_T = TypeVar("_T")
_RANGE_PATTERN = "^[0-9.eE+-]+-[0-9.eE+-]+(/[0-9]+)?$"
"""Pattern of a range in the JSON schema. Prefect shows it in messages, so it is short; `read_range` is stricter."""


def _as_list(value: object) -> object:
    """Wrap a single value of an axis in a tuple."""
    return value if value is None or isinstance(value, (list, tuple)) else (value,)


def _read_ranges(value: object, *, whole: bool) -> object:
    """Return the values of an axis with each range of numbers expanded. Any other value stays as it is."""
    values = _as_list(value)
    if not isinstance(values, (list, tuple)):
        return values
    expanded = (read_range(each, whole=whole) if isinstance(each, str) else None for each in values)
    return [one for each, numbers in zip(values, expanded, strict=True) for one in numbers or [each]]


def _not_empty(values: tuple[_T, ...] | None) -> tuple[_T, ...] | None:
    if values is not None and not values:
        raise ValueError("the list is empty; give at least one value or remove the axis")
    return values


def _as_json(point: dict[str, Any]) -> dict[str, Any]:
    """Return a point with canonical values, so that equal points compare equal however they are written."""
    if "enlarge" in point:
        raise ValueError("enlarge cannot be a point of a grid: name the dreams in the field enlarge of the job")
    if "movie" in point:
        raise ValueError("movie cannot be a point of a grid: give the field zoom of the job")
    try:
        point = expand_names(point) if {"preset", "look"} & set(point) else point
        settings = DreamSettings.model_validate(point)
    except ValidationError as error:
        raise ValueError("; ".join(map(_message, error.errors()))) from error
    return settings.model_dump(mode="json", include=set(point))


def _message(detail: Any) -> str:
    field, message = ".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else str(message)


Point = Annotated[dict[str, Any], AfterValidator(_as_json)]
"""Field type of a single point: fields of `DreamSettings`, and optionally `preset` or `look`."""


@dataclass(frozen=True)
class _OneOrMany:
    """Let the JSON schema of an axis accept one value as well as a list, with the description of the value."""

    ranges: bool = False
    """Whether a value may be a range of numbers."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        many, null = handler(schema)["anyOf"]
        one, ranges = many["items"], []
        description = {"description": one["description"]} if "description" in one else {}
        if self.ranges:
            ranges = [{"type": "string", "title": "Range", "pattern": _RANGE_PATTERN}]
            many = {**many, "items": {"anyOf": [one, *ranges]}}
        choices = [{**many, "title": "List", "minItems": 1}, {"title": "One value", **one}, *ranges, null]
        return {"anyOf": choices, **description}


_Values = tuple[_T, ...] | None
Axis = Annotated[_Values[_T], BeforeValidator(_as_list), AfterValidator(_not_empty), _OneOrMany()]
"""Field type of an axis: one value or a list of values; None leaves the setting at its default."""
IntegerAxis = Annotated[
    _Values[_T],
    BeforeValidator(partial(_read_ranges, whole=True)),
    AfterValidator(_not_empty),
    _OneOrMany(ranges=True),
]
"""Field type of an axis of whole numbers, which also accepts ranges such as `4-8`."""
FloatAxis = Annotated[
    _Values[_T],
    BeforeValidator(partial(_read_ranges, whole=False)),
    AfterValidator(_not_empty),
    _OneOrMany(ranges=True),
]
"""Field type of an axis of numbers, which also accepts ranges such as `0.004-0.012/5`."""


class Grid(Frozen):
    """A set of settings: every combination of the values on the axes, then the single points.

    A setting without an axis has the default of `DreamSettings`.
    """

    preset: Axis[PresetName] = Field(default=None, description=PRESET)
    look: Axis[LookName] = Field(default=None, description=LOOK)
    model: Axis[Model] = None
    weights: Axis[Weights] = None
    layers: Axis[Layers] = Field(
        default=None,
        description="What to excite: each entry is a layer, a mix of layers, or a sweep over channels (blocks.4:0-63).",
    )
    guide: Axis[Guide] = None
    mask: Axis[Mask] = None
    octaves: IntegerAxis[Octaves] = None
    octave_scale: FloatAxis[OctaveScale] = None
    octaves_above: IntegerAxis[OctavesAbove] = None
    rounding: Axis[Rounding] = None
    resample: Axis[Resample] = None
    steps: IntegerAxis[Steps] = None
    step_size: FloatAxis[StepSize] = None
    space: Axis[Space] = None
    stop_at: FloatAxis[StopAt] = None
    color: FloatAxis[Color] = None
    soft_clip: FloatAxis[SoftClip] = None
    calm: FloatAxis[Calm] = None
    clip: Axis[Clip] = None
    jitter: IntegerAxis[Jitter] = None
    flip: Axis[Flip] = None
    transforms: Axis[Transforms] = None
    tile: IntegerAxis[Tile] = None
    measure: Axis[Measure] = None
    gradient: Axis[Gradient] = None
    normalise: Axis[Normalise] = None
    total_variation: FloatAxis[TotalVariation] = None
    l2: FloatAxis[L2] = None
    stay_near: Axis[StayNear] = None
    carry: Axis[Carry] = None
    contrast: FloatAxis[Contrast] = None
    keep_colors: FloatAxis[KeepColors] = None
    blend: FloatAxis[Blend] = None
    seed: IntegerAxis[Seed] = None
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

    def with_defaults(self, defaults: Mapping[str, Any]) -> Self:
        """Return the grid with other defaults for some settings. They override presets and looks of its axes, too.

        Example:
            >>> grid = Grid(octaves=[3, 4], points=[{"steps": 50}]).with_defaults({"steps": 1, "octaves": 2})
            >>> [(settings.octaves, settings.steps) for settings in grid.expand()]
            [(3, 1), (4, 1), (2, 50)]
        """
        has_axes = bool(self._axes()) or not self.points
        new = {name: (value,) for name, value in defaults.items() if has_axes and getattr(self, name) is None}
        return self.model_copy(update={**new, "points": tuple({**defaults, **point} for point in self.points)})

    def expand(self, **fixed: object) -> tuple[DreamSettings, ...]:
        """Return the settings of the grid without duplicates, in a stable order. Sweeps over channels stay as written.

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
