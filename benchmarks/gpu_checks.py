"""The checks of the section `gpu`: whether dreams on a GPU are right, fit into memory, and never make the GPU wait."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import (
    BUNDLED_SUBJECT,
    SUBJECTS,
    Size,
    Subject,
    images,
    module_of,
    network_for,
    pixels,
    psnr,
    without_bfloat16,
)
from benchmarks.timing import Row
from dreamcore.ascent import Sample, ascend
from dreamcore.batch import Dream, DreamRequest, dream_photographs
from dreamcore.catalog import network_spec
from dreamcore.images import Photograph
from dreamcore.memory import FULL_SIZE_IMAGES, bytes_per_pixel
from dreamcore.network import Network
from dreamcore.settings import DreamSettings
from dreamcore.views import View, Views

CHECKED = (*SUBJECTS, Subject("resnet50", "layer3"))
"""Networks whose steps are compared with float64."""
STEP_DB, GUIDE_DB, BATCH_DB, TILES_DB = 60.0, 50.0, 40.0, 35.0
"""Least agreement of images in dB: after one step; after one step with a guide, whose nearest vectors may change with
rounding; of a batch with single dreams; and of dreams in smaller batches after memory ran out. Rounding grows with each
step."""
ESTIMATE = (0.7, 2.5)
"""Accepted range of the estimated memory as a multiple of the memory that a dream takes."""
MIXED = ("blocks.4", "blocks.2:3,5=0.5+blocks.3", "blocks.1@0.5,0.5", "logits:3")
ROOM = 2.5
"""The artificial limit, as a multiple of the memory of one image: a batch of eight does not fit."""


def check_gpu(device: str, *, tiny: bool) -> list[Row]:
    """Run all checks and return a row for each. A row of a failed check has the figure `wrong`.

    Args:
        device: the device to check; `cpu` tries the checks themselves.
        tiny: whether images are tiny, for a trial on a CPU.
    """
    size = (64, 96) if tiny else (160, 208)
    checks: dict[str, Callable[[], Iterator[Row]]] = {
        "one step": lambda: _check_steps(device, size),
        "jitter": lambda: _check_jitter(device),
        "batches": lambda: _check_batch(device, size),
        "stop_at": lambda: _check_stop(device, size),
        "waits": lambda: _check_waits(device),
        "memory": lambda: _check_memory(device, size if tiny else (512, 768)),
    }
    rows: list[Row] = []
    for name, check in checks.items():
        try:
            rows += check()
        except Exception as error:  # a check that cannot run is a failed check; the others still run
            rows.append(_row(name, False, f"{type(error).__name__}: {error}"[:200]))
    return rows


def _row(what: str, is_right: bool, found: str) -> Row:
    figures = {} if is_right else {"wrong": 1.0}
    return Row("checks", what, figures=figures, note=f"right: {found}" if is_right else found)


# --- one step against float64 on the CPU

FIELDS: dict[str, dict[str, Any]] = {
    "default settings": {},
    "plain gradient": {"gradient": "plain"},
    "Gaussian, Adam, penalties, network space": {
        "gradient": "gaussian", "normalise": "adam", "total_variation": 0.1, "l2": 0.1, "flip": True,
        "space": "network",
    },
    "Fourier space": {"space": "fourier"},
}  # fmt: skip


def _check_steps(device: str, size: Size) -> Iterator[Row]:
    for subject in CHECKED:
        module = _with_statistics(module_of(subject.model))
        spec = network_spec(subject.model)
        exact = Network(module_of(subject.model), spec, plain=True)
        exact.module.load_state_dict(module.state_dict())
        exact.module.double()
        pair = (without_bfloat16(Network(module, spec, device=device), subject.layer), exact)  # as on every GPU
        for name, fields in {**FIELDS, "stay_near": {"stay_near": subject.layer}}.items():
            yield _check_step(pair, subject, f"one step, {name}", size, fields)
        plain, half = {"gradient": "plain"}, torch.zeros(1, *size)
        half[..., size[1] // 2 :] = 1
        yield _check_step(pair, subject, "one step, mask", size, plain, mask=half)
        yield _check_step(pair, subject, "one step, guide", size, plain, guide=images((96, 96))[0], least=GUIDE_DB)
        yield _check_step(pair, subject, "one step, memory tiles", size, {}, tile=64 if size[0] < 96 else 96)


def _check_step(
    pair: tuple[Network, Network],
    subject: Subject,
    what: str,
    size: Size,
    fields: dict[str, Any],
    *,
    guide: Tensor | None = None,
    mask: Tensor | None = None,
    tile: int = 0,
    least: float = STEP_DB,
) -> Row:
    """Compare one step of the two networks of `pair`. The second network computes in float64 on the CPU."""
    settings = DreamSettings(**{"model": subject.model, "layers": subject.layer, "octaves": 1, "steps": 1, **fields})
    found = []
    for network in pair:
        like = next(network.module.parameters())
        own_guide, own_mask = (None if each is None else each.to(like) for each in (guide, mask))
        sample = Sample(images(size)[0].to(like), settings, own_guide, own_mask)
        found.append(ascend(network, [sample], tile).images[0].cpu().double())
    decibels = psnr(*found)
    changed = (found[0] - images(size)[0]).abs()
    kept = changed[:, mask[0] == 0].max().item() if mask is not None else 0.0
    is_right = decibels > least and changed.max().item() > 0.001 and kept < 1e-6
    return _row(f"{subject.model}: {what}", is_right, f"{decibels:.0f} dB against float64 on the CPU")


def _with_statistics(module: nn.Module) -> nn.Module:
    """Give each batch normalization statistics of its own, so that folding them has an effect."""
    random = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None and part.running_var is not None:
            shape = part.running_mean.shape
            part.running_mean += 0.1 * part.running_var.sqrt() * torch.randn(shape, generator=random)
            part.running_var *= 0.5 + torch.rand(shape, generator=random)
    return module


# --- several samples


def _check_jitter(device: str) -> Iterator[Row]:
    views = Views((View(3, -2), View(-70, 5, mirrored=True), View(0, 0)), (48, 64))
    batch = torch.rand(3, 3, 48, 64, device=device)
    alone = torch.stack([view.apply(image) for view, image in zip(views.each, batch, strict=True)])
    is_right = torch.equal(views.gather(batch), alone) and torch.equal(views.gather(alone, inverse=True), batch)
    yield _row("the jitter of a batch", is_right, "the same bits as image by image")


def _check_batch(device: str, size: Size) -> Iterator[Row]:
    network = network_for(BUNDLED_SUBJECT, device)
    samples = _mixed(size, device, steps=3)
    together = ascend(network, samples).images.cpu()
    alone = [ascend(network, [sample]).images[0].cpu() for sample in samples]
    least = min(psnr(one, other) for one, other in zip(together, alone, strict=True))
    yield _row("a mixed batch", least > BATCH_DB, f"at least {least:.0f} dB to dreams alone, 2 octaves of 3 steps")


def _mixed(size: Size, device: str, steps: int) -> list[Sample]:
    """Return samples with different images, layers and seeds."""
    return [
        Sample(image, DreamSettings(layers=layers, octaves=2, steps=steps, seed=seed))
        for seed, (layers, image) in enumerate(zip(MIXED, images(size, len(MIXED), device), strict=True))
    ]


def _check_stop(device: str, size: Size) -> Iterator[Row]:
    """An octave whose score is above `stop_at` from the start ends after its first step."""
    network, image = network_for(BUNDLED_SUBJECT, device), images(size, 1, device)[0]
    one, stopped = (
        ascend(network, [Sample(image, DreamSettings(layers="blocks.4", octaves=2, **fields))]).images
        for fields in ({"steps": 1}, {"steps": 20, "stop_at": -1000.0})
    )
    yield _row("stop_at after the first step", torch.equal(one, stopped), "the same bits as one step")


def _check_waits(device: str) -> Iterator[Row]:
    """Count the synchronizations of each step after the first, as torch itself reports them."""
    network, counts = network_for(BUNDLED_SUBJECT, device), list[int]()
    samples = _mixed((96, 128), device, steps=4)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        if device != "cpu":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            ascend(network, samples, on_step=lambda *_: counts.append(len(found)))
        finally:
            if device != "cpu":
                torch.cuda.set_sync_debug_mode("default")
    late = found[counts[0] : counts[-1]]
    places = sorted({f"{each.filename.rpartition('/')[2]}:{each.lineno}" for each in late})
    yield _row("no step waits", not late, f"{len(late)} waits after the first step {' '.join(places)}".strip())


# --- memory


def _check_memory(device: str, size: Size) -> Iterator[Row]:
    """Compare the memory of a dream with the estimate, and dream with too little memory for a batch."""
    network, settings = network_for(BUNDLED_SUBJECT, device), DreamSettings(layers="blocks.4", octaves=2, steps=2)
    requests = [DreamRequest(Photograph(pixels(size, seed), size[1], size[0]), settings) for seed in range(8)]
    whole = dream_photographs(network, requests)
    if device == "cpu":
        yield _row("memory estimate", True, "not measured on a CPU")
        halves = [dream for part in (requests[:4], requests[4:]) for dream in dream_photographs(network, part)]
        yield from _check_small(whole, halves)
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ascend(network, [Sample(images(size, 1, device)[0], settings)])
    taken = torch.cuda.max_memory_allocated() - before
    estimate = (bytes_per_pixel(network, {"blocks.4"}) + FULL_SIZE_IMAGES * 12) * math.prod(size)
    found = f"estimate {estimate / 2**20:.0f} MiB, taken {taken / 2**20:.0f} MiB"
    yield _row("memory estimate", ESTIMATE[0] < estimate / taken < ESTIMATE[1], found)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((before + ROOM * taken) / total)
    try:
        small = dream_photographs(network, requests)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    yield from _check_small(whole, small)


def _check_small(whole: list[Any], small: list[Any]) -> Iterator[Row]:
    """Compare dreams that were made in smaller batches because memory ran out."""
    failures = [each for each in [*whole, *small] if not isinstance(each, Dream)]
    if failures:
        yield _row("out of memory", False, str(failures[0]))
        return
    dreams = [[torch.from_numpy(each.pixels / 255) for each in several] for several in (whole, small)]
    least = min(map(psnr, *dreams))
    batches = sorted({each.measurements.batch for each in small})
    is_right = least > TILES_DB and max(batches) < len(whole)
    yield _row("out of memory", is_right, f"batches of {batches} instead of {len(whole)}, at least {least:.0f} dB")
