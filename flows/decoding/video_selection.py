"""What is known of a video, and which of its frames are wanted."""

from typing import NamedTuple

__all__ = ["Selection", "VideoInfo"]


class VideoInfo(NamedTuple):
    """What is known of a video before it is decoded."""

    width: int
    """Width as displayed, in pixels."""
    height: int
    fps: float
    seconds: float
    origin: float
    """The time of the first frame in the time of the file, in seconds."""
    sound: bool


class Selection(NamedTuple):
    """Which frames of a video are wanted, at a constant rate."""

    origin: float
    """As in `VideoInfo`."""
    start: float
    """Seconds from the first frame of the video to the first frame of the selection."""
    fps: float
    width: int
    height: int
    first: int
    """Number of the first frame that is wanted; the frames before it are decoded, but not converted."""
    frames: int
    """Number of frames from `start` to the end, including those before `first`."""
