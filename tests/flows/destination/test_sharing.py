"""Several processes share the shards of a run: the order, the hints, and how many dreams are made twice."""

import random
from collections import Counter, deque
from collections.abc import Generator, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import Any

import pytest

from flows.destination import sharing
from flows.destination.run_record import Run
from flows.destination.sharing import begin_shard, end_shard, remaining_shards, remove_hints
from flows.jobs.cost import CORE, Throughput
from flows.jobs.job import DreamJob
from flows.jobs.plan import MIN_SHARDS_PER_PROCESS, Plan, Sources, make_plan
from flows.jobs.work import Shard, Source
from flows.planning.scan import plan_settings
from flows.running.executors import MIN_SUBMITTED
from flows.s3 import layout
from flows.s3.storage import ObjectInfo, Storage

BUCKET = "s3://bucket/"


def run_of(shards: int, dreams: int, destination: str = f"{BUCKET}out/") -> tuple[Run, Plan]:
    """Return a run, and its plan of so many shards with so many dreams each."""
    job = DreamJob.model_validate({"source": f"{BUCKET}in/", "destination": destination})
    settings = plan_settings(job)
    names = (f"{number:06d}.png" for number in range(shards * dreams))
    sources = Sources(Source(f"{job.source}{name}", name, "etag", 1000) for name in names)
    plan = make_plan(sources, settings, lambda _key: False, Throughput(shards // MIN_SHARDS_PER_PROCESS, CORE))
    return Run(run_id="run", job=job, settings=settings), plan


class MemoryStorage(Storage):
    """A store in memory that counts requests."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests = Counter[str]()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.requests["list"] += 1
        return iter([ObjectInfo(uri, "", 0) for uri in self.objects if uri.startswith(prefix)])

    def read(self, uri: str) -> bytes | None:
        self.requests["get"] += 1
        return self.objects.get(uri)

    def write_if_absent(self, uri: str, data: bytes, content_type: str) -> bool:
        self.requests["put"] += 1
        return self.objects.setdefault(uri, data) == data

    def delete(self, uri: str) -> None:
        self.requests["delete"] += 1
        self.objects.pop(uri, None)


# --- the order


def test_every_unfinished_shard_comes_once_from_a_random_place(monkeypatch: pytest.MonkeyPatch) -> None:
    run, plan = run_of(200, 1)
    store = MemoryStorage()
    store.objects[layout.part_uri(run.destination, run.run_id, 7)] = b""
    first = set()
    for seed in range(5):
        monkeypatch.setattr(sharing, "_random", random.Random(seed))
        numbers = [shard.number for shard in remaining_shards(run, plan, store, "me")]
        assert sorted(numbers) == [number for number in range(200) if number != 7]
        turn = numbers.index(min(numbers))
        assert numbers == sorted(numbers[turn:] + numbers[:turn])[-turn:] + sorted(numbers)[:-turn]
        first.add(numbers[0])
    assert len(first) > 3


def test_shards_that_another_process_finished_meanwhile_are_left_out() -> None:
    run, plan = run_of(200, 3)
    store, elsewhere = MemoryStorage(), list[Shard]()
    shards = remaining_shards(run, plan, store, "me", elsewhere.append)
    mine = [next(shards).number]
    for number in set(range(200)) - set(mine):
        store.objects[layout.part_uri(run.destination, run.run_id, number)] = b""
    mine += [shard.number for shard in shards]
    assert len(mine) == sharing.LOOK_AGAIN, "the parts were listed again after this many"
    assert sorted(mine + [shard.number for shard in elsewhere]) == list(range(200))
    assert store.requests["list"] == 200 // sharing.LOOK_AGAIN + 1


def test_at_last_the_photographs_of_a_shard_are_in_another_order() -> None:
    run, plan = run_of(8, 20)
    planned = {shard.number: shard for shard in plan}
    for shard in remaining_shards(run, plan, MemoryStorage(), "me"):
        assert shard.works == planned[shard.number].works
        assert shard.process == "me"
    for shard in remaining_shards(run, plan, MemoryStorage(), None):
        assert shard.works != planned[shard.number].works
        assert set(shard.works) == set(planned[shard.number].works)
        assert shard.process is None


# --- the hints


def test_a_shard_is_begun_by_one_process_until_it_has_ended(storage: Storage, destination: str) -> None:
    run, _ = run_of(4, 1, destination)
    ours, theirs, last = (Shard(1, (), process=process) for process in ("ours", "theirs", None))
    assert begin_shard(run, ours, storage)
    assert begin_shard(run, ours, storage), "a second attempt of the same process"
    assert not begin_shard(run, theirs, storage)
    assert begin_shard(run, last, storage), "no result depends on a hint"
    assert [info.uri for info in storage.list(destination)] == [f"{destination}_runs/run/started/run-000001"]
    end_shard(run, last, storage)
    assert not begin_shard(run, theirs, storage)
    end_shard(run, ours, storage)
    assert not list(storage.list(destination))
    assert begin_shard(run, theirs, storage)
    remove_hints(destination, run.run_id, storage)
    assert not list(storage.list(destination))


# --- a simulation of processes with a clock of its own

TASK_SECONDS, LOAD_SECONDS = 0.2, 0.02
BATCH, PREFETCH = 2, 2
"""Dreams that a worker process has begun: those in the ascent, and photographs that are loaded for it."""
DREAMS = 60
"""Of one shard; each takes about a second."""
Steps = Generator[float, None, None]
"""What a worker process does: it yields the seconds that each step takes."""


class Process:
    """One process of a run with its worker processes."""

    def __init__(self, cluster: "Cluster", name: str, workers: int, speed: float) -> None:
        self.cluster, self.name, self.workers, self.speed = cluster, name, workers, speed
        self.tokens = iter((name, None))
        self.alive, self.idle = True, workers
        self.submitted = deque[Shard]()
        self.next_pass()

    def next_pass(self) -> None:
        """Go through the unfinished shards, as `protocol.execute` does."""
        if (token := next(self.tokens, self)) is self:
            return
        assert not isinstance(token, Process)
        self.shards = remaining_shards(self.cluster.run_, self.cluster.plan, self.cluster.store, token)
        self.idle = 0
        for _ in range(self.workers):
            self.cluster.start(self, self.work())

    def work(self) -> Steps:
        """Take submitted shards until none is left. `flows.running.executors` submits this many at once."""
        while True:
            while len(self.submitted) < MIN_SUBMITTED and (shard := next(self.shards, None)):
                self.submitted.append(shard)
            if not self.submitted:
                break
            yield from self.dream_shard(self.submitted.popleft())
        self.idle += 1
        if self.idle == self.workers:
            self.next_pass()

    def dream_shard(self, shard: Shard) -> Steps:
        """Do what `flows.running.shard.dream_shard` does."""
        run, store, finished = self.cluster.run_, self.cluster.store, self.cluster.finished
        yield TASK_SECONDS
        part = layout.part_uri(run.destination, run.run_id, shard.number)
        if store.read(part) is not None or not begin_shard(run, shard, store):
            return
        waiting, loaded = deque(shard.works), list[str]()
        while waiting or loaded:
            while waiting and len(loaded) < BATCH + PREFETCH:
                yield LOAD_SECONDS
                if (work := waiting.popleft()).source.uri not in finished:
                    loaded.append(work.source.uri)
            batch, loaded = loaded[:BATCH], loaded[BATCH:]
            yield len(batch) * self.cluster.chance.uniform(0.7, 1.3) / self.speed
            self.cluster.made += len(batch)
            finished.update(batch)
        store.write_if_absent(part, b"", "")
        end_shard(run, shard, store)


class Cluster:
    """Processes that share a run, on one clock."""

    def __init__(self, processes: int, shards: int, workers: int = 1, speeds: tuple[float, ...] = (1.0,)) -> None:
        self.run_, self.plan = run_of(shards, DREAMS)
        self.store, self.finished, self.made, self.now = MemoryStorage(), set[str](), 0, 0.0
        self.chance, self._order = random.Random(5), count()
        self._steps: list[tuple[float, int, Process, Steps]] = []
        self.processes = [Process(self, f"{n}", workers, speeds[n % len(speeds)]) for n in range(processes)]

    def start(self, process: Process, steps: Steps) -> None:
        heappush(self._steps, (self.now, next(self._order), process, steps))

    def run(self, until: float = float("inf")) -> None:
        """Let the clock run until nobody has anything to do."""
        while self._steps and self._steps[0][0] < until:
            self.now, _, process, steps = heappop(self._steps)
            if process.alive and (seconds := next(steps, None)) is not None:
                heappush(self._steps, (self.now + seconds, next(self._order), process, steps))

    def wasted(self) -> float:
        """Return the share of the dreams that were made again, after a check that everything is finished."""
        dreams = self.plan.dreams
        assert len(self.finished) == dreams
        parts = [uri for uri in self.store.objects if uri.startswith(layout.manifest_folder(self.run_.destination))]
        assert len(parts) == len(self.plan)
        return (self.made - dreams) / dreams


CLUSTERS: list[dict[str, Any]] = [
    {"processes": 3, "shards": 48},
    {"processes": 3, "shards": 120, "workers": 2},
    {"processes": 8, "shards": 120},
    {"processes": 8, "shards": 320, "workers": 2, "speeds": (1.0, 0.6, 1.7)},
]


@pytest.mark.parametrize("cluster", CLUSTERS, ids=str)
def test_processes_make_few_dreams_twice(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_random", random.Random(3))
    simulated = Cluster(**cluster)
    simulated.run()
    assert simulated.wasted() < 0.03
    assert not list(simulated.store.list(layout.started_folder(f"{BUCKET}out/", "run"))), "no hint is left"
    work = simulated.plan.dreams / sum(process.speed * process.workers for process in simulated.processes)
    assert simulated.now < work * 1.15, "no process is idle for long"


def test_the_shards_of_a_dead_process_are_dreamt_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_random", random.Random(3))
    simulated = Cluster(4, 80, workers=2)
    simulated.run(until=90)
    simulated.processes[0].alive = False
    simulated.run()
    left = list(simulated.store.list(layout.started_folder(f"{BUCKET}out/", "run")))
    assert len(left) == 2, "the hints of both worker processes of the dead process"
    assert simulated.wasted() < 0.05
