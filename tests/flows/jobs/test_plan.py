"""Plans contain every missing dream once, shards have about equal cost, and names are safe keys."""

import math
import re
from random import Random
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dreamcore.settings import DreamSettings, settings_id
from flows.jobs.cost import CORE, GPU, Throughput, estimate_pixels, estimate_seconds
from flows.jobs.plan import (
    MAX_SHARDS,
    MIN_SHARDS_PER_PROCESS,
    SHARD_SECONDS,
    IsDone,
    Plan,
    Sources,
    make_plan,
    shard_count,
)
from flows.jobs.work import Keys, PlannedSettings, Shard, Source, dream_key, dream_keys
from flows.s3.layout import result_id_of, result_name, result_place, safe_name

HOSTILE = ("..", ".", "", "...", "%", "%2E", "%2F", "%20", "%2D", " ", "-", "\0", "\n", "\x7f", "\u202e", "\\", "~")
HOSTILE_PARTS = (*HOSTILE, "é", "e\N{COMBINING ACUTE ACCENT}", "🐱", "a b", "x" * 300, "🐱" * 200, "photo.jpg")
PARTS = st.sampled_from(HOSTILE_PARTS) | st.text(max_size=8)
NAMES = st.lists(PARTS, min_size=1, max_size=6).map("/".join).filter(lambda name: len(name.encode()) <= 1024)


def source(name: str = "a.jpg", size: int = 500_000, etag: str = "e") -> Source:
    return Source(f"s3://photos/{name}", name, etag, size)


def planned(cost: int = 20_000, weights: str = "w", **fields: object) -> PlannedSettings:
    settings = DreamSettings.model_validate(fields)
    identity = settings_id(settings, weights)
    return PlannedSettings(settings=settings, settings_id=identity, weights=weights, cost=cost)


def shards_of(sources: list[Source], points: list[PlannedSettings], is_done: IsDone) -> list[Shard]:
    return list(make_plan(Sources(sources), points, is_done))


def never(_keys: Keys) -> bool:
    return False


SOURCES = st.lists(
    st.builds(source, NAMES, st.integers(0, 10**8), st.text("0123456789abcdef-", max_size=4)),
    max_size=12,
    unique_by=lambda source: source.uri,
)
POINTS = st.lists(
    st.builds(planned, st.integers(0, 10**6), st.just("w"), steps=st.integers(0, 100), octaves=st.integers(1, 8)),
    min_size=1,
    max_size=4,
    unique_by=lambda planned: planned.settings_id,
)


def dreams(shards: list[Shard]) -> list[tuple[Source, int]]:
    return [(work.source, index) for shard in shards for work in shard.works for index in work.settings]


def seconds(shard: Shard, points: list[PlannedSettings]) -> float:
    return sum(estimate_seconds(source, points[index]) for source, index in dreams([shard]))


@given(SOURCES, POINTS, st.integers(1, 4))
def test_every_missing_dream_is_in_exactly_one_shard(
    sources: list[Source], points: list[PlannedSettings], divisor: int
) -> None:
    def is_done(keys: Keys) -> NDArray[np.bool_]:
        return np.asarray(keys % divisor != 0)

    expected = {
        (source, index)
        for source in sources
        for index, point in enumerate(points)
        if dream_key(source.uri, source.etag, point.settings_id) % divisor == 0
    }
    shards = shards_of(sources, points, is_done)
    assert len(dreams(shards)) == len(expected)
    assert set(dreams(shards)) == expected
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert sum(shard.dreams for shard in shards) == len(expected)
    for shard in shards:
        assert shard.works
        assert len({work.source for work in shard.works}) == len(shard.works)


@given(SOURCES, POINTS, st.randoms(use_true_random=False))
def test_the_plan_does_not_depend_on_the_order_of_the_sources(
    sources: list[Source], points: list[PlannedSettings], random: Random
) -> None:
    shuffled = random.sample(sources, len(sources))
    assert shards_of(shuffled, points, never) == shards_of(sources, points, never)


@given(SOURCES, POINTS)
def test_shards_have_about_equal_cost(sources: list[Source], points: list[PlannedSettings]) -> None:
    shards = shards_of(sources, points, never)
    costs = [seconds(shard, points) for shard in shards]
    longest = max((estimate_seconds(source, point) for source in sources for point in points), default=0)
    wanted = min(len(sources) * len(points), max(MIN_SHARDS_PER_PROCESS, math.ceil(sum(costs) / SHARD_SECONDS)))
    assert len(shards) <= wanted
    assert all(cost <= sum(costs) / wanted + longest + 1e-6 for cost in costs)


@pytest.mark.parametrize("steps", [0, 10])
@pytest.mark.parametrize("count", [3, 8, 100, 1000])
def test_equal_dreams_are_distributed_evenly(count: int, steps: int) -> None:
    """Also if the settings have no steps."""
    sources = [source(f"{number:04d}.jpg", size=10) for number in range(count)]
    sizes = [shard.dreams for shard in shards_of(sources, [planned(steps=steps)], never)]
    assert len(sizes) == min(count, MIN_SHARDS_PER_PROCESS)
    assert max(sizes) - min(sizes) <= 1


def test_a_shard_of_a_large_collection_takes_about_a_minute() -> None:
    sources = [source(f"{number}.jpg", size=10_000) for number in range(600)]
    points = [planned(), planned(steps=20)]
    shards = shards_of(sources, points, never)
    assert len(shards) > MIN_SHARDS_PER_PROCESS
    for shard in shards:
        assert seconds(shard, points) == pytest.approx(SHARD_SECONDS, rel=0.1)


def test_the_number_of_shards_follows_the_throughput() -> None:
    sources = Sources(source(f"{number:04d}.jpg", size=200_000) for number in range(6000))
    core, gpu = (len(make_plan(sources, [planned()], never, Throughput(2, speed))) for speed in (CORE, GPU))
    assert core > 10 * gpu > 20 * MIN_SHARDS_PER_PROCESS
    assert shard_count(1, 16) == 16 * MIN_SHARDS_PER_PROCESS, "every process has work"
    assert shard_count(1e9, 16) == MAX_SHARDS, "a large run has a limited number of tasks and parts"
    assert shard_count(1e9, 3000) == 3000 * MIN_SHARDS_PER_PROCESS


def test_the_plan_is_empty_if_everything_is_done() -> None:
    assert shards_of([source()], [planned()], lambda _key: True) == []
    assert shards_of([], [planned()], never) == []


def test_a_replaced_photograph_is_dreamt_again() -> None:
    done = {dream_key("s3://photos/a.jpg", "e", planned().settings_id)}

    def is_done(keys: Keys) -> NDArray[np.bool_]:
        return np.isin(keys, np.array(sorted(done), np.uint64))

    assert shards_of([source()], [planned()], is_done) == []
    assert len(shards_of([source(etag="new")], [planned()], is_done)) == 1


@given(st.lists(st.tuples(st.text(), st.text(), st.text())))
@example([("s3://p/k\xe4fer 'n' \"co\"\\.jpg", '"e"', "0123456789abcdef"), ("\U0001f408\0\x7f\n", "", "")])
def test_many_keys_are_those_of_single_dreams(rows: list[tuple[str, str, str]]) -> None:
    uris, etags, settings_ids = zip(*rows, strict=True) if rows else ((), (), ())
    assert dream_keys(uris, etags, settings_ids).tolist() == [dream_key(*row) for row in rows]


def test_the_key_of_a_dream_never_changes() -> None:
    """Indexes of earlier versions hold such keys."""
    assert dream_key("s3://photos/k\xe4fer.jpg", "e", "0123456789abcdef") == 0x5A9DBE0D1FAB3EB9
    assert dream_keys(["s3://photos/k\xe4fer.jpg"], ["e"], ["0123456789abcdef"]).tolist() == [0x5A9DBE0D1FAB3EB9]


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 3), st.integers(1, 4))
def test_photographs_in_any_order_are_sorted(numbers: list[int], rows: int, batches: int) -> None:
    """Small blocks and batches stand for those of a large collection."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.jobs.plan._ROWS_PER_BATCH", rows)
        patch.setattr("flows.jobs.plan._BATCHES_PER_BLOCK", batches)
        sources = Sources(source(f"{number:02d}\xe4.jpg", etag=str(number)) for number in numbers)
        expected = [source(f"{number:02d}\xe4.jpg", etag=str(number)) for number in sorted(numbers)]
        assert list(sources) == list(sources.not_ascii()) == expected
        assert len(sources) == len(numbers)
        assert all(len(batch) <= rows for batch in sources.batches())


@given(SOURCES, POINTS)
def test_a_plan_is_restored_from_its_parquet(sources: list[Source], points: list[PlannedSettings]) -> None:
    plan = make_plan(Sources(sources), points, never)
    frozen = Plan(plan.parquet)
    assert list(frozen) == list(plan)
    assert (len(frozen), frozen.dreams) == (len(list(plan)), len(sources) * len(points))
    assert list(frozen.sources()) == sorted(sources, key=lambda source: source.uri)


# --- estimates


def test_the_estimate_grows_with_pixels_steps_octaves_and_cost() -> None:
    cheap = estimate_seconds(source(size=10_000), planned())
    assert 0 < cheap < estimate_seconds(source(size=50_000), planned())
    assert cheap < estimate_seconds(source(size=10_000), planned(steps=20))
    assert cheap < estimate_seconds(source(size=10_000), planned(cost=30_000))
    assert cheap > estimate_seconds(source(size=10_000), planned(octaves=2))
    assert cheap == estimate_seconds(source(size=10_000), planned(octaves=9)), "octaves that are too small are skipped"


def test_estimated_pixels_are_at_most_max_pixels() -> None:
    assert estimate_pixels(source(size=10**9), 1000) == 1000
    assert estimate_pixels(source(size=0), 1000) == 1
    assert estimate_pixels(source("a.JPG", 3000), 10**6) > estimate_pixels(source("a.png", 3000), 10**6)


# --- names


@given(st.lists(NAMES, max_size=8))
@example(["a//b", "a/\0/b", "a/%00/b", "a/%20/b", "a/ /b"])
@example(["a\\b", "a/b", "a%5Cb"])
@example(["a/./b", "a/%2E/b", "a/../b", "a/%2E%2E/b"])
@example([spelt := "🐱" * 256, safe_name(spelt), "🐱" * 255])
def test_safe_names_are_distinct(names: list[str]) -> None:
    assert len({safe_name(name) for name in names}) == len(set(names))


@given(NAMES)
@example("x/" * 500)
@example("x" * 1000)
@example("a" * 690 + "/" + "\\" * 300)
@example("\N{RIGHT-TO-LEFT OVERRIDE}" * 340)
def test_result_names_are_keys_that_every_store_accepts(name: str) -> None:
    key = result_name(name, planned(layers="a+b:1,2+c=-0.5").settings, "0123456789abcdef")
    assert len(key.encode()) <= 1024 - 100, "the prefix of the destination needs at least 100 bytes"
    assert not {"", ".", ".."} & set(key.split("/"))
    assert max(len(part.encode()) for part in key.split("/")) <= 255
    assert key.isprintable()
    assert "\\" not in key


@pytest.mark.parametrize(
    "name", ["a.jpg", "2019/07 holidays/café.jpg", "a+b (1).png", ".hidden", "日本.jpg", "a/...jpg"]
)
def test_an_ordinary_name_is_not_changed(name: str) -> None:
    assert safe_name(name) == name


def test_a_result_name_contains_source_layers_octaves_and_steps() -> None:
    settings = planned(layers="blocks.4+blocks.3=0.3", octaves=4, output={"format": "webp"})
    key = result_name("cats/a.jpg", settings.settings, "0123456789abcdef")
    assert key == "images/cats/a.jpg/blocks.3=0.3+blocks.4-4x10-0123456789abcdef.webp"


def test_a_long_label_is_truncated() -> None:
    many = planned(layers={f"layer/{number}": 1 for number in range(20)})
    key = result_name(source().name, many.settings, "0123456789abcdef")
    assert re.fullmatch(r"images/a\.jpg/[\w+]{60}-0123456789abcdef\.png", key)


@pytest.mark.parametrize(
    ("layers", "label"),
    [
        ("logits:285", "logits_285"),
        ("blocks.4:12,17=-0.5", "blocks.4_12,17=-0.5"),
        ("blocks.4:12@0.5,0.3", "blocks.4_12@0.5,0.3"),
        ("a/b:1", "a_b_1"),
    ],
)
def test_the_label_in_a_file_name_needs_no_escapes(layers: str, label: str) -> None:
    name = result_name("a.jpg", planned(layers=layers).settings, "0123456789abcdef").rpartition("/")[2]
    assert name == f"{label}-6x10-0123456789abcdef.png"
    assert quote(name, safe="=+,@") == name


@given(NAMES)
def test_the_result_id_is_read_back_from_every_address_of_a_dream(name: str) -> None:
    uri = f"s3://b/d/{result_name(name, planned(layers='a:1').settings, '0123456789abcdef')}"
    assert result_id_of(uri) == "0123456789abcdef"
    old = uri.replace("/a_1-", "/a%3A1-")
    assert (result_id_of(old), result_place(old)) == (result_id_of(uri), result_place(uri))
    assert result_place(uri) != result_place(f"{uri}/{uri.rpartition('/')[2]}")


def test_an_address_without_result_id_has_its_own_place() -> None:
    assert result_id_of("s3://b/d/images/a.png/stray.png") is None
    assert len({result_place(f"s3://b/d/images/{name}") for name in ("a.png/x.png", "a.png/y.png", "b.png/x.png")}) == 3
