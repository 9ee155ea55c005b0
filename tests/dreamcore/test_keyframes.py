"""Keyframes: what a setting is between two of them."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamcore.errors import InvalidInput
from dreamcore.keyframes import CONSTANT, Moment, Timeline, interpolate, loop_pull, read_timeline
from dreamcore.settings import DreamSettings
from dreamcore.targets import Target, layers_label
from dreamcore.zoom import Motion

SECONDS = 10.0
START = Moment(DreamSettings(layers="blocks.3"), Motion())

shares = st.floats(0, 1, exclude_max=True)
numbers = st.one_of(st.floats(0.001, 1), st.integers(0, 1000))
names = st.sampled_from(["blocks.1", "blocks.2", "blocks.3:4", "blocks.4@0.5,0.5"])
objectives = st.dictionaries(names, st.floats(-2, 2).filter(lambda weight: abs(weight) > 0.01), min_size=1).map(
    lambda mix: DreamSettings.model_validate({"layers": mix}).layers
)


def timeline(*keyframes: Any, loop: bool = False) -> Timeline:
    return read_timeline(START, keyframes, seconds=SECONDS, loop=loop)


def weights(objective: tuple[Target, ...]) -> dict[str, float]:
    return {target.name: target.weight for target in objective}


@given(one=st.floats(0.001, 1), other=st.floats(0.001, 1), share=shares)
def test_a_number_stays_between_its_neighbours_and_moves_in_proportion(one: float, other: float, share: float) -> None:
    value = interpolate("step_size", one, other, share)
    assert min(one, other) - 1e-12 <= value <= max(one, other) + 1e-12
    assert math.isclose(value - one, (other - one) * share, abs_tol=1e-12)


@given(one=st.integers(0, 1000), other=st.integers(0, 1000), share=shares)
def test_a_whole_number_stays_whole(one: int, other: int, share: float) -> None:
    value = interpolate("steps", one, other, share)
    assert isinstance(value, int)
    assert abs(value - (one + (other - one) * share)) <= 0.5


@given(one=objectives, other=objectives, share=shares)
def test_objectives_cross_fade_by_their_weights(
    one: tuple[Target, ...], other: tuple[Target, ...], share: float
) -> None:
    a, b, mixed = weights(one), weights(other), weights(interpolate("layers", one, other, share))
    expected = {name: (1 - share) * a.get(name, 0) + share * b.get(name, 0) for name in a | b}
    if all(abs(weight) < 1e-6 for weight in expected.values()):
        assert mixed == a
    else:
        assert all(math.isclose(mixed.get(name, 0), weight, abs_tol=1e-6) for name, weight in expected.items())
    assert mixed, "an objective is never empty"


@given(first=objectives, second=objectives, at=st.floats(0.5, 9))
def test_a_keyframe_is_reached_at_its_time(first: tuple[Target, ...], second: tuple[Target, ...], at: float) -> None:
    found = timeline({"at": 0, "layers": first}, {"at": at, "layers": second})
    assert found.at(0).settings.layers == first
    assert found.at(at).settings.layers == second
    assert found.at(SECONDS).settings.layers == second


@given(seconds=st.floats(0, SECONDS), at=st.floats(0.1, 9.9), zoom=st.floats(0.5, 3), octaves=st.integers(1, 8))
def test_in_a_loop_the_end_has_the_values_of_the_start(seconds: float, at: float, zoom: float, octaves: int) -> None:
    found = timeline({"at": at, "zoom": zoom, "octaves": octaves}, loop=True)
    moment = found.at(seconds)
    assert min(1.3, zoom) - 1e-9 <= moment.motion.zoom <= max(1.3, zoom) + 1e-9
    end = found.at(SECONDS)
    assert (end.motion, end.settings) == (START.motion, START.settings)


def test_settings_that_no_keyframe_names_are_constant() -> None:
    found = timeline({"at": 5, "layers": "blocks.4"}).at(2.5)
    assert found.motion == START.motion
    assert found.settings == START.settings.model_copy(update={"layers": found.settings.layers})
    assert layers_label(found.settings.layers) == "blocks.3=0.5+blocks.4=0.5"


def test_words_and_switches_change_at_the_keyframe() -> None:
    found = timeline({"at": 5, "gradient": "plain", "flip": True, "stop_at": 3, "seed": 7})
    early, late = found.at(4.99).settings, found.at(5).settings
    assert (early.gradient, early.flip, early.stop_at, early.seed) == ("laplacian", False, None, 0)
    assert (late.gradient, late.flip, late.stop_at, late.seed) == ("plain", True, 3, 7)


def test_depths_become_layers_before_they_are_faded() -> None:
    found = timeline({"at": 5, "layers": "65%"}).at(2.5)
    assert layers_label(found.settings.layers) == "blocks.3=0.5+blocks.4=0.5"


def test_the_center_moves() -> None:
    assert timeline({"at": 10, "center": [1, 0]}).at(5).motion.center == (0.75, 0.25)
    assert timeline({"at": 10, "center": "1,0"}).at(5).motion.center == (0.75, 0.25)


@pytest.mark.parametrize(
    ("keyframes", "message"),
    [
        ([{"layers": "blocks.4"}], "a keyframe needs a time"),
        (["at: 5"], "a keyframe needs a time"),
        ([{"at": -1, "steps": 2}], "give seconds, 0 or more"),
        ([{"at": "soon", "steps": 2}], "give seconds, 0 or more"),
        ([{"at": 11, "steps": 2}], "the movie ends at 10 s: give an earlier time"),
        ([{"at": 5, "layer": "blocks.4"}], "keyframe at 5 s: setting 'layer' does not exist; did you mean layers?"),
        ([{"at": 5, "model": "resnet50"}], "model cannot change within a movie"),
        ([{"at": 5, "steps": -2}], "keyframe at 5 s: steps: Input should be greater than or equal to 0"),
        ([{"at": 5, "zoom": 0}], "keyframe at 5 s: zoom: Input should be greater than or equal to 0.1"),
        ([{"at": 5, "layers": "blocks.33"}], "keyframe at 5 s: "),
        ([{"at": 5, "steps": 2}, {"at": 5.0, "steps": 3}], "two keyframes at 5 s name steps"),
    ],
)
def test_a_wrong_keyframe_is_explained(keyframes: list[Any], message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        timeline(*keyframes)
    assert message in str(error.value)


def test_a_loop_has_no_keyframe_at_its_end() -> None:
    with pytest.raises(InvalidInput, match="in a loop, the end has the values of the start"):
        timeline({"at": SECONDS, "steps": 2}, loop=True)


@pytest.mark.parametrize("name", CONSTANT)
def test_constant_settings_exist(name: str) -> None:
    assert name in DreamSettings.model_fields


@given(fading=st.integers(2, 200))
def test_the_pulls_of_a_loop_add_up(fading: int) -> None:
    left = 1.0
    for remaining in range(fading, 0, -1):
        pull = loop_pull(remaining, fading)
        assert 0 <= pull <= 1
        left *= 1 - pull
        share = 1 - remaining / fading
        assert math.isclose(1 - left, share * share * (3 - 2 * share), abs_tol=1e-9)
