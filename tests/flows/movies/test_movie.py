"""Movies and previews, decoded again by FFmpeg's decoder and by Pillow."""

import io
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dreamcore.errors import InvalidInput
from flows.movies.movie import PREVIEW_FRAMES, PREVIEW_WIDTH, MovieWriter, Preview, even
from tests.support.tiny import pixels


def write(path: Path, frames: list[NDArray[np.uint8]], fps: float) -> Path:
    height, width = frames[0].shape[:2]
    with MovieWriter(path, (width, height), fps) as movie:
        for frame in frames:
            movie.write(frame)
    return path


def colors(red: int, green: int, blue: int) -> NDArray[np.uint8]:
    return np.full((48, 64, 3), (red, green, blue), np.uint8)


@pytest.mark.parametrize(("fps", "rate"), [(30, Fraction(30)), (12.5, Fraction(25, 2)), (29.97, Fraction(2997, 100))])
def test_a_movie_decodes_back_to_its_frames(tmp_path: Path, fps: float, rate: Fraction) -> None:
    frames = [pixels(48, 64, seed) for seed in range(7)]
    with av.open(write(tmp_path / "movie.mp4", frames, fps)) as movie:
        stream = movie.streams.video[0]
        decoded = [frame.to_ndarray(format="rgb24") for frame in movie.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate or 0) == pytest.approx(float(rate))
        assert float((stream.duration or 0) * (stream.time_base or 0)) == pytest.approx(7 / fps, rel=0.01)
    assert [frame.shape for frame in decoded] == [frame.shape for frame in frames]
    errors = [np.abs(one.astype(int) - other).mean() for one, other in zip(decoded, frames, strict=True)]
    assert max(errors) < 8, "frames are in order: another frame would differ by about 50"


@pytest.mark.parametrize("color", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (20, 20, 20), (250, 250, 250)])
def test_colors_survive_and_are_tagged(tmp_path: Path, color: tuple[int, int, int]) -> None:
    with av.open(write(tmp_path / "movie.mp4", [colors(*color)] * 3, 30)) as movie:
        frame = next(movie.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited range
        found = frame.to_ndarray(format="rgb24").reshape(-1, 3).mean(0)
    assert np.abs(found - color).max() < 4


def test_a_movie_can_be_shown_while_it_is_downloaded(tmp_path: Path) -> None:
    data = write(tmp_path / "movie.mp4", [pixels(48, 64)] * 3, 30).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_odd_sides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even, not 63 x 48"):
        MovieWriter(tmp_path / "movie.mp4", (63, 48), 30)
    assert [even(side) for side in (1, 2, 3.1, 427, 428.9)] == [2, 2, 4, 428, 428]


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InvalidInput, match=r"pip install 'dreamgrid\[video\]'"):
        MovieWriter(tmp_path / "movie.mp4", (64, 48), 30)


@pytest.mark.parametrize(
    ("frames", "fps", "kept", "milliseconds"), [(30, 30, 10, 100), (5, 5, 5, 200), (1000, 25, PREVIEW_FRAMES, 400)]
)
def test_a_preview_plays_at_the_speed_of_the_movie(frames: int, fps: int, kept: int, milliseconds: int) -> None:
    preview = Preview(frames, fps)
    wide = pixels(32, 400)
    for number in range(frames):
        preview.add(number, np.roll(wide, 3 * number, axis=1))
    image = Image.open(io.BytesIO(preview.encode()))
    assert image.format == "WEBP"
    assert image.size == (PREVIEW_WIDTH, 19)
    assert getattr(image, "n_frames", 1) == kept
    image.load()
    assert image.info["duration"] == milliseconds
    assert image.info["loop"] == 0, "it plays forever"
