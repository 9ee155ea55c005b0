"""One picture, from file to file, without S3 or Prefect."""

from collections.abc import Callable
from pathlib import Path

from dreamcore.catalogue import card
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.images import decode, encode
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
    known = card(settings.model)
    for target in settings.layers:
        known.check(target.layer, target.channels)
    if not result.absolute().parent.is_dir():
        raise InvalidInput(f"there is no folder {result.absolute().parent} to write {result.name} to")
    try:
        photograph = decode(source.read_bytes(), max_pixels=settings.max_pixels)
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise ImageError(error.kind, f"{source}: {error}") from error
    network = load_network(settings.model, choose_device())
    dreamt = dream_photograph(network, photograph, settings, watch=watch)
    result.write_bytes(encode(dreamt.pixels, settings.output.format, settings.output.quality, dreamt.description()))
    return dreamt
