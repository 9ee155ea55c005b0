"""Estimates: the speed of this machine, the sizes of photographs, the elapsed time, the requests and the price."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from dreamcore.settings import DreamSettings, settings_id
from flows.jobs import calibration
from flows.jobs.calibration import Calibration, machine_name
from flows.jobs.cost import CORE, Throughput, dreamt_pixels, reference_seconds, step_kind
from flows.jobs.job import DreamJob
from flows.jobs.work import PlannedSettings, Shard, Source, Work
from flows.local.stack import Stack
from flows.planning import workload
from flows.planning.dimensions import image_size
from flows.planning.estimate import estimate
from flows.planning.speed import throughput
from flows.planning.workload import Pixels, Workload
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.support.command import REPOSITORY, Command
from tests.support.faults import Call, Fault, Proxy
from tests.support.shards import put_photograph
from tests.support.tiny import pixels


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DREAMGRID_PRICE_PER_HOUR", raising=False)
    return tmp_path / "cache" / "dreamgrid" / "speed.json"


def planned(cost: int = 4848, **fields: object) -> PlannedSettings:
    settings = DreamSettings.model_validate(fields)
    return PlannedSettings(settings=settings, settings_id=settings_id(settings, "w"), weights="w", cost=cost)


def test_an_enlarged_dream_costs_what_its_size_costs() -> None:
    dream = {"uri": "s3://dreams/a.png", "sha256": "0" * 64}
    for max_pixels in (200_000, 12_000_000):
        large = planned(max_pixels=max_pixels, enlarge=dream)
        assert dreamt_pixels(large, 100_000) == max_pixels, "a smaller photograph is resampled"
        work = Workload(Pixels({"s3://photos/a.png": (400, 250)}), sheets=0)
        work.add(Shard(0, (Work(Source("s3://photos/a.png", "a.png", "e", 1000), (0,)),)), [large])
        assert work.seconds[0][large.settings_id] == reference_seconds(large, max_pixels)
    assert dreamt_pixels(planned(max_pixels=200_000), 100_000) == 100_000


# --- the size of an image


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("jpeg", {}),
        ("jpeg", {"progressive": True}),
        ("jpeg", {"exif": b"Exif\0\0" + bytes(60_000)}),
        ("png", {}),
        ("gif", {}),
        ("bmp", {}),
        ("webp", {"lossless": True}),
        ("webp", {"quality": 50}),
        ("webp", {"quality": 50, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
    ],
)
def test_the_size_is_read_from_the_first_bytes(name: str, options: dict[str, object]) -> None:
    sink = io.BytesIO()
    Image.fromarray(pixels(40, 56, 0)).save(sink, name, **options)
    data = sink.getvalue()
    assert image_size(data) == (56, 40)
    for length in range(0, min(len(data), 64)):
        assert image_size(data[:length]) in (None, (56, 40))


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff\xd8\xff", b"\xff\xd8\xff" + b"\xff" * 999, b"BM" + bytes(30)])
def test_other_bytes_have_no_size(data: bytes) -> None:
    assert image_size(data) is None


# --- the speed of this machine


def test_a_measured_speed_is_kept_and_predicts_a_dream(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child process loads torch and dreams a few times; a dream of another size and length is then predicted."""
    from dreamcore.catalog import network_spec, weights_identity_of

    monkeypatch.setenv("DREAMGRID_WORKERS", "1")  # the dream that is predicted has no neighbours either
    settings = DreamSettings.model_validate({"layers": "blocks.3", "octaves": 2, "steps": 3})
    weights, cost = weights_identity_of(settings), network_spec(settings.model).layer("blocks.3").cost
    point = PlannedSettings(settings=settings, settings_id="x", weights=weights, cost=cost)
    found = calibration.measure([(point, 128 * 128)])
    assert found is not None
    assert found.start_seconds > 0
    assert calibration.kept() == found
    assert list(json.loads(cache.read_text())) == [machine_name()]
    longer = point.model_copy(update={"settings": settings.model_copy(update={"steps": 8})})
    code = (
        "import sys, json, torch; torch.set_num_threads(1)\n"
        "from flows.jobs.calibration import _dream; from flows.jobs.work import PlannedSettings\n"
        "planned = PlannedSettings.model_validate(json.load(sys.stdin)); _dream(planned, 200, 'cpu')\n"
        "print(min(_dream(planned, 200, 'cpu') for _ in range(2)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        input=longer.model_dump_json(),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    seconds = reference_seconds(longer, 200 * 200) / found.speeds[step_kind(point)]
    assert float(done.stdout) / 2 < seconds < float(done.stdout) * 2, "other tests may run beside it"


def test_a_cache_that_cannot_be_written_is_only_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration._keep(Calibration(3.0, {"kind": 2.0}, 1.0))
    assert calibration.kept() == Calibration(3.0, {"kind": 2.0}, 1.0)
    for text in ("", "[]", '{"a": 1}', "\0", json.dumps({machine_name(): {"unknown": 1}})):
        cache.write_text(text)
        assert calibration.kept() is None
    cache.unlink()
    cache.parent.rmdir()
    cache.parent.write_text("a file where the folder should be")
    calibration._keep(Calibration(3.0))
    assert calibration.kept() is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    calibration._keep(Calibration(3.0))
    assert calibration.kept() is None


def test_another_number_of_workers_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration._keep(Calibration(3.0, {"kind": 2.0}))
    monkeypatch.setenv("DREAMGRID_WORKERS", "7")
    assert "7 workers" in machine_name()
    assert calibration.kept() is None


def test_a_measurement_that_fails_gives_no_speed() -> None:
    assert calibration.measure([(planned(model="no such network"), 4096)]) is None


def test_a_similar_layer_has_the_same_speed_and_a_very_different_one_has_not() -> None:
    calibration._keep(Calibration(3.0, {step_kind(planned(4848)): 2.0}))
    near, far = planned(5000), planned(416)
    machine = throughput([near, far, planned(4848)])
    assert machine.by_kind == {step_kind(near): 2.0, step_kind(planned(4848)): 2.0}
    assert machine.speed_of(far) == 2.0, "the usual speed is better than a guess"
    assert machine.start_seconds == 6.0


# --- the elapsed time


def work_of(points: list[PlannedSettings], shards: list[list[int]]) -> Workload:
    """Shards of photographs of 64x64 pixels, each with these settings."""
    sources = [Source(f"s3://photos/{number}.png", f"{number}.png", "e", 9999) for number in range(len(shards))]
    work = Workload(Pixels({source.uri: (64, 64) for source in sources}), 0)
    for number, (source, indices) in enumerate(zip(sources, shards, strict=True)):
        work.add(Shard(number, (Work(source, tuple(indices)),)), points)
    return work


def test_three_equal_shards_take_two_rounds_on_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "core_count", lambda: 2)
    work = work_of([planned(steps=1000)], [[0], [0], [0]])
    one = work.reference_seconds / 3
    assert work.elapsed_seconds(Throughput(2, CORE, start_seconds=5)) == pytest.approx(2 * one + 5)
    assert work.elapsed_seconds(Throughput(1, CORE, start_seconds=5)) == pytest.approx(3 * one + 5)
    assert work.elapsed_seconds(Throughput(2, 4 * CORE, start_seconds=5)) == pytest.approx(one / 2 + 5, rel=0.01)


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four workers on two cores dream as fast as two, and need twice as long to start."""
    monkeypatch.setattr(workload, "core_count", lambda: 2)
    work = work_of([planned(steps=1000)], [[0]] * 4)
    two, four = (work.elapsed_seconds(Throughput(count, CORE, start_seconds=5)) for count in (2, 4))
    assert four == pytest.approx(two + 5)


def test_small_dreams_of_one_photograph_are_cheaper_in_a_batch() -> None:
    points = [planned(seed=seed) for seed in range(8)]
    together = work_of(points, [list(range(8))]).reference_seconds
    alone = work_of(points, [[index] for index in range(8)]).reference_seconds
    assert together < 0.7 * alone


def test_nothing_to_do_takes_no_time() -> None:
    assert work_of([planned()], []).elapsed_seconds(Throughput(2, CORE)) == 0


# --- the whole estimate


def test_the_first_run_gives_the_speed_of_the_next_estimate_without_torch(
    storage: Storage, source: str, destination: str, dreamgrid: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the requests of the run are those that were estimated, and the first line names the run."""
    monkeypatch.setenv("DREAMGRID_WORKERS", "2")  # with one worker, the work would not be short
    for number in range(3):
        put_photograph(storage, f"{source}{number}.png", number)
    job = ("--source", source, "--destination", destination, "--layers", "blocks.0", "--layers", "blocks.1")
    size = ("--octaves", "1", "--steps", "60", "--sheets", "2")
    proxy = _CountingProxy(os.environ["AWS_ENDPOINT_URL"])
    with proxy:
        planned = json.loads(dreamgrid("plan", *job, *size, "--price-per-hour", "3.6", "--json").stdout)
        assert planned["estimated_from"] == "typical figures, because the work is short"
        assert planned["estimated_cost"] == pytest.approx(planned["estimated_seconds"] * 0.001, rel=0.01)
        proxy.calls.clear()
        environment = proxy.environment({})
        done = dreamgrid("run", *job, *size, "--json", **environment)
        assert done.returncode == 0, done.stderr
        sent = proxy.methods()
    report = json.loads(done.stdout)
    assert done.stderr.splitlines()[0] == f"run {report['run_id']} -> {destination}"
    assert done.stderr.splitlines()[-1].startswith("6 of 6 dreams")
    assert report["machine"] == machine_name()
    for method, count in planned["estimated_requests"].items():
        assert abs(sent[method] - count) <= 3 + 0.1 * count, (sent, planned["estimated_requests"])

    code = "import sys; from flows.planning.estimate import estimate; from flows.jobs.job import DreamJob; "
    code += "print(estimate(DreamJob.model_validate_json(sys.argv[1]))['estimated_from'], 'torch' in sys.modules)"
    grid = {"layers": ["blocks.0", "blocks.1"], "octaves": [1], "steps": [50]}
    next_job = DreamJob.model_validate({"source": source, "destination": destination, "grid": grid})
    again = subprocess.run(
        [sys.executable, "-c", code, next_job.model_dump_json()], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert again.stdout.split("\n")[0] == f"the run {report['run_id']} False", again.stderr

    success = layout.success_uri(destination, report["run_id"])
    storage.write(success, json.dumps(report | {"machine": "another one"}).encode(), "application/json")
    assert estimate(next_job)["estimated_from"] == "typical figures, because the work is short"


class _CountingProxy(Proxy):
    """A proxy that injects no faults and counts requests by method."""

    def receive(self, method: str, path: str) -> tuple[Call, Fault | None]:
        is_list = method == "GET" and "list-type" in urlsplit(path).query
        return super().receive("LIST" if is_list else method, path)

    def methods(self) -> Counter[str]:
        return Counter(call.method.lower() for call, _ in self.calls)


def test_the_sizes_of_the_photographs_are_read(
    storage: Storage, source: str, destination: str, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of noise has many bits per pixel, so its size says little. A long job is measured."""
    put_photograph(storage, f"{source}a.png", 1, height=60)
    storage.write(f"{source}b.png", b"", "image/png")
    storage.write(f"{source}c.png", b"not an image", "image/png")
    job = DreamJob.model_validate({"source": source, "destination": destination, "grid": {"steps": [2000]}})
    asked: list[tuple[PlannedSettings, int]] = []

    def measure(settings: list[tuple[PlannedSettings, int]]) -> Calibration:
        asked.extend(settings)
        found = Calibration(4.0, {step_kind(settings[0][0]): 3.0}, 1.44)
        calibration._keep(found)
        return found

    monkeypatch.setattr(calibration, "measure", measure)
    found = estimate(job)
    assert found["estimated_from"] == "measured on this machine in 1.4 s"
    assert [pixels for _, pixels in asked] == [60 * 56]
    assert found["estimated_cost"] is None
    again = estimate(job, 1.0)
    assert again["estimated_from"] == "an earlier measurement on this machine"
    assert again["estimated_seconds"] == found["estimated_seconds"]


def test_a_wrong_price_is_refused(dreamgrid: Command) -> None:
    for arguments, env in (["--price-per-hour", "-1"], {}), ([], {"DREAMGRID_PRICE_PER_HOUR": "cheap"}):
        done = dreamgrid("plan", "--source", "s3://a/", "--destination", "s3://b/", *arguments, **env)
        assert done.returncode == 2
        assert "--price-per-hour" in done.stderr
        assert "Traceback" not in done.stderr
