"""Plan a zoom: check everything, name its frames, and find those that exist already. Nothing is dreamt here.

The name of a frame contains its identity: a digest of everything that its pixels depend on, including the frame before
it. So a frame of other settings is never reused, and a longer zoom reuses the frames of a shorter one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from dreamcore.catalog import network_spec, weights_identity_of
from dreamcore.errors import InvalidInput
from dreamcore.fields import Reference
from dreamcore.keyframes import Moment, Motion, loop_pull, read_timeline
from dreamcore.settings import DreamSettings, digest, settings_id
from flows.assets import read, resolve
from flows.calibration import kept
from flows.cost import CORE, GPU, reference_seconds, step_kind
from flows.folder import Folder, open_folder
from flows.job import explain_validation
from flows.machine import core_count, gpu_count
from flows.movie import check_video_extra, even
from flows.single import check_output_path, decode_named
from flows.storage import FAIL_FAST, Storage
from flows.work import PlannedSettings
from flows.zoom_options import ZoomOptions

__all__ = ["Frame", "Outputs", "ZoomPlan", "estimate", "plan_zoom"]

FIRST_STEPS = 10
"""The first frame gets this many times the steps of the others, because it starts from the photograph."""
LOOP_SECONDS = 3.0
"""The last seconds of a loop, in which the picture turns into the first frame; at most half of the movie."""

_VERSION = 1
"""Part of the identity of every frame. Increase it with every change after which a frame would have other pixels."""
_DECODED = 8
"""A photograph is decoded with at most this many times `width` squared pixels, and then resized."""
_FURTHER_CORE = 0.75
"""Speed that each further core adds, relative to the first core."""


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


class Outputs(NamedTuple):
    """The files of a zoom, in one folder, as paths or S3 addresses."""

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
            raise InvalidInput(f"{taken.pop()} is an input of this zoom and would be overwritten: name another movie")


@dataclass(frozen=True, eq=False)
class ZoomPlan:
    """What a zoom does, and how much of it is finished."""

    photograph: NDArray[np.uint8]
    """(H, W, 3), in the size of the movie."""
    options: ZoomOptions
    frames: Sequence[Frame]
    outputs: Outputs
    folder: Folder
    """The folder of the frames."""
    finished: int
    """How many frames exist from an earlier attempt. They are the first ones."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.photograph.shape[1], self.photograph.shape[0]


def plan_zoom(
    source: str, result: str, start: Moment, options: ZoomOptions, keyframes: Sequence[Mapping[str, Any]] = ()
) -> ZoomPlan:
    """Plan a zoom.

    Args:
        source: the photograph: a file or an S3 address.
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
    frames = _frames(start, options, keyframes)
    data = read(Reference(uri=source), "IN", lambda: Storage(FAIL_FAST))
    photograph = _resized(data, source, options.width)
    frames = _with_names(frames, hashlib.sha256(data).hexdigest(), photograph, options)
    folder = open_folder(outputs.frames)
    existing = folder.names()
    finished = next((frame.number for frame in frames if frame.name not in existing), len(frames))
    return ZoomPlan(photograph, options, frames, outputs, folder, finished)


def _frames(start: Moment, options: ZoomOptions, keyframes: Sequence[Mapping[str, Any]]) -> list[Frame]:
    """Return the frames without their names. Each has a seed of its own, so that jitter averages out over frames."""
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


def _resized(data: bytes, source: str, width: int) -> NDArray[np.uint8]:
    """Return the pixels of a photograph in the size of the movie: both sides even, not wider than the photograph."""
    decoded = decode_named(data, source, _DECODED * width * width).pixels
    width = even(min(width, decoded.shape[1]))
    height = even(decoded.shape[0] * width / decoded.shape[1])
    return np.array(Image.fromarray(decoded).resize((width, height), Image.Resampling.LANCZOS))


def _with_names(
    frames: Sequence[Frame], sha256: str, photograph: NDArray[np.uint8], options: ZoomOptions
) -> list[Frame]:
    """Return the frames with their names. The identity of a frame includes that of the frame before it.

    Args:
        frames: the frames.
        sha256: SHA-256 of the file of the photograph.
        photograph: the photograph (H, W, 3) in the size of the movie.
        options: size and length. The length is no part of an identity.
    """
    identity = digest(_VERSION, sha256, photograph.shape, options.fps, options.free_colors)
    named = []
    for frame in frames:
        own = settings_id(frame.settings, weights_identity_of(frame.settings))
        camera = [motion.model_dump(mode="json") for motion in (frame.motion, *frame.to_end)]
        identity = digest(identity, own, camera if frame.number else None, frame.pull)
        named.append(frame._replace(name=f"{frame.number:06d}-{identity}.png"))
    return named


def estimate(plan: ZoomPlan) -> float:
    """Return about how many seconds the frames of a plan that are not finished take on this machine."""
    calibration, on_gpu = kept(), gpu_count() > 0
    speed, cores = (GPU, 1.0) if on_gpu else (CORE, 1 + _FURTHER_CORE * (core_count() - 1))
    total = 0.0
    for frame in plan.frames[plan.finished :]:
        spec = network_spec(frame.settings.model)
        cost = max(spec.layer(target.layer).cost for target in frame.settings.layers)
        weights = weights_identity_of(frame.settings)
        planned = PlannedSettings(settings=frame.settings, settings_id="", weights=weights, cost=cost)
        known = calibration.speeds.get(step_kind(planned), speed) if calibration else speed
        total += reference_seconds(planned, plan.size[0] * plan.size[1]) / known / cores
    return total
