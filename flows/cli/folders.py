"""`dreamgrid upload` and `download`: copy a folder of this machine to S3, or a prefix of S3 into a folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.filesize import decimal

from dreamcore.errors import Unavailable
from flows.cli.options import destination_folder, json_option
from flows.cli.signals import Stopped, resumable
from flows.cli.stack import create_embedded_bucket
from flows.machine.terminal import listing_progress, print_line, print_message, show_json, transfer_progress

if TYPE_CHECKING:
    from flows.folders.transfers import TransferReport

__all__ = ["download", "upload"]

MAX_PROBLEMS = 20
"""Problems that are printed. `--json` has all."""
MAX_KINDS = 12
"""Kinds of skipped files that are printed."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _pattern_options(command: _Command) -> _Command:
    """Add the options that choose names by patterns."""
    for flag, what in (("exclude", "Leave out names that match"), ("include", "Copy only names that match")):
        text = f"{what} this pattern, such as *.png or drafts/. May be given several times."
        command = click.option(f"--{flag}", multiple=True, metavar="PATTERN", help=text)(command)
    return command


@click.command()
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.argument("prefix", metavar="PREFIX")
@click.option("--all", "all_files", is_flag=True, help="Upload all files, not only pictures; also hidden files.")
@_pattern_options
@json_option
def upload(
    folder: Path, prefix: str, all_files: bool, include: tuple[str, ...], exclude: tuple[str, ...], as_json: bool
) -> int:
    """Upload the pictures in a folder to S3.

    FOLDER is a folder, which is searched with its subfolders, or one file. PREFIX is an S3 address, which then is the
    source of a job. A file becomes an object with its path in the folder as key.

    Only new files are sent. A file is in S3 if an object has its name, its size and its MD5. Every file is read for its
    MD5, and no object is read. An object with other content is replaced. Nothing is deleted. After a stop, give the
    same command again.

    Pictures are the files whose suffix Dreamgrid reads. Symbolic links out of the folder are never followed. Exits with
    1 if a file cannot be uploaded; the other files are uploaded. The bucket must exist, except in the embedded S3
    server.

    \b
    Examples:
      dreamgrid upload my-photographs s3://photos/mine/
      dreamgrid upload my-photographs s3://photos/mine/ --exclude drafts/
      dreamgrid upload weights s3://weights/ --all --include "*.safetensors"
    """
    from flows.folders.transfers import TransferReport, name_filter
    from flows.folders.upload import find_files, upload_files
    from flows.s3.storage import storage

    address, report = destination_folder(prefix), TransferReport()
    files = find_files(folder, name_filter(include, exclude), report, all_files=all_files)
    create_embedded_bucket(address)
    with _resumable("the upload"), listing_progress() as listed, transfer_progress("uploading") as show:
        upload_files(files, address, storage(), report, on_listed=listed, on_progress=show)
    return _show_report(report, "uploaded", as_json)


@click.command()
@click.argument("address", metavar="PREFIX")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@_pattern_options
@json_option
def download(address: str, folder: Path, include: tuple[str, ...], exclude: tuple[str, ...], as_json: bool) -> int:
    """Download everything below an S3 address into a folder.

    PREFIX is a prefix, such as the destination of a job, or the address of one object. Patterns are compared with the
    keys below PREFIX.

    Only new objects are read. A file is the same as an object if both have the same size, and the file has the time of
    the object or its MD5. A downloaded file gets the time of its object. A file with other content is replaced. Nothing
    is deleted. After a stop, give the same command again.

    Nothing is written outside FOLDER. Exits with 1 if an object cannot be a file, for example because its key contains
    "..", or because the file system has no such name; the others are downloaded.

    \b
    Examples:
      dreamgrid download s3://dreams/nightly/ dreams
      dreamgrid download s3://dreams/nightly/ dreams --include images/ --include sheets/
      dreamgrid download s3://dreams/nightly/manifest/ manifest
    """
    from flows.folders.download import download_objects, find_objects
    from flows.folders.transfers import TransferReport, name_filter
    from flows.s3.storage import storage

    destination_folder(address)
    report = TransferReport()
    with listing_progress() as listed:
        objects = find_objects(address, storage(), name_filter(include, exclude), report, listed)
    with _resumable("the download"), transfer_progress("downloading") as show:
        download_objects(objects, folder, storage(), report, show)
    return _show_report(report, "downloaded", as_json)


@contextmanager
def _resumable(what: str) -> Iterator[None]:
    """Raise `Stopped` for everything that stops `what`, which the same command resumes."""
    try:
        with resumable(what=what):
            yield
    except (KeyboardInterrupt, Unavailable) as error:
        raise Stopped(str(error) or "stopped", "the same command", what) from error


def _show_report(report: "TransferReport", done: str, as_json: bool) -> int:
    """Print a report, and return the exit code."""
    from flows.jobs.photographs import describe_ignored

    if as_json:
        show_json(report.to_json())
        return 1 if report.problems else 0
    for name, why in report.problems[:MAX_PROBLEMS]:
        print_message(f"{name}: {why}", "yellow")
    if len(report.problems) > MAX_PROBLEMS:
        print_message(f"and {len(report.problems) - MAX_PROBLEMS:,} more; --json lists all", "yellow")
    failed = f", {len(report.problems):,} failed" if report.problems else ""
    print_line(f"{report.copied:,} {done} ({decimal(report.bytes)}), {report.unchanged:,} unchanged{failed}.")
    if report.skipped:
        common = dict(report.skipped.most_common(MAX_KINDS))
        others = report.skipped.total() - sum(common.values())
        print_line(f"Skipped: {describe_ignored(common, ())}" + (f", {others:,} others" if others else ""))
    return 1 if report.problems else 0
