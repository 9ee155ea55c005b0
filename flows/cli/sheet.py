"""`dreamgrid sheet`: contact sheets of what a destination holds."""

import click

from dreamcore.errors import InvalidInput
from flows.cli.options import as_json, destination_folder
from flows.terminal import print_line, print_message, progress, show_json


@click.command()
@click.argument("destination", metavar="DEST")
@click.argument("part", default="", metavar="[PART]")
@click.option("--photographs", default=24, show_default=True, metavar="N", type=click.IntRange(min=1), help="How many.")
@as_json
def sheet(destination: str, part: str, photographs: int, as_json: bool) -> None:
    """Draw contact sheets of the photographs that were dreamt last, of all their dreams, whatever run made them.

    Only of those with PART in their address, where it is given.

    \b
    dreamgrid sheet s3://dreams/demo/
    dreamgrid sheet s3://dreams/demo/ chelsea.png
    dreamgrid sheet s3://dreams/demo/ --photographs 200
    """
    from flows.sheets import draw_sheets, latest_photographs
    from flows.storage import storage

    folder = destination_folder(destination)
    chosen = latest_photographs(folder, storage(), photographs, part)
    if not chosen:
        raise InvalidInput(
            f"{folder} has no dreams of a photograph" + (f" with {part!r} in its address" if part else "")
        )
    drawn, names = [], set()
    with progress("drawing") as watch:
        for page in draw_sheets(folder, storage(), chosen, lambda text: print_message(text, "yellow")):
            drawn.append(page.uri)
            names.add(page.name)
            watch(len(names), len(chosen))
    if as_json:
        show_json({"sheets": drawn})
        return
    for uri in drawn:
        print_line(uri)
