"""Section `gpu`: the same step on a GPU, if there is one."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.contenders import (
    CLEAN,
    ENGINE,
    PLAIN,
    PUBLISHED,
    SUBJECTS,
    Step,
    agreement,
    case_name,
    contender,
    images,
    megapixels,
)
from benchmarks.steps import step_rows
from benchmarks.timing import Row, race

SIZE = (408, 612)
"""A quarter of a megapixel."""
BATCH = 8


def measure_gpu(*, quick: bool, device: str = "cuda") -> list[Row]:
    """Measure the section `gpu`: a step of a batch of photographs in float32.

    A `Network` on a GPU disables TF32 for the whole process. Therefore every contender is created before the first one
    takes a step, so that all of them compute in the same precision. The case names this precision.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return [Row("", "", note="not measured: torch finds no GPU")]
    subject = SUBJECTS[1]
    batch = images(SIZE, BATCH, device)
    steps = {name: contender(name, subject, device) for name in (PUBLISHED, CLEAN, PLAIN, ENGINE)}
    decibels = agreement(steps, batch)
    found = race({name: _synchronized(step, batch) for name, step in steps.items()}, 4 if quick else 25)
    case = f"{BATCH} of {case_name(subject, SIZE)}, {conv_precision()}"
    return step_rows(found, case, BATCH * megapixels(SIZE), decibels)


def conv_precision() -> str:
    """Return the precision of float32 convolutions by cuDNN in this process: TF32 has a 10-bit mantissa, not 23."""
    precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # torch does not declare it
    return "TF32" if precision == "tf32" else "fp32"


def _synchronized(step: Step, batch: Tensor) -> Callable[[], None]:
    """Return a function that takes a step and waits for the GPU."""

    def run() -> None:
        step(batch)
        if batch.is_cuda:
            torch.cuda.synchronize()

    return run
