"""`dreamgrid run` and `demo`: run a job in this process."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from dreamcore.errors import ErrorKind, InvalidInput, Unavailable
from flows.cli.options import destination_folder, job_from_flags, job_options, json_option, memory_option
from flows.cli.signals import Stopped, resumable
from flows.cli.stack import STACK, create_embedded_bucket, start_stack
from flows.jobs.job import DreamJob, explain_validation
from flows.jobs.job_options import ExecutorOptions
from flows.machine.proxies import drop_socks_proxies, is_loopback
from flows.machine.terminal import one_line, print_line, print_message, run_progress, show_json
from flows.s3 import layout

if TYPE_CHECKING:
    from flows.destination.run_report import FailedRun, Report

__all__ = ["demo", "run"]

ALL = "all"


class _RetryFailedCommand(click.Command):
    """A command whose option `--retry-failed` may have an error kind after it. Any other word is the job file."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        given, words = [], iter([*args, ""])
        word = next(words)
        for following in words:
            if word == "--retry-failed":
                is_kind = following in get_args(ErrorKind)
                given.append(f"{word}={following if is_kind else ALL}")
                word = next(words, "") if is_kind else following
            else:
                given.append(word)
                word = following
        return super().parse_args(context, given)


@click.command()
@click.option("--cluster", is_flag=True, help="Dream on three Ray nodes of this machine, and kill one of them.")
def demo(cluster: bool) -> int:
    """Start the embedded servers and dream the example photographs.

    The command leaves the servers (S3 and Prefect) running. `dreamgrid down` stops them. Their data is in
    ./.dreamgrid/. The Ray nodes of --cluster need the extra dreamgrid[ray], and are stopped at the end.

    \b
    Examples:
      dreamgrid demo
      dreamgrid demo --cluster
    """
    from flows.local import demo as demonstration
    from flows.running.executors import check_executor

    if cluster:
        check_executor(ExecutorOptions(name="ray"))
    print_message("starting an S3 server and a Prefect server on this machine ...", "default")
    stack = start_stack()
    os.environ.update(stack.environment())
    job = demonstration.prepare()
    if cluster:
        return _demo_on_cluster(job)
    print_message(f"dreaming the photographs in {job.source_in_words}: this takes some minutes ...", "default")
    report, failure = _run_demo(job)
    sheets = demonstration.fetch_sheets(job, STACK / "demo")
    _print_report(report)
    print_line(f"Local copies     {sheets}/")
    print_line(f"Prefect UI       {stack.prefect_url}")
    for line in demonstration.next_steps(report.destination):
        print_line(line)
    return _exit_code(report, failure)


def _run_demo(job: DreamJob) -> "tuple[Report, FailedRun | None]":
    """Run the demo as `_run` does. Its destination may be held by a job that somebody started in the gallery."""
    from flows.destination.run_record import HeldDestination

    try:
        return _run(job)
    except HeldDestination as error:
        raise InvalidInput(
            f"another job may be working in {job.destination} now, such as one that was started in the gallery: let it "
            f"finish, then start the demo again. If that job was stopped, `dreamgrid run --resume {job.destination}` "
            f'continues it, in a shell with `eval "$(dreamgrid env)"`'
        ) from error


def _demo_on_cluster(job: DreamJob) -> int:
    """Run the demo on a Ray cluster that loses a node, and verify the destination."""
    from flows.local.demo import NODES, failing_cluster
    from flows.results.verify import verify
    from flows.s3.storage import storage

    print_message(f"Starting {NODES} Ray nodes on this machine ...", "default")
    with failing_cluster(job, lambda node: print_message(f"killed the Ray node {node}", "yellow")) as job_of_cluster:
        report, failure = _run(job_of_cluster)
    _print_report(report)
    found = verify(storage(), report.destination, lambda _verified, _all: None)
    problems = ", ".join(f"{count} {kind}" for kind, count in found.counts.items()) or "no problems"
    print_line(f"Verified         {found.rows} rows, {found.objects} objects: {problems}")
    return _exit_code(report, failure) or (1 if found.counts else 0)


@click.command(cls=_RetryFailedCommand)
@job_options
@click.option(
    "--workers", type=click.IntRange(1), help="Number of worker processes. The default is one per GPU, or one per core."
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Dream on the Ray cluster at HOST:PORT, for example 10.0.0.1:6379; auto is the cluster of this machine.",
)
@memory_option
@click.option(
    "--resume", metavar="DEST", help="Resume the unfinished run of this destination, instead of giving a job."
)
@click.option("--abandon", is_flag=True, help="Abandon the unfinished run of the destination, then start a new run.")
@click.option(
    "--retry-failed",
    multiple=True,
    type=click.Choice([ALL, *get_args(ErrorKind)]),
    metavar="[KIND]",
    help="Try the failed dreams of the destination again, and dream nothing new: all, or those of an error kind. "
    "May be given several times.",
)
@click.option(
    "--progress",
    "progress_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the progress as JSON into this file: finished and planned dreams, and the seconds left.",
)
@click.option("--strict", is_flag=True, help=DreamJob.model_fields["strict"].description)
@json_option
def run(
    job: Path | None,
    workers: int | None,
    ray: str | None,
    resume: str | None,
    abandon: bool,
    retry_failed: tuple[str, ...],
    progress_file: Path | None,
    strict: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """Run a job in this process, or resume its unfinished run.

    JOB is a YAML file. Flags override its fields, or describe the whole job; only `points` has no flag. Flags of
    settings may be given several times: every photograph is then dreamt under every combination of their values.
    --source may be given several times, too: the photographs of all these addresses are dreamt.

    \b
    Examples:
      dreamgrid run job.yaml
      dreamgrid run job.yaml --layers blocks.3 --layers blocks.4 --octaves 6
      dreamgrid run job.yaml --layers "blocks.4:0-63" --steps 4-8 --step-size 0.004-0.012/5
      dreamgrid run --source s3://photos/cat.jpg --destination s3://dreams/cat/
      dreamgrid run --resume s3://dreams/nightly/
      dreamgrid run job.yaml --retry-failed out_of_memory
      dreamgrid run job.yaml --ray 10.0.0.1:6379
    """
    if resume and (job or abandon or retry_failed):
        raise click.UsageError(
            "--resume takes the job from the unfinished run: leave out the job file, --abandon and --retry-failed"
        )
    if ray:
        flags["executor"] = {"name": "ray", "address": ray}
    if strict:
        flags["strict"] = True
    if retry_failed:
        flags["retry_failed"] = True if ALL in retry_failed else retry_failed
    the_job = job_from_flags(job, flags, _unfinished_job(resume) if resume else None)
    if workers:
        if the_job.executor.name != "processes":
            raise click.UsageError("--workers sets the processes of this machine: leave it out, Ray starts the workers")
        os.environ["DREAMGRID_WORKERS"] = str(workers)
    report, failure = _run(the_job, abandon=abandon, progress_file=progress_file)
    if as_json:
        show_json(report.model_dump(mode="json"))
    else:
        _print_report(report)
    return _exit_code(report, failure)


def _exit_code(report: "Report", failure: "FailedRun | None") -> int:
    """Print why a finished run counts as failed, if it does, and return the exit code."""
    if failure is None:
        return 0
    name = f"the run {report.run_id}" if report.run_id else "the run"  # without an id, it had nothing to do
    print_message(f"{name} failed: {failure}", "red")
    return 1


def _unfinished_job(destination: str) -> dict[str, Any]:
    from flows.destination import run_record
    from flows.s3 import storage

    return run_record.active_job(destination_folder(destination), storage.storage())


def _run(
    job: DreamJob, *, abandon: bool = False, progress_file: Path | None = None
) -> "tuple[Report, FailedRun | None]":
    """Run the flow in this process under a progress bar.

    Returns:
        The report, and the error if the run reached its end and counts as failed.

    Raises:
        InvalidInput: the job cannot run; nothing was started.
        Stopped: the run was stopped and can be resumed.
        DreamgridError: the run stopped because too many dreams failed, or another process abandoned the run.
    """
    from flows.destination import run_record, run_report
    from flows.machine import machine
    from flows.planning import scan
    from flows.running import executors, protocol
    from flows.s3 import storage

    machine.check_environment()
    executors.check_executor(job.executor)
    settings = scan.plan_settings(job)
    create_embedded_bucket(job.destination)
    scan.check_access(job)
    if not abandon:
        run_record.active_run_id(job, storage.storage())
    if warning := scan.store_warning(job.destination, replacing=bool(job.retry_failed)):
        print_message(warning, "yellow")
    os.environ.setdefault(
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL"
    )  # the command prints progress and errors
    # An automation takes a run without heartbeats for lost (deployments/automations/alerts.yaml).
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
    # Workers that are killed at Ctrl-C leave semaphores behind. They are cleaned up, so the warning is not needed.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    is_permanent = _connect_prefect()
    if abandon:
        protocol.abandon(job.destination, storage.storage())

    from flows.dream_collection import checked_settings, dream_collection
    from flows.prefect_ui.progress import ProgressFile, on_progress

    command = "the same command without --abandon" if abandon else "the same command"
    with run_progress() as display, _stopped_errors(command):
        shown = ProgressFile(progress_file, display, has_page=is_permanent) if progress_file else display
        progress_token, settings_token = on_progress.set(shown), checked_settings.set(settings)
        try:
            return dream_collection(job), None  # type: ignore[return-value]  # Prefect returns the data of the state
        except run_report.FailedRun as failure:
            return failure.report, failure
        finally:
            on_progress.reset(progress_token)
            checked_settings.reset(settings_token)


@contextmanager
def _stopped_errors(command: str) -> Iterator[None]:
    """Raise `Stopped` for everything that stops a run so that `command` can resume it."""
    import httpx  # Prefect's client raises its errors
    from prefect.exceptions import ObjectNotFound

    try:
        with resumable(command):
            yield
    except Unavailable as error:
        raise Stopped(str(error), command) from error
    except (httpx.HTTPError, ObjectNotFound) as error:
        message = f"the Prefect server failed ({_describe_prefect_error(error)}): check the server and PREFECT_API_URL"
        raise Stopped(message, command) from error
    except KeyboardInterrupt as error:
        raise Stopped("stopped", command) from error


def _connect_prefect() -> bool:
    """Check that the Prefect server of `PREFECT_API_URL` can be used. Without that setting, start a temporary server.

    Returns:
        Whether the server stays after this command.

    Raises:
        InvalidInput: the settings of Prefect are wrong, or the server does not start, does not respond, refuses access
            or has another version of Prefect.
    """
    import httpx

    from flows.local.temporary import provide_home, start_prefect

    provide_home()
    messages = io.StringIO()
    try:
        with redirect_stderr(messages):  # Prefect prints wrong settings, and then raises an error for them
            import prefect.main  # noqa: F401 - loads the settings
        from prefect.client.orchestration import get_client
        from prefect.context import refresh_global_settings_context
        from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE
    except (OSError, RuntimeError, ValueError) as error:  # Prefect reads its settings when it is imported
        raise InvalidInput(
            f"the settings of Prefect cannot be used ({_describe_settings_error(error)}): correct the PREFECT "
            "variables or the file profiles.toml in PREFECT_HOME"
        ) from error
    click.echo(messages.getvalue(), nl=False, err=True)
    address = PREFECT_API_URL.value()
    if not address:
        if not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
            raise InvalidInput("Prefect's settings name no server and allow no temporary one: set PREFECT_API_URL")
        drop_socks_proxies()
        os.environ["PREFECT_API_URL"] = start_prefect()
        refresh_global_settings_context()
        return False
    url: object = "PREFECT_API_URL"
    try:
        url = httpx.URL(address).copy_with(username=None, password=None)
        if is_loopback(url.host):
            drop_socks_proxies()
        with get_client(sync_client=True) as client:
            if failure := client.api_healthcheck():
                raise failure
            client.raise_for_api_version_mismatch_once()
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, OSError, RuntimeError, ValueError) as error:
        raise InvalidInput(
            f"no usable Prefect server at {url} ({_describe_prefect_error(error)}): start one there, or correct "
            "PREFECT_API_URL, for example to http://127.0.0.1:4200/api"
        ) from error
    return True


def _describe_settings_error(error: Exception) -> str:
    from pydantic import ValidationError

    return one_line(explain_validation(error) if isinstance(error, ValidationError) else str(error))


def _describe_prefect_error(error: Exception) -> str:
    """Describe an error without the address that httpx puts into its messages, which may contain a password."""
    import httpx
    from prefect.exceptions import ObjectNotFound

    cause = error.http_exc if isinstance(error, ObjectNotFound) else error
    if isinstance(cause, httpx.HTTPStatusError):
        return f"{cause.response.status_code} {cause.response.reason_phrase}"
    return one_line(str(cause))


def _print_report(report: "Report") -> None:
    from flows.destination import run_report
    from flows.jobs.photographs import describe_ignored

    for warning in report.warnings:
        print_message(warning, "yellow")
    if report.state == "nothing to do":
        print_line(f"Nothing to do: {report.why_nothing}.")
        if not report.photographs:
            return
    else:
        counts = f"{report.done} done, {report.failed} failed, {report.skipped} skipped"
        what = "failed dreams tried again" if report.retry_failed else "dreams planned"
        print_line(f"{report.planned} {what}: {counts}, in {report.seconds:.0f} s.")
    if report.not_retried and report.state == "completed":
        print_line(f"Not tried again  {report.not_retried} failed dreams {run_report.NOT_RETRIED}")
    if report.ignored_kinds:
        print_line(f"Ignored          {describe_ignored(report.ignored_kinds, report.other_destinations)}")
    if report.failures:
        print_line(f"Failures         {run_report.in_words(report.failures)}")
        print_line(f"                 dreamgrid manifest failures {report.destination}")
    print_line(f"Dreams           {layout.images_folder(report.destination)}")
    print_line(f"Manifest         {report.manifest}")
    if report.sheets:
        print_line(f"Contact sheets   {report.sheets}")
