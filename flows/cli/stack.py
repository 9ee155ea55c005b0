"""`dreamgrid up`, `down`, `status` and `env`: the embedded servers of the current folder."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dreamcore.errors import InvalidInput
from flows.cli.options import json_option
from flows.machine.terminal import print_line, show_json, waiting

if TYPE_CHECKING:
    from flows.local.stack import Stack

__all__ = ["STACK", "create_embedded_bucket", "down", "env", "start_stack", "status", "up"]

STACK = Path(".dreamgrid")
"""The folder of the embedded servers, below the current folder."""


def start_stack() -> "Stack":
    """Start the embedded servers and wait until they are ready."""
    with waiting("Starting an S3 server and a Prefect server ..."):
        from flows.local import stack

        return stack.up(STACK)


def create_embedded_bucket(uri: str) -> None:
    """Create the bucket of `uri` if S3 is the embedded server of the current folder. Elsewhere, users create buckets.

    Raises:
        InvalidInput: `uri` is not an S3 address, or the name of its bucket is not valid.
    """
    from flows.local import stack
    from flows.s3.storage import storage

    embedded = stack.find(STACK)
    if embedded and embedded.s3_url == storage().endpoint:
        storage().create_bucket(uri)


@click.command()
def up() -> None:
    """Start the embedded servers: an S3 server and a Prefect server.

    Both servers listen on this machine only. They belong to the current folder, and their data is in ./.dreamgrid/.

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
    """Stop the embedded servers of the current folder. Their data is kept.

    \b
    Examples:
      dreamgrid down
    """
    from flows.local import stack

    print_line("stopped" if stack.down(STACK) else "nothing was running")


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show whether the embedded servers of the current folder run.

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
        print_line("the current folder has no embedded servers: start them with dreamgrid up")


@click.command()
def env() -> None:
    """Print the environment variables of the embedded servers.

    The output is for a shell. It exports the variables with which S3 clients and Prefect use these servers.

    \b
    Examples:
      eval "$(dreamgrid env)"
    """
    from shlex import quote

    from flows.local import stack

    found = stack.find(STACK)
    if found is None:
        raise InvalidInput("the embedded servers of the current folder do not run: start them with dreamgrid up")
    for name, value in found.environment().items():
        click.echo(f"export {name}={quote(value)}")
