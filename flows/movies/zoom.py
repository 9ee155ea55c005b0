"""A zoom through dreams: a movie in which each frame is dreamt from the frame before it, seen by a camera that moves.

Frames are files in a folder beside the movie. A zoom that was stopped continues with its next frame.
"""

from collections.abc import Callable
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from dreamcore.images import encode
from flows.movies.movie_frames import FrameDreamer, MovieFrames, read_frame, settings_of_frame
from flows.movies.zoom_plan import Frame, ZoomFrames, ZoomPlan

__all__ = ["dream_frames", "write_movie"]

_Pixels = NDArray[np.uint8]


def dream_frames(plan: ZoomFrames, on_frame: Callable[[int, int], None]) -> None:
    """Dream the frames of a plan that are not finished, and write each of them as a file.

    Args:
        plan: the plan.
        on_frame: called after every frame with the finished and the total number of frames.

    Raises:
        ImageError: the photograph is too small for the network or does not fit into memory, the ascent diverged, or a
            frame of an earlier attempt is damaged.
        InvalidInput: the weights do not fit the network.
        Unavailable: a frame cannot be read or written, or the weights cannot be downloaded.
    """
    if plan.finished == len(plan.frames):
        return
    dreamer = _Dreamer(plan)  # this imports torch, which takes seconds
    first = read_frame(plan.folder, plan.frames[0].name) if plan.finished else None
    pixels = read_frame(plan.folder, plan.frames[plan.finished - 1].name) if plan.finished > 1 else first
    for frame in plan.frames[plan.finished :]:
        pixels = dreamer.dream(frame, pixels, first)
        first = pixels if first is None else first
        plan.folder.write(frame.name, encode(pixels, "png", 100, _description(frame)), "image/png")
        on_frame(frame.number + 1, len(plan.frames))


def write_movie(plan: ZoomPlan) -> None:
    """Write the movie, the poster and the preview from the finished frames.

    Raises:
        ImageError: a frame is damaged.
        Unavailable: a file cannot be read or written.
    """
    frames = MovieFrames(plan.folder, [frame.name for frame in plan.frames], plan.size, plan.options.fps)
    frames.write(plan.outputs, _description(plan.frames[0]))


def _description(frame: Frame) -> dict[str, object]:
    """Return the metadata of a frame."""
    motion = frame.motion.model_dump(mode="json")
    return {"frame": frame.name, "zoom": {"settings": settings_of_frame(frame.settings), "motion": motion}}


class _Dreamer(FrameDreamer):
    """What all frames of a zoom share.

    Args:
        plan: the plan.
    """

    def __init__(self, plan: ZoomFrames) -> None:
        from dreamcore.motion import palette

        super().__init__(plan.frames[0].settings, plan.size)
        self.plan, self.start = plan, self.to_tensor(plan.photograph)
        self.colors = None if plan.options.free_colors else palette(self.start)

    def dream(self, frame: Frame, previous: _Pixels | None, first: _Pixels | None) -> _Pixels:
        """Dream one frame.

        Args:
            frame: the frame.
            previous: the frame before (H, W, 3); None for the first frame, which starts from the photograph.
            first: the first frame (H, W, 3), to which a loop returns.

        Returns:
            The pixels (H, W, 3) of the frame.
        """
        from dreamcore.batch import to_pixels
        from dreamcore.motion import mix_in, transform, warp, with_colors

        seconds, size = 1 / self.plan.options.fps, self.plan.photograph.shape[:2]
        image = self.start
        if previous is not None:
            image = warp(self.to_tensor(previous), transform(frame.motion, seconds, size))
        if frame.pull and first is not None:
            moves = [transform(motion, seconds, size) for motion in frame.to_end]
            home = reduce(lambda one, other: one @ other, moves).inverse()
            image = mix_in(image, self.to_tensor(first), home, frame.pull)
        image = self.ascend(frame.settings, image, frame.number)
        pixels: _Pixels = to_pixels(image if self.colors is None else with_colors(image, self.colors))[0]
        return pixels
