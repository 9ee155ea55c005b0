"""`dreamgrid favourites`: download the dreams that are rated, as a zip or a share pack."""

from pathlib import Path

import click
from rich.filesize import decimal

from dreamcore.errors import InvalidInput
from flows.cli.options import destination_folder, json_option
from flows.machine.terminal import print_line, print_message, progress, show_json

__all__ = ["favourites"]


@click.command()
@click.argument("destination", metavar="DEST")
@click.argument("out", metavar="OUT.zip", type=click.Path(path_type=Path))
@click.option(
    "--marks-min",
    default=1,
    show_default=True,
    type=click.IntRange(1, 5),
    help="Only dreams with at least this mark.",
)
@click.option("--share", is_flag=True, help="Pack JPEGs of at most 1,600 pixels without metadata, and captions.")
@json_option
def favourites(destination: str, out: Path, marks_min: int, share: bool, as_json: bool) -> int:
    """Download the dreams that are rated 1 to 5 into a zip.

    The zip has the files as they are in S3. With --share, it has smaller JPEGs without metadata, and captions.csv. If a
    dream is missing in S3, the command names it and exits with 1.

    \b
    Examples:
      dreamgrid favourites s3://dreams/demo/ favourites.zip
      dreamgrid favourites s3://dreams/demo/ best.zip --marks-min 4 --share
    """
    from flows.gallery.share import ChosenDream, stream_share_pack, stream_zip
    from flows.gallery.share import favourites as find
    from flows.s3.storage import storage

    folder, missing = destination_folder(destination), list[ChosenDream]()
    chosen = find(folder, storage(), marks_min)
    if not chosen:
        raise InvalidInput(f"{folder} has no dream that is rated {marks_min} or better: rate some in the gallery first")
    stream = (stream_share_pack if share else stream_zip)(chosen, storage(), missing.append)
    unfinished = out.with_name(f"{out.name}.part")
    try:
        with progress("packing") as show_progress, unfinished.open("wb") as file:
            for number, piece in enumerate(stream):
                file.write(piece)
                show_progress(min(number, len(chosen)), len(chosen))
        unfinished.replace(out)
    except OSError as error:
        raise InvalidInput(f"{out} cannot be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    packed = len({dream.stem for dream in chosen}) - len(missing)
    if as_json:
        lost = [dream.result_uri for dream in missing]
        show_json({"file": str(out), "dreams": packed, "bytes": out.stat().st_size, "missing": lost})
    else:
        print_line(f"{out}: {packed} dreams, {decimal(out.stat().st_size)}")
    for dream in missing:
        print_message(f"{dream.result_uri} is missing or cannot be read", "yellow")
    return 1 if missing else 0
