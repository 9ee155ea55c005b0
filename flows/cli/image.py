"""`dreamgrid image` and `redream`: dream one image from file to file, or reproduce one dream."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.fields import FileReference, Output, format_of
from dreamcore.settings import DreamSettings
from flows.cli.options import (
    destination_folder,
    field_options,
    json_option,
    memory_option,
    metavar_of,
    one_name_option,
    refuse_ranges,
    take_one,
)
from flows.jobs.job import DreamJob, explain_validation
from flows.machine.terminal import print_line, print_message, progress, show_json

if TYPE_CHECKING:
    from dreamcore.batch import Dream, OnStep

__all__ = ["dreaming", "image", "redream"]

FILE = click.Path(path_type=Path)
_NUMBERED = re.compile(r".#\d+$")
"""The end of the name of a dream such as `cat.jpg#37`."""


@click.command()
@click.argument("source", metavar="IN", type=FILE)
@click.argument("result", metavar="OUT", type=FILE)
@one_name_option("preset")
@one_name_option("look")
@field_options(DreamSettings, "output", "enlarge", "movie", reference="PATH")
@click.option(
    "--quality",
    multiple=True,
    callback=take_one,
    metavar=metavar_of(Output.model_fields["quality"]),
    help=f"Quality of a .jpg or .webp file.  [default: {Output.model_fields['quality'].default}]",
)
@click.option(
    "--labels",
    multiple=True,
    callback=take_one,
    metavar="PATH",
    help=DreamJob.model_fields["labels"].description,
)
@click.option("--stage-scores", is_flag=True, help=DreamJob.model_fields["stage_scores"].description)
@click.option(
    "--samples",
    type=click.IntRange(1, 64),
    default=1,
    metavar="[1..64]",
    help="Number of dreams, with one seed after the other. Several are written to NAME-1.png, NAME-2.png and so on.",
)
@click.option(
    "--diversity",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="FLOAT",
    help="Weight of a penalty on the similarity of the samples at the layers, so that they show different motifs.",
)
@memory_option
def image(
    source: Path,
    result: Path,
    quality: str | None,
    labels: str | None,
    stage_scores: bool,
    samples: int,
    diversity: float,
    **flags: Any,
) -> None:
    """Dream one image, without S3 or Prefect.

    IN is an image file, or noise:WIDTHxHEIGHT to begin with noise, which depends on the seed.
    OUT ends in .png, .webp or .jpg. Guide, mask, weights and labels may be files or S3 addresses.

    \b
    Examples:
      dreamgrid image cat.jpg dream.png
      dreamgrid image cat.jpg dream.jpg --layers blocks.3=0.3+blocks.4 --steps 15
      dreamgrid image cat.jpg dream.png --layers "blocks.4:(top16)"
      dreamgrid image cat.jpg dream.png --look creatures
      dreamgrid image cat.jpg dream.png --preset google2015
      dreamgrid image cat.jpg dream.png --guide flowers.jpg --mask sky.png
      dreamgrid image noise:640x480 dream.png --seed 7
      dreamgrid image noise:128x128 dream.png --preset lucid --layers blocks.4:12 --samples 4 --diversity 100
    """
    from pydantic import TypeAdapter, ValidationError

    output = {"format": format_of(result.suffix), **({"quality": quality} if quality else {})}
    given = {name: value for name, value in flags.items() if value is not None}
    refuse_ranges(given)
    try:
        settings = DreamSettings.model_validate({**given, "output": output})
        names = TypeAdapter(FileReference | None).validate_python(labels)
    except ValidationError as error:
        raise InvalidInput(explain_validation(error)) from error
    if diversity and samples == 1:
        raise InvalidInput("--diversity compares several dreams: give --samples, for example --samples 4")
    with dreaming("Loading the network ...") as show_progress:
        from flows.pictures.single import Samples, dream_file

        drawn = Samples(samples, diversity)
        dreams = dream_file(source, result, settings, show_progress, stages=stage_scores, labels=names, samples=drawn)
    for file, dream in dreams.items():
        _print_dream(file, dream)


@contextmanager
def dreaming(at_first: str) -> Iterator["OnStep"]:
    """Show the progress of one dream on standard error.

    Args:
        at_first: what a terminal shows until the first step.

    Raises:
        Unavailable: a signal stopped the command.
    """
    try:
        with progress("dreaming", at_first) as show_progress:
            yield show_progress
    except KeyboardInterrupt as error:
        raise Unavailable("stopped: the same command starts again from the beginning") from error


def _print_dream(result: Path, dream: "Dream") -> None:
    measured = dream.measurements
    print_line(f"{result}: score {measured.score_before:.2f} to {measured.score_after:.2f}")
    for when, observation in (("before", dream.before), ("after", dream.after)):
        classes = ", ".join(f"{label} {p:.0%}" for label, p in observation.classes[:3])
        print_line(f"top classes {when}: {classes}")
    for stage in measured.stage_scores or ():
        print_line(f"{stage.layer}: {stage.before:.2f} to {stage.after:.2f}")


@click.command()
@click.argument("names", metavar="{RESULT OUT | DEST ID [OUT]}", nargs=-1, required=True)
@click.option("--source", type=FILE, help="The photograph, if it is no longer in S3; or noise:WIDTHxHEIGHT.")
@click.option("--guide", type=FILE, help="The guide, if it is not in S3.")
@click.option("--mask", type=FILE, help="The mask, if it is not in S3.")
@click.option("--weights", type=FILE, help="The custom weights of the network, if they are not in S3.")
@click.option("--enlarge", type=FILE, help="The dream that RESULT enlarges, if it is not in S3.")
@memory_option
@json_option
def redream(names: tuple[str, ...], source: Path | None, as_json: bool, **files: Path | None) -> None:
    """Reproduce one dream from the settings inside its file.

    RESULT is the dream: a file or an S3 address. OUT is the new file and ends in .png, .webp or .jpg. The command
    prints how similar both are. PSNR compares their pixels; in --json it is null if the pixels are equal. The
    photograph is read from S3. For a dream of `dreamgrid image`, give it with --source.

    For a dream of a run, you may give its destination DEST and its ID instead. The ID is the column result_id of the
    manifest, and is also at the end of the file name. You may shorten it to its first digits: at least four, and enough
    to identify one dream. The contact sheet shows the first digits. ID may also be the photograph with the number of
    the dream on its contact sheet, such as cat.jpg#37.
    Without OUT, the new file has the name of the dream and is written to the current folder.

    \b
    Examples:
      dreamgrid redream s3://dreams/nightly/ 0123456789abcdef
      dreamgrid redream s3://dreams/nightly/ cat.jpg#37
      dreamgrid redream s3://dreams/nightly/ 0123456789abcdef again.png
      dreamgrid redream s3://dreams/nightly/images/cat.jpg/blocks.4-6x10-0123456789abcdef.png again.png
      dreamgrid redream dream.png again.png --source cat.jpg
    """
    if len(names) not in (2, 3):
        raise click.UsageError("give RESULT and OUT, or DEST, ID and optionally OUT")
    with dreaming("Reading the dream and loading the network ...") as show_progress:
        from flows.results.redream import redream as reproduce

        dream, result = _dream_and_output(names)
        found = reproduce(dream, result, source, show_progress, {name: path for name, path in files.items() if path})
    for difference in found.differences:
        print_message(difference, "yellow")
    if as_json:
        show_json(found.to_json())
        return
    close = "the same pixels as" if found.equal else f"PSNR {found.psnr_db:.1f} dB against"
    print_line(f"{found.result}: {close} {dream}")
    print_line(f"score after: {found.score_after_then:.4f} in the dream, {found.score_after_now:.4f} now")
    print_line(f"{'the same' if found.same_settings else 'other'} settings: {found.settings_id}")


def _dream_and_output(names: tuple[str, ...]) -> tuple[str, Path]:
    """Return the dream and the output file that the arguments of `redream` name.

    Raises:
        InvalidInput: the destination has no such dream, or the file that would be written by default exists.
    """
    if len(names) == 2 and Path(names[1]).suffix and not _NUMBERED.search(names[1]):
        return names[0], Path(names[1])
    from flows.results.redream import find_dream

    dream = find_dream(destination_folder(names[0]), names[1])
    if len(names) == 3:
        return dream, Path(names[2])
    result = Path(dream.rpartition("/")[2])
    if result.exists():
        raise InvalidInput(f"{result} exists in this folder: name another output file after the id")
    return dream, result
