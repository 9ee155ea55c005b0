"""What all movies of dreams share: their files, the network that dreams their frames, and an estimate of the time."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dreamcore.catalog import network_spec, weights_identity_of
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.images import Photograph, encode
from dreamcore.settings import DreamSettings
from flows.folders.folder import Folder, write_whole
from flows.jobs.assets import load_guide_and_mask, network_for
from flows.jobs.calibration import kept
from flows.jobs.cost import CORE, GPU, reference_seconds, step_kind
from flows.jobs.work import PlannedSettings
from flows.machine.machine import choose_device, core_count, gpu_count, max_memory
from flows.machine.worker_process import disable_heap_trimming
from flows.movies.movie import MovieWriter, Preview
from flows.pictures.single import check_output_path, decode_named

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FrameDreamer", "MovieFrames", "Outputs", "estimate", "read_frame", "settings_of_frame"]

POSTER_QUALITY = 90

_FURTHER_CORE = 0.75
"""Speed that each further core adds, relative to the first core."""
_LOCAL = {"guide", "mask", "weights", "max_pixels", "output"}

Pixels = NDArray[np.uint8]


class Outputs(NamedTuple):
    """The files of a movie, in one folder, as paths or S3 addresses."""

    movie: str
    poster: str
    preview: str
    frames: str
    """The folder of the frames."""

    @classmethod
    def beside(cls, result: str) -> "Outputs":
        """Return the files of the movie `result`, a path or an S3 address.

        Raises:
            InvalidInput: the name does not end with .mp4.
        """
        stem = result[:-4]
        if not result.lower().endswith(".mp4") or stem.endswith("/") or not stem:
            raise InvalidInput(f"{result}: the name of the movie must end with .mp4")
        return cls(result, f"{stem}.poster.jpg", f"{stem}.preview.webp", f"{stem}.frames")

    def check(self, *inputs: str) -> None:
        """Raise `InvalidInput` if the folder does not exist, or if a file would replace one of the `inputs`."""
        files = (self.movie, self.poster, self.preview)
        if not self.movie.startswith("s3://"):
            for path in files:
                check_output_path(Path(path), *inputs)
        elif taken := set(files) & set(inputs):
            raise InvalidInput(f"{taken.pop()} is an input of this movie and would be overwritten: name another movie")


def estimate(settings: Sequence[DreamSettings], pixels: int) -> float:
    """Return about how many seconds frames take on this machine.

    Args:
        settings: the settings of each frame.
        pixels: number of pixels of a frame.
    """
    calibration, on_gpu = kept(), gpu_count() > 0
    speed, cores = (GPU, 1.0) if on_gpu else (CORE, 1 + _FURTHER_CORE * (core_count() - 1))
    total = 0.0
    for each in settings:
        spec = network_spec(each.model)
        cost = max(spec.layer(target.layer).cost for target in each.layers)
        planned = PlannedSettings(settings=each, settings_id="", weights=weights_identity_of(each), cost=cost)
        known = calibration.speeds.get(step_kind(planned), speed) if calibration else speed
        total += reference_seconds(planned, pixels) / known / cores
    return total


def read_frame(folder: Folder, name: str) -> Pixels:
    """Return the pixels (H, W, 3) of a finished frame.

    Raises:
        ImageError: the frame is damaged.
        Unavailable: it cannot be read.
    """
    try:
        return decode_named(folder.read(name), folder.address + name).pixels
    except ImageError as error:
        raise ImageError(error.kind, f"{error}: delete this frame and give the same command again") from error


def settings_of_frame(settings: DreamSettings) -> dict[str, Any]:
    """Return settings for the metadata of a frame, without files, which may be files of this machine."""
    return settings.model_dump(mode="json", exclude=_LOCAL)


@dataclass(frozen=True)
class MovieFrames:
    """The finished frames of a movie.

    Raises:
        ImageError: a frame is damaged.
        Unavailable: a file cannot be read or written.
    """

    folder: Folder
    names: Sequence[str]
    size: tuple[int, int]
    """Width and height in pixels."""
    fps: float

    def write(
        self,
        outputs: Outputs,
        description: Mapping[str, object],
        add_sound: Callable[[IO[bytes], IO[bytes]], None] | None = None,
    ) -> None:
        """Write the movie, the poster and the preview.

        Args:
            outputs: the files to write.
            description: the metadata of the poster.
            add_sound: writes the movie in its first file with sound to its second one; None for a movie without sound.
        """
        preview = Preview(len(self.names), self.fps)
        data = self.encode(preview.add, add_sound)
        poster = encode(read_frame(self.folder, self.names[0]), "jpg", POSTER_QUALITY, dict(description))
        write_whole(outputs.poster, poster, "image/jpeg")
        write_whole(outputs.preview, preview.encode(), "image/webp")
        write_whole(outputs.movie, data, "video/mp4")

    def encode(
        self,
        on_frame: Callable[[int, Pixels], None] = lambda *_: None,
        add_sound: Callable[[IO[bytes], IO[bytes]], None] | None = None,
    ) -> bytes:
        """Return the movie as an MP4 file.

        Args:
            on_frame: called with the number and the pixels (H, W, 3) of each frame.
            add_sound: as in `write`.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "movie.mp4"
            with MovieWriter(path, self.size, self.fps) as movie:
                for number, name in enumerate(self.names):
                    pixels = read_frame(self.folder, name)
                    movie.write(pixels)
                    on_frame(number, pixels)
            if add_sound:
                silent, path = path, Path(folder) / "sound.mp4"
                with silent.open("rb") as pictures, path.open("wb") as result:
                    add_sound(pictures, result)
            return path.read_bytes()


class FrameDreamer:
    """The network and everything else that all frames of a movie share.

    Args:
        settings: the settings of a frame; the network, the guide and the mask of all frames are the same.
        size: width and height of a frame in pixels.
    """

    def __init__(self, settings: DreamSettings, size: tuple[int, int]) -> None:
        from dreamcore.batch import to_mask, to_tensor

        device = choose_device()
        self.memory = max_memory(device)
        if device == "cpu":
            disable_heap_trimming(self.memory)
        guide, mask = load_guide_and_mask(settings)
        self.network = network_for(settings, device)
        self.guide = to_tensor(guide.pixels, self.network.device)[0] if guide else None
        frame = Photograph(np.empty((size[1], size[0], 3), np.uint8), *size)
        self.mask = to_mask(mask, frame, self.network.device) if mask else None

    def to_tensor(self, pixels: Pixels) -> "Tensor":
        """Return pixels (H, W, 3) as an image (1, 3, H, W) in [0, 1] on the device of the network."""
        from dreamcore.batch import to_tensor

        return to_tensor(pixels, self.network.device)

    def ascend(self, settings: DreamSettings, image: "Tensor", number: int) -> "Tensor":
        """Return the dream (1, 3, H, W) of an image.

        Raises:
            ImageError: the image does not fit into memory, or the ascent diverged. The message names frame `number`.
        """
        from torch import OutOfMemoryError

        from dreamcore.ascent import Sample, ascend
        from dreamcore.memory import choose_tile
        from dreamcore.octaves import octave_sizes

        layers = {target.layer for target in settings.layers}
        sizes = octave_sizes((image.shape[-2], image.shape[-1]), settings, self.network.spec.min_size)
        tile = choose_tile(self.network, layers, max(sizes), self.memory)
        sample = Sample(image[0], settings, self.guide, self.mask)
        try:
            dreamt = ascend(self.network, [sample], tile).images
        except (MemoryError, OutOfMemoryError) as error:
            raise ImageError(
                "out_of_memory", "not enough memory: make a smaller movie or raise --max-memory"
            ) from error
        if not dreamt.isfinite().all():
            raise ImageError("non_finite", f"frame {number} diverged to NaN or infinity: lower step_size")
        return dreamt
