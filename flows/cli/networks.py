"""`dreamgrid models` and `layers`: list networks and their layers, or preview the layers."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from dreamcore.errors import InvalidInput
from flows.cli.image import dreaming
from flows.cli.options import json_option
from flows.machine.terminal import console, print_line, show_json

if TYPE_CHECKING:
    from dreamcore.spec import NetworkSpec

__all__ = ["layers", "models"]


@click.command()
@click.argument("part", default="")
@json_option
def models(part: str, as_json: bool) -> None:
    """List the networks, or those with PART in their name.

    Upper and lower case are the same in PART. A few networks, some transformers among them, accept images of one size
    only and cannot dream. `dreamgrid layers NAME` reports this.

    \b
    Examples:
      dreamgrid models
      dreamgrid models resnet
    """
    from dreamcore.zoo import model_names

    names = [name for name in model_names() if part.lower() in name.lower()]
    if not names:
        raise InvalidInput(f"no network has {part!r} in its name: `dreamgrid models` lists all networks")
    if as_json:
        show_json(names)
    else:
        click.echo("\n".join(names))


def _read_size(_context: click.Context, _option: click.Parameter, size: str | None) -> tuple[int, int] | None:
    """Return width and height of a size such as `640x480`."""
    if size is None:
        return None
    match size.lower().split("x"):
        case [width, height] if width.isdecimal() and height.isdecimal() and int(width) * int(height):
            return int(width), int(height)
    raise InvalidInput(f"{size!r} is not a size: write width and height in pixels, for example 640x480")


@click.command()
@click.argument("model", default="efficientnet_lite0")
@click.option(
    "--size",
    metavar="WxH",
    callback=_read_size,
    help="Size of the image for the table, in pixels.  [default: the training size of the network]",
)
@click.option(
    "--preview",
    nargs=2,
    metavar="IN OUT",
    type=click.Path(path_type=Path),
    help="Dream the photograph IN at each stage of the network, and draw all these dreams on one sheet OUT.",
)
@json_option
def layers(model: str, size: tuple[int, int] | None, preview: tuple[Path, Path] | None, as_json: bool) -> None:
    """List the layers of a network, or preview their dreams.

    The order is that of a forward pass. For each layer the table shows its channels, its width and height for an image
    of the given size, its stride and its receptive field in pixels of the image, and its cost. `dreamgrid atlas` draws
    what each channel of a layer reacts to.

    \b
    Examples:
      dreamgrid layers
      dreamgrid layers googlenet --size 640x480
      dreamgrid layers --preview cat.jpg stages.jpg
    """
    if preview:
        if size:
            raise click.UsageError("--size is for the table and --preview is for a sheet: give one of them")
        _preview(model, *preview, as_json)
        return
    from dreamcore.catalog import network_spec
    from dreamcore.tracing import activation_sizes

    network = network_spec(model)
    width, height = size or (network.size, network.size)
    sizes = activation_sizes(network, height, width)
    if as_json:
        rows = [
            {**asdict(layer), "width": sizes[layer.name][1], "height": sizes[layer.name][0]} for layer in network.layers
        ]
        show_json({**asdict(network), "at": {"width": width, "height": height}, "layers": rows})
        return
    table = _layers_table(network, sizes, (width, height))
    Console(width=max(console.width, 140)).print(table)  # wide, so that no name is cut


def _layers_table(network: "NetworkSpec", sizes: dict[str, tuple[int, int]], size: tuple[int, int]) -> Table:
    """Return a row for each layer.

    Args:
        network: the network.
        sizes: height and width of the activations by layer.
        size: width and height of the image.
    """
    table = Table("layer", "kind", box=None)
    for name in ("channels", f"of {size[0]}x{size[1]}", "stride", "field", "multiply-adds a pixel"):
        table.add_column(name, justify="right")
    for layer in network.layers:
        height, width = sizes[layer.name]
        numbers = (layer.channels, f"{width}x{height}", layer.stride, layer.receptive_field or "all", f"{layer.cost:,}")
        table.add_row(layer.name, layer.kind, *map(str, numbers))
    return table


def _preview(model: str, source: Path, result: Path, as_json: bool) -> None:
    with dreaming("Loading the network ...") as show_progress:
        from flows.pictures.preview import preview, summary

        dreams = preview(model, source, result, show_progress)
    if as_json:
        show_json(summary(dreams))
        return
    for stage in summary(dreams):
        print_line(f"{stage['layer']}: score {stage['score_before']:.2f} to {stage['score_after']:.2f}")
    print_line(f"Sheet   {result}")
