"""Size and length of a zoom, and the settings that it dreams with by default."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from dreamcore.targets import Frozen

__all__ = ["DEFAULTS", "ZoomOptions"]

DEFAULTS: Mapping[str, Any] = {"octaves": 3, "steps": 1, "calm": 0.0, "keep_colors": 0.0}
"""Settings whose defaults differ from those of a single dream. They override presets and looks, too.

With more steps, frames would differ too much. Calm areas would stay empty when they are enlarged. The colors are kept
by the palette of the movie; `keep_colors` would keep those of the frame before.
"""


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
