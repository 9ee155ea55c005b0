"""The dream of a video: each frame starts from the last dream, moved by the optical flow of the video.

Frames are files in a folder beside the movie. A dream that was stopped continues with its next frame.
"""

from collections.abc import Callable
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dreamcore.errors import ImageError
from dreamcore.images import encode
from dreamcore.settings import DreamSettings
from flows.movies.movie_frames import FrameDreamer, MovieFrames, read_frame, settings_of_frame
from flows.movies.video_plan import Frame, VideoPlan

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["VideoDreamer", "dream_frames", "write_movie"]

_NEUTRAL = {"contrast": 1.0, "keep_colors": 0.0, "blend": 0.0}
_Pixels = NDArray[np.uint8]


def dream_frames(plan: VideoPlan, on_frame: Callable[[int, int], None]) -> int:
    """Dream the frames of a plan that are not finished, and write each of them as a file.

    Args:
        plan: the plan.
        on_frame: called after every frame with the finished and the total number of frames.

    Returns:
        The number of frames of the movie. It is smaller than planned if the end of the video is damaged.

    Raises:
        ImageError: the video cannot be decoded, its frames are too small for the network or do not fit into memory,
            the ascent diverged, or a frame of an earlier attempt is damaged.
        InvalidInput: the weights do not fit the network.
        Unavailable: a frame cannot be read or written, or the weights cannot be downloaded.
    """
    if plan.finished == len(plan.frames):
        return plan.finished
    dreamer = VideoDreamer(plan.frames[0].settings, plan.size, plan.options.persistence)
    done = begin = max(plan.finished - 1, 0)  # the next dream needs the last finished frame and its dream
    previous: _Pixels | None = None
    dream: _Pixels | None = None
    for pixels, frame in zip(plan.video.frames(plan.selection(begin)), plan.frames[begin:], strict=False):
        if frame.number < plan.finished:
            dream = read_frame(plan.folder, frame.name)
        else:
            last = None if previous is None or dream is None else (previous, dream)
            dream = dreamer.dream(frame.settings, pixels, last)
            plan.folder.write(frame.name, encode(dream, "png", 100, _description(plan, frame)), "image/png")
            on_frame(frame.number + 1, len(plan.frames))
        previous, done = pixels, frame.number + 1
    if done == 0:
        raise ImageError("damaged", "no frame of this part of the video can be decoded")
    return done


def write_movie(plan: VideoPlan, count: int, *, sound: bool) -> None:
    """Write the movie, the poster and the preview from the finished frames.

    Args:
        plan: the plan.
        count: the number of frames.
        sound: whether to add the sound of the video.

    Raises:
        ImageError: a frame is damaged, or the sound cannot be decoded.
        Unavailable: a file cannot be read or written.
    """

    def add_sound(movie: IO[bytes], result: IO[bytes]) -> None:
        plan.video.add_sound(movie, result, plan.info.origin + plan.options.start, count / plan.fps)

    frames = MovieFrames(plan.folder, [frame.name for frame in plan.frames[:count]], plan.size, plan.fps)
    frames.write(plan.outputs, _description(plan, plan.frames[0]), add_sound if sound else None)


def _description(plan: VideoPlan, frame: Frame) -> dict[str, object]:
    """Return the metadata of a frame."""
    options = plan.options.model_dump(mode="json", exclude_none=True)
    return {"frame": frame.name, "video": {"settings": settings_of_frame(frame.settings), "options": options}}


class VideoDreamer(FrameDreamer):
    """What all frames of a video share.

    Args:
        settings: the settings of a frame.
        size: width and height of a frame in pixels.
        persistence: share of the last dream's detail that a frame keeps.
    """

    def __init__(self, settings: DreamSettings, size: tuple[int, int], persistence: float) -> None:
        super().__init__(settings, size)
        self.persistence = persistence

    def dream(self, settings: DreamSettings, pixels: _Pixels, last: tuple[_Pixels, _Pixels] | None) -> _Pixels:
        """Dream one frame.

        Args:
            settings: the settings of the frame, with the steps of a frame that continues a dream.
            pixels: the frame (H, W, 3).
            last: the frame before and its dream; None for the first frame. After a cut they are not used.

        Returns:
            The pixels (H, W, 3) of the dream.
        """
        from dreamcore.batch import to_pixels
        from dreamcore.finish import finish
        from dreamcore.follow import finishing, first_steps

        image = self.to_tensor(pixels)
        start = self._continued(image, pixels, last) if last and self.persistence else None
        if start is None:
            steps, final = first_steps(settings.steps, self.persistence), settings
        else:
            steps, final = settings.steps, finishing(settings, self.persistence)
        own = settings.model_copy(update={**_NEUTRAL, "steps": steps})
        dream = self.ascend(own, image if start is None else start, settings.seed)
        finished: _Pixels = to_pixels(finish(dream, image, [self.mask], [final]))[0]
        return finished

    def _continued(self, image: "Tensor", pixels: _Pixels, last: tuple[_Pixels, _Pixels]) -> "Tensor | None":
        """Return the image (1, 3, H, W) that continues the last dream, or None after a cut."""
        from dreamcore.follow import follow, is_cut
        from dreamcore.optical_flow import optical_flow

        previous, dream = last
        flow = optical_flow(previous, pixels)
        if is_cut(flow):
            return None
        start = follow(image, self.to_tensor(previous), self.to_tensor(dream), flow, self.persistence)
        return start if self.mask is None else image.lerp(start, self.mask)
