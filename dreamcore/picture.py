"""Photographs: dreamt, looked at before and after, and what is worth keeping of them."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamcore.dream import Dreams, Sample, dream
from dreamcore.errors import ImageError
from dreamcore.images import Photograph
from dreamcore.memory import choose_batch, choose_tile
from dreamcore.network import Network
from dreamcore.objectives import Target
from dreamcore.octaves import octave_sizes, resize
from dreamcore.scores import Sight, by_name, look, sights
from dreamcore.settings import ALGORITHM_VERSION, LEAST_TILE, DreamSettings, settings_id
from dreamcore.tiles import cut_evenly

OUT_OF_MEMORY = (
    "can't allocate memory",  # a processor's
    "unable to find an engine to execute this computation",  # of cuDNN's, none of which had the room that it asks for
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Parts of the messages by which torch tells that memory ran out in what is a RuntimeError and no more."""

Watch = Callable[[int, int], None]
"""Called after every step with the steps done and the steps in all."""


@dataclass(frozen=True, eq=False)
class Order:
    """One photograph, to be dreamt under one point of the grid."""

    photograph: Photograph
    """Decoded, and no larger than `settings.max_pixels`."""
    settings: DreamSettings
    guide: Photograph | None = None
    """What `settings.guide` holds."""
    mask: Photograph | None = None
    """What `settings.mask` holds; it is stretched over the photograph."""
    before: Sight | None = None
    """What the network sees in the photograph, where that is known already."""


@dataclass(frozen=True)
class Limits:
    """What a machine gives, which changes no setting."""

    max_memory: int | None = None
    """Bytes that dreaming may take besides the network; None: as many as it takes."""
    stages: bool = False
    """Whether to score all stages of the network, too."""


@dataclass(frozen=True, eq=False)
class Dreamt:
    """A finished dream."""

    pixels: NDArray[np.uint8]
    """(H, W, 3)"""
    order: Order
    weights: str
    """Identity of the network's weights."""
    before: Sight
    after: Sight
    octave_scores: list[float]
    left_out: int
    """Octaves that would have been smaller than the network can see."""
    device: str
    precision: str
    batch: int
    """Photographs that were dreamt at once."""
    tile: int | None
    """Side in pixels of the tiles; None: the whole picture was dreamt at once."""
    seconds: float
    """Of the ascent and the look at its result, as the share of one photograph in the batch."""

    @property
    def settings(self) -> DreamSettings:
        """What was dreamt."""
        return self.order.settings

    def measures(self) -> dict[str, Any]:
        """What was measured and cannot be told from the settings, by the manifest's names for it."""
        names = [target.name for target in self.settings.layers]
        return {
            "source_width": self.order.photograph.width,
            "source_height": self.order.photograph.height,
            "score_before": self.before.score(self.settings.layers),
            "score_after": self.after.score(self.settings.layers),
            "layer_scores": _side_by_side(names, self.before.scores, self.after.scores),
            "octave_scores": self.octave_scores,
            "stage_scores": _side_by_side(self.after.stages, self.before.stages, self.after.stages) or None,
            "classes_before": [{"label": label, "p": p} for label, p in self.before.classes],
            "classes_after": [{"label": label, "p": p} for label, p in self.after.classes],
            "octaves_left_out": self.left_out,
            "width": self.pixels.shape[1],
            "height": self.pixels.shape[0],
            "device": self.device,
            "precision": self.precision,
            "batch": self.batch,
            "tile": self.tile,
            "seconds": round(self.seconds, 4),
        }

    def description(self) -> dict[str, Any]:
        """What is written into the picture: enough to dream it again and to tell how it came out."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "settings_id": settings_id(self.settings, self.weights),
            "weights_sha256": self.weights,
            "algorithm_version": ALGORITHM_VERSION,
            **self.measures(),
        }


def _side_by_side(names: Sequence[str] | dict[str, float], before: dict[str, float], after: dict[str, float]) -> Any:
    return [{"layer": name, "before": before[name], "after": after[name]} for name in names]


def see(network: Network, orders: Sequence[Order], targets: Sequence[Target], limits: Limits = Limits()) -> list[Sight]:
    """What the network sees in the photographs of `orders` before they are dreamt.

    Args:
        network: the network.
        orders: photographs of one size; their settings, which measure alike, and their guides say how to measure.
        targets: what to measure in each of them, every name once.
        limits: how much memory may be taken, and whether to look at all stages.

    Raises:
        ImageError: `too_small` for the network, or `out_of_memory`.
    """
    height, width = orders[0].photograph.pixels.shape[:2]
    octave_sizes((height, width), orders[0].settings, network.card.min_size)
    layers = {target.layer for target in targets}
    at_once, tile = _room(network, layers, (height, width), len(orders), limits)
    seen: list[Sight] = []
    for first in range(0, len(orders), at_once):
        seen += _see_batch(network, orders[first : first + at_once], targets, tile, limits)
    return seen


def _see_batch(
    network: Network, orders: Sequence[Order], targets: Sequence[Target], tile: int, limits: Limits
) -> list[Sight]:
    """See one batch; where memory runs out, half of it, or through tiles of half the size, until it fits."""
    size = orders[0].photograph.pixels.shape[:2]
    frames = cut_evenly((size[0], size[1]), tile, network.card.min_size)
    try:
        pictures = torch.cat([to_tensor(order.photograph.pixels, network.device) for order in orders])
        guides = _guides(network, orders)
        return look(network, pictures, targets, orders[0].settings.measure, guides, frames, stages=limits.stages)
    except (MemoryError, RuntimeError) as error:  # torch's own error is a RuntimeError
        if not _is_out_of_memory(error):
            raise
    # Out here nothing holds the tensors of the attempt that failed.
    if len(orders) == 1:
        return _see_batch(network, orders, targets, _smaller(tile, size, network), limits)
    half = len(orders) // 2
    return [
        sight for some in (orders[:half], orders[half:]) for sight in _see_batch(network, some, targets, tile, limits)
    ]


def dream_photograph(network: Network, order: Order, limits: Limits = Limits(), watch: Watch | None = None) -> Dreamt:
    """Dream one photograph under one point of the grid.

    Raises:
        ImageError: `too_small` for the network, `out_of_memory`, or `non_finite`.
    """
    (dreamt,) = dream_photographs(network, [order], limits, watch)
    if isinstance(dreamt, ImageError):
        raise dreamt
    return dreamt


def dream_photographs(
    network: Network, orders: Sequence[Order], limits: Limits = Limits(), watch: Watch | None = None
) -> list[Dreamt | ImageError]:
    """Dream photographs of one size in batches, each as it would be dreamt alone.

    Args:
        network: the network that the settings name.
        orders: photographs of one size and settings of one `batch_key`.
        limits: how much memory may be taken: where it does not suffice, batches and tiles become smaller.
        watch: called after every step of a batch.

    Returns:
        In the order of `orders`: the dreams, or why there is none: `too_small` for the network, `out_of_memory`, or
        `non_finite`.
    """
    height, width = orders[0].photograph.pixels.shape[:2]
    try:
        sizes = octave_sizes((height, width), orders[0].settings, network.card.min_size)
    except ImageError as error:
        return [error] * len(orders)
    largest = max(sizes)
    layers = {target.layer for order in orders for target in order.settings.layers}
    at_once, tile = _room(network, layers, largest, len(orders), limits)
    dreamt: list[Dreamt | ImageError] = []
    for first in range(0, len(orders), at_once):
        dreamt += _dream_batch(network, orders[first : first + at_once], tile, limits, watch)
    return dreamt


def _room(
    network: Network, layers: Collection[str], size: tuple[int, int], count: int, limits: Limits
) -> tuple[int, int]:
    """How many of `count` pictures of `size` (H, W) are in the network at once, and the side of their tiles or 0."""
    if limits.max_memory is None:
        return count, 0
    return (
        choose_batch(network, layers, size, limits.max_memory),
        choose_tile(network, layers, size, limits.max_memory),
    )


def _dream_batch(
    network: Network, orders: Sequence[Order], tile: int, limits: Limits, watch: Watch | None
) -> list[Dreamt | ImageError]:
    """Dream one batch; where memory runs out, half of it, or in tiles of half the size, until it fits."""
    try:
        samples = _samples(network, orders)
        before = _before(network, orders, tile, limits)
        started = time.perf_counter()
        dreams = dream(network, samples, tile, watch)
        return _finished(network, orders, before, dreams, tile, limits, started)
    except ImageError as error:
        return [error] * len(orders)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    if len(orders) > 1:  # out here nothing holds the tensors of the attempt that failed, either
        half = len(orders) // 2
        return [
            each for part in (orders[:half], orders[half:]) for each in _dream_batch(network, part, tile, limits, watch)
        ]
    if orders[0].settings.tile:
        return [_too_much()]
    try:
        smaller = _smaller(tile, orders[0].photograph.pixels.shape[:2], network)
    except ImageError as error:
        return [error]
    return _dream_batch(network, orders, smaller, limits, watch)


def _smaller(tile: int, size: tuple[int, ...], network: Network) -> int:
    """The next smaller tile for a picture of `size` (H, W); raises `ImageError` where there is none."""
    smaller = min(tile or max(size), int((size[0] * size[1]) ** 0.5)) // 2
    if smaller < max(LEAST_TILE, network.card.min_size):
        raise _too_much()
    return smaller


def _too_much() -> ImageError:
    return ImageError("out_of_memory", "the memory does not hold it, even alone: lower max_pixels")


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on processors, and in the libraries of GPUs, torch says so by a mere RuntimeError."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(part in str(error) for part in OUT_OF_MEMORY)


def _before(network: Network, orders: Sequence[Order], tile: int, limits: Limits) -> list[Sight]:
    """What the network sees in the photographs, where it is not known already."""
    unseen = [order for order in orders if order.before is None]
    targets = {target.name: target for order in unseen for target in order.settings.layers}
    seen = iter(_see_batch(network, unseen, list(targets.values()), tile, limits) if unseen else [])
    return [order.before or next(seen) for order in orders]


def _guides(network: Network, orders: Sequence[Order]) -> list[Tensor | None]:
    """The guide (3, h, w) of each order; what is one photograph is one tensor."""
    guides = {id(order.guide): order.guide for order in orders if order.guide}
    tensors = {key: to_tensor(guide.pixels, network.device)[0] for key, guide in guides.items()}
    return [tensors.get(id(order.guide)) for order in orders]


def _samples(network: Network, orders: Sequence[Order]) -> list[Sample]:
    return [
        Sample(
            to_tensor(order.photograph.pixels, network.device)[0],
            order.settings,
            guide,
            to_mask(order.mask, order.photograph, network.device) if order.mask else None,
        )
        for order, guide in zip(orders, _guides(network, orders), strict=True)
    ]


def _finished(
    network: Network,
    orders: Sequence[Order],
    before: Sequence[Sight],
    dreams: Dreams,
    tile: int,
    limits: Limits,
    started: float,
) -> list[Dreamt | ImageError]:
    """What became of each sample of a batch; one that left the finite numbers harms no other."""
    height, width = dreams.pictures.shape[-2:]
    frames = cut_evenly((height, width), tile, network.card.min_size)
    scores = by_name([order.settings.layers for order in orders], dreams.measured)
    after = sights(network, dreams.pictures, scores, frames, stages=limits.stages)
    finite = dreams.pictures.flatten(1).isfinite().all(1) & dreams.octave_scores.isfinite().all(1)
    pixels, octave_scores = to_pixels(dreams.pictures), dreams.octave_scores.tolist()
    precisions = network.precisions([frozenset(target.layer for target in order.settings.layers) for order in orders])
    on_cuda = network.device.type == "cuda"
    return [
        Dreamt(
            pixels=pixels[number],
            order=order,
            weights=network.card.weights,
            before=before[number],
            after=after[number],
            octave_scores=octave_scores[number],
            left_out=dreams.left_out,
            device=torch.cuda.get_device_name(network.device) if on_cuda else "cpu",
            precision=precisions[number],
            batch=len(orders),
            tile=order.settings.tile or (tile if len(frames) > 1 else None),
            seconds=(time.perf_counter() - started) / len(orders),
        )
        if is_finite
        else ImageError("non_finite", "the ascent left the finite numbers: lower step_size")
        for number, (order, is_finite) in enumerate(zip(orders, finite.tolist(), strict=True))
    ]


def to_tensor(pixels: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """Pixels (H, W, 3) of 8 bits as a batch of one: (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1)[None].float().div_(255)


def to_mask(mask: Photograph, photograph: Photograph, device: torch.device | str = "cpu") -> Tensor:
    """The brightness of `mask` (1, H, W) in [0, 1], stretched to the size of the photograph."""
    height, width = photograph.pixels.shape[:2]
    return resize(to_tensor(mask.pixels, device).mean(1, keepdim=True), (height, width)).clamp(0, 1)[0]


def to_pixels(pictures: Tensor) -> NDArray[np.uint8]:
    """Pictures (B, 3, H, W) in [0, 1] as pixels (B, H, W, 3) of 8 bits."""
    pixels: NDArray[np.uint8] = (pictures.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    return pixels
