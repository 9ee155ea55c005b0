"""`dreamgrid plan`: show what a run would do, how long it would take and what it would cost."""

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from flows.cli.options import job_from_flags, job_options, json_option
from flows.machine.terminal import console, listing_progress, print_message, show_json

__all__ = ["plan"]


@click.command()
@job_options
@click.option(
    "--price-per-hour",
    type=click.FloatRange(0),
    envvar="DREAMGRID_PRICE_PER_HOUR",
    metavar="PRICE",
    help="What this machine costs in an hour, in any currency: show the cost of the run.",
)
@json_option
def plan(job: Path | None, price_per_hour: float | None, as_json: bool, **flags: Any) -> None:
    """Show what a run would do, and estimate its time and cost.

    Prints the number of photographs, grid points, dreams and shards, the estimated time, and the requests to S3.
    Changes nothing in S3. If the job has an unfinished run, only the rest of that run is counted.

    The estimate is for this machine, so call the command on the machine that will dream. It uses the speed of an
    earlier run in the destination on the same kind of machine. If there is none, it makes some short dreams to measure
    the speed, and keeps the result in ~/.cache/dreamgrid.

    \b
    Examples:
      dreamgrid plan job.yaml
      dreamgrid plan job.yaml --octaves 4 --octaves 6 --json
      dreamgrid plan job.yaml --price-per-hour 0.085
    """
    from flows.jobs.photographs import describe_ignored
    from flows.machine.machine import check_environment
    from flows.planning.estimate import estimate

    check_environment()
    with listing_progress() as on_listed:
        found = estimate(job_from_flags(job, flags), price_per_hour, on_listed)
    if as_json:
        show_json(found)
        return
    table = Table(show_header=False, box=None)
    refusal, warnings = found.pop("refused"), found.pop("warnings")
    kinds, destinations = found.pop("ignored_kinds"), found.pop("other_destinations")
    if kinds:
        found["ignored"] = f"{found['ignored']:,}: {describe_ignored(kinds, destinations)}"
    for name, value in found.items():
        if value is not None:
            table.add_row(name.replace("_", " "), _text(value))
    console.print(table)
    for warning in warnings:
        print_message(warning, "yellow")
    if refusal:
        print_message(f"a run would be refused: {refusal}", "yellow")


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count:,} {name.upper()}" for name, count in value.items())
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)
