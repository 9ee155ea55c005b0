"""`dreamgrid sheet`: draw contact sheets of a destination."""

import click

from dreamcore.errors import InvalidInput
from flows.cli.options import destination_folder, json_option
from flows.terminal import print_line, print_message, progress, show_json

__all__ = ["sheet"]


@click.command()
@click.argument("destination", metavar="DEST")
@click.argument("part", default="", metavar="[PART]")
@click.option(
    "--photographs",
    default=24,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of photographs to draw.",
)
@json_option
def sheet(destination: str, part: str, photographs: int, as_json: bool) -> None:
    """Draw contact sheets of the photographs that were dreamt last.

    Each sheet shows one photograph and all its dreams, of every run. With PART, only photographs with PART in their
    address are drawn.

    \b
    Examples:
      dreamgrid sheet s3://dreams/demo/
      dreamgrid sheet s3://dreams/demo/ chelsea.png
      dreamgrid sheet s3://dreams/demo/ --photographs 200
    """
    from flows.sheets import draw_sheets, latest_photographs
    from flows.storage import storage

    folder = destination_folder(destination)
    chosen = latest_photographs(folder, storage(), photographs, part)
    if not chosen:
        condition = f" with {part!r} in its address" if part else ""
        raise InvalidInput(
            f"{folder} has no dreams of a photograph{condition}: run a job first, or correct the address"
        )
    drawn, photographs_drawn = [], set()
    with progress("drawing") as show_progress:
        for page in draw_sheets(folder, storage(), chosen, lambda text: print_message(text, "yellow")):
            drawn.append(page.uri)
            photographs_drawn.add(page.photograph)
            show_progress(len(photographs_drawn), len(chosen))
    if as_json:
        show_json({"sheets": drawn})
        return
    for uri in drawn:
        print_line(uri)
