"""Checks before a run, and the search for its photographs: settings, access and sources."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from dreamcore.catalog import expand_layers, network_spec, weights_identity_of
from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.image_formats import has_image_suffix
from dreamcore.settings import DreamSettings, settings_id
from dreamcore.sweeps import MAX_GRID_POINTS, Rank
from flows.destination.history import FinishedDreams
from flows.jobs.assets import check_labels, resolve_files
from flows.jobs.job import DreamJob, explain_validation
from flows.jobs.noise_source import noise_source
from flows.jobs.photographs import Selection, describe_ignored
from flows.jobs.plan import Sources
from flows.jobs.work import PlannedSettings, Source
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.movies.zoom_plan import check_movies
from flows.planning import normal_forms
from flows.planning.enlargements import enlargements
from flows.s3 import layout
from flows.s3.globs import compile_globs
from flows.s3.inventory import Inventory
from flows.s3.layout import parse_uri
from flows.s3.listing import OnListed, list_objects
from flows.s3.storage import FAIL_FAST, ObjectInfo, Storage, storage

__all__ = ["Scan", "check_access", "plan_settings", "scan", "store_warning"]

OUTSIDE = "outside the source"
"""Kind of an object that an inventory has and that is not below the source."""
MAX_DESTINATIONS = 20
"""Largest number of destinations below a source that a report names."""
_READERS = 32
"""Entries of a list of sources that are looked up at a time."""
_NAMED = 3
"""Missing entries of a list of sources that a message names."""


@dataclass(frozen=True)
class Scan:
    """The photographs of a job, and what else its source holds."""

    sources: Sources
    kinds: Mapping[str, int]
    """Number of the objects that are no photographs, by kind (see `flows.jobs.photographs`)."""
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
        InvalidInput: a network, layer, channel, file or dream to enlarge does not exist, S3 cannot be reached, or there
            are more than `MAX_GRID_POINTS` points.
    """
    planned: dict[str, PlannedSettings] = {}
    try:
        for settings, rank, photograph in _points(job):
            weights = weights_identity_of(settings)
            identity = settings_id(settings, weights)
            ranks: tuple[Rank, ...] = (rank,) if rank else ()
            if twin := planned.get(identity):
                ranks = tuple(dict.fromkeys((*twin.ranks, *ranks))) if twin.ranks and ranks else ()
            planned[identity] = PlannedSettings(
                settings=settings,
                settings_id=identity,
                weights=weights,
                cost=_cost(settings),
                ranks=ranks,
                photograph=photograph,
            )
        check_movies([each.settings for each in planned.values()])
        check_labels(job.labels, [each.settings for each in planned.values()])
    except ValidationError as error:
        raise InvalidInput(f"grid: {explain_validation(error)}") from error
    except Unavailable as error:
        raise InvalidInput(str(error)) from error
    return tuple(planned.values())


def _points(job: DreamJob) -> Iterator[tuple[DreamSettings, Rank | None, tuple[str, str] | None]]:
    """Yield the settings of a job with the rank, or the photograph, that says which photographs they are for."""
    if job.enlarge:
        yield from ((settings, None, photograph) for settings, photograph in enlargements(job, Storage(FAIL_FAST)))
    else:
        yield from ((settings, rank, None) for settings, rank in _expanded(job))


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
        for uri in {parse_uri(uri)[0]: uri for uri in job.s3_addresses}.values():
            store.check_bucket(uri)
        store.check_bucket(job.destination)
        if job.inventory:
            _inventory(job, store)
        else:
            _check_sources(job, store)
    except Unavailable as error:
        raise InvalidInput(str(error)) from error


def _check_sources(job: DreamJob, store: Storage) -> None:
    """Raise `InvalidInput` if a source is neither an object nor a folder with objects in it.

    A source that ends with a slash may be empty, because a nightly job may start before the first photograph arrives.
    A job that tries failed dreams again does not list its source.
    """
    if job.retry_failed:
        return
    uris = [uri for uri in job.s3_addresses if not _is_folder(uri)]
    missing = [uri for uri, exists in _looked_up(_exists, uris, store) if not exists]
    if not missing or store.find(layout.active_uri(job.destination)):
        return  # an unfinished run continues with its frozen plan, even if its photographs have been removed
    if hint := _other_form(missing[0], store):
        raise InvalidInput(hint)
    if len(missing) > 1:
        more = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
        raise InvalidInput(
            f"{len(missing):,} of {len(job.sources):,} sources are neither a photograph nor a folder: "
            f"{', '.join(missing[:_NAMED])}{more}: correct them, or leave them out"
        )
    raise InvalidInput(
        f"there is neither a photograph nor a folder {missing[0]}: correct it, or write {missing[0]}/ for a folder "
        "that is still empty"
    )


def _is_folder(uri: str) -> bool:
    """Return whether an address can only be that of a folder."""
    return uri.endswith("/") or not parse_uri(uri)[1]


_Found = TypeVar("_Found")


def _looked_up(
    find: Callable[[str, Storage], _Found], uris: Sequence[str], store: Storage
) -> Iterator[tuple[str, _Found]]:
    """Yield each address with what `find` returns for it. Several requests run at a time."""
    with thread_pool(_READERS) as readers:
        found = ordered_prefetch(readers, lambda uri: find(uri, store), uris, _READERS)
        yield from zip(uris, found, strict=True)


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
    """Find every photograph of the sources, and count the other objects. A size of noise is one photograph.

    `flows.jobs.photographs` decides what a photograph is. An object that the job names itself is one. The destination
    of this job is left out and not counted if it lies below a source. An object below several sources of a list is
    found once, as an object of the source with the longest address.

    The name of a photograph is its key below the source, or the last part of the key if the source is a photograph.
    With a list, the name is the whole address with its bucket. So no two photographs have the same name, and the name
    does not depend on the other entries. The name of noise is its size as the job writes it.

    Args:
        job: the job. Its inventory is read instead of a listing, if it has one.
        store: access to S3.
        on_listed: called again and again with the number of objects found so far.
    """
    inventory = _inventory(job, store) if job.inventory else None
    named = {} if inventory else _named_objects(job, store)
    files = Selection(compile_globs(job.exclude))
    folders = _folders(job, named)

    def objects(folder: _Folder, before: int) -> Iterator[ObjectInfo]:
        def count(listed: int) -> None:
            on_listed(before + listed)

        return inventory.objects(folder.uri, count) if inventory else list_objects(store, folder.uri, count)

    def sources() -> Iterator[Source]:
        yield from map(noise_source, job.noise)
        for info in named.values():
            if files.accepts_named(name := info.uri.rpartition("/")[2]):
                yield _source(info, _long_name(info.uri) if job.sources else name)
        listed = 0
        for folder in folders:
            for info in objects(folder, listed):
                listed += 1
                if info.uri not in named and folder.accepts(info):
                    yield _source(info, _long_name(info.uri) if job.sources else folder.key(info.uri))

    found = Sources(sources())
    if late := [folder for folder in folders if folder.selection.has_late_results]:
        found = Sources(source for source in found if not any(folder.drops_late(source.uri) for folder in late))
    kinds = _added(each.kinds for each in (files, *(folder.selection for folder in folders)))
    destinations = tuple(sorted({folder.uri + key for folder in folders for key in folder.selection.destinations}))
    if inventory:
        outside = {OUTSIDE: inventory.outside} if inventory.outside else {}
        return Scan(found, kinds | outside, destinations, inventory=inventory.manifest_uri)
    hints = () if found or kinds else filter(None, (_other_form(uri, store) for uri in job.s3_addresses[:_NAMED]))
    return Scan(found, kinds, destinations, tuple(hints))


@dataclass(frozen=True)
class _Folder:
    """One folder of photographs, and what is selected of it."""

    uri: str
    """Its address, with a slash at its end."""
    others: tuple[str, ...]
    """Addresses below it that do not count: the destination of the job, and folders that are sources themselves."""
    selection: Selection

    def key(self, uri: str) -> str:
        """Return the key below this folder."""
        return uri[len(self.uri) :]

    def accepts(self, info: ObjectInfo) -> bool:
        """Return whether an object is a photograph of this source, and count it if it is none."""
        return not info.uri.startswith(self.others) and self.selection.accepts(self.key(info.uri), info.size)

    def drops_late(self, uri: str) -> bool:
        """Return whether an object that was accepted is a result of a destination that was found after it."""
        is_here = uri.startswith(self.uri) and not uri.startswith(self.others)
        return is_here and self.selection.drops_late(self.key(uri))


def _folders(job: DreamJob, named: Mapping[str, ObjectInfo]) -> list[_Folder]:
    """Return the sources of a job that are folders."""
    uris = sorted({uri.rstrip("/") + "/" for uri in job.s3_addresses if uri not in named})
    is_excluded = compile_globs(job.exclude)
    folders = []
    for position, uri in enumerate(uris):
        # If a source lies below the destination, the job's validation ensures that it is not in a folder of results.
        own_results = () if uri.startswith(job.destination) else (job.destination,)
        folders.append(_Folder(uri, (*own_results, *_inner(uris[position:])), Selection(is_excluded)))
    return folders


def _inner(uris: Sequence[str]) -> Iterator[str]:
    """Yield the folders inside the first one of a sorted list."""
    return takewhile(lambda uri: uri.startswith(uris[0]), uris[1:])


def _source(info: ObjectInfo, name: str) -> Source:
    return Source(info.uri, name, info.etag, info.size)


def _long_name(uri: str) -> str:
    """Return the name of a photograph of a list of sources: its bucket and its key."""
    return uri.removeprefix("s3://")


def _added(kinds: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up counts by kind, largest first."""
    total = Counter[str]()
    for each in kinds:
        total.update(each)
    return dict(total.most_common())


def _inventory(job: DreamJob, store: Storage) -> Inventory:
    (source,) = job.addresses
    return Inventory(store, str(job.inventory), source)


def _named_objects(job: DreamJob, store: Storage) -> dict[str, ObjectInfo]:
    """Return the objects that the job names itself, by address. Its other sources are folders."""
    found = _looked_up(_named_object, [uri for uri in job.s3_addresses if not _is_folder(uri)], store)
    return {uri: info for uri, info in found if info}


def _named_object(source: str, store: Storage) -> ObjectInfo | None:
    """Return the object that the source names; None if the source is a folder.

    If an object and a folder have the same name, the suffix decides.
    """
    named = store.find(source)
    return named if named and (has_image_suffix(source) or not _has_objects(source, store)) else None
