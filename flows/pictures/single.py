"""Dream one image from file to file, without S3 or Prefect."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamcore.errors import ImageError, InvalidInput
from dreamcore.fields import Reference
from dreamcore.images import Photograph, encode
from dreamcore.settings import DreamSettings
from flows.decoding import decoder
from flows.jobs.assets import FILES, load_dream, load_guide_and_mask, network_for, resolve
from flows.jobs.noise_source import NOISE, noise_photograph, noise_size
from flows.machine.machine import choose_device, max_memory
from flows.machine.worker_process import disable_heap_trimming

if TYPE_CHECKING:
    from dreamcore.batch import Dream, OnStep

__all__ = [
    "Samples",
    "check_output_path",
    "decode_named",
    "description",
    "dream_file",
    "dream_resolved",
    "read_file",
    "read_source",
    "write_file",
]


@dataclass(frozen=True)
class Samples:
    """How many dreams are made of one image or of noise, and how much they must differ."""

    count: int = 1
    diversity: float = 0.0
    """Weight of the penalty on the similarity of the dreams."""

    def files(self, result: Path) -> list[Path]:
        """Return the files of the dreams: `result`, or `NAME-1.png` and so on if there are several."""
        if self.count == 1:
            return [result]
        return [result.with_stem(f"{result.stem}-{number}") for number in range(1, self.count + 1)]


def dream_file(
    source: Path,
    result: Path,
    settings: DreamSettings,
    on_step: "OnStep",
    *,
    stages: bool = False,
    labels: Reference | None = None,
    samples: Samples = Samples(),
) -> "dict[Path, Dream]":
    """Dream the image in `source`, or noise, and write the dream with its settings inside to `result`.

    Args:
        source: the image file, or `noise:WIDTHxHEIGHT`.
        result: the file to write.
        settings: the settings of the dream. Guide, mask and weights may be files of this machine.
        on_step: called after every step with the finished and the total number of steps.
        stages: whether to score every stage of the network before and after.
        labels: a file with the names of the network's classes.
        samples: several dreams: the first with the seed of the settings, each other with the next seed.

    Returns:
        The dreams by the files that were written.

    Raises:
        InvalidInput: a file, the network or a layer does not exist, or `result` cannot be written or is an input.
        ImageError: the file is not an image, or cannot be dreamt.
    """
    files = [file.uri for file in (settings.guide, settings.mask, settings.weights, labels) if file]
    for file in samples.files(result):
        check_output_path(file, source, *files)
    if not str(source).startswith(NOISE):
        decoder.start()
    settings = resolve(settings, local=True)
    _import_early()
    seeded = [settings.model_copy(update={"seed": settings.seed + number}) for number in range(samples.count)]
    pairs = [(read_source(source, each), each) for each in seeded]
    found = _dream_together(pairs, on_step, samples.diversity, stages=stages, labels=labels)
    dreams = dict(zip(samples.files(result), found, strict=True))
    for file, dream in dreams.items():
        write_file(file, encode(dream.pixels, settings.output.format, settings.output.quality, description(dream)))
    return dreams


def _import_early() -> None:
    """Import torch, which takes seconds, while the image is decoded in another process."""

    def import_torch() -> None:
        with suppress(Exception):  # the caller imports it, too, and reports the error, unless the command was stopped
            import_module("dreamcore.batch")

    threading.Thread(target=import_torch).start()


def dream_resolved(
    photograph: Photograph,
    settings: DreamSettings,
    on_step: "OnStep",
    *,
    stages: bool = False,
    labels: Reference | None = None,
) -> "Dream":
    """Dream a photograph on the device of this machine.

    Args:
        photograph: the decoded image. To enlarge a dream, it has the size of the enlarged dream.
        settings: resolved settings: their layers and files exist.
        on_step: called after every step with the finished and the total number of steps.
        stages: whether to score every stage of the network before and after.
        labels: a file with the names of the network's classes.
    """
    (dream,) = _dream_together([(photograph, settings)], on_step, stages=stages, labels=labels)
    return dream


def _dream_together(
    pairs: Sequence[tuple[Photograph, DreamSettings]],
    on_step: "OnStep",
    diversity: float = 0.0,
    *,
    stages: bool,
    labels: Reference | None,
) -> "list[Dream]":
    """Dream photographs of one size with resolved settings that differ only in the seed. See `dream_resolved`."""
    # This imports torch, which takes seconds. Errors in files are reported before.
    from dreamcore.batch import DreamRequest, Limits, dream_photographs
    from dreamcore.ranking import choose_channels

    device = choose_device()
    memory = max_memory(device)
    if device == "cpu":
        disable_heap_trimming(memory)
    settings = pairs[0][1]
    guide, mask = load_guide_and_mask(settings)
    network = network_for(settings, device, labels)
    dreamt = load_dream(settings)
    chosen = [(photograph, choose_channels(network, each, photograph.pixels)) for photograph, each in pairs]
    requests = [DreamRequest(photograph, each, guide, mask, dreamt, diversity=diversity) for photograph, each in chosen]
    dreams = []
    for dream in dream_photographs(network, requests, Limits(memory, stages), on_step):
        if isinstance(dream, ImageError):
            raise dream
        dreams.append(dream)
    return dreams


def description(dream: "Dream") -> dict[str, Any]:
    """Return the metadata that is written into a dream. Files of this machine appear without their folders."""
    named = {
        name: file.model_copy(update={"uri": Path(file.uri).name})
        for name in FILES
        if (file := getattr(dream.settings, name)) and not file.uri.startswith("s3://")
    }
    return dream.metadata() | {"settings": dream.settings.model_copy(update=named).model_dump(mode="json")}


def check_output_path(result: Path, *inputs: str | Path) -> None:
    """Check that `result` can be written.

    Raises:
        InvalidInput: the folder does not exist, or `result` is one of the inputs.
    """
    folder = result.absolute().parent
    if not folder.is_dir():
        raise InvalidInput(f"the folder {folder} does not exist: create it, or write {result.name} to another folder")
    if any(result.exists() and Path(file).exists() and result.samefile(file) for file in inputs):
        raise InvalidInput(f"{result} is an input of this dream and would be overwritten: name another output file")


def read_source(source: Path, settings: DreamSettings) -> Photograph:
    """Return the image in `source`, or the noise that `noise:WIDTHxHEIGHT` names.

    Args:
        source: the image file, or the size of the noise.
        settings: `max_pixels` limits the size of the image, `seed` determines the noise.

    Raises:
        InvalidInput: the file cannot be read, or the size of the noise is malformed or above `max_pixels`.
        ImageError: the file is not an image.
    """
    if not str(source).startswith(NOISE):
        return decode_named(read_file(source), source, settings.max_pixels)
    size = noise_size(str(source))
    if size is None:
        raise InvalidInput(f"{source} is not a size of noise: write noise:WIDTHxHEIGHT, such as noise:512x512")
    width, height = size
    if width * height > settings.max_pixels:
        raise InvalidInput(
            f"{source} has {width * height:,} pixels, more than max_pixels ({settings.max_pixels:,}): give a smaller "
            "size or a larger max_pixels"
        )
    return noise_photograph(str(source), settings.seed)


def read_file(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        InvalidInput: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to a file.

    Raises:
        InvalidInput: the file cannot be written.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from error


def decode_named(data: bytes, name: object, max_pixels: int | None = None) -> Photograph:
    """Decode an image.

    Args:
        data: the bytes of the file.
        name: the name of the file for the message of an error.
        max_pixels: larger images are scaled down to this many pixels; None keeps the size.

    Raises:
        ImageError: the bytes are not an image; the message begins with `name`.
    """
    try:
        return decoder.decode(data, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(error.kind, f"{name}: {error}") from error
