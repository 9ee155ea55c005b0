"""One picture, from file to file, without S3 or Prefect."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamcore.errors import ImageError, InvalidInput
from dreamcore.images import Photograph, encode
from dreamcore.settings import DreamSettings
from flows.assets import load_guide_and_mask, network_for, resolve
from flows.decoder import decode
from flows.machine import choose_device, max_memory
from flows.worker_process import disable_heap_trimming

if TYPE_CHECKING:
    from dreamcore.batch import Dream, OnStep


def dream_file(
    source: Path, result: Path, settings: DreamSettings, watch: "OnStep", *, stages: bool = False
) -> "Dream":
    """Dream the picture in `source` and write it, with its settings inside, to `result`.

    Args:
        source: the picture.
        result: where the dream goes.
        settings: what to dream; guide, mask and weights may be files of this machine.
        watch: called after every step with the steps done and the steps in all.
        stages: whether to score all stages of the network, too.

    Raises:
        InvalidInput: no such file, network or layer, nowhere to write to, or over one of these files.
        ImageError: the file is no picture, or one that cannot be dreamt.
    """
    files = [file.uri for file in (settings.guide, settings.mask, settings.weights) if file]
    check_result(result, source, *files)
    settings = resolve(settings, local=True)
    photograph = decode_named(read_file(source), source, settings.max_pixels)
    dreamt = dream_resolved(photograph, settings, watch, stages=stages)
    write_file(result, encode(dreamt.pixels, settings.output.format, settings.output.quality, description(dreamt)))
    return dreamt


def dream_resolved(
    photograph: Photograph, settings: DreamSettings, watch: "OnStep", *, stages: bool = False
) -> "Dream":
    """Dream a photograph under settled settings on this machine's device."""
    # It imports torch, which takes seconds: what is wrong with files is told before.
    from dreamcore.batch import DreamRequest, Limits, dream_photograph

    device = choose_device()
    memory = max_memory(device)
    if device == "cpu":
        disable_heap_trimming(memory)
    guide, mask = load_guide_and_mask(settings)
    request = DreamRequest(photograph, settings, guide, mask)
    return dream_photograph(network_for(settings, device), request, Limits(memory, stages), watch)


def description(dreamt: "Dream") -> dict[str, Any]:
    """What is written into a picture: of files on this machine no more than their names."""
    named = {
        name: file.model_copy(update={"uri": Path(file.uri).name})
        for name in ("guide", "mask", "weights")
        if (file := getattr(dreamt.settings, name)) and not file.uri.startswith("s3://")
    }
    return dreamt.metadata() | {"settings": dreamt.settings.model_copy(update=named).model_dump(mode="json")}


def check_result(result: Path, *made_of: str | Path) -> None:
    """Raise `InvalidInput` when there is no folder to write `result` to, or it is a file that it is made of."""
    if not result.absolute().parent.is_dir():
        raise InvalidInput(f"there is no folder {result.absolute().parent} to write {result.name} to")
    if any(result.exists() and Path(file).exists() and result.samefile(file) for file in made_of):
        raise InvalidInput(f"{result} would be written over what it is made from: name another file")


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


def decode_named(data: bytes, name: object, max_pixels: int | None = None) -> Photograph:
    """Decode a picture, and name it in the `ImageError` that says why not."""
    try:
        return decode(data, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(error.kind, f"{name}: {error}") from error
