"""`dreamgrid up`, `down`, `status` and `env`: the embedded stack of the current folder."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dreamcore.errors import InvalidInput
from flows.cli.options import json_option
from flows.terminal import print_line, screen, show_json

if TYPE_CHECKING:
    from flows.local.stack import Stack

__all__ = ["STACK", "down", "env", "start_stack", "status", "up"]

STACK = Path(".dreamgrid")
"""The folder of the embedded stack, below the current folder."""


def start_stack() -> "Stack":
    """Start the embedded stack and wait until its servers are ready."""
    from flows.local import stack

    with screen.status("Starting SeaweedFS and Prefect ..."):
        return stack.up(STACK)


@click.command()
def up() -> None:
    """Start the embedded stack: an S3 server and a Prefect server.

    Both servers listen on this machine only. Their data is in ./.dreamgrid/.

    \b
    Examples:
      dreamgrid up
      eval "$(dreamgrid env)"
    """
    stack = start_stack()
    print_line(f"S3        {stack.s3_url}")
    print_line(f"Prefect   {stack.prefect_url}")
    print_line('To use them in this shell:  eval "$(dreamgrid env)"')


@click.command()
def down() -> None:
    """Stop the embedded stack of this folder. Its data is kept.

    \b
    Examples:
      dreamgrid down
    """
    from flows.local import stack

    print_line("stopped" if stack.down(STACK) else "nothing was running")


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show whether the embedded stack of this folder runs.

    Prints the address and the process of each server.

    \b
    Examples:
      dreamgrid status
      dreamgrid status --json
    """
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
        print_line("no stack in this folder: start one with dreamgrid up")


@click.command()
def env() -> None:
    """Print the environment variables of the embedded stack.

    The output is for a shell: it exports the variables that point S3 clients and Prefect at the stack.

    \b
    Examples:
      eval "$(dreamgrid env)"
    """
    from shlex import quote

    from flows.local import stack

    found = stack.find(STACK)
    if found is None:
        raise InvalidInput("no stack runs in this folder: start one with dreamgrid up")
    for name, value in found.environment().items():
        click.echo(f"export {name}={quote(value)}")
