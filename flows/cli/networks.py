"""`dreamgrid models | layers`: what there is to dream with."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from dreamcore.errors import InvalidInput
from flows.cli.options import as_json
from flows.terminal import console, print_line, progress, show_json


@click.command()
@click.argument("part", default="")
@as_json
def models(part: str, as_json: bool) -> None:
    """List the networks there are to dream with, or those with PART in their name, in capitals or not.

    A few, most transformers among them, take pictures of one size only and cannot dream: `dreamgrid layers NAME` tells.

    \b
    dreamgrid models
    dreamgrid models resnet
    """
    from dreamcore.zoo import model_names

    names = [name for name in model_names() if part.lower() in name.lower()]
    if not names:
        raise InvalidInput(f"no network has {part!r} in its name; `dreamgrid models` lists all")
    if as_json:
        show_json(names)
    else:
        click.echo("\n".join(names))


def _read_size(_context: click.Context, _option: click.Parameter, size: str | None) -> tuple[int, int] | None:
    """Width and height from `640x480`."""
    if size is None:
        return None
    match size.lower().split("x"):
        case [width, height] if width.isdecimal() and height.isdecimal() and int(width) * int(height):
            return int(width), int(height)
    raise InvalidInput(f"{size!r} is no size: write width and height in pixels, such as 640x480")


@click.command()
@click.argument("model", default="efficientnet_lite0")
@click.option(
    "--size",
    metavar="WxH",
    callback=_read_size,
    help="Size of the picture for the table.  [default: what the network learnt from]",
)
@click.option(
    "--preview",
    nargs=2,
    metavar="IN OUT",
    type=click.Path(path_type=Path),
    help="Instead, dream the photograph IN at each stage of the network and draw one sheet of it, OUT.",
)
@as_json
def layers(model: str, size: tuple[int, int] | None, preview: tuple[Path, Path] | None, as_json: bool) -> None:
    """List the layers of a network in the order in which a picture passes through, or see what they dream.

    For each: its channels, its width and height for a picture of that size, pixels of the picture from one position to
    the next, the side of what one position sees of the picture, in pixels, and its cost.

    \b
    dreamgrid layers
    dreamgrid layers googlenet --size 640x480
    dreamgrid layers --preview cat.jpg stages.jpg
    """
    if preview:
        if size:
            raise click.UsageError("--size is for the table, --preview for a sheet: give one of them")
        _preview(model, *preview, as_json)
        return
    from dataclasses import asdict

    from dreamcore.catalog import network_spec
    from dreamcore.tracing import activation_sizes

    known = network_spec(model)
    width, height = size or (known.size, known.size)
    sizes = activation_sizes(known, height, width)
    if as_json:
        rows = [
            {**asdict(layer), "width": sizes[layer.name][1], "height": sizes[layer.name][0]} for layer in known.layers
        ]
        show_json({**asdict(known), "at": {"width": width, "height": height}, "layers": rows})
        return
    table = Table("layer", "kind", box=None)
    for name in ("channels", f"of {width}x{height}", "stride", "field", "multiply-adds a pixel"):
        table.add_column(name, justify="right")
    for layer in known.layers:
        down, across = sizes[layer.name]
        numbers = (layer.channels, f"{across}x{down}", layer.stride, layer.receptive_field or "all", f"{layer.cost:,}")
        table.add_row(layer.name, layer.kind, *map(str, numbers))
    Console(width=max(console.width, 140)).print(table)  # names are there to be copied: none is cut


def _preview(model: str, source: Path, result: Path, as_json: bool) -> None:
    from flows.preview import preview, summary

    with progress("dreaming") as watch:
        dreams = preview(model, source, result, watch)
    if as_json:
        show_json(summary(dreams))
        return
    for stage in summary(dreams):
        print_line(f"{stage['layer']}: score {stage['score_before']:.2f} to {stage['score_after']:.2f}")
    print_line(f"Sheet   {result}")
