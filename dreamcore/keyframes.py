"""Settings that change over the time of a movie: keyframes, and the values between them.

A keyframe names a time and some settings. Each setting has its own track: its value at the start, and at every keyframe
that names it. Between two values of a track, numbers are interpolated linearly and objectives are cross-faded. Words,
switches and seeds change at the keyframe. After its last value, a track stays constant; in a loop it returns to its
first value at the end.

This module imports no torch, so that wrong keyframes are reported at once.
"""

import bisect
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

from dreamcore.catalog import resolve_layers
from dreamcore.errors import InvalidInput
from dreamcore.settings import DreamSettings
from dreamcore.targets import Target, canonical_order
from dreamcore.zoom import Motion

__all__ = ["CONSTANT", "Moment", "Timeline", "interpolate", "loop_pull", "read_timeline"]

CONSTANT = ("model", "weights", "guide", "mask", "max_pixels", "output", "enlarge", "movie")
"""Settings that are the same for a whole movie."""

_WEIGHT_DIGITS = 6
"""Decimals of a cross-faded weight. A smaller weight counts as 0, and its target is left out."""


class Moment(NamedTuple):
    """All values at one time of a movie."""

    settings: DreamSettings
    motion: Motion


class Key(NamedTuple):
    """A value of a track and its time in seconds."""

    seconds: float
    value: Any


@dataclass(frozen=True)
class Timeline:
    """The settings and the motion of a movie at every time."""

    start: Moment
    tracks: Mapping[str, Sequence[Key]]
    """The values of each setting that changes, by its name, in the order of their times. The first time is 0."""

    def at(self, seconds: float) -> Moment:
        """Return the values at a time.

        Raises:
            ValidationError: values that are interpolated separately contradict each other.
        """
        values = {name: _value_at(name, track, seconds) for name, track in self.tracks.items()}
        motion = {name: values.pop(name) for name in list(values) if name in Motion.model_fields}
        settings = self.start.settings
        if values:
            settings = DreamSettings.model_validate({**dict(settings), **values})
        return Moment(settings, self.start.motion.model_copy(update=motion))


def read_timeline(
    start: Moment, keyframes: Sequence[Mapping[str, Any]], *, seconds: float, loop: bool = False
) -> Timeline:
    """Read keyframes.

    Args:
        start: the values at 0 seconds, where no keyframe names others. Layers and files are resolved.
        keyframes: each has the time `at` in seconds, and settings of the dream and of the motion by their names.
        seconds: length of the movie. Keyframes after its end are refused.
        loop: whether the tracks return to their first values at the end.

    Raises:
        InvalidInput: a keyframe has no time, a wrong time, an unknown name or a wrong value; the message names it.

    Example:
        >>> start = Moment(DreamSettings(layers="blocks.3"), Motion())
        >>> timeline = read_timeline(start, [{"at": 5, "layers": "blocks.4", "zoom": 2}], seconds=10)
        >>> moment = timeline.at(2.5)
        >>> [str(target) for target in moment.settings.layers], moment.motion.zoom
        (['blocks.3=0.5', 'blocks.4=0.5'], 1.65)
    """
    timed = sorted(((_time_of(each, seconds, loop), each) for each in keyframes), key=lambda pair: pair[0])
    tracks: dict[str, list[Key]] = {}
    for at, keyframe in timed:
        for name, value in _read_values(start, keyframe, at).items():
            initial = getattr(start.motion if name in Motion.model_fields else start.settings, name)
            track = tracks.setdefault(name, [Key(0.0, initial)])
            if track[-1].seconds == at > 0:
                raise InvalidInput(f"two keyframes at {at:g} s name {name}: remove one of them")
            if at == 0:
                track.clear()
            track.append(Key(at, value))
    if loop:
        for track in tracks.values():
            track.append(Key(seconds, track[0].value))
    return Timeline(start, tracks)


def _time_of(keyframe: object, seconds: float, loop: bool) -> float:
    """Return the time of a keyframe in seconds; raise `InvalidInput` if it has none within the movie."""
    if not isinstance(keyframe, Mapping) or "at" not in keyframe:
        raise InvalidInput(f"a keyframe needs a time and settings, such as {{at: 5, layers: blocks.3}}, not {keyframe}")
    at = keyframe["at"]
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not at >= 0:
        raise InvalidInput(f"the time of a keyframe is {at!r}: give seconds, 0 or more")
    if at > seconds or (loop and at == seconds):
        why = "in a loop, the end has the values of the start" if at == seconds else f"the movie ends at {seconds:g} s"
        raise InvalidInput(f"there is a keyframe at {at:g} s, but {why}: give an earlier time")
    return float(at)


def _read_values(start: Moment, keyframe: Mapping[str, Any], at: float) -> dict[str, Any]:
    """Return the values that a keyframe names, validated and with its layers resolved."""
    given = {name: value for name, value in keyframe.items() if name != "at"}
    _check_names(given, at)
    motion = {name: value for name, value in given.items() if name in Motion.model_fields}
    own = {name: value for name, value in given.items() if name not in motion}
    try:
        settings = resolve_layers(DreamSettings.model_validate({**dict(start.settings), **own}))
        moved = Motion.model_validate({**dict(start.motion), **motion})
    except InvalidInput as error:
        raise InvalidInput(f"keyframe at {at:g} s: {error}") from error
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        name, message = ".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"keyframe at {at:g} s: {f'{name}: ' if name else ''}{message}") from error
    return {name: getattr(moved if name in motion else settings, name) for name in given}


def _check_names(given: Mapping[str, Any], at: float) -> None:
    changeable = [*Motion.model_fields, *(name for name in DreamSettings.model_fields if name not in CONSTANT)]
    for name in given:
        if name in CONSTANT:
            raise InvalidInput(f"keyframe at {at:g} s: {name} cannot change within a movie: give it as a flag")
        if name not in changeable:
            near = difflib.get_close_matches(str(name), changeable, n=1)
            hint = f"did you mean {near[0]}?" if near else f"a keyframe may name {', '.join(changeable)}"
            raise InvalidInput(f"keyframe at {at:g} s: setting {name!r} does not exist; {hint}")


def _value_at(name: str, track: Sequence[Key], seconds: float) -> Any:
    """Return the value of a track at a time."""
    after = bisect.bisect_right(track, seconds, key=lambda key: key.seconds)
    if after == len(track):
        return track[-1].value
    one, other = track[after - 1], track[after]
    share = (seconds - one.seconds) / (other.seconds - one.seconds)
    return interpolate(name, one.value, other.value, share)


def interpolate(name: str, one: Any, other: Any, share: float) -> Any:
    """Return the value of a setting between two values.

    Args:
        name: the setting. `layers` are cross-faded; a `seed` is never interpolated.
        one: the value at share 0.
        other: the value at share 1.
        share: the share of `other`, in [0, 1).

    Example:
        >>> interpolate("steps", 2, 6, 0.5), interpolate("gradient", "plain", "gaussian", 0.9)
        (4, 'plain')
    """
    if share == 0 or one == other or name == "seed":
        return one
    if name == "layers":
        return _cross_fade(one, other, share)
    if any(isinstance(value, (bool, str)) or value is None for value in (one, other)):
        return one
    if isinstance(one, tuple):
        return tuple(a + (b - a) * share for a, b in zip(one, other, strict=True))
    value = one + (other - one) * share
    return round(value) if isinstance(one, int) else value


def _cross_fade(one: tuple[Target, ...], other: tuple[Target, ...], share: float) -> tuple[Target, ...]:
    """Return the objective between two: the weights of `one` fade out while those of `other` fade in.

    If all weights cancel each other out, `one` is returned.
    """
    weights: dict[str, float] = {}
    for targets, part in ((one, 1 - share), (other, share)):
        for target in targets:
            weights[target.name] = weights.get(target.name, 0.0) + target.weight * part
    known = {target.name: target for target in (*one, *other)}
    kept = {name: weight for name, full in weights.items() if (weight := round(full, _WEIGHT_DIGITS))}
    mix = tuple(known[name].model_copy(update={"weight": weight}) for name, weight in kept.items())
    return canonical_order(mix) if mix else one


def loop_pull(remaining: float, fading: float) -> float:
    """Return the share of the first frame that is mixed into a frame near the end of a loop.

    The mixes of successive frames add up. Without the changes by dreaming, the first frame would have the share
    `u * u * (3 - 2 * u)` of the picture, for u from 0 (the fade begins) to 1 (the end).

    Args:
        remaining: number of frames from this frame to the end, at least 1.
        fading: number of frames of the fade.

    Example:
        >>> loop_pull(90, 90), round(loop_pull(45, 90), 3), round(loop_pull(1, 90), 3)
        (0.0, 0.032, 0.748)
    """

    def left(frames: float) -> float:
        share = min(frames / fading, 1.0)
        return share * share * (3 - 2 * share)

    return 1 - left(remaining) / left(remaining + 1)
