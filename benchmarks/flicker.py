"""Measure how much the dream of a video flickers: `python -m benchmarks.flicker [VIDEO ...]`.

Flicker is what changes between two frames besides the motion: the mean difference between a frame and the frame before
it, moved by the optical flow of the source, where both show the same point. It is the warping error of Lai et al.,
"Learning Blind Video Temporal Consistency" (2018), as a mean of absolute values from 0 to 255. The same number for the
source itself contains noise of the camera and errors of the flow.

Without videos, clips are made of the photographs in `examples/photos` by moving a camera: one pans, one zooms while a
second photograph in front of the first one moves faster (parallax).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dreamcore.catalog import resolve_layers
from dreamcore.optical_flow import optical_flow, track
from dreamcore.results import to_tensor
from dreamcore.settings import DreamSettings
from flows.decoding.video_decoder import VideoFile
from flows.decoding.video_selection import Selection
from flows.movies.video import VideoDreamer
from flows.movies.video_options import DEFAULTS, VideoOptions

__all__ = ["Flicker", "dream_clip", "main", "measure_flicker", "pan", "parallax"]

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
WARM_UP = 3
"""Frames at the beginning that are not measured, because every first frame is dreamt alone."""

Clip = list[NDArray[np.uint8]]


class Flicker(NamedTuple):
    """Mean differences between successive frames, from 0 to 255."""

    moved: float
    """After the frame before was moved by the flow: the flicker."""
    raw: float
    """Without moving it."""


def measure_flicker(source: Clip, frames: Clip) -> Flicker:
    """Return the flicker of frames (H, W, 3) that show what the frames of `source` show."""
    moved, raw = [], []
    for number in range(1 + min(WARM_UP, len(frames) - 2), len(frames)):
        flow = optical_flow(source[number - 1], source[number])
        one, other = to_tensor(frames[number - 1]), to_tensor(frames[number])
        change = (track(one, flow.back, "bicubic") - other).abs().mean(1, keepdim=True)
        moved.append(float((change * flow.visible).sum() / flow.visible.sum()))
        raw.append(float((one - other).abs().mean()))
    return Flicker(255 * float(np.mean(moved)), 255 * float(np.mean(raw)))


def dream_clip(clip: Clip, settings: DreamSettings, persistence: float) -> Clip:
    """Return the dreams of a clip, as `dreamgrid video` makes them, but with the same seed for all frames.

    A seed of its own for each frame would make independent dreams flicker even more.
    """
    height, width = clip[0].shape[:2]
    dreamer = VideoDreamer(settings, (width, height), persistence)
    dreams: Clip = []
    for number, frame in enumerate(clip):
        dreams.append(dreamer.dream(settings, frame, (clip[number - 1], dreams[-1]) if number else None))
    return dreams


def pan(photo: Path, frames: int, size: tuple[int, int]) -> Clip:
    """Return a clip of a camera that moves over a photograph by 2.5 and 0.8 pixels a frame."""
    image = _wide(photo, size, 1.5)
    return [_crop(image, 2.5 * number, 0.8 * number, 1.0, size) for number in range(frames)]


def parallax(behind: Path, front: Path, frames: int, size: tuple[int, int]) -> Clip:
    """Return a clip of a camera that zooms into a photograph, with a part of another one moving in front of it."""
    back, near = _wide(behind, size, 1.2), _wide(front, size, 1.2)
    clip = []
    for number in range(frames):
        frame = Image.fromarray(_crop(back, 5, 5, 1.008**number, size))
        patch = Image.fromarray(_crop(near, 20, 20, 1.004**number, size))
        mask = Image.new("L", (4 * size[0], 4 * size[1]))
        x, y = 4 * (size[0] * 0.15 + 3 * number), 4 * size[1] * 0.3
        ImageDraw.Draw(mask).ellipse((x, y, x + 1.6 * size[0], y + 2.2 * size[1]), fill=255)
        moved = patch.transform(size, Image.Transform.AFFINE, (1, 0, -3.0 * number, 0, 1, 0), Image.Resampling.BICUBIC)
        frame.paste(moved, mask=mask.resize(size, Image.Resampling.LANCZOS))
        clip.append(np.asarray(frame))
    return clip


def _wide(photo: Path, size: tuple[int, int], margin: float) -> Image.Image:
    image = Image.open(photo).convert("RGB")
    scale = margin * max(size[0] / image.width, size[1] / image.height)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _crop(image: Image.Image, x: float, y: float, zoom: float, size: tuple[int, int]) -> NDArray[np.uint8]:
    middle = (x + size[0] / 2, y + size[1] / 2)
    left, top = middle[0] - size[0] / 2 / zoom, middle[1] - size[1] / 2 / zoom
    matrix = (1 / zoom, 0, left, 0, 1 / zoom, top)
    return np.asarray(image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))


def _read(path: Path, frames: int, pixels: int) -> Clip:
    with path.open("rb") as file:
        video = VideoFile(file)
        info = video.measure()
        scale = min(1.0, (pixels / (info.width * info.height)) ** 0.5)
        size = round(info.width * scale), round(info.height * scale)
        return list(video.frames(Selection(info.origin, 0.0, info.fps, *size, 0, frames)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the flicker of some clips. Return 1 if a clip flickers more than half as much as independent dreams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--pixels", type=int, default=57_600, help="size of a frame")
    parser.add_argument("--out", type=Path, help="a folder for the frames")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    width = 2 * round((options.pixels * 16 / 9) ** 0.5 / 2)
    size = width, 2 * round(width * 9 / 32)
    clips = {path.name: _read(path, options.frames, options.pixels) for path in options.videos} or {
        "pan over rocket.jpg": pan(PHOTOS / "rocket.jpg", options.frames, size),
        "coffee.jpg before chelsea.png": parallax(PHOTOS / "chelsea.png", PHOTOS / "coffee.jpg", options.frames, size),
    }
    settings = resolve_layers(DreamSettings.model_validate(DEFAULTS))
    persistence = VideoOptions().persistence
    alone = settings.model_copy(update={"steps": round(settings.steps / (1 - persistence))})
    print(f"{'clip':34} {'source':>13} {'frame by frame':>15} {'with the flow':>14} {'share':>6}   moved (raw)")
    worst = 0.0
    for name, clip in clips.items():
        dreams = {"alone": dream_clip(clip, alone, 0.0), "flow": dream_clip(clip, settings, persistence)}
        found = [measure_flicker(clip, frames) for frames in (clip, *dreams.values())]
        share = found[2].moved / found[1].moved
        worst = max(worst, share)
        cells = " ".join(f"{each.moved:7.2f} ({each.raw:4.1f})" for each in found)
        print(f"{name:34} {cells} {share:6.2f}", flush=True)
        for kind, frames in {"source": clip, **dreams}.items():
            for number, frame in enumerate(frames if options.out else []):
                Image.fromarray(frame).save(options.out / f"{name.split('.')[0]}-{kind}-{number:03}.png")
    return int(worst > 0.5)


if __name__ == "__main__":
    sys.exit(main())
