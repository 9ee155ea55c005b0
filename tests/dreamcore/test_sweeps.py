"""Texts that stand for several values: ranges of numbers, sweeps over channels, channels that photographs choose."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from dreamcore import dream
from dreamcore.catalog import expand_layers, network_spec, resolve_layers
from dreamcore.errors import InvalidInput
from dreamcore.grid import Grid
from dreamcore.ranking import choose_channels, ranked_channels
from dreamcore.settings import BUNDLED, DreamSettings, settings_id
from dreamcore.sweeps import Channels, Rank, Ranking, read_channels, read_range
from dreamcore.targets import Target, layers_label
from flows.jobs.job import DreamJob
from flows.planning.scan import plan_settings
from tests.support.tiny import changed, picture, pixels, tiny_network

LOCATIONS = {"source": "s3://photos/in/", "destination": "s3://dreams/out/"}


def settings(layers: object, **fields: Any) -> DreamSettings:
    return DreamSettings.model_validate({"layers": layers, **fields})


def labels(layers: str, **fields: Any) -> list[str]:
    return [layers_label(each.layers) for each, _ in expand_layers(settings(layers, **fields))]


def planned(**grid: Any) -> list[str]:
    job = DreamJob.model_validate({**LOCATIONS, "grid": grid})
    return [layers_label(each.settings.layers) for each in plan_settings(job)]


# --- ranges of numbers


@pytest.mark.parametrize(
    ("text", "whole", "expected"),
    [
        ("4-8", True, [4, 5, 6, 7, 8]),
        ("0-1000/3", True, [0, 500, 1000]),
        (" 4-5 ", True, [4, 5]),
        ("0.004-0.012/5", False, [0.004, 0.006, 0.008, 0.01, 0.012]),
        ("1.2-1.8/4", False, [1.2, 1.4, 1.6, 1.8]),
        ("-3--1/3", False, [-3.0, -2.0, -1.0]),
        ("1e-3-2e-3/2", False, [0.001, 0.002]),
        ("0-1/4", False, [0, 0.333333333333, 0.666666666666, 1 - 1e-12]),
        ("5", True, None),
        ("-5", False, None),
        ("none", False, None),
        ("4-", True, None),
        ("4-8/", True, None),
    ],
)
def test_a_range_of_numbers_has_the_numbers_that_one_would_write(
    text: str, whole: bool, expected: list[float] | None
) -> None:
    assert read_range(text, whole=whole) == expected


@pytest.mark.parametrize(
    ("text", "whole", "message"),
    [
        ("8-4", True, "write the smaller number first"),
        ("4-4", True, "write the smaller number first"),
        ("0.1-0.2", False, "write 0.1-0.2/5 for five of them"),
        ("4-8/4", True, "does not have whole numbers only"),
        ("0.5-2.5", True, "does not have whole numbers only"),
        ("0-9999999999999999", True, "choose from 2 to 10,000"),
        ("0-1/1", False, "1 values: choose from 2"),
        ("0-1/0", False, "0 values: choose from 2"),
    ],
)
def test_a_wrong_range_is_refused_with_the_reason(text: str, whole: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_range(text, whole=whole)


def number_schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return the part of a JSON schema that allows a number, or None."""
    parts = schema.get("anyOf", [schema])
    return next((part for part in parts if part.get("type") in ("integer", "number")), None)


NUMBERS = {
    name: found
    for name, schema in DreamSettings.model_json_schema()["properties"].items()
    if name in Grid.model_fields and (found := number_schema(schema))
}
"""The numeric axes."""


@pytest.mark.parametrize("axis", NUMBERS)
def test_every_axis_of_numbers_accepts_ranges(axis: str) -> None:
    """A new axis of numbers is an `IntegerAxis` or a `FloatAxis`."""
    schema = NUMBERS[axis]
    low = schema.get("minimum", schema.get("exclusiveMinimum", -4))
    if schema["type"] == "integer":
        text, expected = f"{low}-{low + 2}", [low, low + 1, low + 2]
    else:
        span = schema.get("maximum", schema.get("exclusiveMaximum", low + 4)) - low
        expected = [low + span * part for part in (0.25, 0.5, 0.75)]
        text = f"{expected[0]}-{expected[2]}/3"
    assert getattr(Grid.model_validate({axis: text}), axis) == pytest.approx(expected)
    assert getattr(Grid.model_validate({axis: [expected[1], text]}), axis) == pytest.approx([expected[1], *expected])


def test_the_numeric_axes_are_found() -> None:
    assert {"octaves", "octave_scale", "steps", "step_size", "stop_at", "seed"} <= NUMBERS.keys()
    assert not {"layers", "model", "gradient", "clip"} & NUMBERS.keys()


def test_a_range_is_the_same_job_as_its_numbers() -> None:
    ranges, numbers = {"steps": "4-6", "stop_at": ["none", "1-2/3"]}, {"steps": [4, 5, 6], "stop_at": [None, 1, 1.5, 2]}
    jobs = [DreamJob.model_validate({**LOCATIONS, "grid": grid}) for grid in (ranges, numbers)]
    assert jobs[0] == jobs[1]
    assert jobs[0].job_id == jobs[1].job_id


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"octaves": "30-40"}, "less than or equal to 32"),
        ({"steps": "1-101", "seed": "1-100"}, "10,100 points, but at most 10,000"),
        ({"gradient": "4-8"}, "'laplacian', 'gaussian' or 'plain'"),
    ],
)
def test_values_of_a_range_are_validated(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Grid.model_validate(grid)


# --- the syntax of channels


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", Channels((12,))),
        ("12,17", Channels((12, 17))),
        ("0,1,5-9", Channels((0, 1, 5, 6, 7, 8, 9))),
        ("(0-3)", Channels((0, 1, 2, 3))),
        ("(12)", Channels((12,))),
        ("*", Channels(sweep="*")),
        ("0-63", Channels(sweep="0-63")),
        ("5-5", Channels(sweep="5-5")),
        ("top16", Channels(sweep="top16")),
        ("(weakest2)", Channels(sweep="(weakest2)")),
        ("12*0.8,17*-0.3", Channels((12, 17), (0.8, -0.3))),
        ("12*.5,17", Channels((12, 17), (0.5, 1.0))),
    ],
)
def test_each_form_of_channels_has_one_meaning(text: str, expected: Channels) -> None:
    assert read_channels(text) == expected
    (target,) = settings(f"a:{text}@0.5,0.25=-2").layers
    found = target.channels, target.direction, target.sweep, target.at, target.weight
    assert found == (*expected, (0.5, 0.25), -2)
    assert settings(layers_label((target,))).layers == (target,)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("a:9-3", "write 3-9"),
        ("a:0-9999999", "too long"),
        ("a:top0", "does not name channels"),
        ("a:top", "does not name channels"),
        ("a:(*)", "does not name channels"),
        ("a:top3,5", "does not name channels"),
        ("a:x", "does not name channels: write 12 or 12,17"),
        ("a:1-3*2", "does not name channels"),
        ("a:*+b:0-3", "are both sweeps, but a mix may have one"),
        ("a^2", "needs a direction: write a:12"),
        ("a:3*0", "coefficient 0"),
        ("a:3*1,3*2", "names a channel twice"),
        ({"layer": "a", "sweep": "1,2"}, "is not a sweep"),
        ({"layer": "a", "sweep": "*", "channels": [1]}, "give only one of them"),
        ({"layer": "a", "direction": [1]}, "one coefficient for each"),
    ],
)
def test_other_channels_are_refused_with_the_reason(layers: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(layers)


def test_targets_without_new_fields_are_written_as_before() -> None:
    assert Target(layer="a", channels=(1,)).model_dump(mode="json") == {
        "layer": "a",
        "channels": [1],
        "at": None,
        "weight": 1.0,
    }
    for layers in ("a:1*0.5,2*-1^2", "a:*", "a:(top3)^0.5@0.5,0.5=2+b"):
        dump = settings(layers).model_dump(mode="json")
        assert DreamSettings.model_validate(dump) == settings(layers)


def test_spellings_of_a_direction_have_one_identity() -> None:
    one, *others = (settings_id(settings(text), "w") for text in ("a:3^2", "a:3*1^2", "a:(3)^2.0"))
    assert set(others) == {one}
    assert settings_id(settings("a:2*3,1"), "w") == settings_id(settings("a:1*1,2*3.0"), "w")
    different = ["a:3", "a:3*1", "a:3*2", "a:3^1", "a:3^2"]
    assert len({settings_id(settings(text), "w") for text in different}) == len(different)


# --- sweeps over channels


def test_a_sweep_is_one_objective_for_each_channel() -> None:
    assert labels("blocks.4:*") == [f"blocks.4:{channel}" for channel in range(112)]
    assert labels("65%:7-9") == ["blocks.4:7", "blocks.4:8", "blocks.4:9"]
    assert labels("65%:7-8@0.5,0.25=-2") == ["blocks.4:7@0.5,0.25=-2", "blocks.4:8@0.5,0.25=-2"]
    assert labels("blocks.1=-0.5+blocks.4:7-8") == ["blocks.1=-0.5+blocks.4:7", "blocks.1=-0.5+blocks.4:8"]
    assert labels("blocks.4:3+blocks.4:3-4") == ["blocks.4:3=2", "blocks.4:3+blocks.4:4"], "equal targets are added up"
    assert labels("logits:998-999") == ["logits:998", "logits:999"]
    assert labels("blocks.4:7-8^2") == ["blocks.4:7*1^2", "blocks.4:8*1^2"]
    assert labels("blocks.3+blocks.4:12,17") == ["blocks.3+blocks.4:12,17"]


def test_a_sweep_that_photographs_choose_has_every_channel_with_its_rank() -> None:
    found = list(expand_layers(settings("blocks.4:weakest16@0.5,0.5")))
    ranking = Ranking("weakest", 16, "blocks.4", (0.5, 0.5))
    assert [rank for _, rank in found] == [Rank(ranking, channel) for channel in range(112)]
    assert {layers_label(each.layers) for each, _ in found} == {f"blocks.4:{each}@0.5,0.5" for each in range(112)}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("blocks.4:100-112", "channel 112 does not exist in blocks.4 of efficientnet_lite0: choose one from 0 to 111"),
        ("blocks.9:*", "layer 'blocks.9' does not exist"),
        ("blocks.4:top113", "blocks.4:top113 takes more channels than blocks.4 has: it has 112"),
        ("blocks.4:(top3)", r"which a run cannot do: write blocks.4:top3 for one dream of each channel"),
        ("blocks.4:3=-1+blocks.4:2-4", "the weights of blocks.4:3 of efficientnet_lite0 add up to 0"),
    ],
)
def test_a_sweep_that_does_not_fit_the_network_is_refused(layers: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        planned(layers=layers)


def test_sweeps_are_planned_with_the_network_of_each_point_and_without_repetitions() -> None:
    assert planned(layers=["blocks.4:7-9", "65%:8-10", "blocks.4:12,17"]) == [
        *(f"blocks.4:{channel}" for channel in (7, 8, 9, 10)),
        "blocks.4:12,17",
    ]
    assert planned(layers="100%:*", model=[BUNDLED, "resnet18"], steps="2-3") == [
        *(f"blocks.6:{channel}" for _ in range(2) for channel in range(320)),
        *(f"layer4:{channel}" for _ in range(2) for channel in range(512)),
    ], "the channels vary fastest"
    points = [{"layers": "blocks.0:0-1"}, {"layers": "blocks.4", "steps": 3}]
    assert planned(points=points) == ["blocks.0:0", "blocks.0:1", "blocks.4"]


def test_channels_of_an_explicit_target_are_for_every_photograph() -> None:
    job = DreamJob.model_validate(
        {**LOCATIONS, "grid": {"layers": ["blocks.0:top2", "blocks.0:weakest1", "blocks.0:3"]}}
    )
    ranks = {each.settings.layers[0].channels: each.ranks for each in plan_settings(job)}
    both = [Ranking(order, size, "blocks.0", None) for order, size in (("top", 2), ("weakest", 1))]
    assert ranks[(0,)] == tuple(Rank(ranking, 0) for ranking in both)
    assert ranks[(3,)] == ()
    assert len(ranks) == 16


def test_the_limit_of_a_grid_holds_for_expanded_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.planning.scan.MAX_GRID_POINTS", 224)
    assert len(planned(layers="blocks.4:*", seed="0-1")) == 224
    with pytest.raises(InvalidInput, match="more than 224 points, with each channel of its sweeps: shorten an axis"):
        planned(layers="blocks.4:*", seed="0-2")


def test_a_sweep_over_a_thousand_channels_is_planned_with_little_work() -> None:
    """It takes about 0.3 seconds. Calls of Python functions are counted, because they do not depend on the machine."""
    layer = "blocks.6.0.bn1"
    assert network_spec(BUNDLED).layer(layer).channels == 1152
    few, many = calls(lambda: planned(layers=f"{layer}:0-9")), calls(lambda: planned(layers=f"{layer}:*"))
    assert (many - few) / 1142 < 400


def calls(function: Callable[[], object]) -> int:
    """Return how many calls of Python functions a function makes."""
    counts = [0]

    def count(_frame: object, event: str, _argument: object) -> None:
        counts[0] += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return counts[0]


# --- one dream


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("blocks.4:*", "stands for 112 objectives, and one dream has one: use `dreamgrid run`.*write blocks.4 for"),
        ("blocks.4:0-63", r"stands for 64 objectives.*write blocks.4:\(0-63\) for the channels together"),
        ("blocks.4:top16", r"stands for 16 objectives.*write blocks.4:\(top16\) for the channels together"),
        ("blocks.4:(top113)", "takes more channels than blocks.4 has"),
    ],
)
def test_one_dream_refuses_a_sweep(layers: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        resolve_layers(settings(layers))


def test_a_sweep_of_one_channel_is_one_objective() -> None:
    assert layers_label(resolve_layers(settings("blocks.4:5-5=2")).layers) == "blocks.4:5=2"


@pytest.mark.parametrize("order", ["top", "weakest"])
def test_channels_are_ranked_by_their_mean_activation(order: str) -> None:
    network, image = tiny_network(), picture(seed=3)
    means = network.features(image, ["deep"])["deep"][0].numpy().mean((1, 2))
    expected = np.argsort(-means if order == "top" else means)[:5].tolist()
    assert ranked_channels(network, image[0], Ranking(order, 5, "deep", None)) == expected
    corner = network.features(image, ["deep"])["deep"][0, :, -1, 0].numpy()
    expected = np.argsort(-corner if order == "top" else corner)[:5].tolist()
    assert ranked_channels(network, image[0], Ranking(order, 5, "deep", (0, 1))) == expected


def test_the_most_excited_classes_are_the_most_likely_ones() -> None:
    network, image = tiny_network(), picture(seed=3)
    likely = network.classify(image)[0].argsort(descending=True)[:3].tolist()
    assert ranked_channels(network, image[0], Ranking("top", 3, "logits", None)) == likely


def test_equal_channels_are_ranked_by_their_number() -> None:
    network = tiny_network()
    for name in ("stem.weight", "stem.bias"):
        network.module.get_parameter(name).zero_()
    for order in ("top", "weakest"):
        assert ranked_channels(network, picture()[0], Ranking(order, 3, "stem", None)) == [0, 1, 2]


def test_choose_channels_names_the_channels_and_keeps_everything_else() -> None:
    network, image = tiny_network(), pixels(seed=3)
    top = ranked_channels(network, picture(seed=3)[0], Ranking("top", 2, "deep", None))
    chosen = choose_channels(network, changed(layers="deep:(top2)=0.5+stem"), image)
    assert chosen == changed(layers=f"deep:{top[0]},{top[1]}=0.5+stem")
    assert choose_channels(network, changed(layers="deep:top1^2"), image) == changed(layers=f"deep:{top[0]}^2")
    assert choose_channels(network, changed(), image) == changed()


def test_dream_measures_each_photograph_and_names_its_channels() -> None:
    """The channels that an image excites least are not those of the inverted image."""
    images = [Image.fromarray(pixels()), Image.fromarray(255 - pixels())]
    options: dict[str, Any] = {"network": tiny_network(), "octaves": 1, "steps": 2}
    both = dream(images, layers="deep:(weakest3)", **options)
    found = [layers_label(each.settings.layers) for each in both]
    assert found[0] != found[1]
    alone = dream(images[1], layers=found[1], **options)
    assert np.abs(alone.array.astype(int) - both[1].array).max() <= 1
    assert set(both[1].scores) == {found[1]}
    assert alone.settings == both[1].settings
    with pytest.raises(InvalidInput, match="stands for 3 objectives"):
        dream(images[0], layers="deep:top3", **options)
