"""Section `gpu`: whether dreams on a GPU are right, and the time of a step with each contender, if there is a GPU.

The section was tried on a CPU (`--device cpu`), and never run on a GPU.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.contenders import (
    CLEAN,
    ENGINE,
    LARGE,
    PLAIN,
    PUBLISHED,
    SMALL,
    SUBJECTS,
    Size,
    Step,
    Subject,
    agreement,
    case_name,
    contender,
    images,
    megapixels,
    network_for,
)
from benchmarks.gpu_checks import check_gpu
from benchmarks.gpu_variants import COMPILED, CONTENDERS, HALF_BACKWARD, TF32, variant
from benchmarks.timing import Row, Spent, race
from dreamcore.ascent import Sample, ascend
from dreamcore.gradients import normalize_bands
from dreamcore.settings import DreamSettings

MAIN = (PUBLISHED, CLEAN, PLAIN, ENGINE)
"""Contenders that compute the same step in the same precision."""
BATCHES = (1, 16)
TINY = (64, 96)
WHOLE_STEP, LAPLACIAN = "whole step of an ascent", "its Laplacian pyramid alone"


def measure_gpu(*, quick: bool, device: str = "cuda") -> list[Row]:
    """Measure the section `gpu`: the checks, then one gradient of each contender.

    Args:
        quick: few rounds, without `torch.compile`, which takes minutes.
        device: `cpu` tries the section itself, with tiny images.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return [Row("", "", note="not measured: torch finds no GPU")]
    on_cpu = device == "cpu"
    rows = check_gpu(device, tiny=on_cpu)
    sizes, batches = ((TINY,), (1, 2)) if on_cpu else ((SMALL, LARGE), BATCHES)
    rounds = 2 if on_cpu else 4 if quick else 12
    for subject in SUBJECTS:
        for size in sizes:
            for batch in batches:
                names = [TF32, HALF_BACKWARD] if on_cpu else [*CONTENDERS]
                if quick or (size, batch) != (LARGE, BATCHES[-1]):
                    names = [name for name in names if name != COMPILED]
                rows += measure_case(subject, size, batch, names, device, rounds)
    return rows


def measure_case(
    subject: Subject, size: Size, batch: int, variants: Sequence[str], device: str, rounds: int
) -> list[Row]:
    """Measure all contenders with the same images.

    A `Network` on a GPU disables TF32 for the whole process. Therefore every contender is created before the first one
    takes a step, so that all of them compute in the same precision. The case names this precision.
    """
    given, work = images(size, batch, device), batch * megapixels(size)
    steps: dict[str, Step] = {name: contender(name, subject, device) for name in MAIN}
    case = f"{batch} of {case_name(subject, size)}" + ("" if device == "cpu" else f", {conv_precision()}")
    steps, failed = _usable(steps, subject, variants, given, device, case)
    decibels = agreement(steps, given)
    turns: dict[str, Callable[[], object]] = {
        name: partial(timed, device, partial(step, given)) for name, step in steps.items()
    }
    found = race(turns | _whole_steps(subject, given, device), rounds)
    rows = []
    for name in found.rounds:
        figures = {"megapixel_steps": work / found.wall(name)}
        if name in steps and CLEAN in steps:
            figures["times_clean"] = found.speedup(name, CLEAN)
        if name in decibels:
            figures["agreement_db" if name in MAIN else "variant_db"] = decibels[name]
        rows.append(found.row(case, name, figures))
    if device != "cpu":
        torch.cuda.empty_cache()
    return rows + failed


def _usable(
    steps: Mapping[str, Step], subject: Subject, variants: Sequence[str], given: Tensor, device: str, case: str
) -> tuple[dict[str, Step], list[Row]]:
    """Return the contenders and variants that can take a step, and rows for the others.

    A variant may fail on a GPU that it was not made for, and the published step may need too much memory.
    """
    usable, failed = {}, []
    for name in (*steps, *variants):
        try:
            step = steps[name] if name in steps else variant(name, subject, device)
            step(given)
        except Exception as error:
            is_wrong = name == ENGINE
            note = f"{type(error).__name__}: {error}"[:120]
            failed.append(Row(case, name, figures={"wrong": 1.0} if is_wrong else {}, note=note))
        else:
            usable[name] = step
    return usable, failed


def _whole_steps(subject: Subject, given: Tensor, device: str) -> dict[str, Callable[[], object]]:
    """Return what an ascent does in a step, and the part of it that has most kernels beside the gradient."""
    settings = DreamSettings(model=subject.model, layers=subject.layer, octaves=1, steps=8)
    network, samples = network_for(subject, device), [Sample(image, settings) for image in given]
    gradient = torch.randn_like(given)

    def whole_step() -> Spent:
        spent = timed(device, partial(ascend, network, samples))
        return replace(spent, wall=spent.wall / settings.steps, cpu=spent.cpu / settings.steps)

    return {WHOLE_STEP: whole_step, LAPLACIAN: partial(timed, device, lambda: normalize_bands(gradient.clone()))}


def timed(device: str, work: Callable[[], object]) -> Spent:
    """Return the seconds of some work by the clock of the GPU, and the seconds until the CPU has launched it.

    If both are equal, the GPU waits for the CPU: launching kernels is the bottleneck.
    """
    if device == "cpu":
        started = time.perf_counter()
        work()
        return Spent(time.perf_counter() - started, time.perf_counter() - started)
    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    started = time.perf_counter()
    first.record()
    work()
    last.record()
    launched = time.perf_counter() - started
    torch.cuda.synchronize()
    return Spent(first.elapsed_time(last) / 1000, launched)


def conv_precision() -> str:
    """Return the precision of float32 convolutions by cuDNN in this process: TF32 has a 10-bit mantissa, not 23."""
    precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # torch does not declare it
    return "TF32" if precision == "tf32" else "fp32"
