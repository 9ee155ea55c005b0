"""`dreamgrid video`: dream every frame of a video, each as a continuation of the last dream."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dreamcore.errors import ImageError, InvalidInput, Unavailable
from dreamcore.settings import DreamSettings
from flows.cli.keyframes import announce, keyframe_options, read_keyframes
from flows.cli.options import field_options, json_option, memory_option, one_name_option
from flows.cli.signals import Stopped, resumable
from flows.jobs.job import explain_validation
from flows.machine.terminal import frame_progress, print_line, print_message, show_json, waiting
from flows.movies.video_options import DEFAULTS, VideoOptions

if TYPE_CHECKING:
    from flows.movies.video_plan import VideoPlan

__all__ = ["video"]


@click.command()
@click.argument("source", metavar="IN")
@click.argument("result", metavar="OUT")
@field_options(VideoOptions)
@keyframe_options
@one_name_option("preset")
@one_name_option("look")
@field_options(DreamSettings, "output", "enlarge", "movie", reference="PATH", defaults=DEFAULTS)
@memory_option
@json_option
def video(
    source: str, result: str, keyframe_texts: tuple[str, ...], file: Path | None, as_json: bool, **flags: Any
) -> None:
    """Dream every frame of a video.

    IN is a video and OUT a movie that ends in .mp4; each is a file or an S3 address. Every frame starts from the last
    dream, which follows the motion of the video, so the dream does not flicker. The sound is kept. The frames are kept
    in a folder beside OUT. If the command is stopped, give it again: it continues with the next frame. A poster and a
    small animated preview are written, too.

    Needs the extra dreamgrid[video].

    \b
    Examples:
      dreamgrid video cat.mp4 dream.mp4
      dreamgrid video cat.mp4 dream.mp4 --start 12 --seconds 5 --look creatures
      dreamgrid video cat.mp4 dream.mp4 --keyframe '{at: 3, layers: blocks.3}' --max-pixels 600000
    """
    given = {name: value for name, value in flags.items() if value is not None}
    settings, options = _read(given)
    with ExitStack() as opened:
        with waiting("Reading the video ..."):
            from flows.movies.movie_frames import estimate
            from flows.movies.video_plan import plan_video

            keyframes = read_keyframes(keyframe_texts, file)
            plan = opened.enter_context(plan_video(source, result, settings, options, keyframes))
            left = [frame.settings for frame in plan.frames[plan.finished :]]
            seconds = estimate(left, plan.size[0] * plan.size[1])
        announce(plan.size, len(plan.frames), len(left), seconds)
        started = time.monotonic()
        count, sound = _make(plan)
        seconds = time.monotonic() - started
        report = {
            "movie": plan.outputs.movie,
            "poster": plan.outputs.poster,
            "preview": plan.outputs.preview,
            "frames_folder": plan.folder.address,
            "frames": count,
            "dreamt": count - min(plan.finished, count),
            "width": plan.size[0],
            "height": plan.size[1],
            "fps": round(plan.fps, 3),
            "sound": sound,
            "seconds": round(seconds, 3),
        }
    if as_json:
        show_json(report)
    else:
        size = f"{report['width']} x {report['height']}, {report['fps']:g} fps"
        print_line(f"{report['movie']}: {count:,} frames, {size}, {'with' if sound else 'no'} sound")
        print_line(f"poster: {report['poster']}")
        print_line(f"preview: {report['preview']}")
        print_line(f"frames: {report['frames_folder']} (a longer part reuses them; delete them if you need no other)")


def _read(given: dict[str, Any]) -> tuple[DreamSettings, VideoOptions]:
    """Return settings and options from the flags."""
    from pydantic import ValidationError

    own = {name: given[name] for name in (*DreamSettings.model_fields, "preset", "look") if name in given}
    options = {name: given[name] for name in VideoOptions.model_fields if name in given}
    try:
        return DreamSettings.model_validate({**DEFAULTS, **own}), VideoOptions.model_validate(options)
    except ValidationError as error:
        raise InvalidInput(explain_validation(error)) from error


@resumable()
def _make(plan: "VideoPlan") -> tuple[int, bool]:
    """Dream the frames and write the movie. Return the number of frames, and whether the movie has sound.

    Raises:
        Stopped: a signal or an infrastructure failure stopped the command; the finished frames are kept.
    """
    from flows.movies.video import dream_frames

    finished = plan.finished

    def count(now: int, planned: int) -> None:
        nonlocal finished
        finished = now
        show(now, planned)

    try:
        with frame_progress() as show:
            made = dream_frames(plan, count)
        if made < len(plan.frames):
            seconds = plan.options.start + made / plan.fps
            print_message(f"the video is damaged after {seconds:.2f} s: the movie ends there", "yellow")
        elif plan.video.damaged:
            print_message(f"{plan.video.damaged:,} damaged packets of the video were left out", "yellow")
        return made, _write(plan, made)
    except (KeyboardInterrupt, Unavailable) as error:
        why = f": {error}" if isinstance(error, Unavailable) else ""
        raise Stopped(f"stopped after frame {finished} of {len(plan.frames)}{why}", "the same command") from error


def _write(plan: "VideoPlan", count: int) -> bool:
    """Write the movie, without sound if the sound is damaged. Return whether it has sound."""
    from flows.movies.video import write_movie

    if plan.info.sound:
        try:
            write_movie(plan, count, sound=True)
        except ImageError as error:
            print_message(f"the movie has no sound: {error}", "yellow")
        else:
            return True
    write_movie(plan, count, sound=False)
    return False
