"""Jobs: the same work is the same job, and what is wrong is told in one line that names the field."""

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
def test_an_address_is_a_bucket_and_any_key(uri: str, parts: tuple[str, str]) -> None:
    assert parse_uri(uri) == parts


@pytest.mark.parametrize("uri", ["", "s3://", "s3:///key", "s3:b/key", "http://b/key", "/b/key", "b/key", "S3://b"])
def test_what_is_no_s3_address_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="is not an S3 address: write s3://"):
        parse_uri(uri)
    with pytest.raises(ValidationError, match="is not an S3 address"):
        job(source=uri)


def test_a_folder_ends_in_one_slash() -> None:
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
    ],
)
def test_the_same_work_is_the_same_job(one: dict[str, Any], other: dict[str, Any]) -> None:
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
def test_other_work_is_another_job(fields: dict[str, Any]) -> None:
    assert job(**fields).job_id != job().job_id


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_job_survives_the_run_that_keeps_it(path: Path) -> None:
    read = read_job(path, {})
    kept = DreamJob.model_validate_json(read.model_dump_json())
    assert (kept, kept.job_id, kept.settings()) == (read, read.job_id, read.settings())


# --- settings


def test_a_job_without_a_grid_is_one_default_dream_with_the_jobs_own_output() -> None:
    (settings,) = job(max_pixels=99, output={"format": "jpg"}).settings()
    assert (settings.max_pixels, settings.output) == (99, Output(format="jpg"))


def test_every_field_has_a_description_for_the_form() -> None:
    schema = DreamJob.model_json_schema()
    properties = schema["properties"] | schema["$defs"]["Grid"]["properties"]
    for name, field in properties.items():
        described = "description" in field or "description" in str(field.get("anyOf"))
        assert described, name


# --- reading


def test_a_flag_overrides_one_entry_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("source: s3://a/\ndestination: s3://b/\ngrid: {octaves: [3, 4], steps: 5}\n")
    read = read_job(path, {"source": "s3://c/", "grid": {"steps": [7]}, "output": {"format": "webp"}})
    assert read.source == "s3://c/"
    assert read.grid.octaves == (3, 4)
    assert read.grid.steps == (7,)
    assert read.output.format == "webp"


def test_flags_alone_are_a_job() -> None:
    assert read_job(None, PLACES) == job()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is no job: it needs at least the fields source and destination"),
        ("- a", "is no job"),
        ("a: [", "is no YAML"),
        ("source: 2026-13-45", "is no YAML"),
        ("\x00", "is no YAML"),
        ("{}", "source: it is missing; destination: it is missing; give --source and --destination"),
        ("grid: cats", "grid: input should be a valid dictionary"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_it(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_job(path, {"grid": {"steps": 3}})
    assert str(caught.value).startswith(str(path))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_deep_inside_has_no_flag(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("{source: s3://a/, destination: s3://b/, grid: {guide: {}}}")
    with pytest.raises(InvalidInput, match=r"grid\.guide\[0\]\.uri: it is missing$"):
        read_job(tmp_path / "job.yaml", {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.yaml cannot be read: No such file"):
        read_job(tmp_path / "nowhere.yaml", {})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"sauce": 1}, "sauce: there is no such field"),
        ({"grid": {}}, "grid: it is empty: give an axis"),
        ({"grid": {"octaves": []}}, "grid.octaves: the list is empty"),
        ({"grid": {"octaves": [3, "many"]}}, "grid.octaves[1]: input should be a valid integer"),
        ({"grid": {"layers": ["a b"]}}, "grid.layers[0]: 'a b' is not a target"),
        ({"grid": {"points": [{"steps": -1}]}}, "grid.points[0]: steps: Input should be greater"),
        ({"max_pixels": 0}, "max_pixels: input should be greater than or equal to 1, not 0"),
        ({"output": {"format": "gif"}}, "output.format: input should be 'png', 'webp' or 'jpg', not 'gif'"),
        ({"destination": "s3://photos/in"}, "source and destination are both s3://photos/in/"),
        ({"destination": "s3://photos/", "source": "s3://photos/images/x/"}, "lies among the results"),
        ({"destination": "s3://photos/", "source": "s3://photos/manifest"}, "lies among the results"),
    ],
)
def test_a_wrong_field_is_explained_in_one_line(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        job(**fields)
    told = explain_validation(caught.value)
    assert complaint in told
    assert "\n" not in told


def test_a_destination_may_lie_below_its_source() -> None:
    assert job(source="s3://photos/", destination="s3://photos/dreams/").destination == "s3://photos/dreams/"
