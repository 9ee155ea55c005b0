"""A zoom through dreams: a movie in which each frame is dreamt from the frame before it, seen by a camera that moves.

Frames are files in a folder beside the movie. A zoom that was stopped continues with its next frame.
"""

import tempfile
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dreamcore.errors import ImageError
from dreamcore.images import Photograph, encode
from flows.assets import load_guide_and_mask, network_for
from flows.folder import write_whole
from flows.machine import choose_device, max_memory
from flows.movie import MovieWriter, Preview
from flows.single import decode_named
from flows.worker_process import disable_heap_trimming
from flows.zoom_plan import Frame, ZoomPlan

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["dream_frames", "write_movie"]

POSTER_QUALITY = 90

_Pixels = NDArray[np.uint8]


def dream_frames(plan: ZoomPlan, on_frame: Callable[[int, int], None]) -> None:
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
    first = _read(plan, plan.frames[0]) if plan.finished else None
    pixels = _read(plan, plan.frames[plan.finished - 1]) if plan.finished > 1 else first
    for frame in plan.frames[plan.finished :]:
        pixels = dreamer.dream(frame, pixels, first)
        first = pixels if first is None else first
        plan.folder.write(frame.name, _encode(frame, pixels), "image/png")
        on_frame(frame.number + 1, len(plan.frames))


def write_movie(plan: ZoomPlan) -> None:
    """Write the movie, the poster and the preview from the finished frames.

    Raises:
        ImageError: a frame is damaged.
        Unavailable: a file cannot be read or written.
    """
    preview = Preview(len(plan.frames), plan.options.fps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "movie.mp4"
        with MovieWriter(path, plan.size, plan.options.fps) as movie:
            for frame in plan.frames:
                pixels = _read(plan, frame)
                movie.write(pixels)
                preview.add(frame.number, pixels)
        data = path.read_bytes()
    poster = encode(_read(plan, plan.frames[0]), "jpg", POSTER_QUALITY, _description(plan.frames[0]))
    write_whole(plan.outputs.poster, poster, "image/jpeg")
    write_whole(plan.outputs.preview, preview.encode(), "image/webp")
    write_whole(plan.outputs.movie, data, "video/mp4")


def _read(plan: ZoomPlan, frame: Frame) -> _Pixels:
    """Return the pixels (H, W, 3) of a finished frame."""
    address = plan.folder.address + frame.name
    try:
        return decode_named(plan.folder.read(frame.name), address).pixels
    except ImageError as error:
        raise ImageError(error.kind, f"{error}: delete this frame and give the same command again") from error


def _encode(frame: Frame, pixels: _Pixels) -> bytes:
    return encode(pixels, "png", 100, _description(frame))


def _description(frame: Frame) -> dict[str, object]:
    """Return the metadata of a frame. Guide, mask and weights are left out: they may be files of this machine."""
    settings = frame.settings.model_dump(mode="json", exclude={"guide", "mask", "weights", "max_pixels", "output"})
    return {"frame": frame.name, "zoom": {"settings": settings, "motion": frame.motion.model_dump(mode="json")}}


class _Dreamer:
    """The network and everything else that all frames of a zoom share.

    Args:
        plan: the plan.
    """

    def __init__(self, plan: ZoomPlan) -> None:
        from dreamcore.batch import to_mask, to_tensor
        from dreamcore.motion import palette

        settings = plan.frames[0].settings
        device = choose_device()
        self.plan, self.memory = plan, max_memory(device)
        if device == "cpu":
            disable_heap_trimming(self.memory)
        guide, mask = load_guide_and_mask(settings)
        self.network = network_for(settings, device)
        photograph = Photograph(plan.photograph, *plan.size)
        self.start = to_tensor(plan.photograph, self.network.device)
        self.colors = None if plan.options.free_colors else palette(self.start)
        self.guide = to_tensor(guide.pixels, self.network.device)[0] if guide else None
        self.mask = to_mask(mask, photograph, self.network.device) if mask else None

    def dream(self, frame: Frame, previous: _Pixels | None, first: _Pixels | None) -> _Pixels:
        """Dream one frame.

        Args:
            frame: the frame.
            previous: the frame before (H, W, 3); None for the first frame, which starts from the photograph.
            first: the first frame (H, W, 3), to which a loop returns.

        Returns:
            The pixels (H, W, 3) of the frame.
        """
        from dreamcore.batch import to_pixels, to_tensor
        from dreamcore.motion import mix_in, transform, warp, with_colors

        seconds, size = 1 / self.plan.options.fps, self.plan.photograph.shape[:2]
        image = self.start
        if previous is not None:
            image = warp(to_tensor(previous, self.network.device), transform(frame.motion, seconds, size))
        if frame.pull and first is not None:
            moves = [transform(motion, seconds, size) for motion in frame.to_end]
            home = reduce(lambda one, other: one @ other, moves).inverse()
            image = mix_in(image, to_tensor(first, self.network.device), home, frame.pull)
        image = self._ascend(frame, image)
        pixels: _Pixels = to_pixels(image if self.colors is None else with_colors(image, self.colors))[0]
        return pixels

    def _ascend(self, frame: Frame, image: "Tensor") -> "Tensor":
        from torch import OutOfMemoryError

        from dreamcore.ascent import Sample, ascend
        from dreamcore.memory import choose_tile
        from dreamcore.octaves import octave_sizes

        layers = {target.layer for target in frame.settings.layers}
        sizes = octave_sizes((image.shape[-2], image.shape[-1]), frame.settings, self.network.spec.min_size)
        tile = choose_tile(self.network, layers, max(sizes), self.memory)
        sample = Sample(image[0], frame.settings, self.guide, self.mask)
        try:
            dreamt = ascend(self.network, [sample], tile).images
        except (MemoryError, OutOfMemoryError) as error:
            raise ImageError("out_of_memory", "not enough memory: lower --width or --max-memory") from error
        if not dreamt.isfinite().all():
            raise ImageError("non_finite", f"frame {frame.number} diverged to NaN or infinity: lower step_size")
        return dreamt
