"""The pictures of an atlas: which ones there are, and the worker processes that draw the missing ones.

Each file contains the identity of its picture. An atlas that was stopped goes on with the channels that have no such
file. A picture of other settings, weights or size has another identity and is drawn again.
"""

import multiprocessing
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dreamcore.atlas import channel_settings, draw_channels, picture_id, picture_size
from dreamcore.catalog import network_spec
from dreamcore.errors import ImageError, InvalidInput, Unavailable
from dreamcore.fields import Reference
from dreamcore.images import encode, read_metadata
from dreamcore.settings import DreamSettings
from dreamcore.spec import Layer, NetworkSpec
from dreamcore.sweeps import ranked, sweep_channels
from dreamcore.targets import LOGITS, Target
from flows.jobs.assets import network_for
from flows.jobs.job import explain_validation
from flows.machine.machine import batch_size, choose_device, gpu_count, max_memory, visible_gpus, worker_count
from flows.machine.worker_process import disable_heap_trimming, let_pool_end, start_worker, stop_workers

__all__ = ["AtlasLayer", "Picture", "draw_missing", "finished_layers", "plan_atlas"]

QUALITY = 90


@dataclass(frozen=True)
class Picture:
    """The file of one channel."""

    channel: int
    objective: str
    """The text that excites the channel, such as `blocks.4:12`."""
    path: Path
    identity: str
    """See `dreamcore.atlas.picture_id`."""

    def read_label(self) -> str | None:
        """Return the name of the class if this is a finished picture of a class, and an empty text for other layers.

        Returns:
            None if the file does not exist, or contains a picture of other settings, other weights or another size.
        """
        try:
            found = read_metadata(self.path.read_bytes()) or {}
        except (FileNotFoundError, ImageError):
            return None
        return str(found.get("label", "")) if found.get("picture_id") == self.identity else None


@dataclass(frozen=True)
class AtlasLayer:
    """One layer of an atlas."""

    spec: NetworkSpec
    layer: Layer
    channels: tuple[int, ...]
    folder: Path
    weights: Reference | None = None
    """The file of custom weights, with its SHA-256."""

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return picture_size(self.spec, self.layer.name)

    def pictures(self) -> list[Picture]:
        """Return the pictures of all channels. Their files may not exist yet."""
        name = self.layer.name
        return [
            Picture(
                channel,
                str(channel_settings(self.spec.model, name, channel).layers[0]),
                self.folder / f"{channel:04d}.webp",
                picture_id(self.spec, name, channel, self.size),
            )
            for channel in self.channels
        ]

    def missing(self) -> list[Picture]:
        """Return the pictures that must be drawn."""
        return [picture for picture in self.pictures() if picture.read_label() is None]


def plan_atlas(model: str, objective: str | None, out: Path, weights: str | None = None) -> list[AtlasLayer]:
    """Return the layers to draw.

    Args:
        model: the name of the network.
        objective: a layer, a depth such as `65%`, or channels of a layer such as `blocks.4:0-31`; None for the main
            layers of the network.
        out: the folder of the atlas.
        weights: the file of custom weights of the network, as `PATH#sha256=DIGEST`.

    Raises:
        InvalidInput: the network, the layer, a channel or the file does not exist, or the weights do not fit.
        Unavailable: the weights are in S3, which failed.
    """
    # Custom weights determine the number of classes, so the network is loaded. This also checks the file.
    spec = network_spec(model)
    settings = _settings(model, spec.layers[0].name, weights)
    file, spec = settings.weights, network_for(settings, "cpu").spec if weights else spec
    if objective is not None:
        layer, channels = _read_layer(spec, objective)
        return [_atlas_layer(spec, layer, out, channels, file)]
    if not spec.stages():
        raise InvalidInput(f"{model} has no main layers: name one that `dreamgrid layers {model}` lists")
    return [_atlas_layer(spec, layer, out, weights=file) for layer in spec.stages()]


def _settings(model: str, layer: str, weights: Reference | str | None) -> DreamSettings:
    """Return settings that name a network, one of its layers, and its weights."""
    try:
        return DreamSettings.model_validate({"model": model, "layers": [{"layer": layer}], "weights": weights})
    except ValidationError as error:
        raise InvalidInput(explain_validation(error)) from error


def _atlas_layer(
    spec: NetworkSpec, layer: Layer, out: Path, channels: Sequence[int] = (), weights: Reference | None = None
) -> AtlasLayer:
    """Return a layer with these channels, or with all.

    The slash in the name of a network becomes a hyphen. The folder of custom weights ends with their first digits.
    """
    name = spec.model.replace("/", "-") + (f"-{spec.weights[:8]}" if weights else "")
    folder = out / quote(name, safe="") / quote(layer.name, safe="")
    return AtlasLayer(spec, layer, tuple(channels or range(layer.channels)), folder, weights)


def _read_layer(spec: NetworkSpec, objective: str) -> tuple[Layer, tuple[int, ...]]:
    """Return the layer and the channels that an objective names; no channels stand for all."""
    try:
        targets = DreamSettings.model_validate({"model": spec.model, "layers": objective}).layers
    except ValidationError as error:
        raise InvalidInput(explain_validation(error)) from error
    (target, *others) = map(spec.resolve_depth, targets)
    plain = Target(layer=target.layer, channels=target.channels, sweep=target.sweep)
    if others or target != plain or ranked(target.sweep):
        raise InvalidInput(f"an atlas shows one layer or some of its channels, such as blocks.4:0-31, not {objective}")
    layer = spec.layer(target.layer)
    channels = tuple(sweep_channels(target.sweep, layer.channels)) if target.sweep else target.channels
    spec.check_channels(layer.name, channels)
    return layer, channels


def draw_missing(layers: Sequence[AtlasLayer]) -> Generator[tuple[AtlasLayer, int], None, None]:
    """Draw the pictures that are missing, and write each one as a whole or not at all.

    Yields:
        A layer and the number of its pictures that were written since the last time.

    Raises:
        ImageError: the memory does not suffice.
        Unavailable: a worker process died.
    """
    batches = [_Batch(layer, part) for layer in layers for part in _split(layer.missing(), layer.size)]
    for batch, drawn in _draw_batches(batches):
        for picture, each in zip(batch.pictures, drawn, strict=True):
            _write(picture, each, batch.layer)
        yield batch.layer, len(drawn)


@dataclass(frozen=True)
class _Batch:
    """Pictures of one layer that are drawn together."""

    layer: AtlasLayer
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class _Drawn:
    """One finished picture of a batch."""

    pixels: NDArray[np.uint8]
    """(size, size, 3)"""
    label: str
    """Name of the class; empty except for logits."""


def _split(pictures: Sequence[Picture], size: int) -> list[Sequence[Picture]]:
    """Split the pictures of a layer into batches of nearly equal size, so that all workers end at about one time."""
    largest = batch_size("cuda" if gpu_count() else "cpu", size * size)
    workers = worker_count()
    rounds = -(-len(pictures) // (largest * workers))
    count = min(rounds * workers, len(pictures))
    return [pictures[number::count] for number in range(count)]


def _draw_batches(batches: Sequence[_Batch]) -> Iterator[tuple[_Batch, list[_Drawn]]]:
    """Draw batches in worker processes, or in this process if there is one worker. Yields them as they finish."""
    workers = min(worker_count(), len(batches))
    if workers <= 1:
        for batch in batches:
            yield batch, _draw(batch)
        return
    context, assignment = multiprocessing.get_context("spawn"), (visible_gpus(), workers)
    with ProcessPoolExecutor(workers, context, start_worker, assignment) as pool:
        let_pool_end(pool)
        waiting = {pool.submit(_draw, batch): batch for batch in batches}
        try:
            for future in as_completed(list(waiting)):
                yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise Unavailable(
                "a worker process died, perhaps for lack of memory: set DREAMGRID_WORKERS to a smaller number"
            ) from error
        except BaseException:  # Ctrl-C among others: nobody waits for the other batches
            stop_workers()
            raise


def _draw(batch: _Batch) -> list[_Drawn]:
    """Draw one batch on the device of this process."""
    from dreamcore.batch import Limits  # imports torch, which takes seconds; errors in arguments are reported before

    layer, device = batch.layer, choose_device()
    memory = max_memory(device)
    if device == "cpu":
        disable_heap_trimming(memory)
    network = network_for(_settings(layer.spec.model, layer.layer.name, layer.weights), device)
    channels = [picture.channel for picture in batch.pictures]
    drawn = draw_channels(network, layer.layer.name, channels, layer.size, Limits(memory))
    is_logits = layer.layer.name == LOGITS
    return [
        _Drawn(pixels, network.labels[channel] if is_logits else "")
        for pixels, channel in zip(drawn, channels, strict=True)
    ]


def _write(picture: Picture, drawn: _Drawn, layer: AtlasLayer) -> None:
    """Write a picture. A process that is killed leaves the old file, the new file or a file that ends in `.part`."""
    settings = channel_settings(layer.spec.model, layer.layer.name, picture.channel)
    if layer.weights:  # without its folder of this machine
        name = layer.weights.model_copy(update={"uri": Path(layer.weights.uri).name})
        settings = settings.model_copy(update={"weights": name})
    metadata = {
        "picture_id": picture.identity,
        "objective": picture.objective,
        "label": drawn.label,
        "settings": settings.model_dump(mode="json"),
        "weights_sha256": layer.spec.weights,
        "size": layer.size,
    }
    part = picture.path.with_suffix(".part")
    part.write_bytes(encode(drawn.pixels, "webp", QUALITY, metadata))
    part.replace(picture.path)


def finished_layers(layer: AtlasLayer) -> list[AtlasLayer]:
    """Return all layers of the network that have finished pictures beside the folder of `layer`, with these channels.

    Earlier commands may have drawn other layers.
    """
    out = layer.folder.parents[1]
    layers = [_atlas_layer(layer.spec, each, out, weights=layer.weights) for each in layer.spec.layers]
    found = []
    for whole in layers:
        if whole.folder.is_dir():
            channels = tuple(each.channel for each in whole.pictures() if each.read_label() is not None)
            found += [replace(whole, channels=channels)] if channels else []
    return found
