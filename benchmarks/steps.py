"""Single steps on one thread: the engine beside plain torch, beside itself, and beside what the processor can do."""

from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor

from benchmarks.subjects import (
    CLEAN,
    ENGINE,
    ENGINE_32,
    LARGE,
    PLAIN,
    PUBLISHED,
    SMALL,
    SUBJECTS,
    Size,
    Step,
    Subject,
    agreement,
    contender,
    megapixels,
    network_for,
    pictures,
    spelt,
    step_of,
)
from benchmarks.timing import Race, Row, race

AGAIN = "engine again"
MATMUL = "torch.mm 2048"
NULL = (0.95, 1.05)
"""Between these the engine must lie against itself, or the run tells nothing."""
TINY = (64, 96)
BATCH = 16

Product = tuple[Callable[[], Tensor], float]
"""A large matrix product, and its multiplications and additions."""


def measure_steps(wanted: Collection[str], *, quick: bool) -> dict[str, list[Row]]:
    """The sections `engine`, `null` and `peak`, as far as they are wanted, from the same rounds."""
    sections: dict[str, list[Row]] = {name: [] for name in ("engine", "null", "peak") if name in wanted}
    names = (PUBLISHED, CLEAN, PLAIN, ENGINE_32, ENGINE) if "engine" in wanted else (ENGINE_32, ENGINE)
    for subject in SUBJECTS:
        steps = {name: contender(name, subject) for name in names}
        for size, rounds in {SMALL: 3}.items() if quick else {SMALL: 20, LARGE: 10}.items():
            for name, rows in _measure_case(subject, size, rounds, steps, sections).items():
                sections[name] += rows
    return sections


def _measure_case(
    subject: Subject, size: Size, rounds: int, steps: dict[str, Step], wanted: Collection[str]
) -> dict[str, list[Row]]:
    picture, case = pictures(size), spelt(subject, size)
    near = agreement(steps, picture)
    contenders: dict[str, Callable[[], object]] = {name: partial(step, picture) for name, step in steps.items()}
    if "null" in wanted:
        contenders[AGAIN] = contenders[ENGINE]
    products = matrix_products() if "peak" in wanted else {}
    found = race(contenders | {name: product for name, (product, _) in products.items()}, rounds)
    rows = {}
    if "engine" in wanted:
        rows["engine"] = step_rows(found, case, megapixels(size), near)
    if "null" in wanted:
        rows["null"] = [found.row(case, AGAIN, {"null_ratio": found.times(ENGINE, AGAIN)})]
    if "peak" in wanted:
        flops = {name: flops for name, (_, flops) in products.items()}
        rows["peak"] = peak_rows(found, case, flops, subject.flops(size))
    return rows


def step_rows(found: Race, case: str, worked: float, near: dict[str, float]) -> list[Row]:
    """The published step and those in `near`: how fast each is, and how near its picture comes to the published one.

    Args:
        found: their race.
        case: what it was about.
        worked: megapixels in a step.
        near: dB, by contender.
    """
    rows = []
    for name in (PUBLISHED, *near):
        figures = {"megapixel_steps": worked / found.wall(name)}
        if name in near:
            figures |= {"times_published": found.times(name, PUBLISHED), "agreement_db": near[name]}
        if name in (PLAIN, ENGINE_32, ENGINE):
            figures["times_clean"] = found.times(name, CLEAN)
        rows.append(found.row(case, name, figures))
    return rows


def is_trusted(rows: Collection[Row]) -> bool:
    """Whether the engine was as fast as itself in every case of the section `null`."""
    return all(NULL[0] <= row.figures["null_ratio"] <= NULL[1] for row in rows)


def matrix_products() -> dict[str, Product]:
    """Large matrix products in 32-bit numbers: MKL's, and where torch has oneDNN, two convolutions of its."""
    a, b = torch.randn(2, 2048, 2048).unbind()
    products: dict[str, Product] = {MATMUL: (partial(torch.mm, a, b), 2.0 * 2048**3)}
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        for kernel, channels in ((1, 512), (3, 256)):
            x = torch.randn(1, channels, 64, 64).contiguous(memory_format=torch.channels_last)
            weight = torch.randn(channels, channels, kernel, kernel)
            padding = (kernel // 2, kernel // 2)
            convolve = partial(torch.mkldnn_convolution, x, weight, None, padding, (1, 1), (1, 1), 1)
            name = f"oneDNN {kernel}x{kernel}, {channels} channels"
            products[name] = (convolve, 2.0 * (channels * kernel * 64) ** 2)
    return products


def peak_rows(found: Race, case: str, products: dict[str, float], step: float) -> list[Row]:
    """Each matrix product's speed, and the engine's as a part of the one that everybody has and of the best one.

    The products are of 32 bits, and so is the engine's part that counts; what it is with half precision stands below.

    Args:
        found: the race of the products and the engine, in 32 bits and as it is.
        case: what it was about.
        products: multiplications and additions of each product.
        step: those of a step of the engine.
    """
    speed = {name: flops / found.wall(name) / 1e9 for name, flops in products.items()}
    best = max(speed, key=lambda name: speed[name])
    rows = [found.row(case, name, {"gflops": speed[name]}) for name in products]
    for name in (ENGINE_32, ENGINE):
        part = {product: found.times(name, product) * step / products[product] for product in (MATMUL, best)}
        figures = {"gflops": step / found.wall(name) / 1e9, "of_matmul": part[MATMUL], "of_best": part[best]}
        rows.append(found.row(case, name, figures))
    return rows


def measure_batches(*, quick: bool) -> list[Row]:
    """The section `batches`: small octaves, many at once against one at a time."""
    rows = []
    for subject in SUBJECTS:
        step = step_of(network_for(subject), subject.layer)
        batch = pictures(TINY, BATCH)
        singly = [picture[None] for picture in batch]
        together, apart = f"{BATCH} at once", "one at a time"

        def one_by_one(step: Step = step, singly: list[Tensor] = singly) -> None:
            for picture in singly:
                step(picture)

        found = race({apart: one_by_one, together: partial(step, batch)}, 5 if quick else 40)
        case, worked = f"{BATCH} of {spelt(subject, TINY)}", megapixels(TINY) * BATCH
        rows.append(found.row(case, apart, {"megapixel_steps": worked / found.wall(apart)}))
        figures = {"megapixel_steps": worked / found.wall(together), "times_singly": found.times(together, apart)}
        rows.append(found.row(case, together, figures))
    return rows
