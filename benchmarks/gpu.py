"""The same step on a GPU, where there is one."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.subjects import (
    CLEAN,
    ENGINE,
    PLAIN,
    PUBLISHED,
    SUBJECTS,
    Step,
    check_agreement,
    contender,
    megapixels,
    pictures,
)
from benchmarks.timing import Row, race

SIZE = (408, 612)
"""A quarter of a megapixel."""
BATCH = 8


def measure_gpu(*, quick: bool, device: str = "cuda") -> list[Row]:
    """The section `gpu`: a batch of photographs in 32-bit numbers, with torch's own choices of precision."""
    if device == "cuda" and not torch.cuda.is_available():
        return [Row("", "", note="not measured: torch sees no GPU here")]
    subject = SUBJECTS[1]
    batch = pictures(SIZE, BATCH, device)
    steps = {name: contender(name, subject, device) for name in (PUBLISHED, CLEAN, PLAIN, ENGINE)}
    near = check_agreement(steps, batch)
    found = race({name: _awaited(step, batch) for name, step in steps.items()}, 4 if quick else 25)
    case = f"{BATCH} of {subject.model} {SIZE[1]}x{SIZE[0]}"
    rows = []
    for name in steps:
        figures = {"megapixel_steps": BATCH * megapixels(SIZE) / found.wall(name)}
        if name != PUBLISHED:
            figures |= {"times_published": found.times(name, PUBLISHED), "agreement_db": near[name]}
        if name in (PLAIN, ENGINE):
            figures["times_clean"] = found.times(name, CLEAN)
        rows.append(found.row(case, name, figures))
    return rows


def _awaited(step: Step, batch: Tensor) -> Callable[[], None]:
    """A step that is over when the GPU is."""

    def run() -> None:
        step(batch)
        if batch.is_cuda:
            torch.cuda.synchronize()

    return run
