"""The page that makes a job of chosen dreams. It shows the job, its cost and its progress.

The cost comes after the page, because it lists the photographs and may measure the speed of this machine. A job starts
only as it was shown: the address of the start names the job's identity.
"""

import threading
from typing import Any, NamedTuple
from urllib.parse import urlencode

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import HTMLResponse

from dreamcore.errors import DreamgridError, InvalidInput
from flows.destination import run_record
from flows.gallery.address import Params
from flows.gallery.at_work import Work, own_run, work_of
from flows.gallery.composer import FORMATS, KINDS, Choice, choice_of, compose
from flows.gallery.context import params_of, place_of, render, unfinished_run
from flows.gallery.job_runs import JobOutcome, JobProgress, JobRun, last_run, start
from flows.gallery.jobs import HALF_STEPS, job_yaml, preview
from flows.gallery.records import DreamRow
from flows.gallery.site import Place
from flows.jobs.job import DreamJob

__all__ = ["cost", "job", "job_now", "start_job", "stop_job"]

_MAX_TILES = 60
_ENDED = "dreamgrid:job-ended"
"""The event in the page when a run has ended."""
_estimating = threading.Lock()
"""Held during an estimate, which may measure the speed of this machine: only one may run at a time."""


class RunView(NamedTuple):
    """The run that a gallery started last, as a page shows it."""

    outcome: JobOutcome
    progress: JobProgress
    prefect: str
    """The address of its page in the Prefect UI; empty if there is none."""
    photograph: str
    """The address of its only photograph; empty if it has several."""
    enlarged: str = ""
    """The `result_id` of the enlarged dream, if the run has completed and the job enlarges one dream."""


def job(request: Request) -> HTMLResponse:
    """Show the chosen dreams, the form and the job."""
    place, params = place_of(request), params_of(request)
    place.refresh()
    choice = choice_of(place, params)
    made, problem = _composed(place, choice)
    run = None if request.app.state.access.read_only else last_run(place.destination, place.storage)
    kept = {"kind": choice.kind} | {name: params.get(name) for name in ("ids", "marks_min")}
    values: dict[str, Any] = {
        "params": params,
        "choice": choice,
        "kinds": {kind: urlencode({**kept, "kind": kind}) for kind in KINDS},
        "formats": FORMATS,
        "half_steps": tuple(choice.axes) or HALF_STEPS,
        "photographs": len({row.source_uri for row in choice.rows}),
        "of_dreams": choice.kind in KINDS,
        "tiles": _tiles(choice, params),
        "kept": kept,
        "problem": problem,
        "yaml": job_yaml(made) if made else "",
        "query": params.with_changes({"shown": made.job_id, "kind": choice.kind}) if made else "",
        "running": unfinished_run(place),
        "run": _view(place, run) if run and (run.is_running() or _job_of(run) == made) else None,
    }
    return render(request, "job.html", "job", values, place=place)


def _tiles(choice: Choice, params: Params) -> list[tuple[DreamRow, str]]:
    """Return the first of the chosen dreams, each with the query of the address without it."""
    ids = [row.result_id for row in choice.rows]

    def without(result_id: str) -> str:
        return params.with_changes({"marks_min": None, "ids": ",".join(each for each in ids if each != result_id)})

    return [(row, without(row.result_id)) for row in choice.rows[:_MAX_TILES]]


def _composed(place: Place, choice: Choice) -> tuple[DreamJob | None, str]:
    """Return the job of a choice, and why there is none."""
    try:
        return compose(place, choice), ""
    except InvalidInput as error:
        return None, str(error)


def _job_of(run: JobRun) -> DreamJob | None:
    try:
        return run.job
    except (ValidationError, OSError):  # another version has started it
        return None


def _view(place: Place, run: JobRun) -> RunView:
    outcome, progress, found = run.outcome(), run.progress(), _job_of(run)
    prefect = progress.flow_run or ""
    sources = found.addresses if found else ()
    photograph = sources[0] if len(sources) == 1 and not sources[0].endswith("/") else ""
    enlarged = _enlarged(place, found, progress.run_id) if found and outcome.state == "completed" else ""
    prefect = prefect if prefect.startswith(("http://", "https://")) else ""
    return RunView(outcome, progress, prefect, photograph, enlarged)


def _enlarged(place: Place, made: DreamJob, run_id: str | None) -> str:
    """Return the `result_id` of the dream that a run has enlarged; empty if the job has several, or has none yet."""
    if made.enlarge is None or len(made.enlarge.dreams) != 1:
        return ""
    (original,) = made.enlarge.dreams
    found = place.queries.enlarged(original)
    return next((row.result_id for row in found if row.run_id == run_id), "")


def cost(request: Request) -> HTMLResponse:
    """Show what the job would do and take, and the button that starts it, as a part of the page."""
    place, params = place_of(request), params_of(request)
    values: dict[str, Any] = {
        "query": params.with_changes({}),
        "kind": params.get("kind"),
        "found": None,
        "work": None,
        "dreams": "",
        "problem": "",
    }
    try:
        made = compose(place, choice_of(place, params))
        place.refresh()
        if work := _other_work(place, made):
            values["work"] = work
        else:
            with _estimating:
                values["found"] = preview(made, place.storage)
            values["dreams"] = _dreams_of(place, made)
    except DreamgridError as error:
        values["problem"] = str(error)
    return render(request, "job_cost.html", "job", values, place=place)


def _other_work(place: Place, made: DreamJob) -> Work | None:
    """Return the state of the run that keeps a job from starting; None if the job can start or continue its own run."""
    try:
        run_record.active_run_id(made, place.storage)
    except InvalidInput:
        return work_of(place)
    return work_of(place) if own_run(place) else None


def _dreams_of(place: Place, made: DreamJob) -> str:
    """Return the page that shows the dreams of a job."""
    last = last_run(place.destination, place.storage)
    run = last.progress().run_id if last and _job_of(last) == made else None
    if len(made.addresses) == 1 and not made.addresses[0].endswith("/"):
        query = {"photo": made.addresses[0], "run": run or "", "chosen": _enlarged(place, made, run)}
        return f"grid?{urlencode({name: value for name, value in query.items() if value})}"
    return f"library?{urlencode({'run': run})}" if run else "library"


def start_job(request: Request) -> HTMLResponse:
    """Start the job that the page has shown; a refusal says why, with the status 409."""
    place, params = place_of(request), params_of(request)
    try:
        run = start(_job_as_shown(place, params), place.storage)
        return _show_run(request, place, _view(place, run))
    except InvalidInput as error:
        refusal = RunView(JobOutcome("refused", str(error)), JobProgress(), "", "")
        return _show_run(request, place, refusal, code=409)


def _job_as_shown(place: Place, params: Params) -> DreamJob:
    made = compose(place, choice_of(place, params))
    if made.job_id != params.get("shown"):
        raise InvalidInput("the choice has changed since the job was shown: reload the page")
    return made


def stop_job(request: Request) -> HTMLResponse:
    """Stop the run that a gallery has started last."""
    place = place_of(request)
    if run := last_run(place.destination, place.storage):
        run.stop()
    return _show_run(request, place, _view(place, run) if run else None)


def job_now(request: Request) -> HTMLResponse:
    """Show the progress of the run that a gallery started last, as a part of the page."""
    place = place_of(request)
    run = last_run(place.destination, place.storage)
    has_ended = run is not None and not run.is_running()
    if has_ended:
        place.refresh(at_once=True)  # the link leads to the new dreams
    response = _show_run(request, place, _view(place, run) if run else None, has_ended=has_ended)
    if has_ended:
        response.headers["HX-Trigger"] = _ENDED
    return response


def _show_run(
    request: Request, place: Place, view: RunView | None, *, has_ended: bool = False, code: int = 200
) -> HTMLResponse:
    return render(request, "job_run.html", "job", {"run": view, "has_ended": has_ended}, place=place, code=code)
