"""Downloads the objects below a prefix that a folder does not have yet.

A file is the same as an object if both have the same size, and the file has the time of the object or its MD5: that is
the ETag, or is recorded as `upload` describes. A downloaded file gets the time of its object, so it is not read again.

Keys may come from untrusted people. No file outside the folder is written, whatever the keys and the symbolic links in
the folder are.
"""

import errno
import os
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from dreamcore.errors import InvalidInput, Unavailable
from flows.folders.transfers import EXCLUDED, RESERVED, OnProgress, Refused, TransferReport, copy_all
from flows.s3.layout import parse_uri
from flows.s3.listing import OnListed, list_objects
from flows.s3.objects import ObjectInfo
from flows.s3.storage import Storage
from flows.s3.transfers import OnBytes, file_md5

__all__ = ["RemoteObject", "download_objects", "find_objects", "refusal"]

_FOLDER_MARKER = "folder marker"
_TEMPORARY = f"{RESERVED}-download-"
_FRESH_SECONDS = 2
_NAME_ERRORS = {
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EILSEQ,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
}
"""Errors that concern the name of one file only."""


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """An object to be downloaded."""

    info: ObjectInfo
    name: str
    """Its key below the prefix, which becomes the path in the folder."""

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.info.size


def find_objects(
    uri: str, storage: Storage, is_chosen: Callable[[str], bool], report: TransferReport, on_listed: OnListed
) -> list[RemoteObject]:
    """Return the objects below an address that are to be downloaded, sorted, and count the others in the report.

    Args:
        uri: a prefix, which is taken as a folder, or the address of one object.
        storage: access to S3.
        is_chosen: returns whether the patterns choose a name.
        report: gets the kinds of the objects that are not to be downloaded.
        on_listed: called with the number of objects that were listed.

    Raises:
        InvalidInput: there is no object, the bucket does not exist, or access is refused.
    """
    _, key = parse_uri(uri)
    prefix = uri.rstrip("/") + "/"
    one = storage.find(uri) if key and not key.endswith("/") else None
    if one:
        return [RemoteObject(one, key.rpartition("/")[2])]
    found, is_empty = [], True
    for info in list_objects(storage, prefix, on_listed):
        is_empty, name = False, info.uri.removeprefix(prefix)
        if not name or name.endswith("/"):
            report.skipped[_FOLDER_MARKER] += 1
        elif not is_chosen(name):
            report.skipped[EXCLUDED] += 1
        else:
            found.append(RemoteObject(info, name))
    if is_empty:
        raise InvalidInput(f"there is nothing below {prefix}: correct the address")
    return sorted(found, key=lambda each: each.name)


def refusal(name: str) -> str | None:
    """Return why the object with this name cannot be a file in a folder; None if it can be one."""
    steps = name.split("/")
    if "\0" in name:
        return "its key has a null character, which no file name may have"
    if not all(steps):
        return "its key has two slashes in a row or begins with a slash, so it is no path in a folder"
    if {".", ".."} & set(steps):
        return "its key has the step . or .., so it is no path in a folder"
    if os.sep != "/" and any(character in name for character in "\\:"):  # Windows
        return "its key has a backslash or colon, which no file name may have here"
    if any(step.startswith(RESERVED) for step in steps):
        return f"names that begin with {RESERVED} are reserved for Dreamgrid"
    return None


def download_objects(
    objects: Sequence[RemoteObject], folder: Path, storage: Storage, report: TransferReport, on_progress: OnProgress
) -> None:
    """Download objects that the folder does not have, several at the same time. A file of the same name is replaced.

    A file appears only when it is complete, so the same call continues after any interruption.

    Args:
        objects: from `find_objects`.
        folder: the folder, which is created if it does not exist.
        storage: access to S3.
        report: gets what happens to each object.
        on_progress: called with the progress of the download.

    Raises:
        InvalidInput: the folder cannot be written, or access is refused.
        Unavailable: S3 failed, or the disk is full.
    """
    with _temporary_folder(folder) as temporary:
        root, numbers = Path(os.path.realpath(folder)), count()

        def download(each: RemoteObject, on_bytes: OnBytes) -> bool:
            try:
                path = _place(root, each.name)
                if _is_same(path, each.info, storage):
                    return False
                file = temporary / str(next(numbers))
                storage.download(each.info, file, on_bytes)
                os.utime(file, (each.info.modified,) * 2)
                path.parent.mkdir(parents=True, exist_ok=True)
                file.replace(path)
            except OSError as error:
                if error.errno in _NAME_ERRORS:
                    raise Refused(f"no file can have this name here: {error.strerror}") from error
                raise Unavailable(f"{folder / each.name} cannot be written: {error.strerror}") from error
            return True

        copy_all(list(_without_collisions(objects, _name_key(temporary), report)), download, report, on_progress)


def _place(root: Path, name: str) -> Path:
    """Return the path of a file below `root`.

    Raises:
        Refused: a symbolic link would lead out of the folder, or a folder has this name.
    """
    path = root / os.fsdecode(name.encode())
    if not Path(os.path.realpath(path.parent)).is_relative_to(root):
        raise Refused("a symbolic link leads out of the folder")
    if path.is_dir() and not path.is_symlink():
        raise Refused("a folder has this name")
    return path


def _is_same(path: Path, info: ObjectInfo, storage: Storage) -> bool:
    """Return whether a file has the content of an object, without reading the object."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_size != info.size:
        return False
    # The time of an object has whole seconds. An object that was read in its second may have changed after that.
    if int(status.st_mtime) == int(info.modified) and status.st_ctime - info.modified > _FRESH_SECONDS:
        return True
    md5 = file_md5(path)
    return md5 == info.etag or md5 == storage.recorded_md5(info.uri)


def _without_collisions(
    objects: Iterable[RemoteObject], key: Callable[[str], str], report: TransferReport
) -> Iterator[RemoteObject]:
    """Yield the objects that can be files at the same time. The names of the objects are sorted.

    Args:
        objects: the objects.
        key: returns the same text for two names if the file system does not distinguish them.
        report: gets the other objects.
    """
    files, folders = dict[str, str](), dict[str, str]()
    for each in objects:
        why, own = refusal(each.name), key(each.name)
        ancestors = [own[:place] for place, character in enumerate(own) if character == "/"]
        other = next((files[path] for path in (own, *ancestors) if path in files), folders.get(own))
        if why is None and other is not None:
            why = f"this folder cannot have it together with {other}: download it to another folder"
        if why is None:
            files[own] = each.name
            folders.update(dict.fromkeys(ancestors, each.name))
            yield each
        else:
            report.add_problem(each.name, why)


def _name_key(temporary: Path) -> Callable[[str], str]:
    """Return the function that maps names to the same text if the file system does not distinguish them."""
    (temporary / "caf\N{LATIN SMALL LETTER E WITH ACUTE}").touch()
    forms = (temporary / "cafe\N{COMBINING ACUTE ACCENT}").exists()
    cases = (temporary / "CAF\N{LATIN CAPITAL LETTER E WITH ACUTE}").exists()

    def key(name: str) -> str:
        name = unicodedata.normalize("NFC", name) if forms else name
        return name.casefold() if cases else name

    return key


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """Create a folder for incomplete files in `folder`, and remove it at the end, with those of killed processes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{_TEMPORARY}*"):
            with suppress(OSError), _locked(old):
                shutil.rmtree(old, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be written: {error.strerror}") from error
    with _locked(temporary):
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process.

    Raises:
        OSError: another process holds it.
    """
    import fcntl  # Windows does not have it, but must be able to import this module

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
