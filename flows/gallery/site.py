"""The destinations of a gallery, and what its pages share for each of them."""

import shutil
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamcore.errors import InvalidInput, Unavailable
from dreamcore.settings import digest
from dreamcore.user_cache import cache_folder
from flows.gallery.cache import Cache, delete_unused
from flows.gallery.marks import Marks
from flows.gallery.planned import Planned, read_planned
from flows.gallery.queries import Queries
from flows.gallery.records import Filters
from flows.gallery.thumbnails import Thumbnails
from flows.prefect_ui.gallery_links import slug_of
from flows.s3.layout import folder_uri
from flows.s3.storage import Storage

__all__ = ["Place", "Site", "find_destinations", "slug_of"]

REFRESH_SECONDS = 2.0
"""The manifest is listed at most this often."""
_FOLDERS = ("manifest/", "_runs/")
"""A folder with one of these is a destination."""
_DEPTH = 3
"""Levels of folders below the given one that are searched for destinations."""
_MAX_DESTINATIONS = 200
_MAX_REQUESTS = 500
_ALL = Filters(status="")


def _pictures_folder() -> Path:
    """Return the folder of this user's small pictures, in the cache."""
    return cache_folder() / "pictures"


def _delete_unused_caches() -> None:
    """Delete the caches of destinations that nobody has opened for months, and their small pictures."""
    for key in delete_unused(cache_folder() / "gallery"):
        shutil.rmtree(_pictures_folder() / key, ignore_errors=True)


def find_destinations(address: str, storage: Storage) -> list[str]:
    """Return the destination at `address`, or the destinations in it if it is a bucket or a folder of several.

    Raises:
        InvalidInput: `address` is not an S3 address, or there is no destination.
        Unavailable: S3 does not respond.
    """
    try:
        folder = folder_uri(address)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    found = _destinations_in(folder, storage)
    if not found:
        raise InvalidInput(
            f"{folder} has no dreams, and no folder in it has: a destination contains {' and '.join(_FOLDERS)}. Give "
            "the destination of a job, or run one first: dreamgrid run --source s3://BUCKET/PHOTOS/ "
            f"--destination {folder}"
        )
    return sorted(found)


def _destinations_in(root: str, storage: Storage) -> list[str]:
    """Return the destinations in a folder. Near ones are found first, and the search ends after some requests."""
    found: list[str] = []
    waiting = deque([(root, 0)])
    for _ in range(_MAX_REQUESTS):
        if not waiting or len(found) == _MAX_DESTINATIONS:
            break
        folder, depth = waiting.popleft()
        folders = storage.list_page(folder, by_folder=True).folders
        if any(folder + name in folders for name in _FOLDERS):
            found.append(folder)
        elif depth < _DEPTH:
            waiting += [(each, depth + 1) for each in folders]
    return found


@dataclass
class Place:
    """One destination: its rows, its pictures and its marks."""

    slug: str
    destination: str
    storage: Storage
    cache: Cache
    queries: Queries
    thumbnails: Thumbnails
    marks: Marks
    _lock: threading.Lock
    trouble: str = ""
    """Why the newest rows cannot be read; empty if they can."""
    _refreshed: float = 0.0
    _planned: tuple[float, Planned | None] = (0.0, None)

    def refresh(self, *, at_once: bool = False) -> None:
        """Read the parts of the manifest that are new, unless that was done a moment ago or is being done.

        If S3 does not respond, pages show the rows that are known, and `trouble` says why.

        Args:
            at_once: whether the parts are read although that was done a moment ago.
        """
        if at_once:
            with self._lock:
                self._refreshed = min(self._refreshed, time.monotonic() - REFRESH_SECONDS)
        if time.monotonic() - self._refreshed < REFRESH_SECONDS:
            return
        if self._lock.acquire(blocking=not self._refreshed):  # the first page waits for the first rows
            try:
                if time.monotonic() - self._refreshed >= REFRESH_SECONDS:
                    self._read_new_parts()
                    self._refreshed = time.monotonic()
            finally:
                self._lock.release()

    def _read_new_parts(self) -> None:
        try:
            self.cache.refresh()
            self.trouble = ""
        except (Unavailable, InvalidInput) as error:
            if not self.queries.counts(_ALL).photographs:
                raise
            self.trouble = f"The page may be out of date: {error}"

    def planned(self) -> Planned | None:
        """Return what the unfinished run will dream; None if there is no unfinished run."""
        read_at, planned = self._planned
        if self.trouble:
            return planned
        if time.monotonic() - read_at > REFRESH_SECONDS:
            planned = read_planned(self.destination, self.storage)
            self._planned = time.monotonic(), planned
        return planned


class Site:
    """All destinations of a gallery. Each is opened when its first page is.

    Args:
        destinations: folders of results.
        storage: access to S3.
        read_only: whether nothing may be written.
    """

    def __init__(self, destinations: Sequence[str], storage: Storage, *, read_only: bool = False) -> None:
        self.destinations: Mapping[str, str] = {slug_of(each): each for each in destinations}
        self.storage, self.read_only = storage, read_only
        self._places: dict[str, Place] = {}
        self._lock = threading.Lock()
        _delete_unused_caches()

    def place(self, slug: str) -> Place | None:
        """Return an opened destination; None if the gallery has none of this name."""
        if slug not in self.destinations:
            return None
        with self._lock:
            if slug not in self._places:
                self._places[slug] = self._open(slug)
            return self._places[slug]

    def _open(self, slug: str) -> Place:
        destination = self.destinations[slug]
        marks = Marks(destination, self.storage)
        cache = Cache.open(destination, self.storage)
        folder = _pictures_folder() / digest(self.storage.endpoint, destination)
        return Place(
            slug=slug,
            destination=destination,
            storage=self.storage,
            cache=cache,
            queries=Queries(cache, marks.read),
            thumbnails=Thumbnails(destination, self.storage, folder, read_only=self.read_only),
            marks=marks,
            _lock=threading.Lock(),
        )

    def close(self) -> None:
        """Close the caches."""
        for place in self._places.values():
            place.cache.close()
