"""Jobs composed from chosen dreams: their settings and their text; and retries."""

import json
from pathlib import Path
from typing import Any

import pytest

from dreamcore.errors import InvalidInput
from dreamcore.settings import DreamSettings
from dreamcore.targets import layers_label
from flows.gallery.jobs import (
    ChosenDream,
    Variations,
    enlarge,
    job_yaml,
    more_like,
    preview,
    retry_failed,
    whole_collection,
)
from flows.jobs.job import DreamJob, read_job
from flows.planning.scan import plan_settings
from flows.s3.storage import Storage
from tests.support.collections import Collection, executor
from tests.support.command import REPOSITORY
from tests.support.shards import put_photograph

DESTINATION = "s3://dreams/gallery/"


def dream(source: str = "s3://photos/2025/cat.jpg", **fields: Any) -> ChosenDream:
    return ChosenDream(source, DreamSettings.model_validate(fields))


def variations(*dreams: ChosenDream, **kinds: Any) -> list[DreamSettings]:
    return list(more_like(dreams, Variations(**kinds), DESTINATION).settings())


def labels(found: list[DreamSettings]) -> list[str]:
    return [layers_label(settings.layers) for settings in found]


# --- composed jobs


def test_the_whole_collection_gets_each_of_the_chosen_settings_once() -> None:
    chosen = [
        dream(layers="blocks.3", octaves=4),
        dream(layers="blocks.3", octaves=4, source="s3://photos/2026/dog.jpg"),
        dream(),
        dream(octaves=4, max_pixels=5000, output={"format": "webp"}),
        dream(model="resnet18", layers="layer2", guide="s3://guides/a.png"),
    ]
    job = whole_collection(chosen, "s3://photos/", DESTINATION)
    assert job.settings() == tuple(dict.fromkeys(each.settings for each in chosen))
    assert (job.source, job.sources, job.destination) == ("s3://photos/", (), DESTINATION)
    assert (job.max_pixels, job.output.format) == (1_000_000, "png")
    assert "max_pixels" not in job.grid.points[0]


def test_the_settings_of_a_row_of_another_version_have_the_defaults_of_that_version() -> None:
    row = {"source_uri": "s3://photos/a.jpg", "settings": '{"layers": [{"layer": "blocks.3"}], "octaves": 3}'}
    chosen = ChosenDream.from_row(row)
    assert (chosen.settings.octaves, chosen.settings.color, chosen.settings.step_size) == (3, 0, 0.008)
    with pytest.raises(InvalidInput, match=r"cannot use the settings of the dream of s3://photos/a.jpg: later: unkn"):
        ChosenDream.from_row({**row, "settings": '{"later": 1}'})


def test_more_like_several_dreams_is_one_job_of_their_photographs() -> None:
    dreams = [dream(seed=3), dream("s3://photos/2026/cat.jpg", octaves=4)]
    job = more_like(dreams, Variations(seeds=2), DESTINATION)
    assert job.addresses == ("s3://photos/2025/cat.jpg", "s3://photos/2026/cat.jpg")
    assert [(each.octaves, each.seed) for each in job.settings()] == [(6, 4), (6, 5), (4, 1), (4, 2)]


def test_neighbouring_channels_stay_within_the_layer() -> None:
    one = dream(layers="blocks.4:1+blocks.1=-0.5")
    expected = ["blocks.1=-0.5+blocks.4:0", "blocks.1=-0.5+blocks.4:2", "blocks.1=-0.5+blocks.4:3"]
    assert labels(variations(one, channels=2)) == expected
    assert labels(variations(dream(layers="blocks.4:111@0.5,0.5"), channels=1)) == ["blocks.4:110@0.5,0.5"]


def test_a_dream_without_channels_gets_those_that_each_photograph_excites_most() -> None:
    job = more_like([dream(layers="blocks.3=0.3+blocks.4")], Variations(channels=2), DESTINATION)
    assert labels(list(job.settings())) == ["blocks.3=0.3+blocks.4:top2"]
    assert len(plan_settings(job)) == 112, "a point for each channel of blocks.4, for the photographs that rank it"


def test_a_mix_interpolates_weights_and_numbers() -> None:
    one = dream(layers="blocks.3", octaves=4, step_size=0.01, measure="log_mean_square", seed=7)
    other = dream(layers="blocks.3=0.4+blocks.4:12", octaves=8, step_size=0.02, measure="mean", seed=9)
    found = variations(one, other, mixes=3)
    assert labels(found) == [
        "blocks.3=0.85+blocks.4:12=0.25",
        "blocks.3=0.7+blocks.4:12=0.5",
        "blocks.3=0.55+blocks.4:12=0.75",
    ]
    assert [(each.octaves, each.step_size) for each in found] == [(5, 0.0125), (6, 0.015), (7, 0.0175)]
    assert [(each.measure, each.seed) for each in found] == [("log_mean_square", 7), ("mean", 9), ("mean", 9)]


@pytest.mark.parametrize("other", [dream(), dream(model="resnet18", layers="layer2")])
def test_dreams_that_cannot_be_mixed_have_no_variation(other: ChosenDream) -> None:
    with pytest.raises(InvalidInput, match="no such variation"):
        variations(dream(), other, mixes=2)


def test_half_steps_lead_halfway_to_the_neighbours_on_each_axis() -> None:
    axes = {"octaves": [4, 6, 8], "step_size": [0.02], "calm": [0.0, 1.0]}
    found = variations(dream(octaves=6, step_size=0.02, calm=1.0), half_steps=axes)
    changed = [(each.octaves, each.step_size, each.calm) for each in found]
    first = [(5, 0.02, 1.0), (7, 0.02, 1.0), (6, 0.015, 1.0), (6, 0.03, 1.0), (6, 0.02, 0.5)]
    assert changed[:5] == first, "twice the calm may be out of range"
    with pytest.raises(InvalidInput, match="measure is not a setting with a number"):
        variations(dream(), half_steps={"measure": []})


def test_half_steps_without_axes_change_octaves_and_steps_and_skip_what_is_out_of_range() -> None:
    found = variations(dream(octaves=1, steps=10), half_steps={})
    assert [(each.octaves, each.steps) for each in found if each.step_size == 0.012 or each.octaves > 1][:1] == [
        (2, 10)
    ]
    assert {each.steps for each in found} == {8, 10, 15}
    assert all(each.octave_scale > 1 for each in found)


def test_enlarged_dreams_come_from_their_photographs(tmp_path: Path) -> None:
    dreams = {"b" * 16: "s3://photos/2.jpg", "a" * 16: "s3://photos/1.jpg", "c" * 16: "s3://photos/1.jpg"}
    job = enlarge(dreams, DESTINATION, {"max_pixels": 5_000_000, "strength": 0.25})
    check_text(job, tmp_path)
    assert job.enlarge is not None
    assert job.enlarge.dreams == ("a" * 16, "b" * 16, "c" * 16)
    assert (job.enlarge.max_pixels, job.enlarge.strength, job.output.format) == (5_000_000, 0.25, "jpg")
    assert job.addresses == ("s3://photos/1.jpg", "s3://photos/2.jpg")
    with pytest.raises(InvalidInput, match="no dream is chosen"):
        enlarge({}, DESTINATION, {})
    with pytest.raises(InvalidInput, match=r"enlarge\.strength: .*less than or equal to 2, not 3"):
        enlarge(dreams, DESTINATION, {"strength": 3})


def test_an_enlarged_dream_stands_for_its_settings_at_the_usual_size() -> None:
    made = {"uri": "s3://dreams/1.png", "sha256": "a" * 64}
    settings = DreamSettings.model_validate({"octaves": 4, "max_pixels": 12_000_000, "enlarge": made})
    chosen = ChosenDream.from_row({"source_uri": "s3://photos/1.jpg", "settings": settings.canonical_json()})
    assert chosen.settings == DreamSettings(octaves=4)


def test_nothing_chosen_and_too_much_are_refused() -> None:
    with pytest.raises(InvalidInput, match="no dream is chosen"):
        more_like([], Variations(seeds=1), DESTINATION)
    with pytest.raises(InvalidInput, match="these are 10,001 variations, but a job takes 10,000: choose fewer"):
        more_like([dream()], Variations(seeds=10_001), DESTINATION)
    with pytest.raises(InvalidInput, match="source: 'photos' is not an S3 address"):
        whole_collection([dream()], "photos", DESTINATION)


# --- the text of a job


@pytest.mark.parametrize("path", sorted((REPOSITORY / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_text_of_an_example_is_the_same_job(path: Path, tmp_path: Path) -> None:
    check_text(read_job(path, {}), tmp_path)


def test_the_text_of_a_composed_job_is_the_same_job(tmp_path: Path) -> None:
    dreams = [
        dream(layers="blocks.3=0.3+blocks.4"),
        dream("s3://p/\N{CAT FACE}: #1.jpg", layers="blocks.2=0.123456789"),
    ]
    job = more_like(dreams, Variations(seeds=1, mixes=1, channels=1, half_steps={}), DESTINATION)
    text = check_text(job, tmp_path)
    assert "layers: blocks.3=0.3+blocks.4\n" in text
    assert "weight: 0.123456789" in text, "the short form would round it"
    retry = DreamJob.model_validate({**job.model_dump(), "retry_failed": ["damaged"], "executor": "ray", "sheets": 0})
    check_text(retry, tmp_path)


def test_the_text_has_no_field_at_its_default() -> None:
    job = DreamJob.model_validate({"source": "s3://a/", "destination": "s3://b/", "grid": {"octaves": 4}})
    assert job_yaml(job) == "source: s3://a/\ndestination: s3://b/\ngrid:\n  octaves:\n  - 4\n"


def check_text(job: DreamJob, folder: Path) -> str:
    (folder / "job.yaml").write_text(text := job_yaml(job), encoding="utf-8")
    assert read_job(folder / "job.yaml", {}) == job
    return text


# --- failed dreams


def test_failed_dreams_are_tried_again_with_the_newest_recorded_job(
    storage: Storage, source: str, destination: str
) -> None:
    with pytest.raises(InvalidInput, match=r"has no finished run whose job this version of Dreamgrid can read"):
        retry_failed(destination, True, storage)
    put_photograph(storage, f"{source}1.png")
    storage.write(f"{source}2.png", b"no photograph", "image/png")
    collection = Collection(storage, source, destination)
    collection.run_job(job := collection.job("blocks.0"), executor(storage))
    again = retry_failed(destination, ("not_an_image",), storage)
    assert again == job.model_copy(update={"retry_failed": ("not_an_image",)})
    assert preview(again, storage).dreams == 1
    assert json.loads(again.model_dump_json())["retry_failed"] == ["not_an_image"]
