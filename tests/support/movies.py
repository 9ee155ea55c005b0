"""Small movies for tests, written by FFmpeg's encoders."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.support.tiny import pixels

__all__ = ["SOUND_RATE", "corner", "moving", "turn", "write_movie"]

SOUND_RATE = 48_000
Frames = Sequence[NDArray[Any]]


def moving(frames: int, shift: int = 2, size: tuple[int, int] = (64, 96)) -> list[NDArray[np.uint8]]:
    """Return frames (H, W, 3) of a smooth random picture that moves to the left."""
    height, width = size
    small = Image.fromarray(pixels(16, 64, 5)).resize((width + shift * frames, height), Image.Resampling.BICUBIC)
    picture = np.asarray(small)
    return [np.ascontiguousarray(picture[:, shift * number : shift * number + width]) for number in range(frames)]


def corner(height: int = 48, width: int = 80) -> NDArray[np.uint8]:
    """Return a black picture with a red corner at the top left."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2, 0] = 255
    return picture


def write_movie(
    path: Path,
    frames: Frames,
    *,
    fps: int = 10,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: Sequence[int] | None = None,
    sound: str | None = None,
    aspect: Fraction | None = None,
    tags: tuple[int, int, int] | None = None,
    source_format: str = "rgb24",
) -> Path:
    """Write a movie.

    Args:
        path: the file; its ending names the container.
        frames: the frames.
        fps: frames per second, and the unit of `times`.
        codec: the encoder of the pictures.
        pix_fmt: the format of the pixels.
        times: the time of each frame; None: one after another.
        sound: an encoder of sound; the movie gets a tone of its length.
        aspect: width of a pixel by its height.
        tags: numbers of the primaries, the transfer and the matrix of the colors.
        source_format: the format of the arrays in `frames`.
    """
    with av.open(path, "w") as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.time_base = Fraction(1, fps)
        if aspect:
            context.sample_aspect_ratio = aspect
        if tags:
            context.color_primaries, context.color_trc, context.colorspace = tags
        tone: Any = container.add_stream(sound, rate=SOUND_RATE, layout="mono") if sound else None
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format=source_format)
            frame = frame.reformat(format=pix_fmt, dst_colorspace=tags[2] if tags else None)
            frame.pts = times[number] if times else number
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone:
            _write_tone(container, tone, len(frames) / fps)
    return path


def _write_tone(container: Any, stream: Any, seconds: float) -> None:
    wave = np.sin(np.arange(int(seconds * SOUND_RATE)) * (2 * np.pi * 440 / SOUND_RATE))
    for first in range(0, len(wave), 1024):
        part = (wave[first : first + 1024] * 20_000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(part[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = SOUND_RATE, first
        resampled = av.AudioResampler(stream.codec_context.format.name, "mono", SOUND_RATE).resample(frame)
        for each in resampled:
            container.mux(stream.encode(each))
    container.mux(stream.encode(None))


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write the display matrix (a, b, c, d) into an MP4 file."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    values = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4")
    data[place : place + 36] = values.tobytes()
    path.write_bytes(data)
