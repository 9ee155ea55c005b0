"""The benchmark runs, compares only contenders that compute the same step, and reports unreliable runs."""

import io
import json
import os
import subprocess
import sys
import time
from functools import partial
from itertools import islice, pairwise
from operator import methodcaller
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import gpu, gpu_checks, gpu_variants, host, memory, report
from benchmarks.__main__ import conclude
from benchmarks.contenders import (
    BUNDLED_SUBJECT,
    CLEAN,
    ENGINE,
    ENGINE_32,
    PLAIN,
    PUBLISHED,
    SUBJECTS,
    Step,
    Subject,
    agreement,
    contender,
    images,
    network_for,
    without_bfloat16,
)
from benchmarks.gpu import measure_gpu
from benchmarks.nodes import busy_share
from benchmarks.processes import ProcessGroup
from benchmarks.residence import STATUS
from benchmarks.steps import AGAIN, is_trusted, peak_rows
from benchmarks.timing import Race, Row, Spent, order, race
from dreamcore.views import Views

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MACHINE = host.describe() | {"seconds": 1.0}


def test_a_quick_run_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "engine", "null", "--json"]
    done = subprocess.run(
        [*command, str(tmp_path / "found.json")], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == {"machine", "trusted", "disagreeing", "sections", "targets"}
    assert found["disagreeing"] == []
    assert {"processor", "cores", "torch", "torch_threads", "date", "quick", "seconds"} <= set(found["machine"])
    assert set(found["sections"]) == {"engine", "null"}
    contenders = {row["contender"] for row in found["sections"]["engine"]}
    assert contenders == {"published", "clean eager", "plain network", "engine, float32", "engine"}
    for row in found["sections"]["engine"]:
        assert min(row["wall_ms"], row["cpu_ms"], row["megapixel_steps"]) > 0
        assert row["contender"] == "published" or row["agreement_db"] >= 60
    measured = {target["name"]: target["measured"] for target in found["targets"]}
    cases = {f"{subject.model} 451x300" for subject in SUBJECTS}
    assert set(measured["speedup of the engine over clean eager"]) == cases
    assert set(measured["speedup of the engine over published"]) == cases
    assert found["trusted"] is all(0.95 <= row["null_ratio"] <= 1.05 for row in found["sections"]["null"])
    assert "speedup of the engine over published" in done.stdout
    assert ("not reliable" in done.stdout) is not found["trusted"]


def printed(sections: dict[str, list[Row]], trusted: bool | None, **machine: float | None) -> str:
    screen = io.StringIO()
    console = Console(file=screen, width=160, force_terminal=True, color_system="standard")
    report.show(MACHINE | machine, sections, trusted, console)
    return screen.getvalue()


def test_a_run_in_which_the_engine_differs_from_itself_is_not_reliable() -> None:
    valid = [Row("one", AGAIN, figures={"null_ratio": 0.96}), Row("other", AGAIN, figures={"null_ratio": 1.04})]
    assert is_trusted(valid)
    noisy = [*valid, Row("third", AGAIN, figures={"null_ratio": 0.9})]
    assert not is_trusted(noisy)
    text = printed({"null": noisy}, is_trusted(noisy))
    assert "\x1b[1mThis run is not reliable" in text
    assert report.to_json({}, {"null": noisy}, False)["trusted"] is False
    assert "not reliable" not in printed({"null": valid}, True)


@pytest.mark.parametrize(("load", "busy"), [(0.61, True), (0.59, False), (None, False)])
def test_a_busy_machine_is_reported(load: float | None, busy: bool) -> None:
    warning = "\x1b[1mThe load at the start was above 0.3 per core"
    assert (warning in printed({}, True, load=load, cores=2)) is busy


def test_agreement_is_measured_against_the_first_contender() -> None:
    def gradient(curvature: float, x: Tensor) -> Tensor:
        return x - 0.5 + curvature * x.square()

    image = images((32, 48))
    steps: dict[str, Step] = {
        "one": partial(gradient, 0.0),
        "same": lambda x: 3 * gradient(0.0, x),
        "other": partial(gradient, 1.0),
        "broken": lambda x: x * torch.nan,
    }
    decibels = agreement(steps, image)
    assert set(decibels) == {"same", "other", "broken"}
    assert decibels["same"] > 100 > 60 > decibels["other"] > decibels["broken"] == 0


def test_a_contender_that_computes_another_step_invalidates_only_its_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def contenders(name: str, subject: Subject, device: str) -> Step:
        step = contender(name, subject, device)
        return (lambda x: step(x).flip(-1)) if name == CLEAN else step

    monkeypatch.setattr(gpu, "contender", contenders)
    rows = gpu.measure_case(BUNDLED_SUBJECT, (64, 96), 2, [gpu_variants.TF32, gpu_variants.FUSED], "cpu", 2)
    others = [gpu_variants.TF32, gpu.WHOLE_STEP, gpu.LAPLACIAN]
    assert [row.contender for row in rows] == [PUBLISHED, CLEAN, PLAIN, ENGINE, *others, gpu_variants.FUSED]
    assert rows[1].figures["agreement_db"] < 60 < rows[3].figures["agreement_db"]
    assert rows[-1].note, "a variant that cannot run says why"
    assert "wrong" not in rows[-1].figures
    valid = [Row("one", ENGINE, figures={"times_clean": 2, "agreement_db": 80})]
    assert conclude(MACHINE, {"engine": valid}, tmp_path / "found.json") == 0
    assert "Section" not in capsys.readouterr().out
    assert conclude(MACHINE, {"engine": valid, "gpu": rows}, tmp_path / "found.json") == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["disagreeing"] == ["gpu"]
    assert len(found["sections"]["gpu"]) == len(rows)
    measured = {target["name"]: target["measured"] for target in found["targets"]}
    assert measured["speedup of the engine over clean eager"] == {"one": 2}
    assert measured["speedup of the engine over clean eager on a GPU"] == {}
    assert "Section gpu is invalid" in capsys.readouterr().out


def test_every_contender_has_every_position_equally_often() -> None:
    orders = [order("abc", number) for number in range(6)]
    for position in range(3):
        assert sorted(names[position] for names in orders) == sorted("aabbcc")
    assert {pair for names in orders for pair in pairwise(names)} == {(a, b) for a in "abc" for b in "abc" if a != b}


def test_a_temporary_slowdown_does_not_change_the_speedup() -> None:
    slowdown = (1, 1, 10, 10, 1)
    found = Race({name: [Spent(cost * factor, cost) for factor in slowdown] for name, cost in (("a", 0.2), ("b", 0.5))})
    assert found.speedup("a", "b") == pytest.approx(2.5)
    assert found.wall("a") == pytest.approx(0.2)
    assert found.spread("a") == pytest.approx(4.5)


def test_a_race_measures_wall_and_cpu_time() -> None:
    found = race({"sleep": lambda: time.sleep(0.02), "reported": lambda: Spent(7, 3)}, 2)
    assert found.wall("sleep") >= 0.02 > found.cpu("sleep")
    assert (found.wall("reported"), found.cpu("reported")) == (7, 3)


def test_the_engine_in_float32_is_compared_with_the_best_product() -> None:
    """The products reach 1 and 4 GFLOP/s, the engine 2, and 4 with bfloat16, which does not count for the target."""
    seconds = {"torch.mm 2048": 1.0, "other": 1.0, ENGINE_32: 1.0, ENGINE: 0.5}
    found = Race({name: [Spent(wall, wall)] * 2 for name, wall in seconds.items()})
    rows = peak_rows(found, "case", {"torch.mm 2048": 1e9, "other": 4e9}, 2e9)
    figures = {row.contender: row.figures for row in rows}
    assert figures[ENGINE_32] == {"gflops": 2, "of_matmul": 2, "of_best": 0.5}
    assert figures[ENGINE] == {"gflops": 4, "of_matmul": 4, "of_best": 1}
    measured = [target.measured({"peak": rows}) for target in report.TARGETS if target.section == "peak"]
    assert measured == [{"case": 2}, {"case": 0.5}]


def test_a_network_without_bfloat16_can_be_measured_beside_one_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamcore.engine.supports_bfloat16", lambda: True)
    subject = Subject("resnet18", "layer2")
    wanted = [frozenset([subject.layer])]
    assert without_bfloat16(network_for(subject), subject.layer).precisions(wanted) == ["float32"]
    assert network_for(subject).precisions(wanted) == ["float32/bfloat16"]


def test_a_process_group_handles_requests_and_reports_its_end() -> None:
    with ProcessGroup(methodcaller, ("bit_count",), processes=2) as group:
        assert group.threads == 1
        assert group.ask(7, 8) == [3, 1]
        assert group.ask(3) == [2]
        with pytest.raises(RuntimeError, match="a process of the benchmark ended"):
            group.ask("not a number")


def test_the_soak_uses_many_sizes_and_the_largest_come_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that grows after the largest sizes is not the memory of an image."""
    found = list(islice(memory.sizes(), memory.MANY))
    assert len(set(found)) > 0.9 * memory.MANY
    areas = [height * width for height, width in found]
    assert max(areas[: memory.FEW]) > 0.95 * max(areas)
    monkeypatch.setattr(memory, "SUBJECTS", ())
    monkeypatch.setattr(memory, "FEW", 2)
    monkeypatch.setattr(memory, "HALF", 3)
    monkeypatch.setattr(memory, "MANY", 4)
    if not STATUS.exists():
        pytest.skip(f"this system has no {STATUS}")
    (row,) = memory.measure_memory(quick=False, soak=True)
    assert row.case == "4 dreams, random sizes"
    assert min(row.figures[name] for name in ("mib_early", "mib_middle", "mib_late")) > 100


def test_workers_are_idle_only_while_shards_wait() -> None:
    assert busy_share([(0, 4), (4, 9)], workers=1) == 1
    assert busy_share([(0, 4), (1, 2), (4, 9)], workers=2) == (4 + 1) / (2 * 4)
    assert busy_share([(0, 4)], workers=1) == 1


@pytest.mark.soak
def test_the_gpu_section_can_be_tried_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "gpu", "--device", "cpu", "--json"]
    done = subprocess.run(
        [*command, str(tmp_path / "found.json")], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["sections"]["gpu"]
    checks = [row for row in rows if row["case"] == "checks"]
    assert len(checks) == 3 * 8 + 6
    assert all("dB against float64" in row["note"] for row in checks[:24])
    steps = {row["contender"]: row for row in rows if row["case"].startswith("2 of googlenet")}
    assert {PUBLISHED, CLEAN, ENGINE, gpu_variants.HALF_BACKWARD, gpu.WHOLE_STEP} <= steps.keys()
    assert 40 < steps[gpu_variants.HALF_BACKWARD]["variant_db"] < 110


VARIANTS = """
from benchmarks.contenders import ENGINE, SUBJECTS, agreement, contender, images, network_for
from benchmarks.gpu_variants import FUSED, HALF_BACKWARD, compiled, variant

for subject in SUBJECTS:
    steps = {name: variant(name, subject, "cpu") for name in (FUSED, HALF_BACKWARD)}
    steps["traced"] = compiled(network_for(subject), subject.layer, lambda forward, dynamic: forward)
    print(*agreement({ENGINE: contender(ENGINE, subject), **steps}, images((32, 48), 2)).values())
"""


@pytest.mark.soak
def test_the_variants_compute_the_step_of_the_engine() -> None:
    """Triton's interpreter runs its kernels on a CPU."""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", VARIANTS]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=True)
    found = [list(map(float, line.split())) for line in done.stdout.splitlines()]
    assert len(found) == len(SUBJECTS)
    for fused, half, traced in found:
        assert min(fused, traced) > 80
        assert half > 60


def test_a_wrong_dream_on_a_gpu_makes_the_section_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks find a jitter that does nothing, and a check that cannot run."""
    gather = Views.gather
    monkeypatch.setattr(
        Views, "gather", lambda views, images, *, inverse=False: gather(views, images, inverse=not inverse)
    )
    monkeypatch.setattr(gpu_checks, "CHECKED", ())
    monkeypatch.setattr(gpu_checks, "ascend", None)
    rows = gpu_checks.check_gpu("cpu", tiny=True)
    wrong = [row.contender for row in rows if "wrong" in row.figures]
    assert wrong == ["the jitter of a batch", "batches", "stop_at", "waits"]
    assert report.disagreeing({"gpu": rows}) == ["gpu"]


def test_the_gpu_section_reports_a_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (row,) = measure_gpu(quick=True)
    assert row.note == "not measured: torch finds no GPU"


def test_every_target_names_a_known_figure_and_section() -> None:
    assert {target.figure for target in report.TARGETS} <= set(report.FIGURES)
    assert {target.section for target in report.TARGETS} <= set(report.TITLES)
