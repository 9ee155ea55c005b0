"""Grids: expansion of presets, files and depths, error messages, and the round trip through JSON."""

from typing import Any

import pytest

from dreamcore.catalog import resolve_layers
from dreamcore.errors import InvalidInput
from dreamcore.fields import Reference
from dreamcore.grid import Grid
from dreamcore.presets import PRESETS
from dreamcore.settings import BUNDLED, DEFAULT_DEPTHS, DreamSettings
from dreamcore.targets import layers_label
from flows.jobs.job import DreamJob, read_job
from flows.planning.scan import plan_settings

LOCATIONS = {"source": "s3://photos/in/", "destination": "s3://dreams/out/"}
SHA = "0123456789abcdef" * 4


def expand(**axes: Any) -> tuple[DreamSettings, ...]:
    return Grid.model_validate(axes).expand()


def settings(**fields: Any) -> DreamSettings:
    return DreamSettings.model_validate(fields)


# --- presets


def test_presets_are_combined_with_the_other_axes() -> None:
    google, keras = expand(preset=["google2015", "keras"], steps=[2])
    assert google == settings(preset="google2015", steps=2)
    assert keras == settings(preset="keras", steps=2)
    for preset, found in (("google2015", google), ("keras", keras)):
        published = {**PRESETS[preset].settings, "steps": 2}  # type: ignore[index]
        assert {name: getattr(found, name) for name in published} == published


def test_other_axes_override_presets_also_with_none() -> None:
    assert [each.stop_at for each in expand(preset="keras", stop_at=[None, 3, 15])] == [None, 3, 15]
    assert settings(preset="keras").stop_at == 15
    assert [layers_label(each.layers) for each in expand(preset=["tf2", "gordic"], layers="blocks.1")] == [
        "blocks.1",
        "blocks.1",
    ]


def test_presets_use_layers_at_the_same_depth_on_other_networks() -> None:
    found = {
        (each.model, each.measure): layers_label(each.layers)
        for each in expand(preset=["google2015", "gordic"], model=["googlenet", "vgg16", BUNDLED])
    }
    assert found == {
        ("googlenet", "half_sum_square"): "inception4c",
        ("vgg16", "half_sum_square"): "74%",
        (BUNDLED, "half_sum_square"): "74%",
        ("googlenet", "mean_square"): "91%",
        ("vgg16", "mean_square"): "features.22",
        (BUNDLED, "mean_square"): "91%",
    }
    resolved = [layers_label(resolve_layers(each).layers) for each in expand(preset=list(PRESETS), model=BUNDLED)]
    found_in_bundled = dict(zip(PRESETS, resolved, strict=True))
    assert found_in_bundled == {
        "google2015": "blocks.4",
        "tf2": "blocks.3+blocks.4",
        "tf2_tiled": "blocks.3+blocks.4",
        "keras": "blocks.4=4.5+blocks.5=2.5",
        "gordic": "blocks.6",
        "lucid": "blocks.4",
    }


def test_other_networks_have_a_depth_as_default_objective() -> None:
    found = [(each.model, layers_label(each.layers)) for each in expand(model=[BUNDLED, "googlenet"])]
    assert found == [(BUNDLED, "blocks.3=0.3+blocks.4+blocks.5=0.5"), ("googlenet", DEFAULT_DEPTHS)]


def test_a_point_can_be_a_preset_with_changes() -> None:
    grid = Grid.model_validate({"points": [{"preset": "tf2", "seed": 3}, {"seed": 4}]})
    assert grid.expand() == (settings(preset="tf2", seed=3), settings(seed=4))
    assert "preset" not in grid.model_dump_json(exclude={"preset"})
    changed = Grid.model_validate({"points": [{"preset": "tf2", "steps": 7, "layers": "blocks.2"}]}).expand()
    assert [(each.steps, layers_label(each.layers), each.octaves_above) for each in changed] == [(7, "blocks.2", 2)]


@pytest.mark.parametrize(
    ("grid", "location", "message"),
    [
        ({"preset": ["keras", "chollet"]}, "grid.preset[1]", "'google2015', 'tf2'"),
        ({"points": [{"preset": "chollet"}]}, "grid.points[0]", "choose google2015, tf2, tf2_tiled, keras, gordic"),
        ({"guide": [""]}, "grid.guide[0]", "at least 1 character"),
        ({"mask": ["s3://b/k#sha256=12"]}, "grid.mask[0]", "sha256"),
        # values that are valid alone and contradict each other in a combination
        ({"weights": ["s3://b/k"]}, "weights need a SHA-256", "write s3://b/k#sha256=DIGEST"),
        ({"octaves": [2, 3], "octaves_above": [2]}, "octaves_above", "it must be less than octaves"),
        ({"preset": ["keras", "tf2"], "octaves": [2]}, "octaves_above", "it must be less than octaves"),
        ({"preset": ["google2015"], "octaves_above": [0, 1]}, "resample", "octaves_above must be 0"),
        ({"tile": [0, 10]}, "tile", "use 64 or more"),
        ({"points": [{"octaves": 3, "octaves_above": 3}]}, "grid.points[0]", "it must be less than octaves"),
    ],
)
def test_a_grid_with_an_invalid_point_is_rejected_with_a_message_of_one_line(
    grid: dict[str, Any], location: str, message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        plan_settings(read_job(None, {**LOCATIONS, "grid": grid}))
    found = str(caught.value)
    assert location in found
    assert message in found
    assert [part for part in ("\n", ": :", "Value error") if part in found] == []


# --- files


def test_an_axis_of_files_accepts_none_and_uris() -> None:
    for name in ("guide", "mask"):
        without, unhashed, hashed = expand(**{name: [None, "s3://b/k", f"s3://b/k#sha256={SHA}"]})
        assert (getattr(without, name), without) == (None, DreamSettings())
        assert getattr(unhashed, name) == Reference(uri="s3://b/k")
        assert getattr(hashed, name) == Reference(uri="s3://b/k", sha256=SHA)


def test_an_axis_of_weights_is_combined_with_other_axes() -> None:
    found = expand(weights=[None, f"s3://b/k#sha256={SHA}"], steps=[1, 2])
    weights = Reference(uri="s3://b/k", sha256=SHA)
    assert [(each.weights, each.steps) for each in found] == [(None, 1), (None, 2), (weights, 1), (weights, 2)]


# --- JSON


@pytest.mark.parametrize(
    "axes",
    [
        {"preset": ["google2015", "tf2"], "steps": [2]},
        {"preset": list(PRESETS), "model": [BUNDLED, "googlenet"], "stop_at": [None, 2]},
        {"guide": [None, "s3://b/k", {"uri": "s3://b/#1", "sha256": SHA}], "mask": "s3://b/k"},
        {"weights": f"s3://b/k#sha256={SHA}", "layers": ["51%+66%=2", {"layer": "a", "at": [0.5, 0.25]}]},
        {"points": [{"preset": "keras", "guide": "s3://b/k"}, {"model": "googlenet"}, {"weights": f"k#sha256={SHA}"}]},
        {"octaves": [3], "octaves_above": [0, 2], "tile": [0, 64], "clip": [True, False], "points": [{"seed": 1}]},
    ],
    ids=str,
)
def test_a_grid_survives_a_round_trip_through_json(axes: dict[str, Any]) -> None:
    grid = Grid.model_validate(axes)
    again = Grid.model_validate_json(grid.model_dump_json())
    assert (again, again.expand()) == (grid, grid.expand())
    job = DreamJob.model_validate({**LOCATIONS, "grid": axes})
    read = DreamJob.model_validate_json(job.model_dump_json())
    assert (read.job_id, read.settings()) == (job.job_id, job.settings())


# --- depths


def test_depths_of_the_same_layer_are_planned_once() -> None:
    job = DreamJob.model_validate({**LOCATIONS, "grid": {"layers": ["63%", "65%", "blocks.4", "41%"], "steps": [1, 2]}})
    planned = plan_settings(job)
    assert [(layers_label(each.settings.layers), each.settings.steps) for each in planned] == [
        ("blocks.4", 1),
        ("blocks.4", 2),
        ("blocks.3", 1),
        ("blocks.3", 2),
    ]
    assert len({each.settings_id for each in planned}) == 4
