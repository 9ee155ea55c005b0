"""The same step on a GPU, where there is one."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.steps import step_rows
from benchmarks.subjects import (
    CLEAN,
    ENGINE,
    PLAIN,
    PUBLISHED,
    SUBJECTS,
    Step,
    agreement,
    contender,
    megapixels,
    pictures,
    spelt,
)
from benchmarks.timing import Row, race

SIZE = (408, 612)
"""A quarter of a megapixel."""
BATCH = 8


def measure_gpu(*, quick: bool, device: str = "cuda") -> list[Row]:
    """The section `gpu`: a batch of photographs in 32-bit numbers.

    A network of Dreamgrid's on a GPU may forbid torch a shorter type, for the whole process: every contender is there
    before the first of them takes a step, so that all race in the same type. The case names it.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return [Row("", "", note="not measured: torch sees no GPU here")]
    subject = SUBJECTS[1]
    batch = pictures(SIZE, BATCH, device)
    steps = {name: contender(name, subject, device) for name in (PUBLISHED, CLEAN, PLAIN, ENGINE)}
    near = agreement(steps, batch)
    found = race({name: _awaited(step, batch) for name, step in steps.items()}, 4 if quick else 25)
    case = f"{BATCH} of {spelt(subject, SIZE)}, {arithmetic()}"
    return step_rows(found, case, BATCH * megapixels(SIZE), near)


def arithmetic() -> str:
    """In what cuDNN convolves 32-bit numbers in this process: TF32 keeps 10 bits of 23 behind the point."""
    precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # torch does not declare it
    return "TF32" if precision == "tf32" else "fp32"


def _awaited(step: Step, batch: Tensor) -> Callable[[], None]:
    """A step that is over when the GPU is."""

    def run() -> None:
        step(batch)
        if batch.is_cuda:
            torch.cuda.synchronize()

    return run
