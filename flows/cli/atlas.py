"""`dreamgrid atlas`: draw what the channels of a network's layers react to."""

from dataclasses import asdict
from pathlib import Path

import click

from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.settings import DreamSettings
from flows.cli.options import json_option, memory_option, take_one
from flows.cli.signals import Stopped, resumable
from flows.machine.terminal import print_line, run_progress, show_json

__all__ = ["atlas"]


@click.command()
@click.argument("model", default="efficientnet_lite0")
@click.argument("layer", required=False)
@click.option(
    "--out",
    metavar="FOLDER",
    default="atlas",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The folder of the atlas. It is created if it does not exist.",
)
@click.option(
    "--weights",
    multiple=True,
    callback=take_one,
    metavar="PATH",
    help=DreamSettings.model_fields["weights"].description,
)
@memory_option
@json_option
def atlas(model: str, layer: str | None, out: Path, weights: str | None, as_json: bool) -> None:
    """Draw what each channel of a layer reacts to, from noise.

    Without LAYER, the main layers of the network are drawn. LAYER is a layer of `dreamgrid layers`, a depth such as
    65%, channels such as blocks.4:0-31, or logits for the classes.

    The folder gets a picture for each channel, a contact sheet for each layer, and a page to open in a browser. A
    command that was stopped goes on with the missing pictures when it is given again. Pictures that were drawn with
    other settings or weights are drawn anew.

    \b
    Examples:
      dreamgrid atlas
      dreamgrid atlas efficientnet_lite0 blocks.4
      dreamgrid atlas googlenet 65% --out atlas
      dreamgrid atlas efficientnet_lite0 logits:1,285
      dreamgrid atlas resnet50 layer3:0-63 --weights places.pth#sha256=DIGEST
    """
    if str(out).startswith(("s3:/", "s3a:/")):
        raise InvalidInput(f"--out {out} is an S3 address: name a folder of this machine")
    from flows.machine.pace import Pace, Snapshot
    from flows.pictures.atlas import draw_atlas
    from flows.pictures.atlas_pictures import plan_atlas

    layers, pace = plan_atlas(model, layer, out, weights), Pace()
    last: Snapshot | None = None
    with run_progress() as display:

        def show(finished: int, planned: int) -> None:
            nonlocal last
            last = pace.update(finished, planned)
            display.show(last)

        try:
            with resumable(what="the atlas"):
                page, reports = draw_atlas(layers, show)
        except (KeyboardInterrupt, Unavailable) as error:
            reason = str(error) if isinstance(error, Unavailable) else "stopped"
            counts = f" after {last.finished} of {last.planned} pictures" if last else ""
            raise Stopped(reason + counts, "the same command", "the atlas") from error
    if as_json:
        show_json({"model": model, "page": str(page), "layers": [asdict(report) for report in reports]})
        return
    for report in reports:
        existing = report.channels - report.drawn
        print_line(f"{report.layer}: {report.drawn} pictures drawn, {existing} existed: {report.sheets[0]}")
    print_line(f"Page    {page}")
