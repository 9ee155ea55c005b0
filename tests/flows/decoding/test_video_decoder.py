"""Videos in the sandboxed decoder: times, sizes, turns, colors, sound; damaged and hostile files."""

import io
import wave
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dreamcore.errors import ImageError
from flows.decoding.video_decoder import VideoFile
from flows.decoding.video_selection import Selection, VideoInfo
from tests.support.movies import corner, moving, turn, write_movie

pytestmark = pytest.mark.slow


def read(path: Path, *, limits: dict[str, Any] | None = None, **changes: Any) -> tuple[VideoInfo, list[Any], int]:
    """Return what is known of a video, its frames, and the number of damaged packets."""
    with path.open("rb") as file:
        video = VideoFile(file, **(limits or {}))
        info = video.measure()
        count = round(info.seconds * info.fps)
        wanted = Selection(info.origin, 0.0, info.fps, info.width, info.height, 0, count)._replace(**changes)
        frames = list(video.frames(wanted))
        return info, frames, video.damaged


def is_red(picture: NDArray[np.uint8], row: float, column: float) -> bool:
    """Whether a place, as shares of height and width, is red and not black."""
    red, green, _ = picture[int(row * picture.shape[0]), int(column * picture.shape[1])]
    return bool(red > 150 and green < 90)


def test_frames_arrive_in_order_and_from_any_number(tmp_path: Path) -> None:
    frames = moving(12)
    info, found, damaged = read(write_movie(tmp_path / "a.mp4", frames))
    assert (info.width, info.height, info.fps, info.sound) == (96, 64, 10.0, False)
    assert info.seconds == pytest.approx(1.2)
    assert (len(found), damaged) == (12, 0)
    errors = [[np.abs(one.astype(int) - other).mean() for other in frames] for one in found]
    assert [int(np.argmin(row)) for row in errors] == list(range(12))
    _, rest, _ = read(tmp_path / "a.mp4", first=9)
    _, later, _ = read(tmp_path / "a.mp4", start=0.9, frames=3)
    assert [np.array_equal(one, other) for one, other in zip(rest, found[9:], strict=True)] == [True] * 3
    assert [np.array_equal(one, other) for one, other in zip(later, found[9:], strict=True)] == [True] * 3


def test_a_variable_rate_becomes_constant(tmp_path: Path) -> None:
    """A frame that stays for long is repeated; times that jitter drop none."""
    frames = moving(5, 8)
    write_movie(tmp_path / "a.mkv", frames, fps=100, times=[0, 11, 19, 60, 70])
    _, found, _ = read(tmp_path / "a.mkv", fps=10.0, frames=8)
    shown = [int(np.argmin([np.abs(one.astype(int) - other).mean() for other in frames])) for one in found]
    assert shown == [0, 1, 2, 2, 2, 2, 3, 4]


@pytest.mark.parametrize(
    ("matrix", "size", "place"),
    [
        ((0, 1, -1, 0), (48, 80), (0.2, 0.8)),  # a quarter clockwise, as phones write it
        ((0, -1, 1, 0), (48, 80), (0.8, 0.2)),
        ((-1, 0, 0, 1), (80, 48), (0.2, 0.8)),  # a mirror
    ],
)
def test_frames_are_upright(
    tmp_path: Path, matrix: tuple[int, int, int, int], size: tuple[int, int], place: tuple[float, float]
) -> None:
    path = write_movie(tmp_path / "a.mp4", [corner()] * 2)
    turn(path, matrix)
    info, frames, _ = read(path)
    assert (info.width, info.height) == size
    red = [(y, x) for y in (0.2, 0.8) for x in (0.2, 0.8) if is_red(frames[0], y, x)]
    assert red == [place]


def test_pixels_that_are_not_square_and_odd_sides(tmp_path: Path) -> None:
    wide = write_movie(tmp_path / "a.mp4", [corner()] * 2, aspect=Fraction(3, 2))
    assert read(wide)[0][:2] == (120, 48)
    odd = write_movie(tmp_path / "b.mkv", [corner(47, 79)] * 2, codec="ffv1", pix_fmt="yuv444p")
    info, frames, _ = read(odd)
    assert (info[:2], frames[0].shape) == ((79, 47), (47, 79, 3))


def test_ten_bits_and_transparency(tmp_path: Path) -> None:
    deep = write_movie(tmp_path / "a.mkv", [corner()] * 2, codec="ffv1", pix_fmt="yuv444p10le")
    assert is_red(read(deep)[1][0], 0.2, 0.2)
    clear = np.zeros((32, 48, 4), np.uint8)
    clear[:, :24] = (255, 0, 0, 255)
    alpha = write_movie(tmp_path / "b.mov", [clear] * 2, codec="qtrle", pix_fmt="argb", source_format="rgba")
    frame = read(alpha)[1][0]
    assert (frame[5, 5].tolist(), frame[5, 40].tolist()) == ([255, 0, 0], [255, 255, 255])


@pytest.mark.soak
def test_hdr_becomes_srgb(tmp_path: Path) -> None:
    nits = (203 / 10_000) ** 0.1593017578125
    white = int(65535 * ((0.8359375 + 18.8515625 * nits) / (1 + 18.6875 * nits)) ** 78.84375)  # the curve PQ
    bright = np.full((32, 48, 3), white, np.uint16)
    hdr = write_movie(
        *(tmp_path / "c.mkv", [bright] * 2),
        codec="ffv1",
        pix_fmt="yuv420p10le",
        tags=(9, 16, 9),
        source_format="rgb48le",
    )
    assert read(hdr)[1][0].mean() > 245, "203 nits are white; without conversion, they would be 147"


def test_a_truncated_video_ends_early_and_a_damaged_one_goes_on(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "a.mkv", moving(30), codec="mjpeg", pix_fmt="yuvj420p")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    _, frames, _ = read(path, frames=30)
    assert 10 < len(frames) < 30
    noisy = bytearray(whole)
    noisy[len(whole) // 2 : len(whole) // 2 + 400] = bytes(400)
    path.write_bytes(noisy)
    assert len(read(path, frames=30)[1]) > 20


def sound_only() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(corner()).save(file, "PNG")
    return file.getvalue()


def tone() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setparams((1, 2, 8000, 0, "NONE", ""))
        written.writeframes(bytes(1600))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a video"),
        (b"no video at all" * 99, "not a video"),
        (picture(), "not a video"),
        (tone(), "not a video"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", "not a video"),  # would open another file
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),
        (sound_only(), "the file contains no video"),
    ],
    ids=["empty", "text", "picture", "wave", "playlist", "list of files", "sound"],
)
def test_what_is_no_video_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(ImageError, match=message):
        read(tmp_path / "a.mp4")


def test_random_damage_never_raises_anything_else(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "a.mp4", moving(6))
    whole, random = path.read_bytes(), np.random.default_rng(3)
    for _ in range(3):
        data = bytearray(whole)
        for place in random.integers(len(data), size=40):
            data[place] = random.integers(256)
        path.write_bytes(data)
        with suppress(ImageError):
            assert all(frame.shape == (64, 96, 3) for frame in read(path, width=96, height=64, frames=6)[1])


def test_limits_of_time_and_memory(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "a.mp4", [np.zeros((1088, 1920, 3), np.uint8)] * 3)
    with pytest.raises(ImageError, match="more memory than one video may use"):
        read(path, limits={"memory": 8 * 2**20})
    with pytest.raises(ImageError, match="decoding takes longer than"):
        read(path, limits={"seconds": 0.001})


@pytest.mark.parametrize(
    ("name", "encoder", "kept"), [("a.mp4", "aac", "aac"), ("a.mkv", "pcm_s16le", "aac"), ("a.mkv", "flac", "flac")]
)
def test_sound_is_copied_or_encoded_and_cut(tmp_path: Path, name: str, encoder: str, kept: str) -> None:
    source = write_movie(tmp_path / name, moving(30), sound=encoder)
    silent = write_movie(tmp_path / "silent.mp4", moving(10))
    with source.open("rb") as file, silent.open("rb") as movie, (tmp_path / "out.mp4").open("wb") as result:
        VideoFile(file).add_sound(movie, result, 1.5, 1.0)
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(tmp_path / "out.mp4") as found:
        sound = found.streams.audio[0]
        assert sound.codec_context.name == kept
        assert float((sound.duration or 0) * (sound.time_base or 0)) == pytest.approx(1.0, abs=0.15)
        heard = np.concatenate([frame.to_ndarray().astype(float).ravel() for frame in found.decode(audio=0)])
    assert len(heard) == pytest.approx(48_000, rel=0.15)
    spectrum = np.abs(np.fft.rfft(heard))
    assert np.argmax(spectrum) * 48_000 / len(heard) == pytest.approx(440, abs=3)
    with av.open(tmp_path / "out.mp4") as found:
        assert len(list(found.decode(video=0))) == 10
