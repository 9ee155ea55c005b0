"""Photographs: dreamt, looked at before and after, and what is worth keeping of them."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamcore.ascent import AscentResult, Sample, ascend
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.images import Photograph
from dreamcore.memory import choose_batch_size, choose_tile
from dreamcore.network import Network
from dreamcore.observation import Observation, observations, observe, scores_by_target
from dreamcore.octaves import octave_sizes, resize
from dreamcore.settings import ALGORITHM_VERSION, MIN_TILE, DreamSettings, settings_id
from dreamcore.targets import Target
from dreamcore.tiles import even_tiles

OUT_OF_MEMORY = (
    "can't allocate memory",  # a processor's
    "unable to find an engine to execute this computation",  # of cuDNN's, none of which had the room that it asks for
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Parts of the messages by which torch tells that memory ran out in what is a RuntimeError and no more."""

OnStep = Callable[[int, int], None]
"""Called after every step with the steps done and the steps in all."""


@dataclass(frozen=True, eq=False)
class DreamRequest:
    """One photograph, to be dreamt under one point of the grid."""

    photograph: Photograph
    """Decoded, and no larger than `settings.max_pixels`."""
    settings: DreamSettings
    guide: Photograph | None = None
    """What `settings.guide` holds."""
    mask: Photograph | None = None
    """What `settings.mask` holds; it is stretched over the photograph."""
    before: Observation | None = None
    """What the network sees in the photograph, where that is known already."""


@dataclass(frozen=True)
class Limits:
    """What a machine gives, which changes no setting."""

    max_memory: int | None = None
    """Bytes that dreaming may take besides the network; None: as many as it takes."""
    stages: bool = False
    """Whether to score all stages of the network, too."""


@dataclass(frozen=True)
class LayerScore:
    """The score of one layer in the photograph and in the dream."""

    layer: str
    before: float
    after: float


@dataclass(frozen=True)
class ClassProbability:
    """A class and the probability that the network gives it."""

    label: str
    p: float


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What was measured of a dream, and how it was computed."""

    source_width: int
    """Width of the photograph in pixels, before it was shrunk to `max_pixels`."""
    source_height: int
    score_before: float
    """Weighted sum over the targets, in the photograph."""
    score_after: float
    layer_scores: list[LayerScore]
    """The score of each target."""
    octave_scores: list[float]
    """The score after each octave, from coarse to fine."""
    stage_scores: list[LayerScore] | None
    """The score of each stage of the network; None unless it was requested."""
    classes_before: list[ClassProbability]
    """The five likeliest classes, the likeliest first; empty for a network without classes."""
    classes_after: list[ClassProbability]
    octaves_left_out: int
    """Octaves that were skipped because they are too small for the network."""
    width: int
    """Width of the dream in pixels."""
    height: int
    device: str
    precision: str
    batch: int
    """Size of the batch."""
    tile: int | None
    """Side of the tiles in pixels; None: the whole image was computed at once."""
    seconds: float
    """This dream's share of the time of its batch."""


@dataclass(frozen=True, eq=False)
class Dream:
    """A finished dream."""

    pixels: NDArray[np.uint8]
    """(H, W, 3)"""
    request: DreamRequest
    weights: str
    """Identity of the network's weights."""
    before: Observation
    after: Observation
    octave_scores: list[float]
    skipped_octaves: int
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
        return self.request.settings

    @property
    def measurements(self) -> Measurements:
        """Sizes, scores, classes and circumstances of this dream."""
        names = [target.name for target in self.settings.layers]
        return Measurements(
            source_width=self.request.photograph.width,
            source_height=self.request.photograph.height,
            score_before=self.before.score(self.settings.layers),
            score_after=self.after.score(self.settings.layers),
            layer_scores=_layer_scores(names, self.before.scores, self.after.scores),
            octave_scores=self.octave_scores,
            stage_scores=_layer_scores(self.after.stages, self.before.stages, self.after.stages) or None,
            classes_before=[ClassProbability(*each) for each in self.before.classes],
            classes_after=[ClassProbability(*each) for each in self.after.classes],
            octaves_left_out=self.skipped_octaves,
            width=self.pixels.shape[1],
            height=self.pixels.shape[0],
            device=self.device,
            precision=self.precision,
            batch=self.batch,
            tile=self.tile,
            seconds=round(self.seconds, 4),
        )

    def metadata(self) -> dict[str, Any]:
        """Return what is written into the image file: enough to reproduce the dream and to compare the result."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "settings_id": settings_id(self.settings, self.weights),
            "weights_sha256": self.weights,
            "algorithm_version": ALGORITHM_VERSION,
            **asdict(self.measurements),
        }


def _layer_scores(names: Iterable[str], before: dict[str, float], after: dict[str, float]) -> list[LayerScore]:
    return [LayerScore(name, before[name], after[name]) for name in names]


def observe_photographs(
    network: Network, requests: Sequence[DreamRequest], targets: Sequence[Target], limits: Limits = Limits()
) -> list[Observation]:
    """What the network sees in the photographs of `requests` before they are dreamt.

    Args:
        network: the network.
        requests: photographs of one size; their settings, which measure alike, and their guides say how to measure.
        targets: what to measure in each of them, every name once.
        limits: how much memory may be taken, and whether to look at all stages.

    Raises:
        ImageError: `too_small` for the network, or `out_of_memory`.
    """
    height, width = requests[0].photograph.pixels.shape[:2]
    octave_sizes((height, width), requests[0].settings, network.spec.min_size)
    layers = {target.layer for target in targets}
    batch_size, tile = _room(network, layers, (height, width), len(requests), limits)
    seen: list[Observation] = []
    for first in range(0, len(requests), batch_size):
        seen += _observe_batch(network, requests[first : first + batch_size], targets, tile, limits)
    return seen


def _observe_batch(
    network: Network, requests: Sequence[DreamRequest], targets: Sequence[Target], tile: int, limits: Limits
) -> list[Observation]:
    """See one batch; where memory runs out, half of it, or through tiles of half the size, until it fits."""
    size = requests[0].photograph.pixels.shape[:2]
    tiles = even_tiles((size[0], size[1]), tile, network.spec.min_size)
    try:
        pictures = torch.cat([to_tensor(request.photograph.pixels, network.device) for request in requests])
        guides = _guides(network, requests)
        return observe(network, pictures, targets, requests[0].settings.measure, guides, tiles, stages=limits.stages)
    except (MemoryError, RuntimeError) as error:  # torch's own error is a RuntimeError
        if not _is_out_of_memory(error):
            raise
    # Out here nothing holds the tensors of the attempt that failed.
    if len(requests) == 1:
        return _observe_batch(network, requests, targets, _smaller(tile, size, network), limits)
    half = len(requests) // 2
    return [
        observation
        for some in (requests[:half], requests[half:])
        for observation in _observe_batch(network, some, targets, tile, limits)
    ]


def dream_photograph(
    network: Network, request: DreamRequest, limits: Limits = Limits(), on_step: OnStep | None = None
) -> Dream:
    """Dream one photograph under one point of the grid.

    Raises:
        ImageError: `too_small` for the network, `out_of_memory`, or `non_finite`.
    """
    (dreamt,) = dream_photographs(network, [request], limits, on_step)
    if isinstance(dreamt, ImageError):
        raise dreamt
    return dreamt


def dream_photographs(
    network: Network, requests: Sequence[DreamRequest], limits: Limits = Limits(), on_step: OnStep | None = None
) -> list[Dream | ImageError]:
    """Dream photographs of one size in batches, each as it would be dreamt alone.

    Args:
        network: the network that the settings name.
        requests: photographs of one size and settings of one `batch_key`.
        limits: how much memory may be taken: where it does not suffice, batches and tiles become smaller.
        on_step: called after every step of a batch.

    Returns:
        In the request of `requests`: the dreams, or why there is none: `too_small` for the network, `out_of_memory`, or
        `non_finite`.

    Raises:
        InvalidInput: the settings name another network, or a guide or mask that the request lacks.
    """
    for request in requests:
        _check_request(network, request)
    height, width = requests[0].photograph.pixels.shape[:2]
    try:
        sizes = octave_sizes((height, width), requests[0].settings, network.spec.min_size)
    except ImageError as error:
        return [error] * len(requests)
    largest = max(sizes)
    layers = {target.layer for request in requests for target in request.settings.layers}
    batch_size, tile = _room(network, layers, largest, len(requests), limits)
    dreamt: list[Dream | ImageError] = []
    for first in range(0, len(requests), batch_size):
        dreamt += _dream_batch(network, requests[first : first + batch_size], tile, limits, on_step)
    return dreamt


def _check_request(network: Network, request: DreamRequest) -> None:
    """Raise `InvalidInput` if the settings name another network, or a guide or mask that the request lacks."""
    if request.settings.model != network.spec.model:
        raise InvalidInput(f"the settings name the network {request.settings.model}, not {network.spec.model}")
    for name in ("guide", "mask"):
        if getattr(request.settings, name) and getattr(request, name) is None:
            raise InvalidInput(f"the settings name a {name}, but the request has no {name} image")


def _room(
    network: Network, layers: Collection[str], size: tuple[int, int], count: int, limits: Limits
) -> tuple[int, int]:
    """How many of `count` pictures of `size` (H, W) are in the network at once, and the side of their tiles or 0."""
    if limits.max_memory is None:
        return count, 0
    return (
        choose_batch_size(network, layers, size, limits.max_memory),
        choose_tile(network, layers, size, limits.max_memory),
    )


def _dream_batch(
    network: Network, requests: Sequence[DreamRequest], tile: int, limits: Limits, on_step: OnStep | None
) -> list[Dream | ImageError]:
    """Dream one batch; where memory runs out, half of it, or in tiles of half the size, until it fits."""
    try:
        samples = _samples(network, requests)
        before = _before(network, requests, tile, limits)
        started = time.perf_counter()
        dreams = ascend(network, samples, tile, on_step)
        return _finished(network, requests, before, dreams, tile, limits, started)
    except ImageError as error:
        return [error] * len(requests)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    if len(requests) > 1:  # out here nothing holds the tensors of the attempt that failed, either
        half = len(requests) // 2
        return [
            each
            for part in (requests[:half], requests[half:])
            for each in _dream_batch(network, part, tile, limits, on_step)
        ]
    if requests[0].settings.tile:
        return [_too_much()]
    try:
        smaller = _smaller(tile, requests[0].photograph.pixels.shape[:2], network)
    except ImageError as error:
        return [error]
    return _dream_batch(network, requests, smaller, limits, on_step)


def _smaller(tile: int, size: tuple[int, ...], network: Network) -> int:
    """The next smaller tile for a picture of `size` (H, W); raises `ImageError` where there is none."""
    smaller = min(tile or max(size), int((size[0] * size[1]) ** 0.5)) // 2
    if smaller < max(MIN_TILE, network.spec.min_size):
        raise _too_much()
    return smaller


def _too_much() -> ImageError:
    return ImageError("out_of_memory", "the memory does not hold it, even alone: lower max_pixels")


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on processors, and in the libraries of GPUs, torch says so by a mere RuntimeError."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(part in str(error) for part in OUT_OF_MEMORY)


def _before(network: Network, requests: Sequence[DreamRequest], tile: int, limits: Limits) -> list[Observation]:
    """What the network sees in the photographs, where it is not known already."""
    unseen = [request for request in requests if request.before is None]
    targets = {target.name: target for request in unseen for target in request.settings.layers}
    seen = iter(_observe_batch(network, unseen, list(targets.values()), tile, limits) if unseen else [])
    return [request.before or next(seen) for request in requests]


def _guides(network: Network, requests: Sequence[DreamRequest]) -> list[Tensor | None]:
    """The guide (3, h, w) of each request; what is one photograph is one tensor."""
    guides = {id(request.guide): request.guide for request in requests if request.guide}
    tensors = {key: to_tensor(guide.pixels, network.device)[0] for key, guide in guides.items()}
    return [tensors.get(id(request.guide)) for request in requests]


def _samples(network: Network, requests: Sequence[DreamRequest]) -> list[Sample]:
    return [
        Sample(
            to_tensor(request.photograph.pixels, network.device)[0],
            request.settings,
            guide,
            to_mask(request.mask, request.photograph, network.device) if request.mask else None,
        )
        for request, guide in zip(requests, _guides(network, requests), strict=True)
    ]


def _finished(
    network: Network,
    requests: Sequence[DreamRequest],
    before: Sequence[Observation],
    dreams: AscentResult,
    tile: int,
    limits: Limits,
    started: float,
) -> list[Dream | ImageError]:
    """What became of each sample of a batch; one that left the finite numbers harms no other."""
    height, width = dreams.images.shape[-2:]
    tiles = even_tiles((height, width), tile, network.spec.min_size)
    scores = scores_by_target([request.settings.layers for request in requests], dreams.measured)
    after = observations(network, dreams.images, scores, tiles, stages=limits.stages)
    finite = dreams.images.flatten(1).isfinite().all(1) & dreams.octave_scores.isfinite().all(1)
    pixels, octave_scores = to_pixels(dreams.images), dreams.octave_scores.tolist()
    precisions = network.precisions(
        [frozenset(target.layer for target in request.settings.layers) for request in requests]
    )
    on_cuda = network.device.type == "cuda"
    return [
        Dream(
            pixels=pixels[number],
            request=request,
            weights=network.spec.weights,
            before=before[number],
            after=after[number],
            octave_scores=octave_scores[number],
            skipped_octaves=dreams.skipped_octaves,
            device=torch.cuda.get_device_name(network.device) if on_cuda else "cpu",
            precision=precisions[number],
            batch=len(requests),
            tile=request.settings.tile or (tile if len(tiles) > 1 else None),
            seconds=(time.perf_counter() - started) / len(requests),
        )
        if is_finite
        else ImageError("non_finite", "the ascent left the finite numbers: lower step_size")
        for number, (request, is_finite) in enumerate(zip(requests, finite.tolist(), strict=True))
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
