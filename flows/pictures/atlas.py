"""An atlas: pictures of what the channels of layers react to, with contact sheets and a page for a browser."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from dreamcore.errors import InvalidInput
from dreamcore.images import encode
from dreamcore.settings import BUNDLED
from flows.contact_sheets.contact import Cell, Title, render_pages, thumbnail
from flows.pictures.atlas_pictures import AtlasLayer, draw_missing, finished_layers
from flows.pictures.single import decode_named, read_file, write_file

__all__ = ["AtlasReport", "draw_atlas", "draw_sheets", "write_page"]

PAGE = "index.html"
COLUMNS = 16
"""Pictures in a row of a sheet."""
SIDE = 96
"""Side in pixels of the pictures on a sheet and on the page."""
QUALITY = 80


@dataclass(frozen=True)
class AtlasReport:
    """What `draw_atlas` did with one layer."""

    layer: str
    channels: int
    """Pictures that the command asked for."""
    drawn: int
    """Pictures that were drawn now. The others existed."""
    folder: str
    sheets: list[str]


def draw_atlas(layers: Sequence[AtlasLayer], show: Callable[[int, int], None]) -> tuple[Path, list[AtlasReport]]:
    """Draw the missing pictures of an atlas. When a layer is complete, draw its contact sheets and write the page.

    Args:
        layers: layers of one network.
        show: called with the finished and the total number of pictures.

    Returns:
        The file of the page, and a report for each layer.

    Raises:
        InvalidInput: a file or a folder cannot be written.
        ImageError: the memory does not suffice, or a picture is damaged.
        Unavailable: a worker process died.
    """
    for each in layers:
        _create_folder(each.folder)
    missing = {each.layer.name: len(each.missing()) for each in layers}
    planned, at_start = sum(len(each.channels) for each in layers), dict(missing)
    sheets = {each.layer.name: _finish(each) for each in layers if not missing[each.layer.name]}
    show(planned - sum(missing.values()), planned)
    with closing(draw_missing(layers)) as drawn:  # an error below ends the worker processes, too
        for layer, count in drawn:
            name = layer.layer.name
            missing[name] -= count
            show(planned - sum(missing.values()), planned)
            if not missing[name]:
                sheets[name] = _finish(layer)
    reports = [
        AtlasReport(
            each.layer.name,
            len(each.channels),
            at_start[each.layer.name],
            str(each.folder),
            [str(path) for path in sheets[each.layer.name]],
        )
        for each in layers
    ]
    return layers[0].folder.parent / PAGE, reports


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"the folder {folder} cannot be created: {error.strerror}") from error


def _finish(layer: AtlasLayer) -> list[Path]:
    """Write the contact sheets of a layer, and the page with all finished pictures of the network."""
    finished = finished_layers(layer)
    write_page(finished)
    return write_sheets(next(each for each in finished if each.layer.name == layer.layer.name))


def draw_sheets(layer: AtlasLayer, side: int = SIDE, quality: int = QUALITY) -> list[bytes]:
    """Draw all pictures of a layer on contact sheets.

    Args:
        layer: a layer whose pictures are finished.
        side: side of the pictures on the sheet in pixels.
        quality: quality of the files, 1 to 100.

    Returns:
        The pages as WebP files: one, unless it would be taller than `flows.contact_sheets.contact` allows.

    Raises:
        InvalidInput: a picture cannot be read.
        ImageError: a picture is damaged.
    """
    note = f"{layer.spec.model}, {len(layer.channels)} of {layer.layer.channels} channels"
    cells = []
    for place, picture in enumerate(layer.pictures()):
        pixels = decode_named(read_file(picture.path), picture.path).pixels
        cells.append(Cell(place % COLUMNS, place // COLUMNS, thumbnail(pixels, side), (str(picture.channel),)))
    pages = render_pages(Title(layer.layer.name, note), cells, side)
    return [encode(np.asarray(page), "webp", quality, {"layer": layer.layer.name}) for page in pages]


def write_sheets(layer: AtlasLayer) -> list[Path]:
    """Write the contact sheets of a layer into its folder: `sheet.webp`, and `sheet-2.webp` if there are more."""
    paths = []
    for number, data in enumerate(draw_sheets(layer), start=1):
        path = layer.folder / (f"sheet-{number}.webp" if number > 1 else "sheet.webp")
        write_file(path, data)
        paths.append(path)
    return paths


def write_page(layers: Sequence[AtlasLayer]) -> Path:
    """Write `index.html` into the folder of the network. The page needs no server and no other files than the pictures.

    Args:
        layers: the layers of one network, with the channels whose pictures are finished.

    Returns:
        The file of the page.

    Raises:
        InvalidInput: the file cannot be written.
    """
    model, folder, weights = layers[0].spec.model, layers[0].folder.parent, layers[0].weights
    option = "" if model == BUNDLED else f" --model {model}"
    environment = Environment(
        loader=PackageLoader("flows.pictures"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("atlas.html").render(
        model=model,
        option=option + (f" --weights {weights}" if weights else ""),
        side=SIDE,
        layers=[_section(each, folder) for each in layers],
    )
    path = folder / PAGE
    write_file(path, html.encode())
    return path


def _section(layer: AtlasLayer, folder: Path) -> dict[str, object]:
    """Return what the page shows about a layer."""
    tiles = [
        {
            "channel": picture.channel,
            "objective": picture.objective,
            "label": picture.read_label() or "",
            "file": quote(picture.path.relative_to(folder).as_posix()),
        }
        for picture in layer.pictures()
    ]
    return {"layer": layer.layer, "size": layer.size, "tiles": tiles}
