"""Checks before a run, and the search for its photographs: settings, access and sources."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

from pydantic import ValidationError

from dreamcore.catalog import expand_layers, network_spec, weights_identity_of
from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.image_formats import has_image_suffix
from dreamcore.settings import DreamSettings, settings_id
from dreamcore.sweeps import MAX_GRID_POINTS, Rank
from flows import layout, normal_forms
from flows.assets import check_labels, resolve_files
from flows.globs import compile_globs
from flows.history import FinishedDreams
from flows.inventory import Inventory
from flows.job import DreamJob, explain_validation
from flows.layout import parse_uri
from flows.listing import OnListed, list_objects
from flows.photographs import Selection, describe_ignored
from flows.plan import Sources
from flows.storage import FAIL_FAST, ObjectInfo, Storage, storage
from flows.work import PlannedSettings, Source

__all__ = ["Scan", "check_access", "plan_settings", "scan", "store_warning"]

OUTSIDE = "outside the source"
"""Kind of an object that an inventory has and that is not below the source."""
MAX_DESTINATIONS = 20
"""Destinations below a source that reports name."""


@dataclass(frozen=True)
class Scan:
    """The photographs of a job, and what else its source holds."""

    sources: Sources
    kinds: Mapping[str, int]
    """Number of the objects that are no photographs, by kind (see `photographs.ignored_kind`)."""
    destinations: tuple[str, ...]
    """Addresses of the destinations below the source. Their dreams and sheets are left out."""
    warnings: tuple[str, ...] = ()
    inventory: str | None = None
    """Address of the manifest of the inventory that was read; None if the source was listed."""

    @property
    def ignored(self) -> int:
        """Number of objects below the source that are no photographs."""
        return sum(self.kinds.values())

    @property
    def ignored_in_words(self) -> str:
        """The ignored objects by kind; empty if there are none."""
        return describe_ignored(self.kinds, self.destinations)

    def with_warnings(self, finished: FinishedDreams) -> Self:
        """Return the scan with a warning for each new key that looks like another one; `finished` are earlier rows."""
        return replace(self, warnings=(*self.warnings, *normal_forms.warnings(self.sources, finished)))

    def report(self) -> dict[str, Any]:
        """Return what `run` and `plan` report of the scan, besides the number of photographs."""
        return {
            "ignored": self.ignored,
            "ignored_kinds": dict(self.kinds),
            "other_destinations": self.destinations[:MAX_DESTINATIONS],
            "warnings": self.warnings,
        }


def plan_settings(job: DreamJob) -> tuple[PlannedSettings, ...]:
    """Return every point of the job's grid, resolved and with its identity and cost. Called once per run.

    A sweep over channels is expanded here. Points that turn out to be the same, such as two depths with the same
    nearest layer, are returned once.

    Raises:
        InvalidInput: a network, layer, channel or file does not exist, S3 cannot be reached, or there are more than
            `MAX_GRID_POINTS` points.
    """
    planned: dict[str, PlannedSettings] = {}
    try:
        for settings, rank in _expanded(job):
            weights = weights_identity_of(settings)
            identity = settings_id(settings, weights)
            ranks: tuple[Rank, ...] = (rank,) if rank else ()
            if twin := planned.get(identity):
                ranks = tuple(dict.fromkeys((*twin.ranks, *ranks))) if twin.ranks and ranks else ()
            planned[identity] = PlannedSettings(
                settings=settings, settings_id=identity, weights=weights, cost=_cost(settings), ranks=ranks
            )
        check_labels(job.labels, [each.settings for each in planned.values()])
    except ValidationError as error:
        raise InvalidInput(f"grid: {explain_validation(error)}") from error
    except Unavailable as error:
        raise InvalidInput(str(error)) from error
    return tuple(planned.values())


def _expanded(job: DreamJob) -> Iterator[tuple[DreamSettings, Rank | None]]:
    """Yield every point of the job's grid, resolved, with the rank that says which photographs it is for."""
    points = 0
    for settings in job.settings():
        files: DreamSettings | None = None
        for expanded, rank in expand_layers(settings):
            points += 1
            if points > MAX_GRID_POINTS:
                raise InvalidInput(
                    f"the grid has more than {MAX_GRID_POINTS:,} points, with each channel of its sweeps: shorten an "
                    "axis, or name fewer channels"
                )
            files = files or resolve_files(settings)
            update = {"guide": files.guide, "mask": files.mask, "weights": files.weights}
            yield expanded.model_copy(update=update), rank


def _cost(settings: DreamSettings) -> int:
    spec = network_spec(settings.model)
    return max(spec.layer(layer).cost for layer in settings.layer_names)


def check_access(job: DreamJob) -> None:
    """Check within seconds that the source and the destination can be reached, and that the source exists.

    Instead of a source that is not listed, its inventory must exist.

    Raises:
        InvalidInput: credentials are missing or refused, a bucket does not exist, S3 cannot be reached, or the source
            is mistyped.
    """
    store = Storage(FAIL_FAST)
    try:
        store.check_bucket(job.source)
        store.check_bucket(job.destination)
        if job.inventory:
            Inventory(store, job.inventory, job.source)
        else:
            _check_source(job, store)
    except Unavailable as error:
        raise InvalidInput(str(error)) from error


def _check_source(job: DreamJob, store: Storage) -> None:
    """Raise `InvalidInput` if the source is neither an object nor a folder with objects in it.

    A source that ends with a slash may be empty, because a nightly job may start before the first photograph arrives.
    A job that tries failed dreams again does not list its source.
    """
    if job.source.endswith("/") or not parse_uri(job.source)[1] or job.retry_failed or _exists(job.source, store):
        return
    if store.find(layout.active_uri(job.destination)):
        return  # the unfinished run continues with its frozen plan, even if its photographs have been removed
    if hint := _other_form(job.source, store):
        raise InvalidInput(hint)
    raise InvalidInput(
        f"there is neither a photograph nor a folder {job.source}: correct it, or write {job.source}/ for a folder "
        "that is still empty"
    )


def _exists(uri: str, store: Storage) -> bool:
    """Return whether an object or a folder with objects has this address."""
    return store.find(uri) is not None or _has_objects(uri, store)


def _has_objects(uri: str, store: Storage) -> bool:
    return any(True for _ in store.list(uri.rstrip("/") + "/"))


def _other_form(uri: str, store: Storage) -> str | None:
    """Return a message if the address exists in another Unicode normal form; otherwise None."""
    for other in normal_forms.other_forms(uri):
        if _exists(other, store):
            written = other.encode("ascii", "backslashreplace").decode()
            return (
                f"there is nothing at {uri}, but at an address that looks the same and has another Unicode normal "
                f'form: in a job file, write "{written}"'
            )
    return None


@lru_cache
def store_warning(destination: str, store: Storage | None = None, *, replacing: bool = False) -> str | None:
    """Return a warning if the store ignores conditional writes, on which the run protocol relies; otherwise None.

    The result is cached, because the command line and the flow may both call this in one process.

    Args:
        destination: folder of the results; the check writes and removes one object there.
        store: access to S3; by default the storage of this process.
        replacing: also check that the store supports conditional writes that replace an object.
    """
    store = store or storage()
    if store.supports_conditional_writes(layout.runs_folder(destination), replacing=replacing):
        return None
    return (
        f"{store.endpoint} ignores conditional writes: make sure that no other run writes to {destination} at the "
        "same time"
    )


def scan(job: DreamJob, store: Storage, on_listed: OnListed = lambda _count: None) -> Scan:
    """Find every photograph of the source, and count the other objects.

    `photographs` decides what a photograph is. An object that the source names itself is one. The destination of this
    job is left out and not counted if it lies below the source.

    Args:
        job: the job. Its inventory is read instead of a listing, if it has one.
        store: access to S3.
        on_listed: called again and again with the number of objects found so far.
    """
    folder = job.source.rstrip("/") + "/"
    # If the source lies below the destination, the job's validation ensures that it is not in a folder of results.
    own_results = () if folder.startswith(job.destination) else job.destination
    selection = Selection(compile_globs(job.exclude))
    inventory = Inventory(store, job.inventory, job.source) if job.inventory else None
    named = None if inventory else _named_object(job.source, store)

    def sources() -> Iterator[Source]:
        if named:
            if selection.accepts_named(name := named.uri.rpartition("/")[2]):
                yield Source(named.uri, name, named.etag, named.size)
            return
        for info in inventory.objects(folder, on_listed) if inventory else list_objects(store, folder, on_listed):
            name = info.uri[len(folder) :]
            if not info.uri.startswith(own_results) and selection.accepts(name, info.size):
                yield Source(info.uri, name, info.etag, info.size)

    found = Sources(sources())
    if selection.has_late_results:
        found = Sources(source for source in found if not selection.drops_late(source.name))
    destinations = tuple(folder + key for key in selection.destinations)
    if inventory:
        outside = {OUTSIDE: inventory.outside} if inventory.outside else {}
        return Scan(found, selection.kinds | outside, destinations, inventory=inventory.manifest_uri)
    hint = None if found or selection.kinds else _other_form(job.source, store)
    return Scan(found, selection.kinds, destinations, (hint,) if hint else ())


def _named_object(source: str, store: Storage) -> ObjectInfo | None:
    """Return the object that the source names; None if the source is a folder.

    If an object and a folder have the same name, the suffix decides.
    """
    if source.endswith("/") or not parse_uri(source)[1]:
        return None
    named = store.find(source)
    return named if named and (has_image_suffix(source) or not _has_objects(source, store)) else None
