"""One photograph dreamt at each stage of a network, on one sheet, from file to file: to choose layers by eye."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from dreamcore.catalog import network_spec
from dreamcore.errors import InvalidInput
from dreamcore.images import encode
from dreamcore.settings import DreamSettings, Output, format_of
from dreamcore.targets import layers_label
from flows.contact import Cell, cell_width, render_pages, scores, thumbnail
from flows.job import explain_validation
from flows.sheets import top_classes
from flows.single import check_result, decode_named, dream_resolved, read_file, write_file

if TYPE_CHECKING:
    from dreamcore.batch import Dream

COLUMNS = 4
MAX_PIXELS = 120_000
"""Of the photograph, so that the sheet shows its dreams at about their own size."""
QUALITY = 70


def preview(model: str, source: Path, result: Path, watch: Callable[[int, int], None]) -> "list[Dream]":
    """Dream the photograph in `source` at each stage of `model`, and draw all of it on one sheet in `result`.

    Args:
        model: the network.
        source: the photograph.
        result: the sheet: .png, .webp or .jpg.
        watch: called after every step with the steps done and the steps in all.

    Raises:
        InvalidInput: no such file or network, nowhere to write to, or over the photograph.
        ImageError: the file is no picture, or one that cannot be dreamt.
    """
    known = network_spec(model)
    stages = known.stages()
    settings = [
        DreamSettings.model_validate({"model": model, "layers": [{"layer": stage.name}], "max_pixels": MAX_PIXELS})
        for stage in stages
    ]
    output = _output(result)
    check_result(result, source)
    photograph = decode_named(read_file(source), source, MAX_PIXELS)
    dreams: list[Dream] = []
    for entry in settings:
        watch_one = _watch_among(watch, len(dreams), len(settings))
        dreams.append(dream_resolved(photograph, entry, watch_one))

    width = cell_width(COLUMNS)
    cells = [
        Cell(
            0,
            0,
            thumbnail(photograph.pixels, width),
            ("the photograph", top_classes(asdict(dreams[0].measurements)["classes_before"])),
        )
    ]
    found = [asdict(dreamt.measurements) for dreamt in dreams]
    written = scores([(each["score_before"], each["score_after"]) for each in found])
    for place, (stage, dreamt, measured, score) in enumerate(zip(stages, dreams, found, written, strict=True), start=1):
        text = (
            f"{stage.name}   stride {stage.stride}, field {stage.receptive_field} px",
            score,
            top_classes(measured["classes_after"]),
        )
        cells.append(Cell(place % COLUMNS, place // COLUMNS, thumbnail(dreamt.pixels, width), text))
    (sheet, *_) = render_pages(f"{source.name}   {model}", cells, width)
    write_file(
        result, encode(np.asarray(sheet), output.format, output.quality, {"model": model, "stages": summary(dreams)})
    )
    return dreams


def summary(dreams: "list[Dream]") -> list[dict[str, object]]:
    """Layer and scores of each dream, the deepest last."""
    names = ("score_before", "score_after", "classes_after")
    return [
        {"layer": layers_label(dreamt.settings.layers), **{name: asdict(dreamt.measurements)[name] for name in names}}
        for dreamt in dreams
    ]


def _watch_among(watch: Callable[[int, int], None], before: int, dreams: int) -> Callable[[int, int], None]:
    """Of one dream among many."""
    return lambda done, planned: watch(before * planned + done, dreams * planned)


def _output(result: Path) -> Output:
    try:
        return Output.model_validate({"format": format_of(result.suffix), "quality": QUALITY})
    except ValidationError as error:
        raise InvalidInput(explain_validation(error)) from error
