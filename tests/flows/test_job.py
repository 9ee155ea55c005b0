"""Jobs: their identity, and one-line messages that name a wrong field."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dreamcore.errors import InvalidInput
from dreamcore.settings import Output
from flows.job import DreamJob, explain_validation, read_job
from flows.layout import folder_uri, parse_uri

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
PLACES = {"source": "s3://photos/in/", "destination": "s3://dreams/out/"}


def job(**fields: Any) -> DreamJob:
    return DreamJob.model_validate({**PLACES, **fields})


# --- addresses


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://b", ("b", "")),
        ("s3://b/", ("b", "")),
        ("s3://b/a/../c//d?e#f%2F", ("b", "a/../c//d?e#f%2F")),
        ("s3://b//a", ("b", "/a")),
        ("s3://b/s3://c/d", ("b", "s3://c/d")),
    ],
)
def test_an_address_is_split_into_bucket_and_key(uri: str, parts: tuple[str, str]) -> None:
    assert parse_uri(uri) == parts


@pytest.mark.parametrize("uri", ["", "s3://", "s3:///key", "s3:b/key", "http://b/key", "/b/key", "b/key", "S3://b"])
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="is not an S3 address: write s3://"):
        parse_uri(uri)
    with pytest.raises(ValidationError, match="is not an S3 address"):
        job(source=uri)


def test_a_folder_ends_with_one_slash() -> None:
    assert {folder_uri(f"s3://b/out{slashes}") for slashes in ("", "/", "//")} == {"s3://b/out/"}
    assert folder_uri("s3://b") == "s3://b/"


# --- identity


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"destination": "s3://dreams/out"}, {}),
        ({"grid": {"octaves": 4, "steps": 10}}, {"grid": {"steps": [10.0], "octaves": ["4"]}}),
        ({"grid": {"layers": "b+a=0.5"}}, {"grid": {"layers": [{"a": 0.5, "b": 1}]}}),
        ({"grid": {"points": [{"layers": "b+a=0.5"}]}}, {"grid": {"points": [{"layers": {"a": 0.5, "b": 1}}]}}),
        ({"output": {"format": "png", "quality": 7}}, {}),
        ({"sheets": 3}, {"sheets": 4}),
        ({"strict": True, "retry_failed": True}, {"retry_failed": ["damaged"]}),
    ],
)
def test_the_same_work_has_the_same_job_id(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert job(**one).job_id == job(**other).job_id


@pytest.mark.parametrize(
    "fields",
    [
        {"source": "s3://photos/other/"},
        {"destination": "s3://dreams/other/"},
        {"grid": {"octaves": 3}},
        {"grid": {"points": [{"octaves": 3}]}},
        {"max_pixels": 5},
        {"output": {"format": "jpg"}},
    ],
)
def test_other_work_has_another_job_id(fields: dict[str, Any]) -> None:
    assert job(**fields).job_id != job().job_id


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_job_is_unchanged_by_a_round_trip_through_json(path: Path) -> None:
    read = read_job(path, {})
    kept = DreamJob.model_validate_json(read.model_dump_json())
    assert (kept, kept.job_id, kept.settings()) == (read, read.job_id, read.settings())


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (True, True),
        ("true", True),
        (False, False),
        (None, False),
        ([], False),
        ("damaged", ("damaged",)),
        (["damaged", "too_small"], ("damaged", "too_small")),
    ],
)
def test_failed_dreams_to_retry_are_all_or_some_kinds(given: Any, read: object) -> None:
    assert job(retry_failed=given).retry_failed == read


# --- settings


def test_a_job_without_a_grid_has_one_default_dream_with_the_output_of_the_job() -> None:
    (settings,) = job(max_pixels=99, output={"format": "jpg"}).settings()
    assert (settings.max_pixels, settings.output) == (99, Output(format="jpg"))


def test_every_field_has_a_description() -> None:
    schema = DreamJob.model_json_schema()
    properties = schema["properties"] | schema["$defs"]["Grid"]["properties"]
    for name, field in properties.items():
        described = "description" in field or "description" in str(field.get("anyOf"))
        assert described, name


# --- reading


def test_overrides_replace_single_entries_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("source: s3://a/\ndestination: s3://b/\ngrid: {octaves: [3, 4], steps: 5}\n")
    read = read_job(path, {"source": "s3://c/", "grid": {"steps": [7]}, "output": {"format": "webp"}})
    assert read.source == "s3://c/"
    assert read.grid.octaves == (3, 4)
    assert read.grid.steps == (7,)
    assert read.output.format == "webp"


def test_overrides_alone_are_a_job() -> None:
    assert read_job(None, PLACES) == job()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not a job: it needs at least the fields source and destination"),
        ("- a", "is not a job"),
        ("a: [", "is not valid YAML"),
        ("source: 2026-13-45", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
        ("{}", "source: this field is required; destination: this field is required; give --source and --destination"),
        ("grid: cats", "grid: input should be a valid dictionary"),
    ],
)
def test_a_wrong_file_is_reported_in_one_line_with_its_name(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_job(path, {"grid": {"steps": 3}})
    assert str(caught.value).startswith(str(path))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_nested_field_is_reported_without_a_flag(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("{source: s3://a/, destination: s3://b/, grid: {guide: {}}}")
    with pytest.raises(InvalidInput, match=r"grid\.guide\[0\]\.uri: this field is required$"):
        read_job(tmp_path / "job.yaml", {})


def test_a_missing_file_is_reported_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.yaml cannot be read: No such file"):
        read_job(tmp_path / "nowhere.yaml", {})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"sauce": 1}, "sauce: unknown field"),
        ({"grid": {}}, "grid: the grid is empty: give an axis"),
        ({"grid": {"octaves": []}}, "grid.octaves: the list is empty"),
        ({"grid": {"octaves": [3, "many"]}}, "grid.octaves[1]: input should be a valid integer"),
        ({"grid": {"layers": ["a b"]}}, "grid.layers[0]: 'a b' is "),
        ({"grid": {"points": [{"steps": -1}]}}, "grid.points[0]: steps: Input should be greater"),
        ({"max_pixels": 0}, "max_pixels: input should be greater than or equal to 1, not 0"),
        (
            {"retry_failed": ["demaged"]},
            "retry_failed: 'demaged' is not an error kind: give true, or a list of not_an_",
        ),
        ({"retry_failed": 3}, "retry_failed: 3 is not an error kind"),
        ({"output": {"format": "gif"}}, "output.format: input should be 'png', 'webp' or 'jpg', not 'gif'"),
        ({"destination": "s3://photos/in"}, "source and destination are both s3://photos/in/"),
        ({"destination": "s3://photos/", "source": "s3://photos/images/x/"}, "is inside the results"),
        ({"destination": "s3://photos/", "source": "s3://photos/manifest"}, "is inside the results"),
    ],
)
def test_a_wrong_field_is_reported_in_one_line(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        job(**fields)
    message = explain_validation(caught.value)
    assert complaint in message
    assert "\n" not in message


def test_a_destination_may_be_inside_its_source() -> None:
    assert job(source="s3://photos/", destination="s3://photos/dreams/").destination == "s3://photos/dreams/"
