"""`dreamgrid up | down | status | env`: the embedded stack of the folder one stands in."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dreamcore.errors import InvalidInput
from flows.cli.options import as_json
from flows.terminal import print_line, screen, show_json

if TYPE_CHECKING:
    from flows.local.stack import Stack

STACK = Path(".dreamgrid")
"""Folder of the embedded stack of the folder one stands in."""


def start_stack() -> "Stack":
    """Start it and wait until it works."""
    from flows.local import stack

    with screen.status("Starting SeaweedFS and Prefect ..."):
        return stack.up(STACK)


@click.command()
def up() -> None:
    """Start the embedded stack: an S3 server and a Prefect server on this machine, data in ./.dreamgrid/."""
    stack = start_stack()
    print_line(f"S3        {stack.s3_url}")
    print_line(f"Prefect   {stack.prefect_url}")
    print_line('Point this shell at them:  eval "$(dreamgrid env)"')


@click.command()
def down() -> None:
    """Stop this folder's embedded stack; its data stay."""
    from flows.local import stack

    print_line("stopped" if stack.down(STACK) else "nothing was running")


@click.command()
@as_json
def status(as_json: bool) -> None:
    """Tell whether this folder's embedded stack runs, and where."""
    from dataclasses import asdict

    from flows.local import stack

    found = asdict(stack.status(STACK))
    if as_json:
        show_json(found)
        return
    for server in found["servers"]:
        state = f"running, process {server['pid']}" if server["running"] else "stopped"
        print_line(f"{server['name']:<10} {server['url']}   {state}")
    if not found["servers"]:
        print_line("there is no stack in this folder: dreamgrid up")


@click.command()
def env() -> None:
    """Print the exports that point S3 clients and prefect at the embedded stack: eval "$(dreamgrid env)"."""
    from shlex import quote

    from flows.local import stack

    found = stack.find(STACK)
    if found is None:
        raise InvalidInput("no stack runs in this folder: dreamgrid up")
    for name, value in found.environment().items():
        click.echo(f"export {name}={quote(value)}")
