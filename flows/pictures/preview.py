"""Dream one photograph at each stage of a network and draw all dreams on one sheet, to choose layers by eye."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from dreamcore.catalog import network_spec
from dreamcore.errors import InvalidInput
from dreamcore.fields import Output, format_of
from dreamcore.images import Photograph, encode
from dreamcore.settings import DreamSettings
from dreamcore.targets import layers_label
from flows.contact_sheets.contact import Cell, Title, cell_width, render_pages, scores, thumbnail
from flows.contact_sheets.sheets import top_classes
from flows.jobs.job import explain_validation
from flows.pictures.single import check_output_path, decode_named, dream_resolved, read_file, write_file

if TYPE_CHECKING:
    from dreamcore.batch import Dream
    from dreamcore.spec import NetworkSpec

__all__ = ["preview", "summary"]

COLUMNS = 4
MAX_PIXELS = 120_000
"""Pixels of each dream. The sheet shows the dreams at about this size."""
QUALITY = 70


def preview(model: str, source: Path, result: Path, on_step: Callable[[int, int], None]) -> "list[Dream]":
    """Dream the photograph in `source` at each stage of `model`, and write a sheet of these dreams to `result`.

    Args:
        model: the name of the network.
        source: the photograph.
        result: the sheet, a .png, .webp or .jpg file.
        on_step: called after every step with the finished and the total number of steps.

    Returns:
        The dreams, the shallowest stage first.

    Raises:
        InvalidInput: the file or the network does not exist, or `result` cannot be written or is the photograph.
        ImageError: the file is not an image, or cannot be dreamt.
    """
    network = network_spec(model)
    settings = [
        DreamSettings.model_validate({"model": model, "layers": [{"layer": stage.name}], "max_pixels": MAX_PIXELS})
        for stage in network.stages()
    ]
    output = _output(result)
    check_output_path(result, source)
    photograph = decode_named(read_file(source), source, MAX_PIXELS)
    dreams: list[Dream] = []
    for entry in settings:
        dreams.append(dream_resolved(photograph, entry, _part_of(on_step, len(dreams), len(settings))))

    width = cell_width(COLUMNS)
    (sheet, *_) = render_pages(Title(source.name, model), _cells(network, photograph, dreams, width), width)
    metadata = {"model": model, "stages": summary(dreams)}
    write_file(result, encode(np.asarray(sheet), output.format, output.quality, metadata))
    return dreams


def summary(dreams: "list[Dream]") -> list[dict[str, object]]:
    """Return layer, scores and top classes of each dream, in the order of `dreams`."""
    names = ("score_before", "score_after", "classes_after")
    return [
        {"layer": layers_label(dream.settings.layers), **{name: asdict(dream.measurements)[name] for name in names}}
        for dream in dreams
    ]


def _cells(network: "NetworkSpec", photograph: Photograph, dreams: "list[Dream]", width: int) -> list[Cell]:
    """Return the cells of the sheet: the photograph, then the dream of each stage. `width` is that of a cell."""
    measured = [asdict(dream.measurements) for dream in dreams]
    captions = scores([(each["score_before"], each["score_after"]) for each in measured])
    classes = top_classes(measured[0]["classes_before"])
    cells = [Cell(0, 0, thumbnail(photograph.pixels, width), ("the photograph",), (classes,))]
    stages = zip(network.stages(), dreams, measured, captions, strict=True)
    for place, (stage, dream, found, caption) in enumerate(stages, start=1):
        text = (f"{stage.name}: stride {stage.stride}, field {stage.receptive_field} px", caption)
        notes = (top_classes(found["classes_after"]),)
        cells.append(Cell(place % COLUMNS, place // COLUMNS, thumbnail(dream.pixels, width), text, notes))
    return cells


def _part_of(on_step: Callable[[int, int], None], before: int, dreams: int) -> Callable[[int, int], None]:
    """Return a callback for one dream of several: `before` of `dreams` are finished."""
    return lambda finished, total: on_step(before * total + finished, dreams * total)


def _output(result: Path) -> Output:
    try:
        return Output.model_validate({"format": format_of(result.suffix), "quality": QUALITY})
    except ValidationError as error:
        raise InvalidInput(explain_validation(error)) from error
