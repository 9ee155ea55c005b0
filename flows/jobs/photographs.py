"""Which objects are photographs. One rule decides this by the key below the source, and gives other objects a kind.

The rule reads keys and sizes only. An object that the user names explicitly, as the source of a run or as the file of
`dreamgrid image`, is a photograph whatever its name is.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from dreamcore.image_formats import EXTRAS, has_image_suffix, unread_format
from flows.s3.layout import FOLDERS

__all__ = [
    "EXCLUDED",
    "MAX_SUFFIXES",
    "RESULTS",
    "Selection",
    "describe_ignored",
    "ignored_kind",
]

EXCLUDED = "excluded"
"""Kind of a photograph that a pattern of the job leaves out."""
RESULTS = "results"
"""Kind of an object that another run has written into its destination."""
MAX_SUFFIXES = 8
"""Suffixes of other files that are counted by name. The rest is counted together."""

_OTHER_SUFFIXES = "other suffixes"
_FOLDERS = {
    name.lower(): f"{name}/"
    for name in (
        *("__MACOSX", ".thumbnails", "lost+found"),
        *("@eaDir", "#recycle", "#snapshot", "@__thumb", "@Recycle"),
        *("$RECYCLE.BIN", "System Volume Information"),
    )
}
"""Folders with copies that phones, archives, file servers and systems make. They hold no photographs of people."""
_FILES = {name.lower(): name for name in ("Thumbs.db", "desktop.ini", ".DS_Store")}
_RESULT_FOLDER = re.compile(rf"(?:^|(?<=/))({'|'.join(FOLDERS)})/")
_SUFFIX = re.compile(r"\.([a-z0-9]{1,10})$")
_MAX_KINDS = 1000
"""Kinds that are held while a source is listed, because each of ten million names may have another suffix."""
_NAMED_DESTINATIONS = 3


def ignored_kind(key: str, size: int) -> str | None:
    """Return why an object is no photograph; None if it is one.

    Args:
        key: the key below the source.
        size: size of the object in bytes.

    Returns:
        The kind for messages and counts: a folder of copies (`__MACOSX/`), `hidden`, `folder marker`, a file of a
        system (`Thumbs.db`), `empty`, the name of a format that is not read (`HEIC`), a suffix (`*.txt`), `no suffix`
        or `other suffixes`.

    Example:
        >>> ignored_kind("trip/IMG_1.JPG", 9), ignored_kind("trip/._IMG_1.JPG", 9), ignored_kind("notes.txt", 9)
        (None, 'hidden', '*.txt')
    """
    folder, _, name = key.rpartition("/")
    if kind := _folder_kind(folder):
        return kind
    if has_image_suffix(name) and not name.startswith("."):
        return None
    if not name:
        return "folder marker"
    if kind := _FILES.get(name.lower()):
        return kind
    if name.startswith("."):
        return "hidden"
    return (unread_format(name) or _suffix_kind(name)) if size else "empty"


# A listing names each folder many times in succession. Without this cache, the scan of a million keys takes seconds
# longer.
@lru_cache(maxsize=4096)
def _folder_kind(folder: str) -> str | None:
    """Return the kind of everything in a folder that holds no photographs; None for any other folder."""
    names = folder.split("/")
    copies = (_FOLDERS[name.lower()] for name in names if name.lower() in _FOLDERS)
    return next(copies, "hidden" if any(name.startswith(".") for name in names) else None)


@lru_cache(maxsize=4096)
def _result_folders(folder: str) -> tuple[tuple[str, str], ...]:
    """Return each folder of the path that may hold results: the destination that it would be in, and its name."""
    return tuple((f"{folder}/"[: match.start()], match[1]) for match in _RESULT_FOLDER.finditer(f"{folder}/"))


def _suffix_kind(name: str) -> str:
    if "." not in name:
        return "no suffix"
    suffix = _SUFFIX.search(name.lower())
    return f"*.{suffix[1]}" if suffix else _OTHER_SUFFIXES


class Selection:
    """Selects the photographs of a listing and counts the other objects by kind, in one pass and in bounded memory.

    A folder with `_runs/` in it is the destination of a run. What runs write below it are results and no photographs.
    `_runs/` comes before the other folders in almost every listing. `drops_late` finds the rest.

    Args:
        is_excluded: returns whether the job leaves out the photograph with this key.
    """

    def __init__(self, is_excluded: Callable[[str], bool]) -> None:
        self._is_excluded = is_excluded
        self._kinds = Counter[str]()
        self._destinations: set[str] = set()
        self._late: set[str] = set()
        self._may_be_late = False

    def accepts(self, key: str, size: int) -> bool:
        """Return whether an object is a photograph, and count it if it is none.

        Args:
            key: the key below the source.
            size: size of the object in bytes.
        """
        kind = RESULTS if self._is_result(key) else ignored_kind(key, size)
        if kind is None:
            return self.accepts_named(key)
        self._count(kind)
        return False

    def accepts_named(self, key: str) -> bool:
        """Return whether the job accepts a photograph, or an object that the source names; count it if it does not.

        Args:
            key: the key below the source; for an object that the source names, the last part of the key.
        """
        if self._is_excluded(key):
            self._count(EXCLUDED)
            return False
        return True

    def _count(self, kind: str) -> None:
        known = len(self._kinds) < _MAX_KINDS or kind in self._kinds or not kind.startswith("*.")
        self._kinds[kind if known else _OTHER_SUFFIXES] += 1

    def _is_result(self, key: str) -> bool:
        """Return whether the object lies in a folder of results, and learn destinations from their `_runs/`."""
        folder, _, name = key.rpartition("/")
        for destination, result_folder in _result_folders(folder):
            if result_folder == "_runs" and destination not in self._destinations:
                if has_image_suffix(name) or name.startswith("."):
                    continue  # nothing that a run writes
                self._destinations.add(destination)
                if self._may_be_late:
                    self._late.add(destination)
            if destination in self._destinations:
                return True
            self._may_be_late = True
        return False

    @property
    def has_late_results(self) -> bool:
        """Whether a destination was found after objects that may be its results."""
        return bool(self._late)

    def drops_late(self, key: str) -> bool:
        """Return whether an object that was accepted is a result of such a destination, and count it if it is one."""
        is_late = any(destination in self._late for destination, _ in _result_folders(key.rpartition("/")[0]))
        if is_late:
            self._count(RESULTS)
        return is_late

    @property
    def kinds(self) -> dict[str, int]:
        """The number of ignored objects of each kind, largest first. Rare suffixes are counted together."""
        kinds = Counter[str]()
        suffixes = 0
        for kind, number in self._kinds.most_common():
            suffixes += kind.startswith("*.")
            kinds[_OTHER_SUFFIXES if kind.startswith("*.") and suffixes > MAX_SUFFIXES else kind] += number
        return dict(kinds.most_common())

    @property
    def destinations(self) -> tuple[str, ...]:
        """Keys of the destinations below the source, sorted. Each is empty or ends with a slash."""
        return tuple(sorted(self._destinations))


def describe_ignored(kinds: Mapping[str, int], destinations: Sequence[str]) -> str:
    """Return the counts as a list in words, such as `4 hidden, 3 HEIC, 2 *.txt`.

    Args:
        kinds: the number of objects of each kind.
        destinations: addresses of the destinations below the source.
    """
    return ", ".join(f"{number:,} {_described_kind(kind, destinations)}" for kind, number in kinds.items())


def _described_kind(kind: str, destinations: Sequence[str]) -> str:
    if kind == RESULTS:
        others = len(destinations) - _NAMED_DESTINATIONS
        named = ", ".join(destinations[:_NAMED_DESTINATIONS])
        return f"results of other runs in {named}" + (f" and {others:,} more" if others > 0 else "")
    extra = EXTRAS.get(kind)
    return kind if extra is None else f"{kind} (readable with the extra dreamgrid[{extra.name}])"
