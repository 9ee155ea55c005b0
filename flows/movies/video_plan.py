"""Plan the dream of a video: check everything, name its frames, and find the frames that exist already.

The name of a frame contains its identity: a digest of everything that its pixels depend on, including the frame before
it. So a frame of other settings is never reused, and a longer part of a video reuses the frames of a shorter one.
"""

import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from pydantic import ValidationError

from dreamcore.catalog import weights_identity_of
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.fields import Reference
from dreamcore.keyframes import Moment, read_timeline
from dreamcore.settings import DreamSettings, digest, settings_id
from dreamcore.zoom import Motion
from flows.decoding.video_decoder import MAX_FRAMES, VideoFile
from flows.decoding.video_selection import Selection, VideoInfo
from flows.folders.folder import Folder, open_folder
from flows.jobs.assets import read, resolve
from flows.jobs.job import explain_validation
from flows.movies.movie import check_video_extra, even
from flows.movies.movie_frames import Outputs
from flows.movies.video_options import VideoOptions
from flows.s3.storage import FAIL_FAST, Storage

__all__ = ["Frame", "VideoPlan", "plan_video"]

_VERSION = 1
"""Part of the identity of every frame. Increase it with every change after which a frame would have other pixels."""
_CHUNK = 2**20
_ROUNDING = 1e-6
"""Part of a frame by which a length may exceed a whole number of frames."""


class Frame(NamedTuple):
    """One frame of a video."""

    number: int
    """Counted from 0, at the start of the part that is dreamt."""
    settings: DreamSettings
    name: str
    """Name of the file. It contains the identity."""


@dataclass(frozen=True, eq=False)
class VideoPlan:
    """What is dreamt of a video, and how much of it is finished."""

    video: VideoFile
    info: VideoInfo
    options: VideoOptions
    fps: float
    size: tuple[int, int]
    """Width and height of the movie in pixels, both even."""
    frames: Sequence[Frame]
    outputs: Outputs
    folder: Folder
    """The folder of the frames."""
    finished: int
    """How many frames exist from an earlier attempt. They are the first ones."""

    def selection(self, first: int) -> Selection:
        """Return the frames of the video from a number on."""
        return Selection(self.info.origin, self.options.start, self.fps, *self.size, first, len(self.frames))


@contextmanager
def plan_video(
    source: str,
    result: str,
    settings: DreamSettings,
    options: VideoOptions,
    keyframes: Sequence[Mapping[str, Any]] = (),
) -> Iterator[VideoPlan]:
    """Yield the plan of a video. The file of the video is closed at the end of the block.

    Args:
        source: the video: a file or an S3 address.
        result: the movie: a file or an S3 address; its name ends with .mp4.
        settings: the settings at the start.
        options: the part of the video, and how its dreams continue one another.
        keyframes: settings that change; see `dreamcore.keyframes.read_timeline`. Times are those of the movie.

    Raises:
        InvalidInput: a file, the network, a layer or a value is wrong, or the extra `video` is not installed.
        ImageError: the source is not a video that can be decoded.
        Unavailable: S3 does not respond.
    """
    check_video_extra()
    outputs = Outputs.beside(result)
    outputs.check(source, *(file.uri for file in (settings.guide, settings.mask, settings.weights) if file))
    settings = resolve(settings, local=True)
    with _opened(source) as file:
        sha256 = _sha256(file)
        video = VideoFile(file)
        try:
            info = video.measure()
        except ImageError as error:
            raise ImageError(error.kind, f"{source}: {error}") from error
        fps, size = options.fps or info.fps, _size(info, settings.max_pixels)
        each = _settings(settings, keyframes, _count(source, info, options, fps), fps)
        frames = _named(each, digest(_VERSION, sha256, size, fps, options.start, options.persistence))
        folder = open_folder(outputs.frames)
        existing = folder.names()
        finished = next((frame.number for frame in frames if frame.name not in existing), len(frames))
        yield VideoPlan(video, info, options, fps, size, frames, outputs, folder, finished)


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    """Open the file of a video. A file in S3 is downloaded into a temporary file.

    Raises:
        InvalidInput: the file cannot be read.
        Unavailable: S3 does not respond.
    """
    if source.startswith("s3://"):
        with tempfile.TemporaryFile() as file:
            file.write(read(Reference(uri=source), "IN", lambda: Storage(FAIL_FAST)))
            file.flush()
            file.seek(0)
            yield file
        return
    path = Path(source)
    if path.exists() and not path.is_file():
        raise InvalidInput(f"IN: {source} is not a file")
    try:
        opened = path.open("rb")
    except OSError as error:
        raise InvalidInput(f"IN: {source} cannot be read: {error.strerror}") from error
    with opened:
        yield opened


def _sha256(file: IO[bytes]) -> str:
    found = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    return found.hexdigest()


def _size(info: VideoInfo, max_pixels: int) -> tuple[int, int]:
    """Return the size of a movie: both sides even, with about `max_pixels` pixels at most."""
    scale = min(1.0, math.sqrt(max_pixels / (info.width * info.height)))
    return even(info.width * scale), even(info.height * scale)


def _count(source: str, info: VideoInfo, options: VideoOptions, fps: float) -> int:
    """Return the number of frames.

    Raises:
        InvalidInput: the video is shorter than `options.start`, or has too many frames.
    """
    rest = info.seconds - options.start
    if rest <= 0:
        raise InvalidInput(f"{source} is {info.seconds:.2f} s long: give a smaller --start")
    count = max(1, math.ceil(min(rest, options.seconds or rest) * fps - _ROUNDING - 0.5))
    if count > MAX_FRAMES:
        raise InvalidInput(f"{source} has {count:,} frames: give --seconds, so that there are at most {MAX_FRAMES:,}")
    return count


def _settings(
    settings: DreamSettings, keyframes: Sequence[Mapping[str, Any]], count: int, fps: float
) -> list[DreamSettings]:
    """Return the settings of each frame. Each has a seed of its own, so that jitter averages out over frames."""
    for keyframe in keyframes:
        if isinstance(keyframe, Mapping) and (moves := keyframe.keys() & Motion.model_fields.keys()):
            raise InvalidInput(f"a keyframe names {min(moves)}, but the camera of a video does not move: leave it out")
    timeline = read_timeline(Moment(settings, Motion()), keyframes, seconds=count / fps)
    try:
        each = [timeline.at(number / fps).settings for number in range(count)]
    except ValidationError as error:
        raise InvalidInput(f"between two keyframes: {explain_validation(error)}") from error
    return [one.model_copy(update={"seed": one.seed + number}) for number, one in enumerate(each)]


def _named(settings: Sequence[DreamSettings], identity: str) -> list[Frame]:
    """Return the frames with their names. The identity of a frame includes that of the frame before it."""
    frames = []
    for number, each in enumerate(settings):
        identity = digest(identity, settings_id(each, weights_identity_of(each)))
        frames.append(Frame(number, each, f"{number:06d}-{identity}.png"))
    return frames
