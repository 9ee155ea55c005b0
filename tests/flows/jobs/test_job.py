"""Jobs: their identity, and one-line messages that name a wrong field."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dreamcore.errors import InvalidInput
from dreamcore.fields import Output
from flows.jobs.job import DreamJob, explain_validation, read_job
from flows.jobs.job_options import ExecutorOptions
from flows.s3.layout import folder_uri, parse_uri
from tests.support.command import REPOSITORY

CASES = REPOSITORY / "tests" / "fixtures" / "cases"
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))
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
        ({"exclude": "*.gif"}, {"exclude": ["*.gif"]}),
        ({"exclude": ["b", "a", "b"]}, {"exclude": ["a", "b"]}),
        ({"exclude": []}, {}),
        ({"sources": [], "inventory": None}, {}),
        (
            {"source": None, "sources": ["s3://b/", "s3://a/", "s3://b/"]},
            {"source": None, "sources": ["s3://a/", "s3://b/"]},
        ),
        ({"strict": True, "retry_failed": True}, {"retry_failed": ["damaged"]}),
        ({"executor": "ray"}, {"executor": {"name": "ray", "address": "10.0.0.1:6379", "gpus": 0.5}}),
        ({"executor": "ray"}, {}),
    ],
)
def test_the_same_work_has_the_same_job_id(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert job(**one).job_id == job(**other).job_id


@pytest.mark.parametrize(
    "fields",
    [
        {"source": "s3://photos/other/"},
        {"source": None, "sources": ["s3://photos/in/"]},
        {"destination": "s3://dreams/other/"},
        {"grid": {"octaves": 3}},
        {"grid": {"points": [{"octaves": 3}]}},
        {"max_pixels": 5},
        {"output": {"format": "jpg"}},
        {"exclude": ["*.gif"]},
        {"grid": {"transforms": "lucid"}},
        {"grid": {"stay_near": "blocks.1"}},
    ],
)
def test_other_work_has_another_job_id(fields: dict[str, Any]) -> None:
    assert job(**fields).job_id != job().job_id


def test_the_identity_of_jobs_of_earlier_versions_is_unchanged() -> None:
    """Otherwise their unfinished runs could not be resumed. The identities are those that version 0.1.0 computed."""
    places = {"source": "s3://photos/", "destination": "s3://dreams/"}
    assert DreamJob.model_validate(places).job_id == "f7eea6d9ff4bd665"
    grid = {"octaves": [4, 6], "layers": ["blocks.3"]}
    places = {"source": "s3://photos/a", "destination": "s3://dreams/n"}
    assert DreamJob.model_validate({**places, "grid": grid, "max_pixels": 5000}).job_id == "b30d5999812c0954"


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


def test_a_source_replaces_a_list_of_sources_and_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("sources: [s3://b/x.jpg, s3://a/]\ndestination: s3://d/\n")
    assert read_job(path, {}).addresses == ("s3://a/", "s3://b/x.jpg")
    assert read_job(path, {}).source_in_words == "a list of 2 sources that begins with s3://a/"
    assert read_job(path, {"source": "s3://c/"}).addresses == ("s3://c/",)
    path.write_text("source: s3://a/\ndestination: s3://d/\n")
    assert read_job(path, {"sources": ["s3://c/"]}).addresses == ("s3://c/",)
    kept = read_job(path, {"sources": ["s3://c/", "s3://b/"]})
    assert DreamJob.model_validate_json(kept.model_dump_json()) == kept


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
        (f"source: {'[' * 5000}", "lists and mappings are nested too deeply"),
        ("a: 1\n\n'a': 2\n", ": line 3 repeats the key 'a' of line 1: keep one of the two"),
        ("{a: 1, b: {c: 1, c: 2}}", ": line 1 repeats the key 'c' of line 1"),
        ("grid:\n  points:\n  - a: 1\n    b: 2\n    a: 3\n", ": line 5 repeats the key 'a' of line 3"),
        ("a:\n  b: 1\na: 2\nc:\n  d: 1\n  d: 2\n", ": line 3 repeats the key 'a' of line 1"),
        ('a: 1\nx: &x {"b": 1, ? b : 2}\ny: *x\n', ": line 2 repeats the key 'b' of line 2"),
        ("a: !!bool x", "is not valid YAML"),
        ("a: !!timestamp x", "is not valid YAML"),
        ("a: !!int ''", "is not valid YAML"),
        ("a: !!python/none x", "is not valid YAML"),
        ("? {a: 1}\n: 1\n", "is not valid YAML"),
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


ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_job_may_be_in_any_encoding_of_unicode(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes("source: s3://a/\N{CAT FACE}\u732b/\ndestination: s3://b/\n".encode(encoding))
    assert read_job(path, {}).source == "s3://a/\N{CAT FACE}\u732b/"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("source: s3://a/caf\xe9/".encode("latin-1"), "is not UTF-8 text from byte 19: save it as UTF-8"),
        ("source: s3://a/".encode("utf-16")[:-1], "is not UTF-16 text from byte 31: save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is not UTF-8 text from byte 1: save it as UTF-8"),
    ],
)
def test_a_file_in_another_encoding_is_refused_in_one_line(tmp_path: Path, data: bytes, complaint: str) -> None:
    (tmp_path / "job.yaml").write_bytes(data)
    with pytest.raises(InvalidInput, match=f"^{re.escape(str(tmp_path / 'job.yaml'))} {complaint}$"):
        read_job(tmp_path / "job.yaml", {})


def test_the_case_with_a_repeated_key_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"repeated-key\.yaml: line 6 repeats the key 'octaves' of line 4"):
        read_job(CASES / "repeated-key.yaml", {})


def test_merged_keys_and_aliases_are_no_repetitions(tmp_path: Path) -> None:
    text = "grid:\n  points:\n  - &a {octaves: 3, steps: 2}\n  - {<<: *a, octaves: 4}\n  - {<<: *a, steps: 4}\n"
    (tmp_path / "job.yaml").write_text(text)
    points = [(point.octaves, point.steps) for point in read_job(tmp_path / "job.yaml", PLACES).settings()]
    assert points == [(3, 2), (4, 2), (3, 4)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_case_in_chinese_is_read_in_every_locale(tmp_path: Path, encoding: str) -> None:
    text = (CASES / "cjk.yaml").read_text(encoding="utf-8")
    (tmp_path / "cjk.yaml").write_bytes(text.encode(encoding))
    code = "from flows.jobs.job import *; from pathlib import Path; print(ascii(read_job(Path('cjk.yaml'), {}).source))"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | ascii_only,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "'s3://phone/cjk/\\u732b.jpg'\n", done.stderr


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
        ({"grid": {"diversity": 1}}, "a run dreams each photograph on its own: use `dreamgrid image --samples`"),
        ({"grid": {}}, "grid: the grid is empty: give an axis"),
        ({"grid": {"octaves": []}}, "grid.octaves: the list is empty"),
        ({"grid": {"octaves": [3, "many"]}}, "grid.octaves[1]: input should be a valid integer"),
        ({"grid": {"layers": ["a b"]}}, "grid.layers[0]: 'a b' is "),
        ({"grid": {"points": [{"steps": -1}]}}, "grid.points[0]: steps: Input should be greater"),
        ({"exclude": ["*.gif", ""]}, "exclude: '' is not a pattern: write for example *.gif or drafts/"),
        ({"exclude": "[z-a]"}, "exclude: '[z-a]' is not a pattern: bad character range z-a"),
        ({"exclude": 3}, "exclude: input should be a valid tuple, not 3"),
        ({"sources": ["s3://a/"]}, "source and sources are both given: write all addresses into sources"),
        ({"source": None}, "source: this field is required"),
        ({"source": None, "sources": ["s3://a/", "b"]}, "sources: 'b' is not an S3 address: write s3://BUCKET/PREFIX/"),
        ({"source": None, "sources": "s3://a/", "inventory": "s3://i/"}, "an inventory takes the place of one listing"),
        (
            {"source": None, "sources": ["s3://a/", "s3://dreams/out/images/x"]},
            "the source s3://dreams/out/images/x is",
        ),
        (
            {"source": None, "sources": ["s3://a/"] * 5001},
            "there are 5,001 sources with 45,009 bytes of text, but a job",
        ),
        ({"source": None, "sources": [f"s3://a/{'x' * 400_000}"]}, "there are 1 sources with 400,009 bytes of text"),
        ({"source": "noise:64"}, "source: noise:64 is not a size of noise: write noise:WIDTHxHEIGHT"),
        ({"source": "noise:0x64"}, "source: noise:0x64 has 0 pixels: give at least 1 and at most 100,000,000"),
        ({"source": "noise:20000x20000"}, "noise:20000x20000 has 400,000,000 pixels: give at least 1"),
        ({"source": "noise:2000x1000"}, "noise:2000x1000 has 2,000,000 pixels, more than max_pixels (1,000,000)"),
        ({"source": "noise:64x64", "inventory": "s3://i/"}, "noise:64x64 is noise: leave out the inventory"),
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
        ({"destination": "s3://photos/", "source": "s3://photos/thumbs/cat.jpg/"}, "is inside the results"),
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


# --- executor


def test_the_name_of_an_executor_stands_for_its_options() -> None:
    assert job(executor="ray").executor == ExecutorOptions(name="ray")
    assert job().executor == job(executor="processes").executor
    for executor in ("ray", "processes", {"name": "ray", "address": "[::1]:6379", "cpus": 0.5, "gpus": 0}):
        stored = job(executor=executor)
        assert DreamJob.model_validate_json(stored.model_dump_json()) == stored


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        ("dask", "executor.name: input should be 'processes' or 'ray', not 'dask'"),
        ({"gpus": 1}, "executor: address, cpus and gpus cannot be given for processes: write name: ray"),
        ({"name": "ray", "gpus": 2}, "executor.gpus: input should be less than or equal to 1, not 2"),
        ({"name": "ray", "address": "ray://head:10001"}, "executor.address: this is not the address of a Ray cluster"),
        ({"name": "ray", "address": "me:secret@head:1"}, "executor.address: this is not the address of a Ray cluster"),
    ],
)
def test_a_wrong_executor_is_explained(executor: object, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        job(executor=executor)
    assert explain_validation(error.value).startswith(message)
    assert "secret" not in explain_validation(error.value)


@pytest.mark.parametrize(
    ("stored", "executor"),
    [
        ("ray", {"name": "ray", "address": "head:6379"}),
        ("{name: ray, gpus: 1}", {"name": "ray", "address": "head:6379", "gpus": 1}),
        ("{name: processes}", {"name": "ray", "address": "head:6379"}),
    ],
)
def test_an_address_replaces_only_that_of_the_job_file(tmp_path: Path, stored: str, executor: dict[str, Any]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"source: s3://a/\ndestination: s3://b/\nexecutor: {stored}\n")
    found = read_job(file, {"executor": {"name": "ray", "address": "head:6379"}})
    assert found.executor == ExecutorOptions.model_validate(executor)
