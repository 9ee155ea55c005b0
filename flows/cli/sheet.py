"""`dreamgrid sheet`: draw contact sheets of a destination."""

from collections import Counter

import click

from dreamcore.errors import InvalidInput
from flows.cli.options import destination_folder, json_option
from flows.machine.terminal import print_line, print_message, progress, show_json

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
@click.option("--rows", metavar="SETTING", help="The setting that is different in each row, such as layers.")
@click.option("--columns", metavar="SETTING", help="The setting that is different in each column, such as octaves.")
@click.option("--title", metavar="TEXT", help="The line above the dreams, instead of the name of the photograph.")
@json_option
def sheet(
    destination: str,
    part: str,
    photographs: int,
    rows: str | None,
    columns: str | None,
    title: str | None,
    as_json: bool,
) -> None:
    """Draw contact sheets of the photographs that were dreamt last.

    Each sheet shows one photograph and all its dreams, of every run. With PART, only photographs with PART in their
    address are drawn. The layers are the rows and the next setting that varies is the columns, unless other settings
    are given; "look" stands for looks and presets. If more settings vary, each combination of them has a page.

    Each dream has a number and the first digits of its id: `dreamgrid redream` takes the id, or the name of the
    photograph with the number, such as chelsea.png#3.

    \b
    Examples:
      dreamgrid sheet s3://dreams/demo/
      dreamgrid sheet s3://dreams/demo/ chelsea.png
      dreamgrid sheet s3://dreams/demo/ --photographs 200
      dreamgrid sheet s3://dreams/demo/ --rows octaves --columns step_size
    """
    from flows.contact_sheets.sheet_axes import Choice, check_axis
    from flows.contact_sheets.sheets import draw_sheets, latest_photographs, remove_further_pages
    from flows.s3.storage import storage

    choice = Choice(check_axis(rows), check_axis(columns), title)
    if choice.rows and choice.rows == choice.columns:
        raise InvalidInput(f"rows and columns are both {choice.rows}: choose another setting for one of them")
    folder = destination_folder(destination)
    chosen = latest_photographs(folder, storage(), photographs, part)
    if not chosen:
        condition = f" with {part!r} in its address" if part else ""
        raise InvalidInput(
            f"{folder} has no dreams of a photograph{condition}: run a job first, or correct the address"
        )
    drawn: list[str] = []
    pages = Counter[str]()
    with progress("drawing") as show_progress:
        for page in draw_sheets(folder, storage(), chosen, lambda text: print_message(text, "yellow"), choice):
            drawn.append(page.uri)
            pages[page.name] += 1
            show_progress(len(pages), len(chosen))
    for name, count in pages.items():
        remove_further_pages(folder, storage(), name, count)
    if as_json:
        show_json({"sheets": drawn})
        return
    for uri in drawn:
        print_line(uri)
