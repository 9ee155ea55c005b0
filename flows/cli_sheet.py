"""`dreamgrid sheet`: contact sheets of what a destination holds."""

import click

from flows.options import as_json, folder_of
from flows.terminal import console, one_line, progress, say, show_json


@click.command()
@click.argument("destination", metavar="DEST")
@click.option("--photographs", default=24, show_default=True, metavar="N", type=click.IntRange(min=1), help="How many.")
@as_json
def sheet(destination: str, photographs: int, as_json: bool) -> None:
    """Draw contact sheets of the photographs that were dreamt last, of all their dreams, whatever run made them.

    \b
    dreamgrid sheet s3://dreams/demo/
    dreamgrid sheet s3://dreams/demo/ --photographs 200
    """
    from flows.sheets import draw_sheets, newest
    from flows.storage import storage

    folder = folder_of(destination)
    chosen = newest(folder, storage(), photographs)
    drawn = []
    with progress("drawing") as watch:
        for number, version in enumerate(chosen):
            watch(number, len(chosen))
            drawn += [page.uri for page in draw_sheets(folder, storage(), [version], lambda text: say(text, "yellow"))]
    if as_json:
        show_json({"sheets": drawn})
        return
    for uri in drawn:
        console.print(one_line(uri), markup=False, highlight=False, soft_wrap=True)
    if not drawn:
        console.print("No photograph has dreams there.")
