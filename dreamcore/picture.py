"""Photographs: dreamt, looked at before and after, and what is worth keeping of them."""

import time
from collections.abc import Callable, Sequence
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
from dreamcore.scores import Sight, likeliest, look, look_at_stages
from dreamcore.settings import ALGORITHM_VERSION, LEAST_TILE, DreamSettings, settings_id
from dreamcore.tiles import cut_evenly

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


def see(
    network: Network, order: Order, targets: Sequence[Target], limits: Limits = Limits(), tile: int | None = None
) -> Sight:
    """What the network sees in the photograph of `order` before it is dreamt.

    Args:
        network: the network.
        order: the photograph; its settings and guide say how to measure.
        targets: what to measure, each name once.
        limits: how much memory may be taken, and whether to look at all stages.
        tile: the tile to look through, if it is known; 0 is the whole picture.

    Raises:
        ImageError: `too_small` for the network, or `out_of_memory`.
    """
    picture = to_tensor(order.photograph.pixels, network.device)
    size = (picture.shape[-2], picture.shape[-1])
    octave_sizes(size, order.settings, network.card.min_size)
    if tile is None:
        layers = {target.layer for target in targets}
        tile = choose_tile(network, layers, size, limits.max_memory) if limits.max_memory else 0
    guide = to_tensor(order.guide.pixels, network.device)[0] if order.guide else None
    frames = cut_evenly(size, tile, network.card.min_size)
    try:
        return look(network, picture, targets, order.settings.measure, guide, frames, stages=limits.stages)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    return see(network, order, targets, limits, _smaller(tile, size, network))


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
    at_once, tile = len(orders), 0
    if limits.max_memory is not None:
        at_once = choose_batch(network, layers, largest, limits.max_memory)
        tile = choose_tile(network, layers, largest, limits.max_memory)
    dreamt: list[Dreamt | ImageError] = []
    for first in range(0, len(orders), at_once):
        dreamt += _dream_batch(network, orders[first : first + at_once], tile, limits, watch)
    return dreamt


def _dream_batch(
    network: Network, orders: Sequence[Order], tile: int, limits: Limits, watch: Watch | None
) -> list[Dreamt | ImageError]:
    """Dream one batch; where memory runs out, half of it, or in tiles of half the size, until it fits."""
    try:
        samples = _samples(network, orders)
        before = [order.before or see(network, order, order.settings.layers, limits, tile) for order in orders]
        started = time.perf_counter()
        dreams = dream(network, samples, tile, watch)
        return _finished(network, orders, before, dreams, tile, limits, started)
    except ImageError as error:
        return [error] * len(orders)
    except (MemoryError, RuntimeError) as error:  # torch's own error is a RuntimeError
        if not _is_out_of_memory(error):
            raise
    # Out here nothing holds the tensors of the attempt that failed.
    if len(orders) > 1:
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
    """Whether memory ran out; on processors torch says so by a mere RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _samples(network: Network, orders: Sequence[Order]) -> list[Sample]:
    guides = {id(order.guide): order.guide for order in orders if order.guide}
    tensors = {key: to_tensor(guide.pixels, network.device)[0] for key, guide in guides.items()}
    return [
        Sample(
            to_tensor(order.photograph.pixels, network.device)[0],
            order.settings,
            tensors.get(id(order.guide)),
            to_mask(order.mask, order.photograph, network.device) if order.mask else None,
        )
        for order in orders
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
    on_cuda = network.device.type == "cuda"
    finished: list[Dreamt | ImageError] = []
    for number, (order, picture) in enumerate(zip(orders, torch.split(dreams.pictures, 1), strict=True)):
        if not (picture.isfinite().all() and dreams.octave_scores[number].isfinite().all()):
            finished.append(ImageError("non_finite", "the ascent left the finite numbers: lower step_size"))
            continue
        names = [target.name for target in order.settings.layers]
        after = Sight(
            dict(zip(names, dreams.measured[number].tolist(), strict=False)),
            likeliest(network, picture),
            look_at_stages(network, picture, frames) if limits.stages else {},
        )
        finished.append(
            Dreamt(
                pixels=to_pixels(picture),
                order=order,
                weights=network.card.weights,
                before=before[number],
                after=after,
                octave_scores=dreams.octave_scores[number].tolist(),
                left_out=dreams.left_out,
                device=torch.cuda.get_device_name(network.device) if on_cuda else "cpu",
                precision=str(dreams.pictures.dtype).removeprefix("torch."),
                batch=len(orders),
                tile=order.settings.tile or (tile if len(frames) > 1 else None),
                seconds=(time.perf_counter() - started) / len(orders),
            )
        )
    return finished


def to_tensor(pixels: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """Pixels (H, W, 3) of 8 bits as a batch of one: (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1)[None].float().div_(255)


def to_mask(mask: Photograph, photograph: Photograph, device: torch.device | str = "cpu") -> Tensor:
    """The brightness of `mask` (1, H, W) in [0, 1], stretched to the size of the photograph."""
    height, width = photograph.pixels.shape[:2]
    return resize(to_tensor(mask.pixels, device).mean(1, keepdim=True), (height, width)).clamp(0, 1)[0]


def to_pixels(pictures: Tensor) -> NDArray[np.uint8]:
    """The first of `pictures` (B, 3, H, W) in [0, 1] as pixels (H, W, 3) of 8 bits."""
    pixels: NDArray[np.uint8] = (pictures[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    return pixels
