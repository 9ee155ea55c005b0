"""The dream of a video: flicker, cuts, identities of frames, resumption."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.flicker import PHOTOS, dream_clip, measure_flicker, parallax
from dreamcore.catalog import resolve_layers
from dreamcore.errors import InvalidInput
from dreamcore.images import decode
from dreamcore.settings import DreamSettings
from flows.movies.video import VideoDreamer, dream_frames
from flows.movies.video_options import DEFAULTS, VideoOptions
from flows.movies.video_plan import VideoPlan, plan_video
from tests.support.movies import moving, write_movie
from tests.support.tiny import pixels

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

QUICK: dict[str, Any] = {**DEFAULTS, "layers": "blocks.2", "octaves": 1}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_movie(tmp_path / "cat.mkv", moving(6), codec="ffv1", pix_fmt="yuv444p")


def planned(source: Path, out: str = "out", stop: int = 0, **changes: Any) -> tuple[VideoPlan, list[NDArray[np.uint8]]]:
    """Plan a video, dream it up to `stop` frames, or not at all if it is 0; return the plan and all finished frames."""
    own = {name: changes.pop(name) for name in list(changes) if name in VideoOptions.model_fields}
    keyframes = changes.pop("keyframes", [])
    settings, options = DreamSettings.model_validate({**QUICK, **changes}), VideoOptions.model_validate(own)

    def count(finished: int, _planned: int) -> None:
        if finished == stop:
            raise KeyboardInterrupt

    with plan_video(str(source), str(source.with_name(f"{out}.mp4")), settings, options, keyframes) as plan:
        if stop:
            try:
                dream_frames(plan, count)
            except KeyboardInterrupt:
                assert stop < len(plan.frames)
        existing = plan.folder.names()
        return plan, [decode(plan.folder.read(each.name)).pixels for each in plan.frames if each.name in existing]


def names(plan: VideoPlan) -> list[str]:
    return [frame.name for frame in plan.frames]


def test_dreams_that_follow_the_motion_flicker_at_most_half_as_much() -> None:
    """A real photograph moves before another one. Both dreams have as many steps."""
    source = parallax(PHOTOS / "chelsea.png", PHOTOS / "coffee.jpg", 6, (128, 72))
    settings = resolve_layers(DreamSettings.model_validate({**QUICK, "layers": "blocks.3"}))
    followed, source = dream_clip(source, settings, 0.9)[3:], source[3:]
    alone = dream_clip(source, settings.model_copy(update={"steps": 10}), 0.0)
    assert measure_flicker(source, followed).moved < 0.5 * measure_flicker(source, alone).moved
    detail = [float(np.abs(dreams[-1].astype(float) - source[-1]).mean()) for dreams in (alone, followed)]
    assert detail[1] > 0.5 * detail[0], "the dream has not faded"


def test_a_scene_after_a_cut_is_dreamt_as_a_first_frame() -> None:
    settings = resolve_layers(DreamSettings.model_validate(QUICK))
    dreamer = VideoDreamer(settings, (96, 64), 0.9)
    before, after = pixels(64, 96, 1), pixels(64, 96, 2)
    expected = dreamer.dream(settings, after, None)
    assert np.array_equal(dreamer.dream(settings, after, (before, before)), expected)
    assert not np.array_equal(dreamer.dream(settings, after, (after, after)), expected)


def test_a_stopped_dream_continues_to_the_same_frames(clip: Path) -> None:
    whole, expected = planned(clip, "whole", stop=99)
    assert len(expected) == len(whole.frames) == 6
    stopped, _ = planned(clip, stop=3)
    assert planned(clip)[0].finished == 3
    assert names(stopped) == names(whole)
    _, found = planned(clip, stop=99)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_longer_part_reuses_frames_and_other_settings_do_not(clip: Path) -> None:
    base = names(planned(clip)[0])
    assert names(planned(clip, seconds=0.3)[0]) == base[:3]
    later = names(planned(clip, keyframes=[{"at": 0.4, "seed": 9}])[0])
    assert [one == other for one, other in zip(base, later, strict=True)] == [True] * 4 + [False] * 2
    for changes in ({"persistence": 0.8}, {"start": 0.1}, {"fps": 5}):
        assert not set(base) & set(names(planned(clip, **changes)[0]))


def test_sides_are_even_and_within_the_limit(clip: Path) -> None:
    assert planned(clip)[0].size == (96, 64)
    assert planned(clip, max_pixels=3000)[0].size == (68, 44)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 0.7}, "is 0.60 s long: give a smaller --start"),
        ({"keyframes": [{"at": 0.1, "zoom": 2}]}, "the camera of a video does not move"),
        ({"keyframes": [{"at": 9, "steps": 2}]}, "the movie ends at 0.6 s"),
    ],
)
def test_wrong_values_start_nothing(clip: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        planned(clip, **changes)
