"""Sections `engine`, `null`, `peak` and `batches`: single steps on one thread.

The engine is compared with plain torch, with itself, and with the fastest matrix products of the CPU.
"""

from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor

from benchmarks.contenders import (
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
    case_name,
    contender,
    images,
    megapixels,
    network_for,
    step_of,
)
from benchmarks.timing import Race, Row, race

AGAIN = "engine again"
MATMUL = "torch.mm 2048"
NULL = (0.95, 1.05)
"""Accepted range of the engine's speedup over itself. Outside this range, a run is not reliable."""
TINY = (64, 96)
BATCH = 16

Product = tuple[Callable[[], Tensor], float]
"""A large matrix product, and its number of multiplications and additions."""


def measure_steps(wanted: Collection[str], *, quick: bool) -> dict[str, list[Row]]:
    """Measure those of the sections `engine`, `null` and `peak` that are in `wanted`, in the same rounds."""
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
    image, case = images(size), case_name(subject, size)
    decibels = agreement(steps, image)
    contenders: dict[str, Callable[[], object]] = {name: partial(step, image) for name, step in steps.items()}
    if "null" in wanted:
        contenders[AGAIN] = contenders[ENGINE]
    products = matrix_products() if "peak" in wanted else {}
    found = race(contenders | {name: product for name, (product, _) in products.items()}, rounds)
    rows = {}
    if "engine" in wanted:
        rows["engine"] = step_rows(found, case, megapixels(size), decibels)
    if "null" in wanted:
        rows["null"] = [found.row(case, AGAIN, {"null_ratio": found.speedup(ENGINE, AGAIN)})]
    if "peak" in wanted:
        flops = {name: flops for name, (_, flops) in products.items()}
        rows["peak"] = peak_rows(found, case, flops, subject.flops(size))
    return rows


def step_rows(found: Race, case: str, work: float, decibels: dict[str, float]) -> list[Row]:
    """Return the rows of the published step and of the contenders in `decibels`.

    Args:
        found: the race of these contenders.
        case: name of the case.
        work: megapixels in one step.
        decibels: agreement with the published step in dB, by contender.
    """
    rows = []
    for name in (PUBLISHED, *decibels):
        figures = {"megapixel_steps": work / found.wall(name)}
        if name in decibels:
            figures |= {"times_published": found.speedup(name, PUBLISHED), "agreement_db": decibels[name]}
        if name in (PLAIN, ENGINE_32, ENGINE):
            figures["times_clean"] = found.speedup(name, CLEAN)
        rows.append(found.row(case, name, figures))
    return rows


def is_trusted(rows: Collection[Row]) -> bool:
    """Return whether the engine was as fast as itself in every case of the section `null`."""
    return all(NULL[0] <= row.figures["null_ratio"] <= NULL[1] for row in rows)


def matrix_products() -> dict[str, Product]:
    """Return large matrix products in float32: `torch.mm`, and two convolutions if torch has oneDNN."""
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
    """Return the speed of each matrix product, and that of the engine as a share of `torch.mm` and of the best product.

    The products are in float32. The target applies to the engine in float32; the share with bfloat16 is shown below.

    Args:
        found: the race of the products and of the engine with and without bfloat16.
        case: name of the case.
        products: multiplications and additions of each product.
        step: multiplications and additions of one step.
    """
    speed = {name: flops / found.wall(name) / 1e9 for name, flops in products.items()}
    best = max(speed, key=lambda name: speed[name])
    rows = [found.row(case, name, {"gflops": speed[name]}) for name in products]
    for name in (ENGINE_32, ENGINE):
        share = {product: found.speedup(name, product) * step / products[product] for product in (MATMUL, best)}
        figures = {"gflops": step / found.wall(name) / 1e9, "of_matmul": share[MATMUL], "of_best": share[best]}
        rows.append(found.row(case, name, figures))
    return rows


def measure_batches(*, quick: bool) -> list[Row]:
    """Measure the section `batches`: small images in one batch, and in batches of one."""
    rows = []
    for subject in SUBJECTS:
        step = step_of(network_for(subject), subject.layer)
        batch = images(TINY, BATCH)
        singles = [image[None] for image in batch]
        batched, unbatched = f"batch size {BATCH}", "batch size 1"

        def one_by_one(step: Step = step, singles: list[Tensor] = singles) -> None:
            for image in singles:
                step(image)

        found = race({unbatched: one_by_one, batched: partial(step, batch)}, 5 if quick else 40)
        case, work = f"{BATCH} of {case_name(subject, TINY)}", megapixels(TINY) * BATCH
        rows.append(found.row(case, unbatched, {"megapixel_steps": work / found.wall(unbatched)}))
        figures = {"megapixel_steps": work / found.wall(batched), "times_unbatched": found.speedup(batched, unbatched)}
        rows.append(found.row(case, batched, figures))
    return rows
