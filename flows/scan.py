"""What there is to do: checks a job against the world, finds its photographs, takes away what is done."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import ValidationError

from dreamcore.catalogue import card, weights_of
from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.images import looks_like_image
from dreamcore.settings import DreamSettings, settings_id
from flows import manifest, runs
from flows.assets import settle
from flows.job import DreamJob, explain, split_uri
from flows.machine import workers
from flows.plan import PlannedSettings, Source, Sources, dream_key, estimate_seconds, make_plan
from flows.storage import HASTY, Found, Storage, storage


@dataclass(frozen=True)
class Scan:
    """The photographs of a job."""

    sources: Sources
    ignored: int
    """Objects below the source that are no photographs by their name."""


def plan_settings(job: DreamJob) -> tuple[PlannedSettings, ...]:
    """Every point of the job's grid with its identity and cost.

    Raises:
        InvalidInput: there is no such network, layer, channel or file.
    """
    planned = {}
    for settings in _settled(job):
        known, weights = card(settings.model), weights_of(settings)
        cost = max(known.layer(target.layer).cost for target in settings.layers)
        identity = settings_id(settings, weights)
        planned[identity] = PlannedSettings(settings=settings, settings_id=identity, weights=weights, cost=cost)
    return tuple(planned.values())  # of two depths the same layer may be nearest


def _settled(job: DreamJob) -> list[DreamSettings]:
    """Every point of the job's grid with its files and layers, which are looked at before anything begins."""
    try:
        return [settle(settings) for settings in job.settings()]
    except ValidationError as error:
        raise InvalidInput(f"grid: {explain(error)}") from error
    except Unavailable as error:
        raise InvalidInput(str(error)) from error


def check_access(job: DreamJob) -> None:
    """See within seconds whether source and destination can be reached, and whether the source is one.

    Raises:
        InvalidInput: no credentials, refused, no such bucket, nothing answers, or the source is mistyped.
    """
    store = Storage(HASTY)
    try:
        store.check_bucket(job.source)
        store.check_bucket(job.destination)
        _check_source(job, store)
    except Unavailable as error:
        raise InvalidInput(str(error)) from error


def _check_source(job: DreamJob, store: Storage) -> None:
    """Raise `InvalidInput` where the source is no photograph, and no folder that anything is in.

    One that is spelt as a folder may be empty: a job of every night may begin before the first photograph arrives.
    """
    if job.source.endswith("/") or not split_uri(job.source)[1]:
        return
    there = store.find(job.source)
    if (there and looks_like_image(job.source)) or any(True for _ in store.list(f"{job.source}/")):
        return
    if store.find(runs.active_uri(job.destination)):
        return  # that run goes on with the photographs that it found, even if they are gone by now
    if there:
        raise InvalidInput(f"{job.source} is no photograph by its name, which would end in .jpg, .png or the like")
    raise InvalidInput(
        f"there is neither a photograph nor a folder {job.source}: correct it, or write {job.source}/ for a folder "
        "that is still empty"
    )


@lru_cache
def warn_of_store(destination: str) -> str | None:
    """What to tell people where the store ignores conditional writes, on which the protocol rests; else None.

    Tried once a process: the command asks before the flow does.
    """
    if storage().honours_conditions(f"{destination}_runs/"):
        return None
    return f"{storage().endpoint} ignores conditional writes: let no other run write to {destination} meanwhile"


def scan(job: DreamJob, store: Storage) -> Scan:
    """Find every photograph of the source; the destination's own dreams never count, wherever it lies."""
    ignored = 0
    folder = job.source.rstrip("/") + "/"
    alone = store.find(job.source) if looks_like_image(job.source) else None

    def photographs() -> Iterator[Source]:
        nonlocal ignored
        for found in [alone] if alone else store.list(folder):
            if found.uri.startswith(job.destination) or found.uri.endswith("/"):
                continue
            if looks_like_image(found.uri):
                yield _source(found, folder)
            else:
                ignored += 1

    sources = Sources(photographs())
    return Scan(sources, ignored)


def _source(found: Found, folder: str) -> Source:
    below = found.uri.removeprefix(folder) if found.uri.startswith(folder) else found.uri.rpartition("/")[2]
    return Source(found.uri, below, found.etag, found.size)


def done_before(job: DreamJob, store: Storage) -> Callable[[int], bool]:
    """Whether the manifest of the job's destination has a row for a `dream_key`, whatever became of it.

    A photograph that failed is not tried again until it changes: it would fail again.
    """
    keys = np.sort(np.fromiter(_keys(job.destination, store), np.uint64))

    def is_done(key: int) -> bool:
        place = np.searchsorted(keys, np.uint64(key))
        return bool(place < len(keys) and keys[place] == key)

    return is_done


def _keys(destination: str, store: Storage) -> Iterator[int]:
    for table in manifest.tables(store, destination, manifest.IDENTITY):
        yield from map(dream_key, *(column.to_pylist() for column in table.columns))


def outlook(job: DreamJob) -> dict[str, Any]:
    """What a run of the job would do and about what it would cost; nothing is touched.

    Raises:
        InvalidInput: the job cannot run.
    """
    settings = plan_settings(job)
    check_access(job)
    found = scan(job, storage())
    shards = make_plan(found.sources, settings, done_before(job, storage()))
    planned = shards.dreams
    seconds = sum(estimate_seconds(work.source, settings[index]) for work in shards.works() for index in work.settings)
    return {
        "source": job.source,
        "destination": job.destination,
        "photographs": len(found.sources),
        "ignored": found.ignored,
        "settings": len(settings),
        "planned": planned,
        "done": len(found.sources) * len(settings) - planned,
        "shards": len(shards),
        "processes": workers(),
        "estimated_seconds_of_one_core": round(seconds, 1),
        "estimated_seconds": round(seconds / workers(), 1),
    }
