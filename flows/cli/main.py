"""The `dreamgrid` command: the group of all commands, exit codes and error messages.

Results go to standard output, everything else goes to standard error. Exit codes:

    0  success
    1  the run or the image failed
    2  the job, a setting, a file or the access is wrong, and nothing was started
    3  the command was stopped, by a signal or by an infrastructure failure; a run can be resumed

Each command imports what it needs when it runs, so that help appears without delay.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from dreamcore.errors import DreamgridError, InvalidInput, Unavailable
from flows.cli.image import image, redream
from flows.cli.manifest import manifest
from flows.cli.networks import layers, models
from flows.cli.plan import plan
from flows.cli.run import Stopped, demo, run
from flows.cli.sheet import sheet
from flows.cli.stack import down, env, status, up
from flows.terminal import print_message, screen

__all__ = ["STOP_SECONDS", "cli", "main"]

STOP_SECONDS = 20.0
"""A stopped command that has not ended after this time is ended by force. It usually takes two or three seconds."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="dreamgrid")
def cli() -> None:
    """Run DeepDream over image collections in S3, with Prefect.

    \b
    Examples:
      dreamgrid demo                                        run an example on this machine alone
      dreamgrid image cat.jpg dream.png --layers blocks.4   dream one image, without S3 or Prefect
      dreamgrid plan examples/job.yaml                      show what a run would do
      dreamgrid run examples/job.yaml                       run a job
    """


for _command in (demo, run, plan, image, redream, models, layers, manifest, sheet, up, down, status, env):
    cli.add_command(_command)


def main(
    arguments: Sequence[str] | None = None, *, command: click.Command = cli, stop_seconds: float = STOP_SECONDS
) -> NoReturn:
    """Run the command line and exit. Every expected error becomes one message and an exit code.

    Args:
        arguments: the command's arguments; None reads them from `sys.argv`.
        command: the command to run.
        stop_seconds: seconds after a signal until the process is ended by force.
    """
    _stop_on_signals(stop_seconds)
    try:
        code = command.main(arguments, prog_name="dreamgrid", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except InvalidInput as error:
        _fail(error, 2)
    except Stopped as error:
        _fail(error, 3, f"Nothing is lost. Give {error.command} to resume the run.")
    except Unavailable as error:
        _fail(error, 3)
    except DreamgridError as error:
        _fail(error, 1)
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped", 3)
    sys.exit(code or 0)


def _stop_on_signals(seconds: float) -> None:
    """Stop the command at SIGTERM as at Ctrl-C, and end this process by force if that takes longer than `seconds`."""

    def stop(number: int, frame: FrameType | None) -> None:
        # A worker that is killed while it holds a lock never releases it, and this process may wait for that lock.
        timer = threading.Timer(seconds, os._exit, (3,))
        timer.daemon = True
        timer.start()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)


def _fail(message: object, code: int, remedy: str = "") -> NoReturn:
    """Print a message on standard error and exit."""
    print_message(message, "red")
    if remedy:
        screen.print(remedy, markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)
