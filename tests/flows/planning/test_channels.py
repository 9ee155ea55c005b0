"""Runs whose photographs choose their channels, such as `blocks.1:top2`, against a real S3."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.models import load_network
from dreamcore.ranking import ranked_channels
from dreamcore.results import to_tensor
from dreamcore.settings import BUNDLED
from dreamcore.sweeps import Ranking
from flows.decoding.decoder import decode
from flows.destination import manifest, run_record
from flows.planning import channels
from flows.planning.estimate import estimate
from flows.running.protocol import Executor
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.support.collections import Collection, executor
from tests.support.shards import put_photograph


@pytest.fixture
def collection(storage: Storage, source: str, destination: str) -> Collection:
    """Three photographs. One of them is broken."""
    for number in (1, 2):
        put_photograph(storage, f"{source}{number}.png", seed=number)
    storage.write(source + "broken.png", b"no photograph", "image/png")
    return Collection(storage, source, destination)


def top(collection: Collection, name: str, order: str, size: int) -> list[str]:
    """Return the channels of `blocks.1` that a photograph ranks first, each as a target."""
    photograph = decode(collection.storage.read(collection.source + name) or b"")
    ranking = Ranking(order, size, "blocks.1", None)
    image = to_tensor(photograph.pixels)[0]
    return [f"blocks.1:{channel}" for channel in ranked_channels(load_network(BUNDLED, "cpu"), image, ranking)]


def dreamt(collection: Collection) -> dict[str, set[tuple[str, str]]]:
    """Return status and layers of each row of the manifest, by the name of the photograph."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in manifest.read(collection.storage, collection.destination).to_pylist():
        (layer,) = row["layers"]
        (channel,) = layer["channels"]
        found[row["source_uri"].removeprefix(collection.source)].add((row["status"], f"{layer['name']}:{channel}"))
    return found


def done(*targets: str) -> set[tuple[str, str]]:
    return {("done", target) for target in targets}


def test_each_photograph_gets_the_channels_that_it_ranks_first(collection: Collection) -> None:
    report = collection.run_job(
        collection.job("blocks.1:top3", "blocks.1:weakest1"), executor(collection.storage)
    ).report
    found = dreamt(collection)
    for name in ("1.png", "2.png"):
        assert found[name] == done(*top(collection, name, "top", 3), *top(collection, name, "weakest", 1))
    assert found["1.png"] != found["2.png"]
    assert found["broken.png"] == {("failed", f"blocks.1:{channel}") for channel in range(3)}
    assert (report.planned, report.done, report.failed) == (11, 8, 3)


def test_a_second_run_measures_only_new_photographs(collection: Collection) -> None:
    job = collection.job("blocks.1:top2", "blocks.1:5")
    assert estimate(job)["planned"] == 3 * 2 + 3 - sum("blocks.1:5" in each for each in tops(collection))
    collection.run_job(job, executor(collection.storage))
    assert collection.run_job(job, executor(collection.storage)).report.state == "nothing to do"
    again = estimate(job)
    assert (again["planned"], again["done"]) == (0, len(manifest.read(collection.storage, collection.destination)))
    put_photograph(collection.storage, collection.source + "3.png", seed=3)
    collection.run_job(job, executor(collection.storage))
    assert dreamt(collection)["3.png"] == done(*top(collection, "3.png", "top", 2), "blocks.1:5")


def tops(collection: Collection) -> list[list[str]]:
    """Return the channels of each photograph; the broken one gets the first ones."""
    return [top(collection, "1.png", "top", 2), top(collection, "2.png", "top", 2), ["blocks.1:0", "blocks.1:1"]]


def test_a_resumed_run_measures_nothing_and_keeps_its_channels(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = collection.job("blocks.1:top2")
    with pytest.raises(Unavailable, match="the store is gone"):
        collection.run_job(job, stopping)
    run_id = (run_record.read_mark(collection.destination, collection.storage) or {})["run_id"]
    frozen = collection.storage.read(layout.plan_uri(collection.destination, run_id))

    def refuse(*_: object) -> Any:
        raise AssertionError("a photograph was measured")

    monkeypatch.setattr(channels, "_measured", refuse)
    assert estimate(job)["planned"] == 6
    finished = collection.run_job(job, executor(collection.storage))
    assert finished.run.run_id == run_id
    assert finished.plan.parquet == frozen
    assert dreamt(collection)["1.png"] == done(*top(collection, "1.png", "top", 2))


def stopping(*_: object) -> Any:
    raise Unavailable("the store is gone")


def test_too_many_photographs_are_refused_and_the_destination_stays_free(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "MAX_PHOTOGRAPHS", 2)
    job, execute = collection.job("blocks.1:top2"), executor(collection.storage)
    for refused in (lambda: collection.run_job(job, execute), lambda: estimate(job)):
        check_refusal(refused)
    assert run_record.read_mark(collection.destination, collection.storage) is None
    assert collection.run_job(collection.job("blocks.1:3"), execute).report.done == 2


def check_refusal(function: Callable[[], object]) -> None:
    message = "chosen for at most 2 photographs, and the source has 3: name the channels, or give a smaller source"
    with pytest.raises(InvalidInput, match=message):
        function()


def test_a_run_without_such_sweeps_measures_nothing(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MAX_PHOTOGRAPHS", 0)
    execute: Executor = executor(collection.storage)
    assert collection.run_job(collection.job("blocks.1:3-4"), execute).report.planned == 6
