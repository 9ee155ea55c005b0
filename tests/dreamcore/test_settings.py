"""Settings: spellings, identity, validation and labels; and the expansion of grids."""

import itertools
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dreamcore.fields import Enlarge, Output, Reference
from dreamcore.grid import MAX_GRID_POINTS, Grid
from dreamcore.settings import ALGORITHM_VERSION, DreamSettings, result_id, settings_id
from dreamcore.targets import Anchor, Target, layers_label
from dreamcore.zoom import Zoom

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}(\.[A-Za-z0-9_]{1,4}){0,3}", fullmatch=True)
WEIGHTS = st.decimals(-10, 10, places=2).map(float).filter(bool)
TARGETS = st.builds(Target, layer=NAMES, channels=st.lists(st.integers(0, 2000), max_size=3).map(tuple), weight=WEIGHTS)
OBJECTIVES = st.lists(TARGETS, min_size=1, max_size=3, unique_by=lambda target: target.layer)
FILES = st.builds(Reference, uri=st.just("s3://b/k"), sha256=st.from_regex("[0-9a-f]{64}", fullmatch=True))
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "model": NAMES,
    "weights": st.none() | FILES,
    "layers": OBJECTIVES,
    "guide": st.none() | FILES,
    "mask": st.none() | FILES,
    "rounding": st.sampled_from(["nearest", "down"]),
    "resample": st.sampled_from(["bicubic", "bilinear", "zoom"]),
    "space": st.sampled_from(["picture", "network", "fourier"]),
    "stop_at": st.none() | st.floats(-10, 10),
    "clip": st.booleans(),
    "tile": st.just(0) | st.integers(64, 1024),
    "octaves": st.integers(1, 32),
    "octave_scale": st.floats(1, 4, exclude_min=True),
    "steps": st.integers(0, 10_000),
    "step_size": st.floats(0, 1, exclude_min=True),
    "color": st.floats(0, 1),
    "soft_clip": st.floats(0, 1),
    "calm": st.floats(0, 1),
    "contrast": st.floats(0, 4, exclude_min=True),
    "keep_colors": st.floats(0, 1),
    "blend": st.floats(0, 1, exclude_max=True),
    "jitter": st.integers(0, 4096),
    "gradient": st.sampled_from(["laplacian", "gaussian", "plain"]),
    "normalise": st.sampled_from(["mean_abs", "std", "adam"]),
    "measure": st.sampled_from(["log_mean_square", "mean"]),
    "carry": st.sampled_from(["detail", "result"]),
    "flip": st.booleans(),
    "transforms": st.sampled_from(["shift", "lucid", "crops"]),
    "total_variation": st.floats(0, 10),
    "l2": st.floats(0, 10),
    "stay_near": st.none() | st.builds(Anchor, layer=NAMES, weight=st.floats(0.01, 10)),
    "seed": st.integers(0, 2**63 - 1),
    "max_pixels": st.integers(1, 10**9),
    "output": st.builds(Output, format=st.sampled_from(["png", "webp", "jpg"]), quality=st.integers(1, 100)),
    "enlarge": st.none()
    | st.builds(Enlarge, uri=NAMES, sha256=st.from_regex("[0-9a-f]{64}", fullmatch=True), strength=st.floats(0, 2)),
    "movie": st.none() | st.builds(Zoom, seconds=st.floats(0.1, 60), loop=st.booleans()),
}
SETTINGS = st.builds(DreamSettings, **FIELDS)
SHA = "0123456789abcdef" * 4


def text_of(target: Target) -> str:
    channels = ":" + ",".join(map(str, target.channels)) if target.channels else ""
    return f"{target.layer}{channels}={target.weight}"


def spellings(targets: list[Target]) -> list[object]:
    """Return one objective in every supported spelling."""
    return [
        "+".join(text_of(target) for target in targets),
        " + ".join(text_of(target) for target in reversed(targets)),
        {text_of(target).rpartition("=")[0]: target.weight for target in reversed(targets)},
        [text_of(target) for target in targets],
        [target.model_dump(mode="json") for target in reversed(targets)],
        tuple(targets),
    ]


@given(OBJECTIVES)
def test_all_spellings_of_an_objective_are_equal(targets: list[Target]) -> None:
    settings_of_each = [DreamSettings.model_validate({"layers": spelling}) for spelling in spellings(targets)]
    assert len(set(settings_of_each)) == 1
    assert len({settings_id(settings, "w") for settings in settings_of_each}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"layers": "blocks.5=0.5+blocks.4+blocks.3=0.3"}, {}),
        ({"layers": "blocks.4=1"}, {"layers": {"layer": "blocks.4"}}),
        ({"layers": "a:3,1,3"}, {"layers": "a:1,3"}),
        ({"octave_scale": 2, "step_size": 1}, {"octave_scale": 2.0, "step_size": 1.0}),
        ({"octaves": 3.0, "seed": "7"}, {"octaves": 3, "seed": 7}),
        ({"output": {"format": "png", "quality": 10}}, {"output": {"quality": 90}}),
    ],
)
def test_two_spellings_of_settings_are_equal(one: dict[str, object], other: dict[str, object]) -> None:
    assert DreamSettings.model_validate(one) == DreamSettings.model_validate(other)


@given(SETTINGS)
def test_settings_survive_round_trips_through_json_and_yaml(settings: DreamSettings) -> None:
    plain = settings.model_dump(mode="json")
    assert DreamSettings.model_validate(yaml.safe_load(yaml.safe_dump(plain))) == settings
    again = DreamSettings.model_validate_json(settings.canonical_json())
    assert again == settings
    assert again.canonical_json() == settings.canonical_json()
    assert json.loads(settings.canonical_json()) == plain


@pytest.mark.parametrize("field", sorted(DreamSettings.model_fields.keys() - {"weights", "octaves_above"}))
@given(data=st.data())
@hypothesis_settings(max_examples=20)  # for each of about 25 fields
def test_a_change_of_any_field_changes_the_identity(field: str, data: st.DataObject) -> None:
    settings = data.draw(SETTINGS)
    changed = DreamSettings.model_validate({**settings.model_dump(), field: data.draw(FIELDS[field])})
    assume(changed != settings)
    assert settings_id(changed, "w") != settings_id(settings, "w")


def test_the_identity_depends_on_the_weights() -> None:
    assert settings_id(DreamSettings(), "one") != settings_id(DreamSettings(), "other")


def test_the_identity_depends_on_the_content_of_files_and_not_on_their_uri() -> None:
    def identity(**fields: object) -> str:
        return settings_id(DreamSettings.model_validate(fields), "w")

    for name in ("guide", "mask"):
        assert identity(**{name: f"s3://a/b#sha256={SHA}"}) == identity(**{name: {"uri": "c.png", "sha256": SHA}})
        assert identity(**{name: f"s3://a/b#sha256={SHA}"}) != identity(**{name: f"s3://a/b#sha256={SHA[::-1]}"})
        with pytest.raises(ValueError, match=f"{name} has no SHA-256; read s3://a/b first"):
            identity(**{name: "s3://a/b"})
    assert identity(guide=f"a#sha256={SHA}") != identity(mask=f"a#sha256={SHA}")
    assert identity(weights=f"a#sha256={SHA}") == identity()


def test_a_uri_may_contain_any_character() -> None:
    settings = DreamSettings.model_validate(
        {"guide": "s3://b/a#b=c d%23", "mask": f"s3://b/#1.png#sha256={SHA.upper()}"}
    )
    assert settings.guide == Reference(uri="s3://b/a#b=c d%23")
    assert settings.mask == Reference(uri="s3://b/#1.png", sha256=SHA)
    assert str(settings.mask) == f"s3://b/#1.png#sha256={SHA}"


def test_the_identity_depends_on_the_quality_of_jpg() -> None:
    ids = {settings_id(DreamSettings(output=Output(format="jpg", quality=q)), "w") for q in (80, 90)}
    assert len(ids) == 2


def test_identities_stay_what_they_are() -> None:
    """If this fails, the next run reproduces every dream in every destination.

    If the same settings give a different image now, increase ALGORITHM_VERSION and pin the new identities here.
    Otherwise find the change of the settings' JSON and undo it.
    """
    assert settings_id(DreamSettings.model_validate({"look": "neon"}), "weights") == "5ccc580ba9bd7871"
    fields = {"look": "neon", "layers": "b:2=0.5+a", "octaves": 3, "output": {"format": "jpg"}}
    assert settings_id(DreamSettings.model_validate(fields), "weights") == "87f9756f449503c9"
    assert settings_id(DreamSettings(), "weights") == "8b915701145665cb"
    assert result_id("etag", "0123456789abcdef") == "c66cc19a2f741aba"


def test_defaults_stay_what_they_are() -> None:
    """A job that names no settings gets another look, and other identities, if a default changes.

    The value that a new setting had for older dreams belongs into `_FIRST_DEFAULTS`.
    """
    assert ALGORITHM_VERSION == 2
    assert json.loads(DreamSettings().canonical_json()) == {
        "model": "efficientnet_lite0",
        "weights": None,
        "guide": None,
        "mask": None,
        "octaves_above": 0,
        "rounding": "nearest",
        "resample": "bicubic",
        "space": "picture",
        "stop_at": None,
        "clip": True,
        "tile": 0,
        "layers": [
            {"layer": f"blocks.{number}", "channels": [], "at": None, "weight": weight}
            for number, weight in ((3, 0.3), (4, 1.0), (5, 0.5))
        ],
        "color": 0.9,
        "soft_clip": 0.15,
        "calm": 0.08,
        "contrast": 1.0,
        "keep_colors": 0.4,
        "blend": 0.0,
        "octaves": 6,
        "octave_scale": 1.4,
        "steps": 10,
        "step_size": 0.01,
        "jitter": 32,
        "flip": False,
        "transforms": "shift",
        "measure": "log_mean_square",
        "gradient": "laplacian",
        "normalise": "mean_abs",
        "total_variation": 0.0,
        "l2": 0.0,
        "stay_near": None,
        "enlarge": None,
        "movie": None,
        "carry": "detail",
        "seed": 0,
        "max_pixels": 1_000_000,
        "output": {"format": "png", "quality": 95},
    }


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_identities_are_the_same_in_every_process(hash_seed: str) -> None:
    mix = "b.2:9,4=0.5+a"
    code = (
        "from dreamcore.settings import *;"
        f"print(settings_id(DreamSettings.model_validate({{'layers': {mix!r}}}), 'weights'))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == settings_id(DreamSettings.model_validate({"layers": mix}), "weights")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": "a b"}, "is not a target"),
        ({"layers": ""}, "is not a target"),
        ({"layers": []}, "at least one layer"),
        ({"layers": "a+a=2"}, "a is in the mix twice"),
        ({"layers": "a=0"}, "remove the layer"),
        ({"layers": "logits:3@0.5,0.5"}, "no position in the image"),
        ({"layers": "a@0.5,1.5"}, "less than or equal to 1"),
        ({"layers": "a=much"}, "valid number"),
        ({"layers": {"a": float("nan")}}, "finite"),
        ({"layers": 4}, "is not an objective"),
        ({"octaves": 0}, "greater than or equal to 1"),
        ({"octave_scale": 1}, "greater than 1"),
        ({"stay_near": "a:3=2"}, "has channels or a place; write LAYER or LAYER=WEIGHT"),
        ({"stay_near": "a=-1"}, "greater than 0"),
        ({"step_size": float("inf")}, "step_size"),
        ({"seed": -1}, "seed"),
        ({"gradient": "sobel"}, "'laplacian', 'gaussian' or 'plain'"),
        ({"output": {"format": "gif"}}, "'png', 'webp' or 'jpg'"),
        ({"octave": 3}, "octave"),
        ({"weights": "s3://b/w.safetensors"}, "weights need a SHA-256; write s3://b/w.safetensors#sha256=DIGEST"),
        ({"guide": "s3://b/k#sha256=12"}, "sha256"),
        ({"octaves": 3, "octaves_above": 3}, "it must be less than octaves"),
        ({"octaves": 9, "octaves_above": 8}, "4 times the sides"),
        ({"resample": "zoom", "octaves_above": 1}, "octaves_above must be 0"),
        ({"tile": 10}, "tile is 10 pixels; use 64 or more"),
        ({"preset": "none"}, "no preset 'none'; choose google2015"),
    ],
)
def test_invalid_settings_are_rejected_with_a_reason(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DreamSettings.model_validate(fields)


@pytest.mark.parametrize("value", [DreamSettings(), Grid(), Output(), Target(layer="a")])
def test_values_are_frozen(value: Any) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(value, next(iter(type(value).model_fields)), None)


def test_a_label_is_a_valid_spelling_of_the_objective() -> None:
    settings = DreamSettings.model_validate({"layers": {"b": 1, "a": 0.3, "a:2,1": -1}})
    assert layers_label(settings.layers) == "a=0.3+a:1,2=-1+b"
    assert DreamSettings.model_validate({"layers": layers_label(settings.layers)}) == settings


AXES = st.fixed_dictionaries(
    {},
    optional={
        name: st.lists(values, min_size=1, max_size=3, unique_by=repr)
        for name, values in FIELDS.items()
        if name in ("octaves", "steps", "gradient", "seed")
    },
)


@given(AXES)
def test_a_grid_is_the_product_of_its_axes_and_the_last_axis_varies_fastest(axes: dict[str, list[Any]]) -> None:
    names = [name for name in Grid.model_fields if name in axes]
    expected = [
        DreamSettings.model_validate(dict(zip(names, values, strict=True)))
        for values in itertools.product(*(axes[name] for name in names))
    ]
    assert list(Grid.model_validate(axes).expand()) == expected
    assert list(Grid.model_validate(dict(reversed(axes.items()))).expand()) == expected


def test_an_empty_grid_is_one_default_dream() -> None:
    assert Grid().expand() == (DreamSettings(),)


def test_expand_removes_duplicates_and_puts_points_last() -> None:
    grid = Grid.model_validate(
        {"octaves": [3, 4, 3], "steps": [5, 5.0], "points": [{"steps": 9}, {"octaves": 4, "steps": 5}]}
    )
    assert [(s.octaves, s.steps) for s in grid.expand()] == [(3, 5), (4, 5), (DreamSettings().octaves, 9)]


def test_a_grid_of_points_alone_has_no_default_dream() -> None:
    grid = Grid.model_validate({"points": [{"steps": 3}, {"steps": 4}]})
    assert [settings.steps for settings in grid.expand()] == [3, 4]


def test_a_scalar_is_an_axis_of_one_and_a_mix_is_one_entry() -> None:
    grid = Grid.model_validate({"octaves": 3, "layers": {"a": 1, "b": 0.5}})
    (settings,) = grid.expand()
    assert settings.octaves == 3
    assert layers_label(settings.layers) == "a+b=0.5"
    assert len(Grid.model_validate({"layers": ["a", "b=0.5", {"a": 1, "b": 0.5}]}).expand()) == 3


def test_fixed_fields_apply_to_all_settings_and_points_override_them() -> None:
    grid = Grid.model_validate({"octaves": [3, 4], "points": [{"max_pixels": 7}]})
    assert [settings.max_pixels for settings in grid.expand(max_pixels=99)] == [99, 99, 7]


def test_two_spellings_of_a_point_are_equal() -> None:
    one = Grid.model_validate({"points": [{"layers": "b+a=0.5", "octave_scale": 2}]})
    other = Grid.model_validate({"points": [{"octave_scale": 2.0, "layers": {"a": 0.5, "b": 1}}]})
    assert one == other
    assert Grid.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize(
    ("grid", "axis", "message"),
    [
        ({"octaves": []}, "octaves", "the list is empty"),
        ({"octaves": "many"}, "octaves", "valid integer"),
        ({"steps": [5, {"a": 1}]}, "steps", "valid integer"),
        ({"gradient": ["laplacian", "sobel"]}, "gradient", "plain"),
        ({"layers": ["a", None]}, "layers", "not an objective"),
        ({"seed": list(range(MAX_GRID_POINTS + 1))}, None, "10,001 points, but at most 10,000"),
        ({"points": [{"steps": -1}]}, "points", "steps: Input should be greater"),
        ({"points": [{"stepps": 1}]}, "points", "stepps"),
        ({"max_pixels": 10}, "max_pixels", "not permitted"),
    ],
)
def test_an_invalid_grid_is_rejected_with_the_name_of_the_axis(
    grid: dict[str, object], axis: str | None, message: str
) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        Grid.model_validate(grid)
    (error,) = caught.value.errors()
    assert error["loc"][:1] == ((axis,) if axis else ())
    assert "\n" not in error["msg"]


def test_the_largest_grid_is_allowed() -> None:
    assert len(Grid.model_validate({"seed": list(range(100)), "steps": list(range(100))}).expand()) == MAX_GRID_POINTS
