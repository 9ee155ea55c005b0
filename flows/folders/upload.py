"""Uploads the files of a folder that S3 does not have yet.

A file is in S3 if an object has its name, its size and its MD5. The MD5 is the ETag of an object that was written with
one request and without a customer's key; `Storage.upload` also records it in the metadata. So no object is read. Every
file is read for its MD5, and once more if it is sent.
"""

import mimetypes
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dreamcore.errors import InvalidInput
from flows.folders.transfers import EXCLUDED, RESERVED, OnProgress, Refused, TransferReport, copy_all
from flows.jobs.photographs import ignored_kind
from flows.s3.layout import parse_uri
from flows.s3.listing import OnListed, list_objects
from flows.s3.storage import Storage
from flows.s3.transfers import OnBytes, file_md5

__all__ = ["LocalFile", "find_files", "upload_files"]

MAX_KEY_BYTES = 1024

_LINK_OUT, _LINK_TO_FOLDER = "symbolic link out of the folder", "symbolic link to a folder"
_BROKEN_LINK, _NOT_A_FILE = "broken symbolic link", "neither file nor folder"


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to be uploaded."""

    path: Path
    name: str
    """Its path in the folder, which becomes the key below the prefix. Bytes that are no UTF-8 are surrogates."""
    size: int
    """Size in bytes."""


def find_files(
    folder: Path, is_chosen: Callable[[str], bool], report: TransferReport, *, all_files: bool
) -> list[LocalFile]:
    """Return the files in a folder that are to be uploaded, and count the others in the report.

    Symbolic links to files in the folder count as files. Other symbolic links are not followed.

    Args:
        folder: the folder, or one file, which is uploaded whatever its name is.
        is_chosen: returns whether the patterns choose a name.
        report: gets the kinds of the files that are not to be uploaded, and folders that cannot be read.
        all_files: also return hidden files, and files whose name is not that of a picture.

    Raises:
        InvalidInput: the folder does not exist or cannot be read.
    """
    try:
        status = folder.stat()
        if stat.S_ISREG(status.st_mode):
            return [LocalFile(folder, _name(folder, folder.parent), status.st_size)]
        with os.scandir(folder):
            pass
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be uploaded: {error.strerror}") from error
    found = []
    for file, kind in _walk(folder, report):
        if kind is None and not all_files:
            kind = ignored_kind(file.name, file.size)
        if kind is None and not is_chosen(file.name):
            kind = EXCLUDED
        if kind is None:
            found.append(file)
        else:
            report.skipped[kind] += 1
    return found


def _walk(folder: Path, report: TransferReport) -> Iterator[tuple[LocalFile, str | None]]:
    """Yield every file below a folder, with the kind if it cannot be uploaded because it is no file of this folder."""
    root, waiting = Path(os.path.realpath(folder)), [folder]
    while waiting:
        current = waiting.pop()
        try:
            with os.scandir(current) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            report.add_problem(_name(current, folder), f"the folder cannot be read: {error.strerror}")
            continue
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith(RESERVED):
                report.skipped[f"{RESERVED}*"] += 1
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            else:
                kind, size = _inspect(path, root)
                yield LocalFile(path, _name(path, folder), size), kind


def _inspect(path: Path, root: Path) -> tuple[str | None, int]:
    """Return why a path below `root` cannot be uploaded, or None, and the size of the file in bytes."""
    is_link = path.is_symlink()
    if is_link and not Path(os.path.realpath(path)).is_relative_to(root):
        return _LINK_OUT, 0
    try:
        status = path.stat()
    except OSError:
        return (_BROKEN_LINK if is_link else None), 0  # the upload reports a file that was deleted
    if stat.S_ISDIR(status.st_mode):
        return _LINK_TO_FOLDER, 0
    return (None if stat.S_ISREG(status.st_mode) else _NOT_A_FILE), status.st_size


def _name(path: Path, folder: Path) -> str:
    # Keys are UTF-8, whatever the encoding of the locale is.
    return os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "surrogateescape")


def upload_files(
    files: Iterable[LocalFile],
    prefix: str,
    storage: Storage,
    report: TransferReport,
    *,
    on_listed: OnListed,
    on_progress: OnProgress,
) -> None:
    """Upload files that are not in S3, several at the same time. An object of the same name is replaced.

    An object appears only when it is complete, so the same call continues after any interruption.

    Args:
        files: from `find_files`.
        prefix: the address below which the files are written, with a slash at its end.
        storage: access to S3.
        report: gets what happens to each file.
        on_listed: called with the number of objects that were listed below the prefix.
        on_progress: called with the progress of the upload.

    Raises:
        InvalidInput: the bucket does not exist, or access is refused.
        Unavailable: S3 failed.
    """
    existing = {info.uri: info for info in list_objects(storage, prefix, on_listed)}
    files = sorted(files, key=lambda file: file.name)
    takes_backslashes = not any("\\" in file.name for file in files) or _keeps_backslashes(storage, prefix)

    def upload(file: LocalFile, on_bytes: OnBytes) -> bool:
        uri = prefix + file.name
        _check_key(uri)
        if "\\" in file.name and not takes_backslashes:
            raise Refused("the store takes a backslash in a key for a slash: rename the file")
        try:
            before = file.path.stat()
            found, md5 = existing.get(uri), file_md5(file.path)
            if found and found.size == file.size and (md5 == found.etag or md5 == storage.recorded_md5(uri)):
                return False
            kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            storage.upload(file.path, uri, md5, kind, on_bytes)
            after = file.path.stat()
        except OSError as error:
            raise Refused(f"the file cannot be read: {error.strerror}") from error
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise Refused("the file changed while it was uploaded: give the same command again")
        return True

    copy_all(files, upload, report, on_progress)


def _check_key(uri: str) -> None:
    """Raise `Refused` if S3 does not accept this address."""
    try:
        length = len(parse_uri(uri)[1].encode())
    except UnicodeEncodeError as error:
        raise Refused("the name is not UTF-8, as keys in S3 are: rename the file") from error
    if length > MAX_KEY_BYTES:
        raise Refused(f"the key would have {length:,} bytes, and S3 allows {MAX_KEY_BYTES:,}: shorten the name")


def _keeps_backslashes(storage: Storage, prefix: str) -> bool:
    """Return whether the store keeps a backslash in a key. SeaweedFS takes it for a slash."""
    folder = f"{prefix}{RESERVED}-probe-{uuid.uuid4().hex}"
    uri = f"{folder}\\x"
    storage.write(uri, b"", "text/plain")
    try:
        return [info.uri for info in storage.list(folder)] == [uri]
    finally:
        storage.delete(uri)
