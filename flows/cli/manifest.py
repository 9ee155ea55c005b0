"""`dreamgrid manifest`: summarize the manifest of a destination, list failures, verify the dreams, merge parts."""

from typing import Any

import click
from rich.table import Column, Table

from dreamcore.targets import layers_label
from flows.cli.options import destination_folder, json_option
from flows.machine.terminal import console, one_line, print_line, printable, progress, show_json

__all__ = ["manifest"]

MAX_ROWS = 100
"""Rows that a table shows. `--json` has more."""


class _SummaryByDefault(click.Group):
    """`manifest DEST` means `manifest summary DEST`. No destination has the name of a command."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *context.help_option_names):
            args = ["summary", *args]
        return super().parse_args(context, args)


@click.group(cls=_SummaryByDefault)
def manifest() -> None:
    """Summarize, verify or compact the manifest of a destination.

    \b
    Examples:
      dreamgrid manifest s3://dreams/demo/
      dreamgrid manifest failures s3://dreams/demo/
      dreamgrid manifest verify s3://dreams/demo/
      dreamgrid manifest compact s3://dreams/demo/
    """


@manifest.command()
@click.argument("destination", metavar="DEST")
@json_option
def summary(destination: str, as_json: bool) -> None:
    """Show counts, failures by kind, and mean scores by settings.

    \b
    Examples:
      dreamgrid manifest summary s3://dreams/demo/
      dreamgrid manifest summary s3://dreams/demo/ --json
    """
    from flows.destination.summary import summarize
    from flows.s3.storage import storage

    folder = destination_folder(destination)
    found = summarize(storage(), folder)
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
        print_line(f"Failures: dreamgrid manifest failures {folder}")
    console.print(_scores_table(found["settings"]))


def _scores_table(points: list[dict[str, Any]]) -> Table:
    """Return mean scores by settings, with a column for other settings in which the points differ."""
    from flows.contact_sheets.sheets import distinguishing_settings, read_settings

    table = Table("layers", "octaves", "steps", "dreams", "mean score before", "after", box=None)
    settings = [read_settings(point["settings"]) for point in points]
    differences = iter(distinguishing_settings([each for each in settings if each], ("layers", "octaves", "steps")))
    others = [next(differences) if each else "settings of another version of Dreamgrid" for each in settings]
    if any(others):
        table.add_column("other settings", overflow="fold")
    for point, each, other in zip(points, settings, others, strict=True):
        layers = layers_label(each.layers) if each else point["layers"]  # the column has no positions and directions
        scores = (f"{point['score_before']:.2f}", f"{point['score_after']:.2f}")
        numbers = (str(point[name]) for name in ("octaves", "steps", "dreams"))
        table.add_row(layers, *numbers, *scores, *([printable(other)] if other else []))
    return table


@manifest.command()
@click.argument("destination", metavar="DEST")
@json_option
def failures(destination: str, as_json: bool) -> None:
    """List the photographs that failed or were skipped.

    Prints one line for each version of a photograph and each reason, with the number of its dreams. A failed photograph
    is tried again when it changes, or by `dreamgrid run --retry-failed`.

    \b
    Examples:
      dreamgrid manifest failures s3://dreams/demo/
      dreamgrid manifest failures s3://dreams/demo/ --json
    """
    from flows.destination.summary import failures
    from flows.s3.storage import storage

    found = failures(storage(), destination_folder(destination))
    if as_json:
        show_json(found)
        return
    table = Table("dreams", "why", Column("photograph", overflow="fold"), "", box=None)
    for entry in found[:MAX_ROWS]:
        what = printable(entry["source_uri"]), one_line(entry["error"])
        table.add_row(str(entry["dreams"]), entry["error_kind"], *what)
    if found:
        console.print(table)
    more = f"; the first {MAX_ROWS} are shown, --json prints all" if len(found) > MAX_ROWS else ""
    print_line(f"{sum(entry['dreams'] for entry in found)} dreams failed or were skipped{more}.")


@manifest.command()
@click.argument("destination", metavar="DEST")
@json_option
def verify(destination: str, as_json: bool) -> int:
    """Check that the rows and the dreams of a destination agree.

    Reads and decodes each dream, and compares its size, its SHA-256 and the settings inside it with its row. Also finds
    duplicate rows, planned dreams without a row, and objects without a row. Changes nothing. Exits with 1 if there are
    problems.

    \b
    Examples:
      dreamgrid manifest verify s3://dreams/demo/
      dreamgrid manifest verify s3://dreams/demo/ --json
    """
    from flows.results.verify import verify
    from flows.s3.storage import storage

    with progress("verifying") as show_progress:
        found = verify(storage(), destination_folder(destination), show_progress)
    if as_json:
        show_json(found.model_dump(mode="json"))
        return 1 if found.counts else 0
    if found.counts:
        table = Table("what", Column("where", overflow="fold"), "why", box=None)  # whole addresses, to be copied
        for problem in found.problems[:MAX_ROWS]:
            table.add_row(problem.kind, printable(problem.uri), printable(problem.what))
        console.print(table)
    counts = ", ".join(f"{count} {kind}" for kind, count in found.counts.items()) or "no problems"
    print_line(f"{found.rows} rows, {found.objects} objects: {counts}.")
    if found.unfinished:
        print_line(f"The run {found.unfinished} is not finished: some of its dreams may have no row yet.")
    return 1 if found.counts else 0


@manifest.command()
@click.argument("destination", metavar="DEST")
@json_option
def compact(destination: str, as_json: bool) -> int:
    """Merge the small parts of finished runs into large ones.

    Rows stay as they are, and each row is found once by every reader that opens the manifest before or after. Ordinary
    runs may work in the destination at the same time, retries (--retry-failed) may not. If the command is stopped, run
    it again. Exits with 1 if something could not be merged.

    \b
    Examples:
      dreamgrid manifest compact s3://dreams/demo/
      dreamgrid manifest compact s3://dreams/demo/ --json
    """
    from flows.results.compact import compact
    from flows.s3.storage import storage

    folder = destination_folder(destination)
    with progress("merging parts") as show_progress:
        report = compact(storage(), folder, show_progress)
    if as_json:
        show_json(report.model_dump(mode="json"))
        return 1 if report.left_alone else 0
    if report.runs:
        table = Table("run", "parts before", "after", "MB before", "after", box=None)
        for run in report.runs:
            sizes = (f"{size / 1e6:.1f}" for size in (run.bytes_before, run.bytes_after))
            table.add_row(run.run_id, str(run.parts_before), str(run.parts_after), *sizes)
        console.print(table)
    for each in report.left_alone:
        print_line(f"{each.uri} was left alone: {each.why}.")
    if report.runs:
        before, after = (sum(getattr(run, f"parts_{when}") for run in report.runs) for when in ("before", "after"))
        print_line(f"{before} parts of {len(report.runs)} runs became {after}.")
    else:
        print_line(f"nothing to compact in {folder}")
    return 1 if report.left_alone else 0
