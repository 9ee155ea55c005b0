"""The part of a video that is dreamt, and the settings that it is dreamt with by default."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from dreamcore.targets import Frozen

__all__ = ["DEFAULTS", "VideoOptions"]

DEFAULTS: Mapping[str, Any] = {"octaves": 3, "steps": 1, "max_pixels": 300_000}
"""Settings whose defaults differ from those of a single dream. They override presets and looks, too.

Each frame continues the last dream, so a few steps are enough. Frames of this size take about a second each.
"""


class VideoOptions(Frozen):
    """The part of a video that is dreamt, and how."""

    start: float = Field(default=0.0, ge=0, le=86_400, description="Where to begin in the video, in seconds.")
    seconds: float | None = Field(
        default=None, gt=0, le=86_400, description="Length in seconds; default: to the end of the video."
    )
    fps: float | None = Field(
        default=None, ge=1, le=120, description="Frames per second; default: those of the video, on average."
    )
    persistence: float = Field(
        default=0.9,
        ge=0,
        le=0.98,
        description="Share of the last dream's detail that a frame keeps. With 0, frames are dreamt independently.",
    )
