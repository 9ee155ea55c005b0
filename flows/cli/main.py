"""The `dreamgrid` command: the group of all commands, exit codes and error messages.

Results go to standard output, everything else goes to standard error. Exit codes:

    0  success
    1  the run or the image failed
    2  the job, a setting, a file or the access is wrong, and nothing was started
    3  the command was stopped, by a signal or by an infrastructure failure; a run can be resumed

Each command imports what it needs when it runs, so that help appears without delay.
"""

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from dreamcore.errors import DreamgridError, InvalidInput, Unavailable
from flows.cli.atlas import atlas
from flows.cli.enlarge import enlarge
from flows.cli.favourites import favourites
from flows.cli.folders import download, upload
from flows.cli.gallery import gallery
from flows.cli.image import image, redream
from flows.cli.manifest import manifest
from flows.cli.networks import layers, models
from flows.cli.plan import plan
from flows.cli.prune import prune
from flows.cli.run import demo, run
from flows.cli.sheet import sheet
from flows.cli.signals import Stopped, stop_on_signals
from flows.cli.stack import down, env, status, up
from flows.cli.video import video
from flows.cli.zoom import zoom
from flows.machine.machine import limit_threads
from flows.machine.proxies import exempt_loopback
from flows.machine.terminal import one_line, print_message, print_remedy

__all__ = ["STOP_SECONDS", "cli", "main"]

STOP_SECONDS = 20.0
"""A stopped command that has not ended after this time is ended by force. It usually takes two or three seconds."""
_ROOT = Path(__file__).parents[2]


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


for _command in (
    *(demo, run, plan, image, zoom, video, redream, enlarge, models, layers, atlas),
    *(gallery, upload, download, manifest, prune, favourites, sheet, up, down, status, env),
):
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
    if arguments is None:
        _repair_streams()
        arguments = _decoded_arguments()
    stop_on_signals(stop_seconds)
    os.environ.update(exempt_loopback())
    limit_threads()
    try:
        code = command.main(arguments, prog_name="dreamgrid", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except InvalidInput as error:
        _fail(error, 2)
    except Stopped as error:
        _fail(error, 3, error.remedy)
    except Unavailable as error:
        _fail(error, 3)
    except DreamgridError as error:
        _fail(error, 1)
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped", 3)
    except Exception as error:
        _fail(_describe_unexpected(error), 3)
    sys.exit(code or 0)


class _Output(io.FileIO):
    """A standard stream that drops its text if nobody can read it: after `| head`, or if the terminal is closed.

    Any other failure is raised once. Later text is dropped, because Python would write the rest again when it exits.
    """

    failed = False

    def write(self, data: Any) -> int:
        """Write bytes, and return how many were taken."""
        if self.failed:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.failed = True
            if error.errno in (errno.EPIPE, errno.EIO):
                return len(data)
            raise


def _repair_streams() -> None:
    """Let standard output and error accept every character, and drop text that nobody reads any more.

    A character that the encoding of the locale does not have is written as an escape.
    """
    for descriptor in range(3):  # a file that is opened later must not become a standard stream
        with suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = map(_open_output, (sys.stdout, sys.stderr), (1, 2))


def _open_output(stream: Any, descriptor: int) -> io.TextIOWrapper:
    """Return a replacement of a standard stream, which is None if its descriptor was closed."""
    encoding = stream.encoding if stream else "utf-8"
    buffer = io.BufferedWriter(_Output(descriptor, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True)


def _decoded_arguments() -> list[str]:
    """Return the arguments of the command. Addresses in S3 are UTF-8, whatever the locale; names of files are not."""
    return [
        os.fsencode(argument).decode("utf-8", "surrogateescape") if "s3://" in argument else argument
        for argument in sys.argv[1:]
    ]


def _describe_unexpected(error: Exception) -> str:
    """Return an error that no command expects as one line, with the line of this project that it comes from."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else f"input or output failed: {error.strerror}"
    places = [
        f"{Path(frame.filename).relative_to(_ROOT)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if any(Path(frame.filename).is_relative_to(_ROOT / package) for package in ("flows", "dreamcore"))
    ]
    return f"unexpected error at {places[-1]}: {one_line(f'{type(error).__name__}: {error}')}"


def _fail(message: object, code: int, remedy: str = "") -> NoReturn:
    """Print a message on standard error and exit."""
    print_message(message, "red")
    if remedy:
        print_remedy(remedy)
    sys.exit(code)
