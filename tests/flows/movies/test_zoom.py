"""A zoom: identities of frames, resumption, the seam of a loop, detail and colors that last."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dreamcore.errors import ImageError, InvalidInput, Unavailable
from dreamcore.images import decode, read_metadata
from dreamcore.keyframes import Moment
from dreamcore.motion import colors_of, transform, warp
from dreamcore.results import to_tensor
from dreamcore.settings import DreamSettings
from dreamcore.zoom import DEFAULTS, FIRST_STEPS, Motion, ZoomOptions
from flows.folders.folder import LocalFolder
from flows.movies.movie_frames import Outputs, estimate
from flows.movies.zoom import dream_frames, write_movie
from flows.movies.zoom_plan import ZoomPlan, plan_zoom
from flows.s3.storage import Storage
from tests.support.tiny import pixels

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

QUICK: dict[str, Any] = {"layers": "blocks.2", "steps": 1, "octaves": 1}


@pytest.fixture
def photograph(tmp_path: Path) -> str:
    path = tmp_path / "cat.png"
    Image.fromarray(pixels(48, 64)).save(path)
    return str(path)


def plan(source: str, keyframes: Sequence[dict[str, Any]] = (), out: str = "", **changes: Any) -> ZoomPlan:
    """Return a plan of a small zoom. `changes` are settings, motion and options."""
    own = {**DEFAULTS, **QUICK, "seconds": 1, "fps": 6, "width": 64, **changes}
    parts = [
        model.model_validate({name: own[name] for name in model.model_fields if name in own})
        for model in (DreamSettings, Motion, ZoomOptions)
    ]
    settings, motion, options = parts
    assert isinstance(settings, DreamSettings)
    assert isinstance(motion, Motion)
    assert isinstance(options, ZoomOptions)
    return plan_zoom(
        source, out or str(Path(source).with_name("cat.mp4")), Moment(settings, motion), options, keyframes
    )


def names(zoom: ZoomPlan) -> list[str]:
    return [frame.name for frame in zoom.frames]


def frames_of(zoom: ZoomPlan) -> list[NDArray[np.uint8]]:
    """Return the finished frames, (H, W, 3) each."""
    return [decode(zoom.folder.read(name)).pixels for name in names(zoom)]


def dreamt(source: str, *arguments: Any, **changes: Any) -> tuple[ZoomPlan, list[NDArray[np.uint8]]]:
    zoom = plan(source, *arguments, **changes)
    dream_frames(zoom, lambda _done, _all: None)
    return zoom, frames_of(zoom)


def changes_between(zoom: ZoomPlan, frames: Sequence[NDArray[np.uint8]]) -> list[float]:
    """Return how much each frame differs from the one before it as the camera sees it; first from the last frame."""
    size = (zoom.size[1], zoom.size[0])
    found = []
    for number, frame in enumerate(frames):
        camera = transform(zoom.frames[number].motion, 1 / zoom.options.fps, size)
        found.append(float((warp(to_tensor(frames[number - 1]), camera) - to_tensor(frame)).abs().mean()))
    return found


def detail(frame: NDArray[np.uint8]) -> float:
    """Return the mean second difference of neighbouring pixels in the middle of a frame."""
    middle = frame[12:-12, 16:-16].astype(float)
    return float(np.abs(np.diff(middle, 2, axis=1)).mean())


def test_a_longer_zoom_reuses_the_frames_of_a_shorter_one(photograph: str) -> None:
    short, _ = dreamt(photograph, seconds=0.5)
    long = plan(photograph, seconds=1)
    assert (len(long.frames), long.finished) == (6, 3)
    assert names(long)[:3] == names(short)


@pytest.mark.parametrize(
    "changes",
    [
        *({"layers": "blocks.1"}, {"steps": 2}, {"seed": 1}, {"zoom": 1.4}, {"rotate": -2}, {"center": (0.4, 0.5)}),
        *({"fps": 7}, {"width": 48}, {"free_colors": True}),
    ],
    ids=str,
)
def test_frames_of_other_settings_are_never_reused(photograph: str, changes: dict[str, Any]) -> None:
    one, other = plan(photograph), plan(photograph, **changes)
    assert not set(names(one)[1:]) & set(names(other)[1:])


def test_a_later_keyframe_changes_only_the_frames_after_the_start_of_its_fade(photograph: str) -> None:
    early = {"at": 0.5, "zoom": 2}
    one = plan(photograph, [early, {"at": 1, "zoom": 1}])
    other = plan(photograph, [early, {"at": 1, "zoom": 3}])
    assert [a == b for a, b in zip(names(one), names(other), strict=True)] == [True] * 4 + [False] * 2


def test_another_photograph_has_other_frames(photograph: str) -> None:
    before = names(plan(photograph))
    Image.fromarray(pixels(48, 64, 1)).save(photograph)
    assert not set(before) & set(names(plan(photograph)))


def test_a_stopped_zoom_continues_to_the_same_frames(photograph: str, tmp_path: Path) -> None:
    _, expected = dreamt(photograph, loop=True, out=str(tmp_path / "whole.mp4"))

    def stop(finished: int, _planned: int) -> None:
        if finished == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dream_frames(plan(photograph, loop=True), stop)
    rest = plan(photograph, loop=True)
    assert rest.finished == 4
    counted: list[int] = []
    dream_frames(rest, lambda finished, _planned: counted.append(finished))
    assert counted == [5, 6]
    assert all(np.array_equal(one, other) for one, other in zip(frames_of(rest), expected, strict=True))


def test_a_missing_frame_is_dreamt_again(photograph: str) -> None:
    zoom, expected = dreamt(photograph)
    (Path(zoom.folder.address) / names(zoom)[3]).unlink()
    again, found = dreamt(photograph)
    assert again.finished == 3
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_damaged_frame_is_named(photograph: str) -> None:
    zoom, _ = dreamt(photograph, seconds=0.5)
    (Path(zoom.folder.address) / names(zoom)[2]).write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"000002-.*delete this frame and give the same command again"):
        dream_frames(plan(photograph), lambda _done, _all: None)


def test_the_last_frame_of_a_loop_leads_to_the_first(photograph: str) -> None:
    """The change at the seam is one of the usual changes between frames. Without a loop it is a cut."""
    loop, frames = dreamt(photograph, loop=True, seconds=2, zoom=1.5)
    seam, *usual = changes_between(loop, frames)
    assert seam < 1.3 * np.mean(usual)
    straight, frames = dreamt(photograph, seconds=2, zoom=1.5)
    cut, *usual = changes_between(straight, frames)
    assert cut > 2 * np.mean(usual), "the test can see a cut"


def test_detail_does_not_wash_out(photograph: str) -> None:
    """Each transform blurs a little. Dreaming must replace the detail."""
    _, frames = dreamt(photograph, fps=30, seconds=2.5)
    _, blurred = dreamt(photograph, [{"at": 0.01, "steps": 0}], fps=30, seconds=2.5)
    assert detail(frames[-1]) > 0.75 * detail(frames[30])
    assert detail(frames[-1]) > 1.25 * detail(blurred[-1]), "the test can see blur"


def test_the_colors_of_the_photograph_last_unless_they_are_free(photograph: str) -> None:
    def spread(frame: NDArray[np.uint8]) -> float:
        return float(colors_of(to_tensor(frame)).covariance.trace().sqrt())

    zoom, kept = dreamt(photograph, seconds=3)
    _, free = dreamt(photograph, seconds=3, free_colors=True)
    own = spread(zoom.photograph)
    assert [spread(frame) for frame in kept] == pytest.approx([own] * len(kept), rel=0.1)
    assert spread(free[-1]) > 1.3 * own


def test_the_first_frame_is_a_whole_dream_and_every_frame_has_its_own_seed(photograph: str) -> None:
    zoom = plan(photograph, seed=5)
    assert [frame.settings.steps for frame in zoom.frames] == [FIRST_STEPS] + [1] * 5
    assert [frame.settings.seed for frame in zoom.frames] == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("size", [(49, 75), (48, 64)])
def test_movie_poster_and_preview_are_written(tmp_path: Path, size: tuple[int, int]) -> None:
    source = tmp_path / "cat.png"
    Image.fromarray(pixels(*size)).save(source)
    zoom, frames = dreamt(str(source))
    assert all(side % 2 == 0 for side in zoom.size)
    assert zoom.size[0] <= 64
    write_movie(zoom)
    with av.open(tmp_path / "cat.mp4") as movie:
        decoded = [frame.to_ndarray(format="rgb24") for frame in movie.decode(video=0)]
        assert movie.streams.video[0].average_rate == 6
    assert [frame.shape for frame in decoded] == [(zoom.size[1], zoom.size[0], 3)] * 6
    poster = decode((tmp_path / "cat.poster.jpg").read_bytes()).pixels
    assert np.abs(poster.astype(int) - frames[0]).mean() < 8
    with Image.open(tmp_path / "cat.preview.webp") as preview:
        assert (preview.size, getattr(preview, "n_frames", 1)) == (zoom.size, 6)
    assert not list(tmp_path.glob(".*")), "no temporary file is left"
    metadata = read_metadata(zoom.folder.read(names(zoom)[3])) or {}
    assert metadata["frame"] == names(zoom)[3]


def test_the_inputs_are_never_overwritten(photograph: str, tmp_path: Path) -> None:
    poster = tmp_path / "cat.poster.jpg"
    Image.open(photograph).save(poster)
    with pytest.raises(InvalidInput, match="is an input"):
        plan(str(poster))
    with pytest.raises(InvalidInput, match="is an input"):
        Outputs.beside("s3://b/cat.mp4").check("s3://b/cat.preview.webp")


def test_a_movie_of_a_guide_and_a_mask(photograph: str, tmp_path: Path) -> None:
    half = np.zeros((48, 64), np.uint8)
    half[:, 32:] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    Image.fromarray(pixels(40, 40, 3)).save(tmp_path / "guide.png")
    still = {"zoom": 1, "rotate": 0, "free_colors": True, "seconds": 0.5}
    references = {name: {"uri": str(tmp_path / f"{name}.png")} for name in ("guide", "mask")}
    _, frames = dreamt(photograph, **still, **references)
    assert np.array_equal(frames[-1][:, :32], pixels(48, 64)[:, :32])
    assert not np.array_equal(frames[-1][:, 32:], pixels(48, 64)[:, 32:])


def test_a_zoom_into_noise(tmp_path: Path) -> None:
    out = str(tmp_path / "noise.mp4")
    zoom, frames = dreamt("noise:64x48", out=out, seconds=0.5)
    assert (zoom.size, len(frames)) == ((64, 48), 3)
    assert names(plan("noise:64x48", out=out, seconds=0.5)) == names(zoom)
    other = plan("noise:64x48", out=out, seconds=0.5, seed=1)
    assert not np.array_equal(other.photograph, zoom.photograph)
    with pytest.raises(InvalidInput, match="is not a size of noise"):
        plan("noise:64", out=out)


def test_an_estimate_grows_with_the_frames_that_are_left(photograph: str) -> None:
    zoom = plan(photograph)
    settings = [frame.settings for frame in zoom.frames]
    assert 0 < estimate(settings[:3], 3072) < estimate(settings, 3072) < estimate(settings, 6144)
    assert estimate([], 3072) == 0


def test_a_folder_that_cannot_be_written_stops_the_zoom(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot be written"):
        LocalFolder(tmp_path / "file").write("frame.png", b"", "image/png")


def test_photograph_frames_and_movie_in_s3(storage: Storage, source: str, destination: str) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels(48, 64)).save(file, "PNG")
    storage.write(f"{source}cat.png", file.getvalue(), "image/png")
    movie = f"{destination}cat.mp4"
    zoom = plan(f"{source}cat.png", out=movie, seconds=0.5)
    dream_frames(zoom, lambda _done, _all: None)
    assert plan(f"{source}cat.png", out=movie, seconds=1).finished == 3
    write_movie(zoom)
    assert {info.uri.removeprefix(destination) for info in storage.list(destination)} == {
        "cat.mp4",
        "cat.poster.jpg",
        "cat.preview.webp",
        *(f"cat.frames/{name}" for name in names(zoom)),
    }
    with av.open(io.BytesIO(storage.read(movie) or b""), "r") as found:
        assert len(list(found.decode(video=0))) == 3
