"""Where a static gallery is written: a folder of this machine, or a folder in S3."""

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Protocol

from dreamcore.errors import InvalidInput
from flows.s3.layout import folder_uri, gallery_folder
from flows.s3.storage import Storage

__all__ = ["DATA", "PICTURES", "SCRIPTS", "FolderTarget", "S3Target", "Target", "open_target"]

DATA, PICTURES, SCRIPTS = "data-", "pictures/", "script-"
"""Beginnings of the names of the files that are named after their content."""

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "webp": "image/webp",
    "png": "image/png",
    "jpg": "image/jpeg",
}


class Target(Protocol):
    """A place for files. Names have slashes; a file appears as a whole."""

    address: str
    """The address for people."""

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file; None if it does not exist."""

    def names(self) -> set[str]:
        """Return the names of the files that an export may have written. Others in the folder take no time."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""

    def copy(self, name: str, uri: str, storage: Storage) -> bool:
        """Write an object of S3 as a file, without holding it in memory; return False if it does not exist."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete files."""


class FolderTarget:
    """A folder of this machine.

    Args:
        folder: the folder; it is made with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self.address, self._folder = str(folder), folder

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file; None if it does not exist."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InvalidInput(f"{self._folder / name} cannot be read: {error.strerror}") from error

    def names(self) -> set[str]:
        """Return the names of the files that an export may have written."""
        folders = [self._folder, self._folder / PICTURES, *self._folder.glob(f"{SCRIPTS}*")]
        files = (path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_file())
        return {path.relative_to(self._folder).as_posix() for path in files}

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        self._fill(name, lambda file: file.write(data) >= 0)

    def copy(self, name: str, uri: str, storage: Storage) -> bool:
        """Write an object of S3 as a file; return False if it does not exist."""
        return self._fill(name, lambda file: storage.copy_to(uri, file))

    def _fill(self, name: str, fill: Callable[[BinaryIO], bool]) -> bool:
        """Let `fill` write a file, which then appears as a whole; if it returns False, there is no file."""
        path, temporary = self._folder / name, None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".export-")
            with os.fdopen(descriptor, "w+b") as file:
                if not fill(file):
                    return False
            Path(temporary).chmod(0o644)  # a web server reads it
            Path(temporary).replace(path)
        except OSError as error:
            raise InvalidInput(f"{path} cannot be written: {error.strerror}") from error
        finally:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
        return True

    def delete(self, names: Iterable[str]) -> None:
        """Delete files."""
        for name in names:
            (self._folder / name).unlink(missing_ok=True)


class S3Target:
    """A folder in S3.

    Args:
        folder: its address, which ends with a slash.
        storage: access to S3.
    """

    def __init__(self, folder: str, storage: Storage) -> None:
        self.address, self._storage = folder, storage

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file; None if it does not exist."""
        return self._storage.read(self.address + name)

    def names(self) -> set[str]:
        """Return the names of the files that an export may have written."""
        found = (info for start in (DATA, PICTURES, SCRIPTS) for info in self._storage.list(self.address + start))
        return {info.uri.removeprefix(self.address) for info in found}

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        self._storage.write(self.address + name, data, _TYPES[name.rpartition(".")[2]])

    def copy(self, name: str, uri: str, storage: Storage) -> bool:
        """Copy an object within the store; return False if it does not exist."""
        return storage.copy(uri, self.address + name)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files."""
        self._storage.delete_many(self.address + name for name in names)


def open_target(address: str, destination: str, storage: Storage) -> Target:
    """Return the place of an export.

    Args:
        address: a folder of this machine, or an address in S3; empty for `gallery/` of the destination.
        destination: the destination that is exported.
        storage: access to S3.

    Raises:
        InvalidInput: the address is inside the results of the destination.
    """
    if address and not address.startswith("s3://"):
        return FolderTarget(Path(address).expanduser())
    try:
        folder = folder_uri(address or gallery_folder(destination))
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    if folder.startswith(destination) and not folder.startswith(gallery_folder(destination)):
        raise InvalidInput(f"{folder} is inside the results in {destination}: choose {gallery_folder(destination)}")
    return S3Target(folder, storage)
