"""`dreamgrid`, the command. Results go to standard output, everything else to standard error.

Exit codes: 0 it worked; 1 the run or the picture failed; 2 bad job, settings or access, and nothing was started;
3 stopped, or the world is in trouble: a run goes on where it was.

What a command needs is imported when it runs: help is instant.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
from rich.table import Table

from dreamcore.errors import DreamgridError, InvalidInput, Unavailable
from dreamcore.presets import PRESET, PresetName
from dreamcore.settings import DreamSettings, format_of
from flows.cli.manifest import manifest
from flows.cli.networks import layers, models
from flows.cli.options import (
    as_json,
    destination_folder,
    job_of,
    job_options,
    memory_option,
    metavar_of,
    options_of,
    take_one,
)
from flows.cli.sheet import sheet
from flows.cli.stack import STACK, down, env, start_stack, status, up
from flows.job import DreamJob, explain_validation
from flows.terminal import console, one_line, print_line, print_message, progress, screen, show_json

STOP_SECONDS = 20.0
"""In which a command that is stopped ends by itself; it takes two or three."""


def main() -> NoReturn:
    """Run the command line; every expected error is one message and an exit code."""
    signal.signal(signal.SIGTERM, _stop)  # whoever stops a machine or a unit means Ctrl-C
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    try:
        code = cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except InvalidInput as error:
        fail(error, 2)
    except Stopped as error:
        fail(error, 3, f"Nothing is lost: {error.again} goes on where this one stopped.")
    except Unavailable as error:
        fail(error, 3)
    except DreamgridError as error:
        fail(error, 1)
    except (click.Abort, KeyboardInterrupt):
        fail("stopped", 3)
    sys.exit(code or 0)


def _stop(number: int, frame: FrameType | None) -> None:
    """Stop what goes on, and this process, if that does not come to an end.

    A worker that is killed while it tells something holds a lock for ever that this process waits for as it ends.
    """
    last = threading.Timer(STOP_SECONDS, os._exit, (3,))
    last.daemon = True
    last.start()
    signal.default_int_handler(number, frame)


class Stopped(Unavailable):
    """A run was stopped, by somebody or by the world's trouble; what it did is kept, and `again` goes on with it."""

    def __init__(self, message: str, again: str) -> None:
        super().__init__(message)
        self.again = again


def fail(message: object, code: int, remedy: str = "") -> NoReturn:
    """Say what is wrong on standard error and end."""
    print_message(message, "red")
    if remedy:
        screen.print(remedy, markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="dreamgrid")
def cli() -> None:
    """Dream image collections: DeepDream over S3 prefixes and grids of settings, run by Prefect.

    \b
    dreamgrid demo                                          see it work, on this machine alone
    dreamgrid image cat.jpg dream.png --layers blocks.4     one picture, without S3 or Prefect
    dreamgrid plan examples/job.yaml                        what a run would do
    dreamgrid run examples/job.yaml --octaves 4 --octaves 6
    """


@cli.command()
def demo() -> None:
    """Dream the photographs of examples/photos on the embedded stack, which is left running."""
    from flows.local import demo as demonstration

    stack = start_stack()
    os.environ.update(stack.environment())
    job = demonstration.prepare()
    report = _run(job)
    sheets = demonstration.fetch_sheets(job, STACK / "demo")
    _tell_report(report)
    print_line(f"Copies of them   {sheets}/")
    print_line(f"Prefect page     {stack.prefect_url}")
    print_line('To look around with any S3 client:  eval "$(dreamgrid env)"')


@cli.command()
@job_options
@click.option("--workers", type=click.IntRange(1), help="Processes that dream; one a GPU or one a core by itself.")
@memory_option
@click.option("--resume", metavar="DEST", help="Instead of a job: go on with the unfinished run of a destination.")
@click.option("--abandon", is_flag=True, help="First give up the unfinished run of this destination.")
@click.option("--strict", is_flag=True, help="Exit with 1 when a photograph failed, also earlier, or there is none.")
@as_json
def run(
    job: Path | None,
    workers: int | None,
    resume: str | None,
    abandon: bool,
    strict: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """Run a job here and now; any field of the job file but `points` can be given or overridden by a flag.

    The settings' flags may be given several times: each photograph is dreamt under every combination.

    \b
    dreamgrid run job.yaml
    dreamgrid run job.yaml --layers blocks.3 --layers blocks.3=0.3+blocks.4 --octaves 6
    dreamgrid run --source s3://photos/cat.jpg --destination s3://dreams/cat/ --steps 5 --steps 10 --steps 20
    dreamgrid run --resume s3://dreams/nightly/
    """
    if resume and (job or abandon):
        raise click.UsageError("--resume goes on with the job that was begun: give neither a job file nor --abandon")
    the_job = job_of(job, flags, _begun_job(resume) if resume else None)
    if workers:
        os.environ["DREAMGRID_WORKERS"] = str(workers)
    report = _run(the_job, abandon=abandon)
    if as_json:
        show_json(report.model_dump(mode="json"))
    else:
        _tell_report(report)
    return 1 if strict and (report.failed or report.failed_earlier or not report.photographs) else 0


def _begun_job(destination: str) -> dict[str, Any]:
    from flows import run_record, storage

    return run_record.active_job(destination_folder(destination), storage.storage())


def _run(job: DreamJob, *, abandon: bool = False) -> Any:
    """Run the flow in this process under a progress bar; what is wrong with the job is found before Prefect starts."""
    from flows import machine, protocol, run_record, scan, storage

    machine.check_environment()
    settings = scan.plan_settings(job)
    scan.check_access(job)
    if warning := scan.store_warning(job.destination):
        print_message(warning, "yellow")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the bar and `main` say it
    # Workers killed at Ctrl-C leave semaphores, which are cleaned up: nothing to warn anybody of.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    _check_prefect()
    if abandon:
        protocol.abandon(job.destination, storage.storage())
    run_record.active_run_id(job, storage.storage())
    import httpx  # which Prefect speaks to its server with
    from prefect.exceptions import ObjectNotFound

    from flows.dream_collection import checked_settings, dream_collection, on_progress

    again = "the same command without --abandon" if abandon else "the same command"
    with progress("dreaming") as watch:
        progress_token, settings_token = on_progress.set(watch), checked_settings.set(settings)
        try:
            return dream_collection(job)
        except Unavailable as error:
            raise Stopped(str(error), again) from error
        except (httpx.HTTPError, ObjectNotFound) as error:
            wrong = f"Prefect's server does not answer as it should ({_wrong_with_prefect(error)}); see PREFECT_API_URL"
            raise Stopped(wrong, again) from error
        except KeyboardInterrupt as error:
            raise Stopped("stopped", again) from error
        finally:
            on_progress.reset(progress_token)
            checked_settings.reset(settings_token)


def _check_prefect() -> None:
    """See whether the Prefect server that is named can be worked with; where none is, Prefect starts its own.

    Raises:
        InvalidInput: nothing answers there, or no Prefect server of this version that lets us in.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    if not (named := PREFECT_API_URL.value()):
        return
    try:
        with get_client(sync_client=True) as client:
            if trouble := client.api_healthcheck():
                raise trouble
            client.raise_for_api_version_mismatch_once()
    except (httpx.HTTPError, RuntimeError) as error:
        url = httpx.URL(named).copy_with(username=None, password=None)
        raise InvalidInput(
            f"there is no Prefect server to work with at {url} ({_wrong_with_prefect(error)}): start it, or correct "
            "PREFECT_API_URL, such as http://127.0.0.1:4200/api"
        ) from error


def _wrong_with_prefect(error: Exception) -> str:
    """What went wrong, without the address that httpx tells of a bad answer: it may have a password in it."""
    import httpx
    from prefect.exceptions import ObjectNotFound

    cause = error.http_exc if isinstance(error, ObjectNotFound) else error
    if isinstance(cause, httpx.HTTPStatusError):
        return f"{cause.response.status_code} {cause.response.reason_phrase}"
    return one_line(str(cause))


def _tell_report(report: Any) -> None:
    if report.state == "nothing to do":
        print_line(f"Nothing to do: {report.why_nothing}.")
        if not report.photographs:
            return
    else:
        counts = f"{report.done} done, {report.failed} failed, {report.skipped} skipped"
        print_line(f"{report.planned} dreams planned: {counts}, in {report.seconds:.0f} s.")
    if report.failed or report.skipped:
        print_line(f"Which, and why   dreamgrid manifest failures {report.destination}")
    print_line(f"AscentResult           {report.destination}images/")
    print_line(f"Manifest         {report.manifest}")
    if report.sheets:
        print_line(f"Contact sheets   {report.sheets}")


@cli.command()
@job_options
@as_json
def plan(job: Path | None, as_json: bool, **flags: Any) -> None:
    """Tell what a run would do and cost: photographs, settings, shards, time. Touches nothing.

    A run that is unfinished is gone on with: what is planned is what it has left.

    \b
    dreamgrid plan job.yaml
    dreamgrid plan job.yaml --octaves 4 --octaves 6 --json
    """
    from flows.machine import check_environment
    from flows.scan import estimate

    check_environment()
    found = estimate(job_of(job, flags))
    if as_json:
        show_json(found)
        return
    table = Table(show_header=False, box=None)
    refusal = found.pop("refused")
    for name, value in found.items():
        if value is not None:
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, (int, float)) else str(value))
    console.print(table)
    if refusal:
        print_message(f"as things are, a run would be refused: {refusal}", "yellow")


@cli.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("result", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--preset", multiple=True, callback=take_one, metavar=metavar_of(PresetName), help=PRESET)
@options_of(DreamSettings, "output")
@click.option("--quality", multiple=True, callback=take_one, help="Of a .jpg or .webp, 1 to 100.")
@click.option("--stage-scores", is_flag=True, help=DreamJob.model_fields["stage_scores"].description)
@memory_option
def image(source: Path, result: Path, quality: str | None, stage_scores: bool, **flags: Any) -> None:
    """Dream one picture, without S3 or Prefect. OUT ends in .png, .webp or .jpg.

    Guide, mask and weights may be files here.

    \b
    dreamgrid image cat.jpg dream.png
    dreamgrid image cat.jpg dream.jpg --layers blocks.3=0.3+blocks.4 --steps 15
    dreamgrid image cat.jpg dream.png --preset google2015
    dreamgrid image cat.jpg dream.png --guide flowers.jpg --mask sky.png
    """
    from pydantic import ValidationError

    output = {"format": format_of(result.suffix), **({"quality": quality} if quality else {})}
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        settings = DreamSettings.model_validate({**given, "output": output})
    except ValidationError as error:
        raise InvalidInput(explain_validation(error)) from error
    from flows.single import dream_file

    with progress("dreaming") as watch:
        dreamt = dream_file(source, result, settings, watch, stages=stage_scores)
    measured = dreamt.measurements
    print_line(f"{result}: score {measured.score_before:.2f} to {measured.score_after:.2f}")
    for word, observation in (("before", dreamt.before), ("after", dreamt.after)):
        seen = ", ".join(f"{label} {p:.0%}" for label, p in observation.classes[:3])
        print_line(f"the network saw {word}: {seen}")
    for stage in measured.stage_scores or ():
        print_line(f"{stage.layer}: {stage.before:.2f} to {stage.after:.2f}")


@cli.command()
@click.argument("dream", metavar="RESULT")
@click.argument("result", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--source", type=click.Path(path_type=Path), help="The photograph, where it is not in S3 any more.")
@click.option("--guide", type=click.Path(path_type=Path), help="The guide, where it is not in S3.")
@click.option("--mask", type=click.Path(path_type=Path), help="The mask, where it is not in S3.")
@click.option("--weights", type=click.Path(path_type=Path), help="The network's own weights, where they are not in S3.")
@memory_option
@as_json
def redream(dream: str, result: Path, source: Path | None, as_json: bool, **files: Path | None) -> None:
    """Dream one picture anew, alone, from the settings inside RESULT, and tell how close it comes.

    RESULT is a dream, as a file or s3://...; OUT ends in .png, .webp or .jpg. A run's dream names its photograph in
    S3, which is read from there; a dream of `dreamgrid image` needs --source. PSNR is between the pixels of both
    files: null in --json when they are equal.

    \b
    dreamgrid redream s3://dreams/nightly/images/cat.jpg/blocks.4-6x10-0123456789abcdef.png again.png
    dreamgrid redream dream.png again.png --source cat.jpg
    """
    from flows.redream import redream as dream_anew

    with progress("dreaming") as watch:
        found = dream_anew(dream, result, source, watch, {name: path for name, path in files.items() if path})
    for difference in found.differences:
        print_message(difference, "yellow")
    if as_json:
        show_json(found.to_json())
        return
    close = "the same pixels as" if found.equal else f"PSNR {found.psnr_db:.1f} dB against"
    scores = f"score after {found.score_after_then:.4f} then, {found.score_after_now:.4f} now"
    same = "the same settings" if found.same_settings else "other settings"
    for line in (f"{found.result}: {close} {dream}", scores, f"{same}: {found.settings_id}"):
        print_line(line)


for command in (models, layers, manifest, sheet, up, down, status, env):
    cli.add_command(command)
