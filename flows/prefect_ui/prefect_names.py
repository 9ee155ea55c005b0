"""Names in the Prefect UI: of runs, of their tags and of their artifacts."""

import re

from prefect import get_run_logger, runtime
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError

from dreamcore.settings import digest
from flows.jobs.job import DreamJob

__all__ = ["artifact_key", "run_name", "tag_run"]

_MAX_SLUG = 40
"""Characters of the readable part of an artifact's key."""


def run_name() -> str:
    """Return the name of the current flow run, such as `nightly 2026-11-28 -> s3://dreams/nightly`.

    The name begins with the deployment, or with the last folder of the destination if the run has no deployment. The
    date is that of the scheduled start, in UTC.
    """
    parameters = runtime.flow_run.parameters  # of `dream_collection`, or of the form
    destination = _folder(parameters["job"].destination if "job" in parameters else parameters["destination"])
    name = runtime.deployment.name or destination.rpartition("/")[2]
    return f"{name} {runtime.flow_run.scheduled_start_time:%Y-%m-%d} -> {destination}"


def tag_run(job: DreamJob) -> None:
    """Add the destination to the tags of the current flow run. A server that refuses this does not stop the run."""
    tags = {*runtime.flow_run.tags, _folder(job.destination)}
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(runtime.flow_run.id, tags=tags)
    except PrefectHTTPStatusError as error:  # an unreachable server raises other errors
        get_run_logger().warning("this run cannot be tagged with its destination: %s", type(error).__name__)


def artifact_key(kind: str, name: str, job: DreamJob, *parts: str) -> str:
    """Return the key of an artifact: letters, digits and hyphens, different for every job and every other part.

    Args:
        kind: what the artifact shows, such as `sheet`.
        name: what a reader recognises it by. Only its last letters and digits are in the key.
        job: the job of the run. The next run of the job adds a version to the artifact.
        parts: everything else that distinguishes the artifact from others of its kind.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[-_MAX_SLUG:].strip("-")
    return "-".join(filter(None, (kind, slug, digest(kind, job.job_id, *parts))))


def _folder(destination: str) -> str:
    return destination.rstrip("/")
