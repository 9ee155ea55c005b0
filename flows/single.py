"""One picture, from file to file, without S3 or Prefect."""

from collections.abc import Callable
from pathlib import Path

from dreamcore.catalogue import card
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.images import Photograph, decode, encode
from dreamcore.models import load_network
from dreamcore.picture import Dreamt, dream_photograph
from dreamcore.settings import DreamSettings
from flows.machine import choose_device


def dream_file(source: Path, result: Path, settings: DreamSettings, watch: Callable[[int, int], None]) -> Dreamt:
    """Dream the picture in `source` and write it, with its settings inside, to `result`.

    Raises:
        InvalidInput: no such file, network or layer, or nowhere to write to.
        ImageError: the file is no picture, or one that cannot be dreamt.
    """
    check(settings, result)
    photograph = to_photograph(read_file(source), source, settings.max_pixels)
    network = load_network(settings.model, choose_device())
    dreamt = dream_photograph(network, photograph, settings, watch=watch)
    write_file(result, encode(dreamt.pixels, settings.output.format, settings.output.quality, dreamt.description()))
    return dreamt


def check(settings: DreamSettings, result: Path) -> None:
    """Raise `InvalidInput` when there is no such network or layer, or no folder to write `result` to."""
    known = card(settings.model)
    for target in settings.layers:
        known.check(target.layer, target.channels)
    if not result.absolute().parent.is_dir():
        raise InvalidInput(f"there is no folder {result.absolute().parent} to write {result.name} to")


def read_file(path: Path) -> bytes:
    """The bytes of a file; raises `InvalidInput` where they cannot be had."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to a file; raises `InvalidInput` where that cannot be done."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from error


def to_photograph(data: bytes, name: object, max_pixels: int | None = None) -> Photograph:
    """Decode a picture, and name it in the `ImageError` that says why not."""
    try:
        return decode(data, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(error.kind, f"{name}: {error}") from error
