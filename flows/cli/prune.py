"""`dreamgrid prune`: delete dreams with their rows."""

import sys
from collections.abc import Mapping
from typing import Any

import click
from rich.filesize import decimal
from rich.table import Table

from flows.cli.options import destination_folder, json_option
from flows.machine.terminal import console, print_line, print_message, progress, show_json

__all__ = ["prune"]


@click.command()
@click.argument("destination", metavar="DEST")
@click.option("--where", metavar="CONDITION", help="Rows for which this is true: the WHERE clause of SQL.")
@click.option("--older-than", metavar="AGE", help="Rows older than this: a number and h, d, w or y, such as 90d.")
@click.option("--settings", metavar="ID", help="Rows of this settings_id, by its first digits.")
@click.option("--unrated", is_flag=True, help="Rows of dreams without a mark.")
@click.option("--with-favourites", is_flag=True, help="Also delete dreams that are rated 1 to 5.")
@click.option("--yes", is_flag=True, help="Delete without a question.")
@json_option
def prune(
    destination: str,
    where: str | None,
    older_than: str | None,
    settings: str | None,
    unrated: bool,
    with_favourites: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete dreams, their contact sheets and their rows.

    Shows first what would be deleted. Deletes only after a yes, or with --yes. Several options select the rows for
    which all of them are true. Rows of an unfinished run stay. Dreams that are rated 1 to 5 stay, unless you add
    --with-favourites. Later runs do not dream the deleted dreams again.

    CONDITION compares columns of the manifest with = <> < <= > >=, like, in, between and is null, joined by and, or
    and not. Text is in single quotes. The column mark is the mark of the dream: 1 to 5, 0 for none, -1 for rejected.

    \b
    Examples:
      dreamgrid prune s3://dreams/demo/ --older-than 90d
      dreamgrid prune s3://dreams/demo/ --settings 3f2a --yes
      dreamgrid prune s3://dreams/demo/ --unrated --older-than 30d
      dreamgrid prune s3://dreams/demo/ --where "mark = -1"
      dreamgrid prune s3://dreams/demo/ --where "score_after < 0.2 and model = 'resnet18'"
      dreamgrid prune s3://dreams/demo/ --where "source_uri like '%/raw/%' or status = 'failed'"
    """
    from flows.destination.selection import select
    from flows.planning.scan import store_warning
    from flows.results.prune import preview
    from flows.results.prune import prune as delete
    from flows.s3.storage import storage

    selection = select(where, older_than, settings, unrated=unrated, with_favourites=with_favourites)
    shown = preview(storage(), destination_folder(destination), selection)
    if not as_json:
        _print_preview(shown.summary)
    to_do = shown.parts or shown.is_stopped
    record, deleted = None, bool(to_do and (yes or (not as_json and _asks() and click.confirm("Delete them?"))))
    if deleted:
        if warning := store_warning(shown.destination, storage(), replacing=True):
            print_message(warning, "yellow")
        with progress("pruning") as show_progress:
            record = delete(storage(), shown, show_progress)
    if as_json:
        show_json({**shown.summary, "deleted": deleted, "record": record})
    elif deleted:
        print_line(f"Deleted. Later runs leave these dreams out, see {record}" if record else "The prune is finished.")
    elif to_do:
        print_line(f"Nothing was deleted. To delete: {selection.command(shown.destination)}")


def _asks() -> bool:
    """Return whether a person can answer a question."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _print_preview(summary: Mapping[str, Any]) -> None:
    """Print what would be deleted."""
    if kept := summary["kept_favourites"]:
        print_line(f"{kept} selected rows of dreams rated 1 to 5 stay; to delete them too, add --with-favourites")
    if not summary["rows"]:
        print_line("No rows of finished runs are selected.")
        return
    statuses = ", ".join(f"{count} {status}" for status, count in summary["statuses"].items())
    print_line(f"{summary['rows']} rows of {summary['photographs']} photographs in {summary['runs']} runs: {statuses}")
    print_line(f"{summary['objects']} dreams with {decimal(summary['bytes'])}, {summary['sheets']} contact sheets")
    table = Table("settings", "model", "layers", "octaves", "steps", "rows", "size", box=None)
    for each in summary["settings"]:
        numbers = (str(each[name]) for name in ("octaves", "steps", "rows"))
        table.add_row(each["settings_id"], each["model"], each["layers"], *numbers, decimal(each["bytes"]))
    console.print(table)
