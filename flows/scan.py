"""Checks before a run, and the search for its photographs: settings, access and sources."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from pydantic import ValidationError

from dreamcore.catalog import network_spec, weights_identity_of
from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.images import has_image_suffix
from dreamcore.settings import settings_id
from flows import layout
from flows.assets import resolve
from flows.job import DreamJob, explain_validation
from flows.layout import parse_uri
from flows.plan import Sources
from flows.storage import FAIL_FAST, ObjectInfo, Storage, storage
from flows.work import PlannedSettings, Source

__all__ = ["Scan", "check_access", "plan_settings", "scan", "store_warning"]


@dataclass(frozen=True)
class Scan:
    """The photographs of a job."""

    sources: Sources
    ignored: int
    """Number of objects below the source whose names are not names of images."""


def plan_settings(job: DreamJob) -> tuple[PlannedSettings, ...]:
    """Return every point of the job's grid, resolved and with its identity and cost. Called once per run.

    Points that turn out to be the same, such as two depths with the same nearest layer, are returned once.

    Raises:
        InvalidInput: a network, layer, channel or file does not exist, or S3 cannot be reached.
    """
    try:
        resolved = [resolve(settings) for settings in job.settings()]
    except ValidationError as error:
        raise InvalidInput(f"grid: {explain_validation(error)}") from error
    except Unavailable as error:
        raise InvalidInput(str(error)) from error
    planned: dict[str, PlannedSettings] = {}
    for settings in resolved:
        spec, weights = network_spec(settings.model), weights_identity_of(settings)
        cost = max(spec.layer(target.layer).cost for target in settings.layers)
        identity = settings_id(settings, weights)
        planned[identity] = PlannedSettings(settings=settings, settings_id=identity, weights=weights, cost=cost)
    return tuple(planned.values())


def check_access(job: DreamJob) -> None:
    """Check within seconds that the source and the destination can be reached, and that the source exists.

    Raises:
        InvalidInput: credentials are missing or refused, a bucket does not exist, S3 cannot be reached, or the source
            is mistyped.
    """
    store = Storage(FAIL_FAST)
    try:
        store.check_bucket(job.source)
        store.check_bucket(job.destination)
        _check_source(job, store)
    except Unavailable as error:
        raise InvalidInput(str(error)) from error


def _check_source(job: DreamJob, store: Storage) -> None:
    """Raise `InvalidInput` if the source is neither a photograph nor a folder with objects in it.

    A source that ends with a slash may be empty, because a nightly job may start before the first photograph arrives.
    """
    if job.source.endswith("/") or not parse_uri(job.source)[1]:
        return
    existing = store.find(job.source)
    if (existing and has_image_suffix(job.source)) or any(True for _ in store.list(f"{job.source}/")):
        return
    if store.find(layout.active_uri(job.destination)):
        return  # the unfinished run continues with its frozen plan, even if its photographs have been removed
    if existing:
        raise InvalidInput(f"{job.source} is not a photograph: its name does not end in .jpg, .png or another format")
    raise InvalidInput(
        f"there is neither a photograph nor a folder {job.source}: correct it, or write {job.source}/ for a folder "
        "that is still empty"
    )


@lru_cache
def store_warning(destination: str, store: Storage | None = None) -> str | None:
    """Return a warning if the store ignores conditional writes, on which the run protocol relies; otherwise None.

    The result is cached, because the command line and the flow may both call this in one process.

    Args:
        destination: folder of the results; the check writes and removes one object there.
        store: access to S3; by default the storage of this process.
    """
    store = store or storage()
    if store.supports_conditional_writes(layout.runs_folder(destination)):
        return None
    return (
        f"{store.endpoint} ignores conditional writes: make sure that no other run writes to {destination} at the "
        "same time"
    )


def scan(job: DreamJob, store: Storage) -> Scan:
    """List every photograph of the source. A destination below the source is left out."""
    ignored = 0
    folder = job.source.rstrip("/") + "/"
    # If the source lies below the destination, the job's validation ensures that it is not in a folder of results.
    excluded = () if folder.startswith(job.destination) else job.destination
    single = store.find(job.source) if has_image_suffix(parse_uri(job.source)[1]) else None

    def photographs() -> Iterator[Source]:
        nonlocal ignored
        for info in [single] if single else store.list(folder):
            if info.uri.startswith(excluded) or info.uri.endswith("/"):
                continue
            if has_image_suffix(info.uri):
                yield _source(info, folder)
            else:
                ignored += 1

    sources = Sources(photographs())
    return Scan(sources, ignored)


def _source(info: ObjectInfo, folder: str) -> Source:
    name = info.uri.removeprefix(folder) if info.uri.startswith(folder) else info.uri.rpartition("/")[2]
    return Source(info.uri, name, info.etag, info.size)
