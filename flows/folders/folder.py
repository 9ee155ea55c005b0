"""A folder of files, on this machine or in S3. A file appears only when it is complete."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from dreamcore.errors import InvalidInput, Unavailable
from flows.s3.layout import parse_uri
from flows.s3.storage import Storage, storage

__all__ = ["Folder", "LocalFolder", "S3Folder", "open_folder", "write_whole"]


class Folder(Protocol):
    """Files by their names. A name contains no slash."""

    @property
    def address(self) -> str:
        """The path or the S3 address, with a slash at its end."""

    def names(self) -> set[str]:
        """Return the names of all files.

        Raises:
            InvalidInput: the folder cannot be listed.
        """

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            Unavailable: the file does not exist or cannot be read.
        """

    def write(self, name: str, data: bytes, content_type: str) -> None:
        """Write a file as a whole, and replace a file of this name.

        Raises:
            Unavailable: the file cannot be written.
        """


def open_folder(address: str) -> Folder:
    """Return the folder with this path or S3 address. It need not exist yet.

    Raises:
        InvalidInput: the S3 address is malformed.
    """
    if not address.startswith("s3://"):
        return LocalFolder(Path(address))
    try:
        parse_uri(address)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    return S3Folder(address.rstrip("/") + "/", storage())


def write_whole(address: str, data: bytes, content_type: str) -> None:
    """Write one file as a whole, and replace a file of this name.

    Args:
        address: the path or S3 address of the file.
        data: its content.
        content_type: its media type.

    Raises:
        Unavailable: the file cannot be written.
    """
    if address.startswith("s3://"):
        storage().write(address, data, content_type)
    else:
        path = Path(address)
        LocalFolder(path.parent).write(path.name, data, content_type)


class LocalFolder:
    """A folder on this machine. It is created with its first file.

    Args:
        path: the path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def address(self) -> str:
        """The path, with a slash at its end."""
        return f"{self.path}{os.sep}"

    def names(self) -> set[str]:
        """Return the names of all files. A folder that does not exist has none."""
        try:
            return {path.name for path in self.path.iterdir()}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise InvalidInput(f"{self.path} cannot be listed: {error.strerror}") from error

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise Unavailable(f"{self.path / name} cannot be read: {error.strerror}") from error

    def write(self, name: str, data: bytes, content_type: str) -> None:  # noqa: ARG002 - only S3 keeps the type
        """Write a file under another name and rename it, so that a killed process leaves no incomplete file."""
        temporary = self.path / f".{name}.{os.getpid()}.tmp"
        try:
            self.path.mkdir(exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(self.path / name)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise Unavailable(f"{self.path / name} cannot be written: {error.strerror}") from error


class S3Folder:
    """A folder in S3.

    Args:
        address: the S3 address, with a slash at its end.
        store: the access to S3.
    """

    def __init__(self, address: str, store: Storage) -> None:
        self._address, self._store = address, store

    @property
    def address(self) -> str:
        """The S3 address, with a slash at its end."""
        return self._address

    def names(self) -> set[str]:
        """Return the names of all objects."""
        return {info.uri.removeprefix(self._address) for info in self._store.list(self._address)}

    def read(self, name: str) -> bytes:
        """Return the bytes of an object."""
        data = self._store.read(self._address + name)
        if data is None:
            raise Unavailable(f"{self._address}{name} was deleted: give the same command again")
        return data

    def write(self, name: str, data: bytes, content_type: str) -> None:
        """Write an object."""
        self._store.write(self._address + name, data, content_type)
