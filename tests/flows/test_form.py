"""The job that the form of the Prefect UI describes."""

from typing import Any

import jsonschema
import pytest

from dreamcore.errors import InvalidInput
from dreamcore.fields import Output
from dreamcore.grid import Grid
from dreamcore.settings import DreamSettings
from dreamcore.targets import layers_label
from dreamcore.zoom import Zoom
from flows.form import AXES, dream_from_form, job_from_form
from flows.jobs.job import DreamJob

ADDRESSES = {"source": "s3://photos/", "destination": "s3://dreams/"}


def test_empty_lists_keep_the_defaults() -> None:
    job = job_from_form(ADDRESSES, {name: [] for name in AXES}, {})
    assert job == DreamJob.model_validate(ADDRESSES)
    assert job.settings() == (DreamSettings(),)


def test_lists_are_axes_and_other_fields_are_settings_or_fields_of_the_job() -> None:
    axes: dict[str, list[Any]] = {
        "layers": ["blocks.3=0.3+blocks.4"],
        "octaves": [2, 4],
        "steps": [],
        "model": [],
        "preset": ["keras"],
    }
    more = {"jitter": [0, 8], "points": [{"steps": 3}], "sheets": 0, "output": {"format": "jpg"}}
    grid = {"layers": "blocks.3=0.3+blocks.4", "octaves": [2, 4], "preset": "keras", "jitter": [0, 8]}
    assert job_from_form(ADDRESSES, axes, more) == DreamJob.model_validate(
        {
            **ADDRESSES,
            "grid": {**grid, "points": [{"steps": 3}]},
            "sheets": 0,
            "output": Output(format="jpg"),
        }
    )


@pytest.mark.parametrize(
    ("axes", "more", "message"),
    [
        ({"layers": ["blocks.4=heavy"]}, {}, "layers"),
        ({"octaves": [99]}, {}, r"octaves\[0\]: input should be less than or equal to 32, not 99"),
        ({}, {"octavs": 4}, "octavs: unknown field"),
        ({"octaves": [3]}, {"octaves": 4}, "more: octaves cannot be given here: use the fields of the form"),
        ({}, {"octaves": "8-4"}, "the range 8-4 is empty"),
        ({}, {"grid": {"jitter": 3}, "source": "s3://a/"}, "more: grid, source cannot be given here"),
        ({}, {"jitter": "much"}, "jitter"),
    ],
)
def test_a_wrong_field_is_named(axes: dict[str, list[Any]], more: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        job_from_form(ADDRESSES, axes, more)


def test_ranges_are_written_into_more_and_sweeps_into_the_field_of_the_layers() -> None:
    job = job_from_form(ADDRESSES, {"layers": ["blocks.4:0-63"], "steps": []}, {"steps": "4-8", "l2": "0-1/3"})
    grid = {"layers": "blocks.4:0-63", "steps": [4, 5, 6, 7, 8], "l2": [0, 0.5, 1]}
    assert job == DreamJob.model_validate({**ADDRESSES, "grid": grid})
    schema = jsonschema.Draft202012Validator(
        dream_from_form.parameters.properties["more"]["patternProperties"]["^steps$"]
    )
    found = {repr(value): schema.is_valid(value) for value in ("4-8", [4, "6-8"], 4, "many", ["many"])}
    assert found == {"'4-8'": True, "[4, '6-8']": True, "4": True, "'many'": False, "['many']": False}


def test_source_and_destination_are_checked() -> None:
    with pytest.raises(InvalidInput, match="source and destination are both"):
        job_from_form({**ADDRESSES, "destination": "s3://photos/"}, {}, {})


def test_a_list_of_sources_takes_the_place_of_the_source() -> None:
    places = {"source": "", "sources": ["s3://photos/a.jpg", "s3://more/"], "destination": "s3://dreams/"}
    assert job_from_form(places, {}, {}).addresses == ("s3://more/", "s3://photos/a.jpg")
    with pytest.raises(InvalidInput, match="source and sources are both given"):
        job_from_form({**places, "source": "s3://photos/"}, {}, {})
    with pytest.raises(InvalidInput, match="source: this field is required"):
        job_from_form({**places, "sources": []}, {}, {})
    checked = dream_from_form.validate_parameters(places)
    assert (checked["sources"], checked["source"]) == (places["sources"], "")


def test_the_form_states_the_defaults() -> None:
    fields = dream_from_form.parameters.properties
    defaults = DreamSettings()
    for name in AXES:
        fixed = {"layers": layers_label(defaults.layers), "preset": "none", "look": "the default look"}
        default = fixed.get(name) or getattr(defaults, name)
        assert fields[name]["description"].endswith(f"Empty: {default}.")
        assert fields[name]["default"] == []


def test_every_field_of_a_job_is_in_the_form() -> None:
    fields = dream_from_form.parameters.properties
    names = set(fields) | set(fields["more"]["propertyNames"]["enum"])
    assert names - {"more"} == set(DreamJob.model_fields) - {"grid"} | set(Grid.model_fields)


@pytest.mark.parametrize(("source", "is_valid"), [("noise:640x360", True), ("noise:640", False), ("noise:", False)])
def test_the_form_takes_noise(source: str, is_valid: bool) -> None:
    fields = dream_from_form.parameters.properties
    assert jsonschema.Draft202012Validator(fields["source"]).is_valid(source) == is_valid
    assert jsonschema.Draft202012Validator(fields["sources"]).is_valid([source]) == is_valid
    if is_valid:
        assert job_from_form({**ADDRESSES, "source": source}, {}, {}).noise == (source,)


def test_the_form_takes_movies_in_more() -> None:
    schema = jsonschema.Draft202012Validator(
        {"definitions": dream_from_form.parameters.definitions, **dream_from_form.parameters.properties["more"]}
    )
    more = {"zoom": {"seconds": 2, "keyframes": [{"at": 1, "rotate": 3}]}}
    assert job_from_form(ADDRESSES, {}, more).zoom == Zoom(seconds=2, keyframes=[{"at": 1, "rotate": 3}])
    assert schema.is_valid(more)
    assert not schema.is_valid({"zoom": {"seconds": "long"}})
