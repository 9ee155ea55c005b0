"""`dreamgrid enlarge`: the same composition with more pixels."""

from dataclasses import asdict
from pathlib import Path

import click

from dreamcore.fields import Enlarge
from flows.cli.image import dreaming
from flows.cli.options import destination_folder, json_option, memory_option
from flows.machine.terminal import print_line, print_message, show_json

__all__ = ["enlarge"]

FILE = click.Path(path_type=Path)
STRENGTH = Enlarge.model_fields["strength"].default


@click.command()
@click.argument("names", metavar="{RESULT OUT | DEST ID OUT}", nargs=-1, required=True)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=12_000_000,
    show_default=True,
    help="Number of pixels of the enlarged dream. A smaller photograph is resampled.",
)
@click.option(
    "--strength",
    type=click.FloatRange(0, 2),
    default=STRENGTH,
    show_default=True,
    help="Factor of the step size for the new details: 0 adds none, 1 takes steps as large as those of the dream.",
)
@click.option("--source", type=FILE, help="The photograph, if it is no longer in S3; or noise:WIDTHxHEIGHT.")
@click.option("--guide", type=FILE, help="The guide, if it is not in S3.")
@click.option("--mask", type=FILE, help="The mask, if it is not in S3.")
@click.option("--weights", type=FILE, help="The custom weights of the network, if they are not in S3.")
@memory_option
@json_option
def enlarge(
    names: tuple[str, ...], max_pixels: int, strength: float, source: Path | None, as_json: bool, **files: Path | None
) -> None:
    """Enlarge one dream, and keep its composition.

    RESULT is the dream: a file or an S3 address. For a dream of a run, you may give its destination DEST and its ID
    instead, as for `redream`. OUT ends in .png, .webp or .jpg. The photograph is read from S3. For a dream of
    `dreamgrid image`, give it with --source.

    The detail of the dream is resized and added to the large photograph. Then only the octaves larger than the dream
    are dreamt. All cores work; an image of 12 megapixels takes minutes. After a stop, the same command starts again.

    \b
    Examples:
      dreamgrid enlarge s3://dreams/nightly/ 0123456789abcdef print.png
      dreamgrid enlarge s3://dreams/nightly/ 0123456789abcdef poster.jpg --max-pixels 24000000 --strength 0.7
      dreamgrid enlarge dream.png print.png --source cat.jpg
    """
    if len(names) not in (2, 3):
        raise click.UsageError("give RESULT and OUT, or DEST, ID and OUT")
    given = {name: path for name, path in files.items() if path}
    with dreaming("Reading the dream and loading the network ...") as show_progress:
        from flows.results.enlarge import Order
        from flows.results.enlarge import enlarge as make

        dream, result = _dream_and_output(names)
        found = make(Order(dream, result, max_pixels, strength, source, given), show_progress)
    for difference in found.differences:
        print_message(difference, "yellow")
    if as_json:
        show_json(asdict(found))
        return
    print_line(
        f"{found.result}: {found.width} x {found.height} pixels, from {found.dream_width} x {found.dream_height}"
    )
    print_line(f"score: {found.octave_scores[0]:.2f} in the dream, {found.octave_scores[-1]:.2f} enlarged")


def _dream_and_output(names: tuple[str, ...]) -> tuple[str, Path]:
    """Return the dream and the output file that the arguments name.

    Raises:
        InvalidInput: the destination has no such dream.
    """
    if len(names) == 2:
        return names[0], Path(names[1])
    from flows.results.redream import find_dream

    return find_dream(destination_folder(names[0]), names[1]), Path(names[2])
