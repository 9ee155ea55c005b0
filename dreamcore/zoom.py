"""A zoom: how long and large it is, how its camera moves, and which settings change in it.

This module imports no torch and no settings, because the settings of a dream contain a zoom.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from dreamcore.targets import Frozen

__all__ = ["DEFAULTS", "FIRST_STEPS", "Keyframe", "Motion", "Zoom", "ZoomOptions"]

DEFAULTS: Mapping[str, Any] = {"octaves": 3, "steps": 1, "calm": 0.0, "keep_colors": 0.0}
"""Settings whose defaults differ from those of a single dream. They override presets and looks, too.

With more steps, frames would differ too much. Calm areas would stay empty when they are enlarged. The colors are kept
by the palette of the movie; `keep_colors` would keep those of the frame before.
"""

FIRST_STEPS = 10
"""The first frame gets this many times the steps of the others, because it starts from the photograph."""

_Fraction = Annotated[float, Field(ge=0, le=1)]


def _read_center(value: object) -> object:
    """Return the two numbers of a point that is written as `X,Y`."""
    return value.split(",") if isinstance(value, str) else value


class Motion(Frozen):
    """How the camera moves.

    Example:
        >>> Motion(zoom=1.5, center="0.3,0.5").center
        (0.3, 0.5)
    """

    zoom: float = Field(
        default=1.3,
        ge=0.1,
        le=10,
        description="Factor by which the picture grows in each second; 1 stands still, less than 1 moves back.",
    )
    rotate: float = Field(
        default=2.0, ge=-360, le=360, description="Degrees by which the picture turns in each second, clockwise."
    )
    center: Annotated[tuple[_Fraction, _Fraction], BeforeValidator(_read_center)] = Field(
        default=(0.5, 0.5), description="Point that stays in place, as X,Y: 0,0 is the top left corner, 1,1 the other."
    )


class ZoomOptions(Frozen):
    """Size and length of a zoom."""

    seconds: float = Field(default=10.0, gt=0, le=3600, description="Length of the movie in seconds.")
    fps: float = Field(default=30.0, ge=1, le=120, description="Frames per second.")
    width: int = Field(
        default=640, ge=32, le=4096, description="Width of the movie in pixels; a smaller photograph is not enlarged."
    )
    loop: bool = False
    """Whether the last frame leads to the first one."""
    free_colors: bool = False
    """Whether the colors may intensify. By default every frame has the palette of the photograph."""

    @property
    def frames(self) -> int:
        """The number of frames."""
        return max(1, round(self.seconds * self.fps))

    @property
    def frames_of_steps(self) -> int:
        """The number of frames, with the first frame counted `FIRST_STEPS` times. It has that many times the steps."""
        return self.frames + FIRST_STEPS - 1


def _read_keyframe(value: object) -> object:
    """Return a keyframe as canonical JSON, so that settings with keyframes can be compared and hashed."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError("a keyframe is a mapping, such as {at: 5, layers: blocks.3}") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"a keyframe is a mapping, such as {{at: 5, layers: blocks.3}}, not {value!r}")  # noqa: TRY004
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


Keyframe = Annotated[str, BeforeValidator(_read_keyframe, json_schema_input_type=dict[str, Any] | str)]
"""Field type of a keyframe: a time `at` in seconds and settings by name, kept as JSON. See `dreamcore.keyframes`."""


class Zoom(ZoomOptions, Motion):
    """The movie that a run makes of a photograph instead of a single dream.

    Example:
        >>> zoom = Zoom(seconds=2, zoom=1.5, keyframes=[{"at": 1, "rotate": -2}])
        >>> zoom.frames, zoom.motion.zoom, zoom.moments
        (60, 1.5, [{'at': 1, 'rotate': -2}])
    """

    keyframes: tuple[Keyframe, ...] = Field(
        default=(), description="Settings that are reached at a time, such as {at: 5, layers: blocks.3, zoom: 1.6}."
    )

    @property
    def options(self) -> ZoomOptions:
        """Size and length."""
        return ZoomOptions(**self.model_dump(include=set(ZoomOptions.model_fields)))

    @property
    def motion(self) -> Motion:
        """The motion at the start."""
        return Motion(**self.model_dump(include=set(Motion.model_fields)))

    @property
    def moments(self) -> list[dict[str, Any]]:
        """The keyframes as mappings."""
        return [json.loads(text) for text in self.keyframes]
