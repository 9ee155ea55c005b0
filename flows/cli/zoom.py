"""`dreamgrid zoom`: a movie that zooms into one image while it is dreamt."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.keyframes import Moment
from dreamcore.settings import DreamSettings
from dreamcore.zoom import DEFAULTS, Motion, ZoomOptions
from flows.cli.keyframes import announce, keyframe_options, read_keyframes
from flows.cli.options import field_options, json_option, memory_option, one_name_option, take_one
from flows.cli.signals import Stopped, resumable
from flows.jobs.job import explain_validation
from flows.machine.terminal import frame_progress, print_line, show_json, waiting

if TYPE_CHECKING:
    from flows.movies.zoom_plan import ZoomPlan

__all__ = ["zoom"]


@click.command()
@click.argument("source", metavar="IN")
@click.argument("result", metavar="OUT")
@field_options(ZoomOptions, "loop", "free_colors")
@click.option("--loop", is_flag=True, help="Let the last seconds lead back to the first frame, without a cut.")
@click.option(
    "--free-colors",
    is_flag=True,
    help="Let the colors intensify from frame to frame. By default all frames have the palette of the photograph.",
)
@field_options(Motion, "center")
@click.option(
    "--center",
    multiple=True,
    callback=take_one,
    metavar="X,Y",
    help=f"{Motion.model_fields['center'].description}  [default: 0.5,0.5]",
)
@keyframe_options
@one_name_option("preset")
@one_name_option("look")
@field_options(DreamSettings, "output", "max_pixels", "enlarge", "movie", reference="PATH", defaults=DEFAULTS)
@memory_option
@json_option
def zoom(
    source: str, result: str, keyframe_texts: tuple[str, ...], file: Path | None, as_json: bool, **flags: Any
) -> None:
    """Make a movie that zooms into one image while it is dreamt.

    IN is a photograph, or noise:WIDTHxHEIGHT, and OUT a movie that ends in .mp4; both may be files or S3 addresses.
    Every frame is the frame before it, seen from a bit nearer and dreamt again. The frames are kept in a folder beside
    OUT. If the command is stopped, give it again: it continues with the next frame. A poster and a small animated
    preview are written, too.

    Needs the extra dreamgrid[video].

    \b
    Examples:
      dreamgrid zoom cat.jpg cat.mp4
      dreamgrid zoom cat.jpg cat.mp4 --loop --seconds 12 --layers blocks.3 --center 0.4,0.3
      dreamgrid zoom noise:640x360 dream.mp4
      dreamgrid zoom cat.jpg cat.mp4 --keyframe '{at: 5, layers: blocks.3}' --keyframe '{at: 10, rotate: -10}'
    """
    given = {name: value for name, value in flags.items() if value not in (None, False)}
    with waiting("Reading the photograph ..."):
        from flows.movies.movie_frames import estimate
        from flows.movies.zoom_plan import plan_zoom

        plan = plan_zoom(source, result, _start(given), _options(given), read_keyframes(keyframe_texts, file))
        left = [frame.settings for frame in plan.frames[plan.finished :]]
        remaining, seconds = len(left), estimate(left, plan.size[0] * plan.size[1])
    announce(plan.size, len(plan.frames), remaining, seconds)
    started = time.monotonic()
    _make(plan)
    seconds = time.monotonic() - started
    if as_json:
        show_json(_to_json(plan, remaining, seconds))
    else:
        width, height = plan.size
        length = f"{len(plan.frames):,} frames, {width} x {height}, {plan.options.fps:g} fps"
        print_line(f"{plan.outputs.movie}: {length}")
        print_line(f"poster: {plan.outputs.poster}")
        print_line(f"preview: {plan.outputs.preview}")
        print_line(f"frames: {plan.folder.address} (a longer zoom reuses them; delete them if you need no other)")


def _start(given: dict[str, Any]) -> Moment:
    """Return settings and motion at the start, from the flags."""
    from pydantic import ValidationError

    own = {name: given[name] for name in (*DreamSettings.model_fields, "preset", "look") if name in given}
    motion = {name: given[name] for name in Motion.model_fields if name in given}
    try:
        return Moment(DreamSettings.model_validate({**DEFAULTS, **own}), Motion.model_validate(motion))
    except ValidationError as error:
        raise InvalidInput(explain_validation(error)) from error


def _options(given: dict[str, Any]) -> ZoomOptions:
    from pydantic import ValidationError

    try:
        return ZoomOptions.model_validate({name: given[name] for name in ZoomOptions.model_fields if name in given})
    except ValidationError as error:
        raise InvalidInput(explain_validation(error)) from error


@resumable()
def _make(plan: "ZoomPlan") -> None:
    """Dream the frames and write the movie.

    Raises:
        Stopped: a signal or an infrastructure failure stopped the zoom; the finished frames are kept.
    """
    from flows.movies.zoom import dream_frames, write_movie

    finished = plan.finished

    def count(now: int, planned: int) -> None:
        nonlocal finished
        finished = now
        show(now, planned)

    try:
        with frame_progress() as show:
            dream_frames(plan, count)
        write_movie(plan)
    except (KeyboardInterrupt, Unavailable) as error:
        why = f": {error}" if isinstance(error, Unavailable) else ""
        raise Stopped(f"stopped after frame {finished} of {len(plan.frames)}{why}", "the same command") from error


def _to_json(plan: "ZoomPlan", dreamt: int, seconds: float) -> dict[str, Any]:
    width, height = plan.size
    return {
        "movie": plan.outputs.movie,
        "poster": plan.outputs.poster,
        "preview": plan.outputs.preview,
        "frames_folder": plan.folder.address,
        "frames": len(plan.frames),
        "dreamt": dreamt,
        "width": width,
        "height": height,
        "fps": plan.options.fps,
        "seconds": round(seconds, 3),
    }
