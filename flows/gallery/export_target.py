"""Where a static gallery is written: a folder of this machine, or a folder in S3."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from dreamcore.errors import InvalidInput
from flows.layout import folder_uri, gallery_folder
from flows.storage import Storage

__all__ = ["FolderTarget", "S3Target", "Target", "open_target"]

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
        """Return the names of all files."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""

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
        """Return the names of all files."""
        return {path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if path.is_file()}

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        path, temporary = self._folder / name, None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".export-")
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(temporary).chmod(0o644)  # a web server reads it
            Path(temporary).replace(path)
        except OSError as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            raise InvalidInput(f"{path} cannot be written: {error.strerror}") from error

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
        """Return the names of all files."""
        return {info.uri.removeprefix(self.address) for info in self._storage.list(self.address)}

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        self._storage.write(self.address + name, data, _TYPES[name.rpartition(".")[2]])

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
