"""Write movies: H.264 in MP4, and a small animated WebP as a preview.

H.264 is written by libx264 through PyAV, which the extra `video` installs.
"""

import io
from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dreamcore.errors import InvalidInput

__all__ = ["MovieWriter", "Preview", "check_video_extra", "even"]

CRF = 18
"""Quality of libx264, from 0 (lossless) to 51. Textures of dreams show artefacts from about 23."""
PREVIEW_WIDTH = 240
PREVIEW_FPS = 10
PREVIEW_FRAMES = 100
"""Largest number of frames of a preview. The preview of a longer movie has fewer frames per second."""
PREVIEW_QUALITY = 50

_BT709 = 1  # number of this color space in H.264 and in FFmpeg
_RATE_DENOMINATOR = 1001  # of 30000/1001, the frame rate that is written as 29.97


def check_video_extra() -> None:
    """Raise `InvalidInput` if the extra `video` is not installed."""
    if find_spec("av") is None or find_spec("cv2") is None:
        raise InvalidInput("movies need a package: pip install 'dreamgrid[video]'")


def even(side: float) -> int:
    """Return the nearest even number, at least 2. Movies have even sides, because they store colors at half the size.

    Example:
        >>> even(427), even(1)
        (428, 2)
    """
    return max(2, 2 * round(side / 2))


class MovieWriter:
    """Writes the frames of one movie to an MP4 file. Players can show the file while it is still being downloaded.

    Use it in a `with` block. If the block raises, the file is incomplete and must be deleted.

    Args:
        path: the file to write.
        size: width and height in pixels, both even.
        fps: frames per second.

    Raises:
        InvalidInput: the extra `video` is not installed.
        ValueError: a side is odd.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "gray.mp4"
        ...     with MovieWriter(path, (32, 16), fps=10) as movie:
        ...         movie.write(np.full((16, 32, 3), 128, np.uint8))
        ...     path.read_bytes()[4:8]
        b'ftyp'
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        check_video_extra()
        import av

        if size[0] % 2 or size[1] % 2:
            raise ValueError(f"the sides of a movie are even, not {size[0]} x {size[1]}")
        self.size = size
        self._container = av.open(path, "w", format="mp4", options={"movflags": "+faststart"})
        rate = Fraction(fps).limit_denominator(_RATE_DENOMINATOR)
        stream = self._container.add_stream("libx264", rate=rate, options={"crf": str(CRF), "preset": "medium"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        self._stream = stream

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Add a frame (H, W, 3), sRGB."""
        import av

        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709)
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))  # frames that the encoder has kept back
        self._container.close()


class Preview:
    """Collects some frames of a movie for a small animated WebP that plays at the speed of the movie.

    Args:
        frames: the number of frames of the movie.
        fps: frames per second of the movie.
    """

    def __init__(self, frames: int, fps: float) -> None:
        self._interval = max(1, round(fps / PREVIEW_FPS), -(-frames // PREVIEW_FRAMES))
        self._milliseconds = round(1000 * self._interval / fps)
        self._images: list[Image.Image] = []

    def add(self, number: int, pixels: NDArray[np.uint8]) -> None:
        """Add the frame (H, W, 3) with this number, counted from 0, if it belongs to the preview."""
        if number % self._interval == 0:
            height, width = pixels.shape[:2]
            size = min(width, PREVIEW_WIDTH), max(1, round(height * min(width, PREVIEW_WIDTH) / width))
            self._images.append(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))

    def encode(self) -> bytes:
        """Return the WebP file."""
        return _animated_webp(self._images, self._milliseconds)


def _animated_webp(images: Sequence[Image.Image], milliseconds: int) -> bytes:
    options: dict[str, Any] = {"quality": PREVIEW_QUALITY, "method": 4, "duration": milliseconds, "loop": 0}
    file = io.BytesIO()
    images[0].save(file, "WEBP", save_all=True, append_images=images[1:], **options)
    return file.getvalue()
