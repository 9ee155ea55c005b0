"""Batches of photographs: dream them, observe them before and after, and retry in smaller pieces if memory runs out."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamcore.ascent import AscentResult, OnStep, Sample, ascend
from dreamcore.enlarge import check_dream, settings_of_ascent
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.images import Photograph
from dreamcore.memory import certainly_fits, choose_batch_size, choose_tile
from dreamcore.network import Network
from dreamcore.observation import Observation, observations, observe, scores_by_target
from dreamcore.octaves import octave_sizes, resize
from dreamcore.results import ClassProbability, Dream, DreamRequest, LayerScore, Measurements, to_pixels, to_tensor
from dreamcore.settings import MIN_TILE
from dreamcore.targets import Target
from dreamcore.tiles import even_tiles

__all__ = [
    "ClassProbability",
    "Dream",
    "DreamRequest",
    "LayerScore",
    "Limits",
    "Measurements",
    "OnStep",
    "dream_photograph",
    "dream_photographs",
    "observe_photographs",
    "to_mask",
    "to_pixels",
    "to_tensor",
]

OUT_OF_MEMORY = (
    "can't allocate memory",  # on a CPU
    "unable to find an engine to execute this computation",  # cuDNN: no engine has enough workspace
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Parts of messages of a plain RuntimeError by which torch reports that memory ran out."""


@dataclass(frozen=True)
class Limits:
    """How photographs are processed on a machine. Limits do not change a dream beyond rounding."""

    max_memory: int | None = None
    """Limit in bytes of the memory for dreaming, without the network; None: no limit."""
    stages: bool = False
    """Also measure the score of every stage of the network."""


def observe_photographs(
    network: Network, requests: Sequence[DreamRequest], targets: Sequence[Target], limits: Limits = Limits()
) -> list[Observation]:
    """Measure the photographs of `requests` before they are dreamt.

    Args:
        network: the network that the settings name.
        requests: photographs of one size. Their settings have the same `measure`; their guides are used.
        targets: what to measure in each photograph, every name once.
        limits: limits of the machine.

    Returns:
        One observation per request.

    Raises:
        ImageError: `too_small` for the network, or `out_of_memory`.
    """
    height, width = requests[0].photograph.pixels.shape[:2]
    octave_sizes((height, width), requests[0].settings, network.spec.min_size)  # raises `too_small`
    layers = {target.layer for target in targets}
    batch_size, tile = _choose_batch_and_tile(network, layers, (height, width), requests, limits)
    found: list[Observation] = []
    for first in range(0, len(requests), batch_size):
        found += _observe_batch(network, requests[first : first + batch_size], targets, tile, limits)
    return found


def _observe_batch(
    network: Network, requests: Sequence[DreamRequest], targets: Sequence[Target], tile: int, limits: Limits
) -> list[Observation]:
    """Observe one batch. If memory runs out, retry in halves, then in tiles of half the size, until it fits."""
    size = requests[0].photograph.pixels.shape[:2]
    tiles = even_tiles((size[0], size[1]), tile, network.spec.min_size)
    try:
        images = torch.cat([to_tensor(request.photograph.pixels, network.device) for request in requests])
        guides = _guides(network, requests)
        return observe(network, images, targets, requests[0].settings.measure, guides, tiles, stages=limits.stages)
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not _is_out_of_memory(error):
            raise
    # Retry outside of the `except` block, which holds the tensors of the failed attempt.
    if len(requests) == 1:
        return _observe_batch(network, requests, targets, _smaller_tile(tile, size, network), limits)
    half = len(requests) // 2
    return [
        observation
        for part in (requests[:half], requests[half:])
        for observation in _observe_batch(network, part, targets, tile, limits)
    ]


def dream_photograph(
    network: Network, request: DreamRequest, limits: Limits = Limits(), on_step: OnStep | None = None
) -> Dream:
    """Dream one photograph with one point of the grid.

    Args:
        network: the network that the settings name.
        request: the photograph and its settings.
        limits: limits of the machine.
        on_step: called after every step with the finished and the total number of steps.

    Raises:
        ImageError: `too_small` for the network, `out_of_memory`, or `non_finite`.

    Example:
        >>> import numpy as np
        >>> from dreamcore.images import Photograph
        >>> from dreamcore.models import load_network
        >>> from dreamcore.settings import DreamSettings
        >>> pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        >>> photograph = Photograph(pixels, width=32, height=32)
        >>> settings = DreamSettings(octaves=1, steps=3)
        >>> dream = dream_photograph(load_network(settings.model), DreamRequest(photograph, settings))
        >>> dream.pixels.shape
        (32, 32, 3)
        >>> dream.measurements.score_after > dream.measurements.score_before
        True
    """
    (result,) = dream_photographs(network, [request], limits, on_step)
    if isinstance(result, ImageError):
        raise result
    return result


def dream_photographs(
    network: Network, requests: Sequence[DreamRequest], limits: Limits = Limits(), on_step: OnStep | None = None
) -> list[Dream | ImageError]:
    """Dream photographs of one size in batches. Up to rounding, each dream is the one that its photograph gets alone.

    Requests with a `diversity` depend on one another. They share one batch, or none of them is dreamt.

    Args:
        network: the network that the settings name.
        requests: photographs of one size whose settings have the same `batch_key`.
        limits: limits of the machine. If the memory does not suffice, batches and tiles become smaller.
        on_step: called after every step of each batch with the finished and the total number of steps.

    Returns:
        In the order of `requests`: the dream, or the reason why there is none: `too_small` for the network,
        `out_of_memory`, or `non_finite`.

    Raises:
        InvalidInput: the settings name another network, or an image that the request lacks.
    """
    for request in requests:
        _check_request(network, request)
    height, width = requests[0].photograph.pixels.shape[:2]
    layers = frozenset[str]().union(*(request.settings.layer_names for request in requests))
    try:
        sizes = octave_sizes((height, width), settings_of_ascent(requests[0].settings), network.spec.min_size)
        batch_size, tile = _choose_batch_and_tile(network, layers, max(sizes), requests, limits)
        if batch_size < len(requests) and requests[0].diversity:
            raise _too_many_together(network, requests)
    except ImageError as error:
        return [error] * len(requests)
    results: list[Dream | ImageError] = []
    for first in range(0, len(requests), batch_size):
        results += _dream_batch(network, requests[first : first + batch_size], tile, limits, on_step)
    return results


def _check_request(network: Network, request: DreamRequest) -> None:
    """Raise `InvalidInput` if the settings name another network, or an image that the request lacks."""
    if request.settings.model != network.spec.model:
        raise InvalidInput(f"the settings name the network {request.settings.model}, not {network.spec.model}")
    if request.settings.movie:
        raise InvalidInput("the settings name a movie, which consists of many dreams: leave out the setting movie")
    for name in ("guide", "mask"):
        if getattr(request.settings, name) and getattr(request, name) is None:
            raise InvalidInput(f"the settings name a {name}, but the request has no {name} image")
    check_dream(request)


def _choose_batch_and_tile(
    network: Network,
    layers: Collection[str],
    size: tuple[int, int],
    requests: Sequence[DreamRequest],
    limits: Limits,
) -> tuple[int, int]:
    """Return the batch size for `requests` with images of `size` (H, W), and the side of their memory tiles or 0.

    Raises:
        ImageError: `out_of_memory`: the images need memory tiles, and the network is a vision transformer.
    """
    if limits.max_memory is None or certainly_fits(network.spec, size, len(requests), limits.max_memory):
        return len(requests), 0
    batch_size = choose_batch_size(network, layers, size, limits.max_memory)
    tile = choose_tile(network, layers, size, limits.max_memory)
    if not (tile and network.spec.transformer):
        return batch_size, tile
    if not requests[0].settings.tile:
        raise _out_of_memory(network, f"{size[1]}x{size[0]} pixels do not fit into the memory")
    return batch_size, 0  # the tiles of the setting are small


def _dream_batch(
    network: Network, requests: Sequence[DreamRequest], tile: int, limits: Limits, on_step: OnStep | None
) -> list[Dream | ImageError]:
    """Dream one batch. If memory runs out, retry in halves, then in tiles of half the size, until it fits."""
    try:
        samples = _samples(network, requests)
        before = _observations_before(network, requests, tile, limits)
        started = time.perf_counter()
        result = ascend(network, samples, tile, on_step)
        return _to_dreams(network, requests, before, result, tile, limits, started)
    except ImageError as error:
        return [error] * len(requests)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    # Retry outside of the `except` block, which holds the tensors of the failed attempt.
    if requests[0].diversity:
        return [_too_many_together(network, requests)] * len(requests)
    if len(requests) > 1:
        half = len(requests) // 2
        return [
            each
            for part in (requests[:half], requests[half:])
            for each in _dream_batch(network, part, tile, limits, on_step)
        ]
    if requests[0].settings.tile:
        return [_out_of_memory(network)]
    try:
        smaller = _smaller_tile(tile, requests[0].photograph.pixels.shape[:2], network)
    except ImageError as error:
        return [error]
    return _dream_batch(network, requests, smaller, limits, on_step)


def _smaller_tile(tile: int, size: tuple[int, ...], network: Network) -> int:
    """Return half the side of the tiles of an image of `size` (H, W); raise ImageError if that is too small."""
    smaller = min(tile or max(size), int((size[0] * size[1]) ** 0.5)) // 2
    if network.spec.transformer or smaller < max(MIN_TILE, network.spec.min_size):
        raise _out_of_memory(network)
    return smaller


def _out_of_memory(network: Network, reason: str = "not enough memory, even in a batch of one") -> ImageError:
    remedy = "lower max_pixels"
    if network.spec.transformer:
        reason += ", and a vision transformer is not computed in memory tiles: each position depends on all others"
        remedy += ", or give the setting tile, for example 224"
    return ImageError("out_of_memory", f"{reason}: {remedy}")


def _too_many_together(network: Network, requests: Sequence[DreamRequest]) -> ImageError:
    return _out_of_memory(network, f"not enough memory for {len(requests)} samples that depend on one another")


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out. On CPUs and in GPU libraries torch reports that by a plain RuntimeError."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(part in str(error) for part in OUT_OF_MEMORY)


def _observations_before(
    network: Network, requests: Sequence[DreamRequest], tile: int, limits: Limits
) -> list[Observation]:
    """Return the observations of the photographs, and compute those that are not known yet."""
    unknown = [request for request in requests if request.before is None]
    targets = {target.name: target for request in unknown for target in request.settings.layers}
    found = iter(_observe_batch(network, unknown, list(targets.values()), tile, limits) if unknown else [])
    return [request.before or next(found) for request in requests]


def _guides(network: Network, requests: Sequence[DreamRequest]) -> list[Tensor | None]:
    """Return the guide (3, h, w) of each request. Requests with the same guide share one tensor."""
    guides = {id(request.guide): request.guide for request in requests if request.guide}
    tensors = {key: to_tensor(guide.pixels, network.device)[0] for key, guide in guides.items()}
    return [tensors.get(id(request.guide)) for request in requests]


def _samples(network: Network, requests: Sequence[DreamRequest]) -> list[Sample]:
    return [
        Sample(
            to_tensor(request.photograph.pixels, network.device)[0],
            settings_of_ascent(request.settings),
            guide,
            to_mask(request.mask, request.photograph, network.device) if request.mask else None,
            to_tensor(request.dream.pixels, network.device)[0] if request.dream else None,
            request.diversity,
        )
        for request, guide in zip(requests, _guides(network, requests), strict=True)
    ]


def _to_dreams(
    network: Network,
    requests: Sequence[DreamRequest],
    before: Sequence[Observation],
    result: AscentResult,
    tile: int,
    limits: Limits,
    started: float,
) -> list[Dream | ImageError]:
    """Return the dream of each sample of a batch. A sample that diverged becomes an error and affects no other."""
    height, width = result.images.shape[-2:]
    tiles = even_tiles((height, width), tile, network.spec.min_size)
    scores = scores_by_target([request.settings.layers for request in requests], result.measured)
    after = observations(network, result.images, scores, tiles, stages=limits.stages)
    finite = result.images.flatten(1).isfinite().all(1) & result.octave_scores.isfinite().all(1)
    pixels, octave_scores = to_pixels(result.images), result.octave_scores.tolist()
    precisions = network.precisions([request.settings.layer_names for request in requests])
    return [
        Dream(
            pixels=pixels[number],
            request=request,
            weights=network.spec.weights,
            before=before[number],
            after=after[number],
            octave_scores=octave_scores[number],
            skipped_octaves=result.skipped_octaves,
            device=network.device_name,
            precision=precisions[number],
            batch=len(requests),
            tile=request.settings.tile or (tile if len(tiles) > 1 else None),
            seconds=(time.perf_counter() - started) / len(requests),
        )
        if is_finite
        else ImageError("non_finite", "the ascent diverged to NaN or infinity: lower step_size")
        for number, (request, is_finite) in enumerate(zip(requests, finite.tolist(), strict=True))
    ]


def to_mask(mask: Photograph, photograph: Photograph, device: torch.device | str = "cpu") -> Tensor:
    """Return the brightness of `mask`, stretched to the size of `photograph`, as (1, H, W) in [0, 1]."""
    height, width = photograph.pixels.shape[:2]
    return resize(to_tensor(mask.pixels, device).mean(1, keepdim=True), (height, width)).clamp(0, 1)[0]
