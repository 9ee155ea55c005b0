"""`dreamgrid manifest`: what a destination holds, what failed, and whether that is so."""

import click
from rich.table import Column, Table

from flows.cli.options import as_json, destination_folder
from flows.terminal import console, one_line, print_line, progress, show_json

LINES = 100
"""Of a table of what is wrong; `--json` has more."""


class _SummaryUnlessTold(click.Group):
    """`manifest DEST` is `manifest summary DEST`: no destination is called like a command."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *context.help_option_names):
            args = ["summary", *args]
        return super().parse_args(context, args)


@click.group(cls=_SummaryUnlessTold)
def manifest() -> None:
    """Summarise the manifest of a destination, tell what failed, or hold it against the objects.

    \b
    dreamgrid manifest s3://dreams/demo/
    dreamgrid manifest failures s3://dreams/demo/
    dreamgrid manifest verify s3://dreams/demo/
    """


@manifest.command()
@click.argument("destination", metavar="DEST")
@as_json
def summary(destination: str, as_json: bool) -> None:
    """Count the rows of a destination, its failures by kind, and mean scores of each point of the grid."""
    from flows import manifest
    from flows.sheets import distinguishing_settings, read_settings
    from flows.storage import storage

    folder = destination_folder(destination)
    found = manifest.summary(storage(), folder)
    if as_json:
        show_json(found)
        return
    if not found["rows"]:
        print_line(f"There is no manifest in {folder} yet.")
        return
    counts = ", ".join(f"{count} {status}" for status, count in found["statuses"].items())
    print_line(f"{found['rows']} rows of {found['photographs']} photographs in {found['runs']} runs: {counts}")
    for kind, count in found["errors"].items():
        print_line(f"  {count} {kind}")
    if found["errors"]:
        print_line(f"Which, and why: dreamgrid manifest failures {folder}")
    table = Table("layers", "octaves", "steps", "dreams", "mean score before", "after", box=None)
    points = [read_settings(entry["settings"]) for entry in found["settings"]]
    told = iter(distinguishing_settings([point for point in points if point], ("layers", "octaves", "steps")))
    besides = [next(told) if point else "settings of another version of Dreamgrid" for point in points]
    if any(besides):
        table.add_column("besides", overflow="fold")
    for entry, more in zip(found["settings"], besides, strict=True):
        scores = (f"{entry['score_before']:.2f}", f"{entry['score_after']:.2f}")
        numbers = (str(entry[name]) for name in ("octaves", "steps", "dreams"))
        table.add_row(entry["layers"], *numbers, *scores, *([one_line(more)] if more else []))
    console.print(table)


@manifest.command()
@click.argument("destination", metavar="DEST")
@as_json
def failures(destination: str, as_json: bool) -> None:
    """Tell which photographs failed or were skipped, and why.

    One line for each version of a photograph and reason, with how many dreams it is without. What has failed is not
    tried again until the photograph changes.
    """
    from flows import manifest
    from flows.storage import storage

    found = manifest.failures(storage(), destination_folder(destination))
    if as_json:
        show_json(found)
        return
    table = Table("dreams", "why", Column("photograph", overflow="fold"), "", box=None)
    for entry in found[:LINES]:
        what = one_line(entry["source_uri"]), one_line(entry["error"])
        table.add_row(str(entry["dreams"]), entry["error_kind"], *what)
    if found:
        console.print(table)
    more = f"; the first {LINES} are above, --json has all" if len(found) > LINES else ""
    print_line(f"{sum(entry['dreams'] for entry in found)} dreams failed or were skipped{more}.")


@manifest.command()
@click.argument("destination", metavar="DEST")
@as_json
def verify(destination: str, as_json: bool) -> int:
    """Hold every row of a destination against its object, and every object against the manifest.

    Each dream is read and decoded: its size, SHA-256 and the settings inside it must be those of the row. Rows that
    are there twice, planned dreams without a row and objects without one are found, too. Nothing is changed. Exits
    with 1 when something is wrong.
    """
    from flows.storage import storage
    from flows.verify import verify

    with progress("verifying") as watch:
        found = verify(storage(), destination_folder(destination), watch)
    if as_json:
        show_json(found.model_dump(mode="json"))
        return 1 if found.counts else 0
    if found.counts:
        table = Table("what", Column("where", overflow="fold"), "why", box=None)  # addresses are there to be copied
        for problem in found.problems[:LINES]:
            table.add_row(problem.kind, one_line(problem.uri), one_line(problem.what))
        console.print(table)
    counts = ", ".join(f"{count} {kind}" for kind, count in found.counts.items()) or "all is well"
    print_line(f"{found.rows} rows, {found.objects} objects: {counts}.")
    if found.unfinished:
        print_line(f"The run {found.unfinished} is not finished: its pictures may have no row yet.")
    return 1 if found.counts else 0
