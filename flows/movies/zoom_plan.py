"""Plan a zoom: check everything, name its frames, and find the frames that exist already. Nothing is dreamt here.

The name of a frame contains its identity: a digest of everything that its pixels depend on, including the frame before
it. So a frame of other settings is never reused, and a longer zoom reuses the frames of a shorter one.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from dreamcore.catalog import weights_identity_of
from dreamcore.errors import InvalidInput
from dreamcore.fields import Reference
from dreamcore.keyframes import Moment, loop_pull, read_timeline
from dreamcore.settings import DreamSettings, digest, settings_id
from dreamcore.zoom import FIRST_STEPS, Motion, ZoomOptions
from flows.folders.folder import Folder, open_folder
from flows.jobs.assets import read, resolve
from flows.jobs.job import explain_validation
from flows.jobs.noise_source import NOISE
from flows.movies.movie import check_video_extra, even
from flows.movies.movie_frames import Outputs
from flows.pictures.single import decode_named, read_source
from flows.s3.storage import FAIL_FAST, Storage

__all__ = ["DECODED", "Frame", "ZoomFrames", "ZoomPlan", "check_movies", "find_frames", "frames_of", "plan_zoom"]

DECODED = 8
"""A photograph is decoded with at most this many times `width` squared pixels, and then resized."""
LOOP_SECONDS = 3.0
"""The last seconds of a loop, in which the picture turns into the first frame; at most half of the movie."""

_VERSION = 1
"""Part of the identity of every frame. Increase it with every change after which a frame would have other pixels."""


class Frame(NamedTuple):
    """One frame of a zoom."""

    number: int
    """Counted from 0."""
    settings: DreamSettings
    motion: Motion
    """How the camera moves from the frame before this one."""
    pull: float = 0.0
    """Share of the first frame that is mixed in, near the end of a loop."""
    to_end: Sequence[Motion] = ()
    """How the camera moves from this frame to the first one, frame by frame, if `pull` is not 0."""
    name: str = ""
    """Name of the file. It contains the identity."""


@dataclass(frozen=True, eq=False)
class ZoomFrames:
    """The frames of a zoom, and how many are finished."""

    photograph: NDArray[np.uint8]
    """(H, W, 3), in the size of the movie."""
    options: ZoomOptions
    frames: Sequence[Frame]
    folder: Folder
    """The folder of the frames."""
    finished: int
    """How many frames exist from an earlier attempt. They are the first ones."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.photograph.shape[1], self.photograph.shape[0]


@dataclass(frozen=True, eq=False)
class ZoomPlan(ZoomFrames):
    """What `dreamgrid zoom` does, and how much of it is finished."""

    outputs: Outputs


def plan_zoom(
    source: str, result: str, start: Moment, options: ZoomOptions, keyframes: Sequence[Mapping[str, Any]] = ()
) -> ZoomPlan:
    """Plan a zoom.

    Args:
        source: the photograph: a file, an S3 address, or `noise:WIDTHxHEIGHT`.
        result: the movie: a file or an S3 address; its name ends with .mp4.
        start: settings and motion at the start.
        options: size and length.
        keyframes: settings that change; see `dreamcore.keyframes.read_timeline`.

    Raises:
        InvalidInput: a file, the network, a layer or a value is wrong, or the extra `video` is not installed.
        ImageError: the source is not an image.
        Unavailable: S3 does not respond.
    """
    check_video_extra()
    outputs = Outputs.beside(result)
    files = [file.uri for file in (start.settings.guide, start.settings.mask, start.settings.weights) if file]
    outputs.check(source, *files)
    start = start._replace(settings=resolve(start.settings, local=True))
    frames = frames_of(start, options, keyframes)
    identity, pixels = _photograph(source, start.settings, options.width)
    found = find_frames(frames, identity, pixels, options, open_folder(outputs.frames))
    return ZoomPlan(**vars(found), outputs=outputs)


def find_frames(
    frames: Sequence[Frame], source: str, pixels: NDArray[np.uint8], options: ZoomOptions, folder: Folder
) -> ZoomFrames:
    """Name the frames, and find the existing ones.

    Args:
        frames: the frames, from `frames_of`.
        source: the identity of the photograph: the SHA-256 of its file, or size and seed of the noise.
        pixels: the photograph (H, W, 3). A photograph that is narrower than the movie makes the movie narrower.
        options: size and length.
        folder: the folder of the frames.
    """
    photograph = _resized(pixels, options.width)
    named = _with_names(frames, source, photograph, options)
    existing = folder.names()
    finished = next((frame.number for frame in named if frame.name not in existing), len(named))
    return ZoomFrames(photograph, options, named, folder, finished)


def check_movies(settings: Iterable[DreamSettings]) -> None:
    """Check the movies that a run is to make, without a photograph.

    Args:
        settings: resolved settings, with or without a movie.

    Raises:
        InvalidInput: a keyframe is wrong, or the extra `video` is not installed.
    """
    for each in settings:
        if zoom := each.movie:
            check_video_extra()
            try:
                frames_of(Moment(each.model_copy(update={"movie": None}), zoom.motion), zoom.options, zoom.moments)
            except InvalidInput as error:
                raise InvalidInput(f"zoom: {error}") from error


def frames_of(start: Moment, options: ZoomOptions, keyframes: Sequence[Mapping[str, Any]]) -> list[Frame]:
    """Return the frames without their names. Each has a seed of its own, so that jitter averages out over frames.

    Raises:
        InvalidInput: a keyframe is wrong; see `dreamcore.keyframes.read_timeline`.
    """
    timeline = read_timeline(start, keyframes, seconds=options.seconds, loop=options.loop)
    try:
        moments = [timeline.at(number / options.fps) for number in range(options.frames)]
    except ValidationError as error:
        raise InvalidInput(f"between two keyframes: {explain_validation(error)}") from error
    camera = [moment.motion for moment in (*moments[1:], moments[0])]
    fading = min(LOOP_SECONDS * options.fps, len(moments) / 2)
    frames = []
    for number, moment in enumerate(moments):
        settings = moment.settings.model_copy(update={"seed": moment.settings.seed + number})
        frame = Frame(number, settings, moment.motion)
        remaining = len(moments) - number
        if options.loop and number > 0 and remaining < fading:
            frame = frame._replace(pull=loop_pull(remaining, fading), to_end=camera[number:])
        frames.append(frame)
    first = frames[0].settings
    return [frames[0]._replace(settings=first.model_copy(update={"steps": first.steps * FIRST_STEPS})), *frames[1:]]


def _photograph(source: str, settings: DreamSettings, width: int) -> tuple[str, NDArray[np.uint8]]:
    """Return the identity and the pixels of a photograph, or of the noise that `noise:WIDTHxHEIGHT` names."""
    if source.startswith(NOISE):
        return f"{source} {settings.seed}", read_source(Path(source), settings).pixels
    data = read(Reference(uri=source), "IN", lambda: Storage(FAIL_FAST))
    return hashlib.sha256(data).hexdigest(), decode_named(data, source, DECODED * width * width).pixels


def _resized(decoded: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Return the pixels of a photograph in the size of the movie: both sides even, not wider than the photograph."""
    width = even(min(width, decoded.shape[1]))
    height = even(decoded.shape[0] * width / decoded.shape[1])
    return np.array(Image.fromarray(decoded).resize((width, height), Image.Resampling.LANCZOS))


def _with_names(
    frames: Sequence[Frame], source: str, photograph: NDArray[np.uint8], options: ZoomOptions
) -> list[Frame]:
    """Return the frames with their names. The identity of a frame includes that of the frame before it.

    Args:
        frames: the frames.
        source: the identity of the photograph: the SHA-256 of its file, or size and seed of the noise.
        photograph: the photograph (H, W, 3) in the size of the movie.
        options: size and length. The length is no part of an identity.
    """
    identity = digest(_VERSION, source, photograph.shape, options.fps, options.free_colors)
    named = []
    for frame in frames:
        own = settings_id(frame.settings, weights_identity_of(frame.settings))
        camera = [motion.model_dump(mode="json") for motion in (frame.motion, *frame.to_end)]
        identity = digest(identity, own, camera if frame.number else None, frame.pull)
        named.append(frame._replace(name=f"{frame.number:06d}-{identity}.png"))
    return named
