"""Queries agree with plain Python over the same rows, and pages have every entry once, in order."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamcore.errors import InvalidInput
from dreamcore.fields import Enlarge
from dreamcore.settings import DreamSettings, settings_id
from dreamcore.targets import layers_label
from flows.destination.history import finished_dreams
from flows.destination.manifest import Row
from flows.destination.parts import list_parts
from flows.gallery.axes import in_order
from flows.gallery.cache import Cache
from flows.gallery.points import read_point
from flows.gallery.queries import Queries
from flows.gallery.records import BestBy, Filters, Sort
from flows.jobs.plan import freeze_retry, make_plan
from flows.jobs.work import ReplacedPart, Shard, Source, Work
from flows.local.stack import Stack
from flows.planning.scan import plan_settings, scan
from flows.running import protocol
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.flows.test_old_destination import DESTINATION as OLD_DESTINATION
from tests.flows.test_old_destination import old
from tests.support.collections import Collection, executor
from tests.support.gallery import RUN, START, make_row, write_part
from tests.support.shards import put_photograph

__all__ = ["old"]

DESTINATION = "s3://dreams/gallery-queries/"
OTHER_RUN = "20260103T000000Z-fedcba"
NAMES = ("a.jpg", "B.jpg", "käfer/Ä 1.jpg", "trip/100%_.jpg", "x' OR 1=1 --.jpg")
POINTS = [
    DreamSettings(layers=layers, model="efficientnet_lite0", seed=seed)
    for layers in ("blocks.3", "blocks.10")
    for seed in (0, 9, 10)
]
LABELS = ("tabby", "red fox")
MARKS = (None, -1, 0, 3, 5)

rows_lists: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.builds(
        dict,
        name=st.sampled_from(NAMES),
        settings=st.sampled_from(POINTS),
        gain=st.sampled_from([None, -1.0, 0.5, 2.0]),
        label=st.sampled_from(LABELS),
        run_id=st.sampled_from([RUN, OTHER_RUN]),
        second=st.integers(0, 3) | st.integers(86_400, 86_402),
        status=st.sampled_from(["done", "done", "failed", "skipped"]),
        seconds=st.sampled_from([0.1, 0.2, 2.5]),
        mark=st.sampled_from(MARKS),
    ),
    max_size=25,
    unique_by=lambda row: (row["name"], layers_label(row["settings"].layers), row["settings"].seed),
)
filters_of = st.builds(
    Filters,
    text=st.sampled_from(["", "", "JPG", "ä", "%", "' or", "fox", "2", "käfer tabby"]),
    status=st.sampled_from(["", "done", "failed"]),
    layers=st.sampled_from([(), ("blocks.3",), ("blocks.3", "blocks.10"), ("none",)]),
    model=st.sampled_from([(), ("efficientnet_lite0",), ("other",)]),
    seen=st.sampled_from([(), ("tabby",), ("red fox", "tabby")]),
    run=st.sampled_from(["", RUN, "no such run"]),
    since=st.sampled_from([None, START + timedelta(seconds=1)]),
    until=st.sampled_from([None, START + timedelta(seconds=2)]),
    marks_min=st.sampled_from([None, 0, 4]),
    marked=st.sampled_from([None, None, True, False]),
    hide_rejected=st.booleans(),
)


@pytest.fixture(scope="module")
def place(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cache, Storage]]:
    """An empty cache of a destination that the tests of this module share."""
    storage = Storage(environment=stack.environment())
    storage.create_bucket(DESTINATION)
    with Cache(DESTINATION, storage, tmp_path_factory.mktemp("cache")) as cache:
        yield cache, storage


def fill(place: tuple[Cache, Storage], found: list[dict[str, Any]]) -> tuple[Queries, list[Row], dict[str, int]]:
    """Let the destination have these rows alone."""
    cache, storage = place
    marks = {}
    rows = []
    for each in found:
        mark = each.pop("mark", None)
        rows.append(make_row(DESTINATION, **each))
        if mark is not None and rows[-1].result_id:
            marks[rows[-1].result_id] = mark
    write_part(storage, DESTINATION, rows)
    cache.refresh()
    return Queries(cache, lambda: marks), rows, marks


def name(row: Row) -> str:
    return row.source_uri.removeprefix("s3://photos/in/")


def numbers(rows: list[Row]) -> dict[tuple[str, str], int]:
    """The number of each dream of its photograph."""
    begun = {run: min(row.created_at for row in rows if row.run_id == run) for run in {row.run_id for row in rows}}
    runs = sorted(begun, key=lambda run: (begun[run], run))
    found: dict[tuple[str, str], int] = {}
    count = Counter[str]()
    for row in sorted(rows, key=lambda row: (runs.index(row.run_id), row.created_at)):
        if row.status == "done":
            count[row.source_uri] += 1
            found[row.source_uri, row.settings_id] = count[row.source_uri]
    return found


def matches(row: Row, filters: Filters, marks: dict[str, int], number: int | None) -> bool:
    """Whether a row is within the filters."""
    label = row.classes_after[0]["label"] if row.classes_after else None
    mark = marks.get(row.result_id or "")
    point = read_point(row.settings_id, row.settings)
    words = filters.text.casefold().split()
    return (
        all(word in name(row).casefold() or word in (label or "") or word == str(number) for word in words)
        and filters.status in ("", row.status)
        and (not filters.layers or point.layers in filters.layers)
        and (not filters.model or row.model in filters.model)
        and (not filters.seen or label in filters.seen)
        and filters.run in ("", row.run_id)
        and (filters.since is None or row.created_at >= filters.since)
        and (filters.until is None or row.created_at < filters.until)
        and (filters.marks_min is None or (mark is not None and mark >= filters.marks_min))
        and (filters.marked is None or (mark is not None) == filters.marked)
        and not (filters.hide_rejected and mark == -1)
    )


def mid_ranks(rows: list[Row]) -> dict[tuple[str, str], float]:
    """The rank of the gain of each dream among those with the same layers."""
    gains: dict[str, list[float]] = {}
    for row in rows:
        if row.score_after is not None:
            gains.setdefault(json.dumps(row.settings and json.loads(row.settings)["layers"]), []).append(
                row.score_after
            )
    found = {}
    for row in rows:
        if row.score_after is not None:
            among = gains[json.dumps(json.loads(row.settings)["layers"])]
            below, equal = sum(g < row.score_after for g in among), among.count(row.score_after)
            found[row.source_uri, row.settings_id] = (below + equal / 2) / len(among)
    return found


examples = settings(max_examples=15, suppress_health_check=list(HealthCheck))


@examples
@given(found=rows_lists, filters=filters_of)
def test_filters_agree_with_python(place: tuple[Cache, Storage], found: list[Any], filters: Filters) -> None:
    queries, rows, marks = fill(place, [dict(each) for each in found])
    number = numbers(rows)

    def within(chosen: Filters) -> list[Row]:
        return [row for row in rows if matches(row, chosen, marks, number.get((row.source_uri, row.settings_id)))]

    shown, either = within(filters), within(replace(filters, status=""))
    counts = queries.counts(filters)
    assert counts.photographs == len({row.source_uri for row in shown})
    assert counts.dreams == sum(row.status == "done" for row in shown)
    assert counts.failed == sum(row.status != "done" for row in either)
    photographs, _ = queries.photographs(filters)
    assert {each.source_uri for each in photographs} == {row.source_uri for row in shown}
    ranks = mid_ranks(rows)
    for each in photographs:
        own = [row for row in either if row.source_uri == each.source_uri]
        assert each.dreams == sum(row.status == "done" for row in own)
        assert each.failed == len(own) - each.dreams
        assert (each.best is None) == (each.dreams == 0)
        if each.best:
            best = max(ranks.get((row.source_uri, row.settings_id), -1.0) for row in own if row.status == "done")
            assert (each.best.gain_rank if each.best.gain_rank is not None else -1.0) == pytest.approx(best)
    facets = queries.facets(filters)
    assert dict(facets["status"]) == Counter(row.status for row in either)
    assert dict(facets["layers"]) == Counter(
        read_point(row.settings_id, row.settings).layers for row in within(replace(filters, layers=()))
    )
    assert dict(facets["run"]) == Counter(row.run_id for row in within(replace(filters, run="")))
    assert dict(facets["date"]) == Counter(
        row.created_at.date().isoformat() for row in within(replace(filters, since=None, until=None))
    )
    assert sum(count for _, count in facets["seen"]) == sum(
        bool(row.classes_after) for row in within(replace(filters, seen=()))
    )


@examples
@given(found=rows_lists, sort=st.sampled_from(get_args(Sort)), limit=st.integers(1, 4))
def test_pages_have_every_photograph_once_in_order(
    place: tuple[Cache, Storage], found: list[Any], sort: Sort, limit: int
) -> None:
    queries, rows, marks = fill(place, [dict(each) for each in found])
    ranks, everything = mid_ranks(rows), Filters(status="")
    keys: dict[str, Any] = {}
    for uri in {row.source_uri for row in rows}:
        own = [row for row in rows if row.source_uri == uri]
        keys[uri] = {
            "name": name(own[0]).casefold(),
            "gain": -max(ranks.get((uri, row.settings_id), -1.0) for row in own),
            "mark": -max((marks.get(row.result_id or "", 0) for row in own if row.status == "done"), default=0),
            "newest": -max(row.created_at for row in own).timestamp(),
            "cost": -sum(round((row.seconds or 0) * 1000) for row in own),
        }[sort]
    pages, cursor = [], None
    while True:
        page, cursor = queries.photographs(everything, sort=sort, after=cursor, limit=limit)
        pages.append([each.source_uri for each in page])
        if not cursor:
            break
    assert all(len(page) == limit for page in pages[:-1])
    order = [uri for page in pages for uri in page]
    assert sorted(order) == sorted(keys)
    assert all(keys[one] <= keys[other] + 1e-9 for one, other in pairwise(order) if sort != "name")
    if sort == "name":
        assert order == sorted(keys, key=lambda uri: str(keys[uri]))
    around = [queries.neighbours(uri, everything, sort) for uri in order]
    assert around == list(zip([None, *order][:-1], [*order, None][1:], strict=True)) if order else not around


def test_favourites_and_failures_are_paged(place: tuple[Cache, Storage]) -> None:
    chosen = [
        {"name": each, "settings": point, "mark": (1, 2, 3, 5, -1, 0)[number], "second": len(each) * number % 7}
        for each in NAMES
        for number, point in enumerate(POINTS)
    ]
    broken = [{"name": f"{number}.jpg", "status": "failed", "settings": POINTS[0]} for number in range(7)]
    queries, rows, marks = fill(place, [*chosen, *broken])
    at = {str(row.result_id): row.created_at.timestamp() for row in rows}
    for minimum, rejected, limit in ((1, False, 4), (4, True, 3), (5, False, 100), (1, True, 7)):
        found, cursor = queries.favourites(minimum, with_rejected=rejected, limit=limit)
        while cursor:
            more, cursor = queries.favourites(minimum, with_rejected=rejected, after=cursor, limit=limit)
            found += more
        wanted = [name for name, mark in marks.items() if mark >= minimum or (rejected and mark == -1)]
        assert {each.result_id for each in found} == set(wanted)
        keys = [(-(each.mark or 0), -at[each.result_id]) for each in found]
        assert len(keys) == len(wanted)
        assert keys == sorted(keys), "the highest mark first, then the newest"
    assert {each.mark: (each.dreams, each.bytes) for each in queries.marked()} == {
        mark: (count, count * int(rows[0].result_bytes or 0)) for mark, count in Counter(marks.values()).items()
    }
    assert queries.favourite_count() == sum(mark > 0 for mark in marks.values())
    failures, cursor = queries.failures(limit=3)
    while cursor:
        further, cursor = queries.failures("damaged", after=cursor, limit=3)
        failures += further
    assert [each.name for each in failures] == [f"{number}.jpg" for number in range(7)]
    assert {(each.kind, each.error, each.dreams) for each in failures} == {("damaged", rows[-1].error, 1)}
    assert [tuple(each) for each in queries.failure_kinds()] == [("damaged", 7, 7)]
    assert queries.failures("no such kind") == ([], None)


def test_marks_choose_the_best_dream(place: tuple[Cache, Storage]) -> None:
    own = [{"settings": POINTS[0], "gain": 5.0}, {"settings": POINTS[1], "gain": 1.0, "mark": 4}]
    queries, rows, marks = fill(place, own)
    by_gain, by_mark = (queries.photographs(Filters(), best_by=by)[0][0].best for by in ("gain", "mark"))
    assert by_gain is not None
    assert by_mark is not None
    assert (by_gain.gain, by_mark.gain, by_mark.mark) == (5.0, 1.0, 4)
    marks[rows[0].result_id or ""] = 5
    assert queries.photographs(Filters(), best_by="mark")[0][0].best == replace(by_gain, mark=5)


def test_an_enlarged_dream_is_neither_the_best_nor_in_the_scores(place: tuple[Cache, Storage]) -> None:
    enlarge = {"uri": "s3://dreams/images/a.png", "sha256": "a" * 64, "strength": 0.5}
    larger = POINTS[0].model_copy(update={"max_pixels": 12_000_000, "enlarge": Enlarge.model_validate(enlarge)})
    own = [{"settings": POINTS[0], "gain": 1.0}, {"settings": POINTS[1], "gain": 2.0}]
    others = [{"name": "B.jpg", "settings": POINTS[0], "gain": 3.0}]
    queries, rows, marks = fill(place, [*own, {"settings": larger, "gain": 9.0}, *others])
    large = rows[2].result_id
    for best_by in get_args(BestBy):
        found, _ = queries.photographs(Filters(), best_by=best_by, sort="gain")
        assert [each.best.gain for each in found if each.best] == [3.0, 2.0], "nor does its gain sort the photographs"
    assert queries.score_map("seed", "layers", Filters()).cells[0][0] == (2.0, 2, rows[3].result_id)
    assert [each.dreams for each in queries.gain_histogram(Filters())] == [3]
    (alone,), _ = queries.photographs(Filters(text=str(large)))
    assert alone.best
    assert alone.best.result_id == large
    marks[str(large)] = 5
    found, _ = queries.photographs(Filters(), best_by="mark", sort="mark")
    assert [each.best.result_id for each in found if each.best] == [large, rows[3].result_id]


def test_dreams_are_found_by_id_and_number(place: tuple[Cache, Storage]) -> None:
    queries, rows, _ = fill(place, [{"settings": point, "second": number} for number, point in enumerate(POINTS)])
    uri = rows[0].source_uri
    assert [each.number for each in queries.dreams(uri)] == [1, 2, 3, 4, 5, 6]
    for number, row in enumerate(rows, start=1):
        assert row.result_id
        found = queries.dream(row.result_id)
        assert found is not None
        assert (found.settings_id, found.number) == (row.settings_id, number)
        assert queries.numbered(uri, number) == found
        assert found in queries.find(row.result_id[:4])
        assert queries.counts(Filters(text=row.result_id[:8])).dreams == 1
        assert queries.counts(Filters(text=f"#{number}")).dreams == 1
        assert (found.score_before, found.score_after, found.gain) == (0.0, 1.0, 1.0)
        assert [tuple(each) for each in found.classes_before] == [("tabby", 0.5)]
        assert found.created_at == row.created_at
        assert found.settings_json == row.settings
    for nothing in ("", "abc", "0" * 16, "'; DROP TABLE dreams; --"):
        assert queries.dream(nothing) is None
        assert queries.find(nothing) == []
    assert queries.numbered(uri, 0) is None


def test_axes_and_grid(place: tuple[Cache, Storage]) -> None:
    queries, rows, _ = fill(
        place, [{"settings": point, "status": "failed" if point == POINTS[5] else "done"} for point in POINTS[1:]]
    )
    uri = rows[0].source_uri
    axes = queries.axes(uri)
    assert [(axis.name, axis.values) for axis in axes] == [
        ("layers", ("blocks.3", "blocks.10")),
        ("seed", ("0", "9", "10")),
    ]
    shown = [
        [cell and (cell.layers, cell.settings.get("seed", "0"), cell.status) for cell in row]
        for row in queries.grid(uri, "layers", "seed", {})
    ]
    assert shown == [
        [None, ("blocks.3", "9", "done"), ("blocks.3", "10", "done")],
        [("blocks.10", "0", "done"), ("blocks.10", "9", "done"), ("blocks.10", "10", "failed")],
    ]
    (row,) = queries.grid(uri, None, "layers", {"seed": "9"})
    assert [cell and cell.layers for cell in row] == ["blocks.3", "blocks.10"]
    assert queries.grid("s3://no/such.jpg", "layers", "seed", {}) == [[None]]
    assert queries.photograph("s3://no/such.jpg") is None


def test_axes_name_every_kind_of_setting() -> None:
    one = DreamSettings()
    other = DreamSettings(
        guide={"uri": "s3://g/guide one.jpg", "sha256": "a" * 64},
        mask={"uri": "mask.png", "sha256": "b" * 64},
        stay_near="blocks.3=2",
        stop_at=1.5,
        flip=True,
        output={"format": "webp", "quality": 90},
        color=1e-05,
    )
    points = [read_point(settings_id(each, "w"), each.canonical_json()) for each in (one, other)]
    assert points[0].settings == {}
    assert points[1].settings == {
        "guide": "guide one.jpg (aaaaaaaa)",
        "mask": "mask.png (bbbbbbbb)",
        "stay_near": "blocks.3=2",
        "stop_at": "1.5",
        "flip": "yes",
        "output": "webp 90",
        "color": "1e-05",
    }
    assert points[0].objective != points[1].objective
    assert points[0].value("flip") == "no"
    assert read_point("x", "no JSON").settings == {}
    assert read_point("x", '{"model": "m", "later": [1], "layers": "?"}').value("later") == "[1]"


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.none(), unique=True))
def test_numbers_are_ordered_as_numbers(values: list[float | None]) -> None:
    texts = {"none" if value is None else f"{value:.12g}" for value in values}
    ordered = in_order(texts)
    assert sorted(ordered) == sorted(texts)
    assert [value for value in ordered if value != "none"] == sorted(texts - {"none"}, key=float)
    assert "none" not in ordered[1:]


@examples
@given(found=rows_lists)
def test_scores_agree_with_python(place: tuple[Cache, Storage], found: list[Any]) -> None:
    queries, rows, _ = fill(place, [dict(each) for each in found])
    scored = [row for row in rows if row.score_after is not None]
    points = {row.settings_id: read_point(row.settings_id, row.settings) for row in scored}
    objectives = {point.objective for point in points.values()}
    ranks = mid_ranks(rows)
    chart = queries.score_map("seed", "layers", Filters())
    assert chart.by == ("rank" if len(objectives) > 1 else "gain")
    cells = {
        (x, y): cell
        for y, line in zip(chart.y.values, chart.cells, strict=True)
        for x, cell in zip(chart.x.values, line, strict=True)
    }
    for (x, y), cell in cells.items():
        own = [
            row for row in scored if (points[row.settings_id].value("seed"), points[row.settings_id].layers) == (x, y)
        ]
        assert (cell is None) == (not own)
        if cell:
            values = [
                ranks[row.source_uri, row.settings_id] if chart.by == "rank" else row.score_after or 0 for row in own
            ]
            assert cell.value == pytest.approx(fmean(values))
            assert cell.dreams == len(own)
            assert cell.best in {row.result_id for row in own}
    histograms = queries.gain_histogram(Filters(), bins=5)
    assert {each.objective for each in histograms} == objectives
    assert sum(sum(each.counts) for each in histograms) == sum(each.dreams for each in histograms) == len(scored)
    assert all(len(each.edges) == 6 for each in histograms)
    costs = {each.point.settings_id: each for each in queries.gain_against_cost(Filters())}
    assert costs.keys() == points.keys()
    for key, cost in costs.items():
        own = [row for row in scored if row.settings_id == key]
        assert cost.dreams == len(own)
        assert cost.gain == pytest.approx(fmean(row.score_after or 0 for row in own))
        assert cost.seconds == pytest.approx(fmean(row.seconds or 0 for row in own))


@pytest.mark.parametrize("cursor", ["x", "ä", "WyJuYW1lIl0", "W10=", "bnVsbA"])
def test_a_malformed_cursor_is_refused(place: tuple[Cache, Storage], cursor: str) -> None:
    queries, *_ = fill(place, [{"name": "a"}, {"name": "b"}])
    with pytest.raises(InvalidInput, match="is not a page of this list"):
        queries.photographs(Filters(), after=cursor)
    _, after = queries.photographs(Filters(), limit=1)
    with pytest.raises(InvalidInput, match="open the list from its beginning"):
        queries.photographs(Filters(), sort="gain", after=after)


def test_an_unknown_status_is_refused(place: tuple[Cache, Storage]) -> None:
    with pytest.raises(InvalidInput, match="no status 'gone'; choose done, failed, skipped"):
        Queries(place[0]).counts(Filters(status="gone"))


def test_text_from_outside_stays_text(place: tuple[Cache, Storage]) -> None:
    queries, *_ = fill(place, [{"name": each} for each in NAMES])
    for text in ("'); DROP TABLE dreams; --", '"', "\\", "?", "$1", "\x00", "\ud800", "%", "_"):
        wanted = sum(text.replace("\ud800", "?") in each for each in NAMES)
        outside = Filters(text=text, run=text, model=(text,), layers=(text,), seen=(text,))
        assert queries.counts(Filters(text=text)).photographs == wanted
        assert queries.counts(outside).photographs == 0
        assert queries.facets(outside)["status"] == []
        assert queries.dreams(text) == []
    assert queries.counts(Filters()).photographs == len(NAMES)


def test_the_runs_of_a_destination(old: dict[str, bytes], storage: Storage, tmp_path: Path) -> None:
    with Cache(OLD_DESTINATION, storage, tmp_path) as cache:
        cache.refresh()
        queries = Queries(cache)
        unfinished, finished = queries.runs()
        assert (unfinished.state, unfinished.planned, unfinished.done) == ("unfinished", 6, 1)
        assert unfinished.progress == pytest.approx(1 / 6)
        assert unfinished.source == "s3://photos/old/"
        assert (finished.state, finished.done, finished.failed) == ("finished", 4, 2)
        assert (finished.summary, finished.progress) == ("4 done, 2 failed", 1.0)
        assert finished.started_at == datetime.fromisoformat("2026-11-28T04:30:08Z")
        storage.delete(layout.active_uri(OLD_DESTINATION))
        assert [run.state for run in queries.runs()] == ["abandoned", "finished"]
        storage.write(layout.job_uri(OLD_DESTINATION, OTHER_RUN), b"no JSON", "application/json")
        assert [run.run_id for run in queries.runs()][-1] == OTHER_RUN


def test_the_progress_of_a_retry_counts_replaced_parts(storage: Storage, destination: str, tmp_path: Path) -> None:
    rows = [make_row(destination, each, status="failed") for each in "ab"]
    for shard, row in enumerate(rows):
        write_part(storage, destination, [row], [shard])
    works = [(Work(Source(row.source_uri, name(row), row.source_etag, 1), (0,)),) for row in rows]
    parts = zip(works, list_parts(storage, destination), strict=True)
    shards = [Shard(each.shards.start, work, ReplacedPart(RUN, each.etag)) for work, each in parts]
    plan, mark = freeze_retry(shards, lambda: 0), {"run_id": OTHER_RUN, "job_id": "x-retry"}
    storage.write(layout.plan_uri(destination, OTHER_RUN), plan.parquet, "application/octet-stream")
    job = {"source": "s3://photos/in/", "retry_failed": True}
    storage.write(layout.job_uri(destination, OTHER_RUN), json.dumps({"job": job}).encode(), "application/json")
    storage.write(layout.active_uri(destination), json.dumps(mark).encode(), "application/json")
    with Cache(destination, storage, tmp_path) as cache:
        queries, found = Queries(cache), []
        for shard, row in enumerate(rows):
            cache.refresh()
            found += [(run.planned, run.done, run.is_retry, run.progress) for run in queries.runs()]
            write_part(storage, destination, [make_row(destination, name(row))], [shard])
    assert found == [(2, 0, True, 0.0), (2, 1, True, 0.5)]


def test_a_run_with_nothing_to_do_is_not_abandoned(
    storage: Storage, source: str, destination: str, tmp_path: Path
) -> None:
    collection = Collection(storage, source, destination)
    assert collection.run_job(collection.job(), executor(storage)).report.state == "nothing to do"
    put_photograph(storage, f"{source}cat.png")
    job = collection.job()
    for planned in (False, True):
        run, _ = protocol.claim(job, plan_settings(job), storage)
        if planned:
            sources = scan(job, storage).sources
            protocol.freeze(run, make_plan(sources, run.settings, finished_dreams(destination, storage)), storage)
        protocol.abandon(destination, storage)
    run, _ = protocol.claim(job, plan_settings(job), storage)
    with Cache(destination, storage, tmp_path) as cache:
        states = [each.state for each in Queries(cache).runs()]
    assert Counter(states) == {"unfinished": 1, "abandoned": 1, "nothing to do": 2}
