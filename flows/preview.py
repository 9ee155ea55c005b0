"""One photograph dreamt at each stage of a network, on one sheet, from file to file: to choose layers by eye."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from dreamcore.catalogue import card
from dreamcore.errors import InvalidInput
from dreamcore.images import encode
from dreamcore.objectives import objective_label
from dreamcore.settings import DreamSettings, Output, format_of
from flows.contact import Cell, cell_width, pages, scores, thumbnail
from flows.job import explain
from flows.sheets import sees
from flows.single import check_result, dream_settled, read_file, to_photograph, write_file

if TYPE_CHECKING:
    from dreamcore.picture import Dreamt

COLUMNS = 4
MAX_PIXELS = 120_000
"""Of the photograph, so that the sheet shows its dreams at about their own size."""
QUALITY = 70


def preview(model: str, source: Path, result: Path, watch: Callable[[int, int], None]) -> "list[Dreamt]":
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
    known = card(model)
    stages = known.stages()
    settings = [
        DreamSettings.model_validate({"model": model, "layers": [{"layer": stage.name}], "max_pixels": MAX_PIXELS})
        for stage in stages
    ]
    output = _output(result)
    check_result(result, source)
    photograph = to_photograph(read_file(source), source, MAX_PIXELS)
    dreams: list[Dreamt] = []
    for entry in settings:
        watch_one = _watch_among(watch, len(dreams), len(settings))
        dreams.append(dream_settled(photograph, entry, watch_one))

    width = cell_width(COLUMNS)
    cells = [
        Cell(
            0, 0, thumbnail(photograph.pixels, width), ("the photograph", sees(dreams[0].measures()["classes_before"]))
        )
    ]
    found = [dreamt.measures() for dreamt in dreams]
    written = scores([(each["score_before"], each["score_after"]) for each in found])
    for place, (stage, dreamt, measured, score) in enumerate(zip(stages, dreams, found, written, strict=True), start=1):
        text = (
            f"{stage.name}   stride {stage.stride}, field {stage.receptive_field} px",
            score,
            sees(measured["classes_after"]),
        )
        cells.append(Cell(place % COLUMNS, place // COLUMNS, thumbnail(dreamt.pixels, width), text))
    (sheet, *_) = pages(f"{source.name}   {model}", cells, width)
    write_file(
        result, encode(np.asarray(sheet), output.format, output.quality, {"model": model, "stages": summary(dreams)})
    )
    return dreams


def summary(dreams: "list[Dreamt]") -> list[dict[str, object]]:
    """Layer and scores of each dream, the deepest last."""
    names = ("score_before", "score_after", "classes_after")
    return [
        {"layer": objective_label(dreamt.settings.layers), **{name: dreamt.measures()[name] for name in names}}
        for dreamt in dreams
    ]


def _watch_among(watch: Callable[[int, int], None], before: int, dreams: int) -> Callable[[int, int], None]:
    """Of one dream among many."""
    return lambda done, planned: watch(before * planned + done, dreams * planned)


def _output(result: Path) -> Output:
    try:
        return Output.model_validate({"format": format_of(result.suffix), "quality": QUALITY})
    except ValidationError as error:
        raise InvalidInput(explain(error)) from error
