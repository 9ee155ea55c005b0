"""Requests to S3 that copy a file into an object, or an object into a file. Large ones are copied in parts.

As in `requests`, each function returns a function that takes the client and makes one attempt.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import FlexibleChecksumError, ResponseStreamingError
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError
from s3transfer.futures import NonThreadedExecutor
from s3transfer.manager import TransferConfig, TransferManager
from s3transfer.subscribers import BaseSubscriber

from dreamcore.errors import Unavailable
from flows.s3.errors import CorruptObject, PreconditionFailed
from flows.s3.layout import parse_uri
from flows.s3.objects import ObjectInfo
from flows.s3.requests import check_md5, request_bytes

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["MD5", "OnBytes", "file_md5", "request_download", "request_upload"]

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were copied since the last call; negative if they are copied again. If the
function raises an error, the transfer ends."""

MD5 = "dreamgrid-md5"
"""Metadata of an uploaded object: the MD5 of the file. The ETag is another value if the object was uploaded in parts or
is encrypted with a customer's key."""
_PART = 2**24
"""Bytes of the parts of a large file or object. Smaller ones are copied with one request."""
_PARTS = 4
"""Parts of one large file or object that are copied at the same time."""


class _Progress(BaseSubscriber):
    """Passes progress on, and tells a download what is known about the object, which saves a request."""

    def __init__(self, on_bytes: OnBytes, info: ObjectInfo | None = None) -> None:
        self._on_bytes, self._info, self._copied = on_bytes, info, 0

    def on_queued(self, future: Any, **_: Any) -> None:
        self._on_bytes(0)  # may raise an error that ends the transfer
        if self._info:
            future.meta.provide_transfer_size(self._info.size)
            future.meta.provide_object_etag(f'"{self._info.etag}"')

    def on_progress(self, future: Any, bytes_transferred: int, **_: Any) -> None:  # noqa: ARG002 - called by name
        self._copied += bytes_transferred
        self._on_bytes(bytes_transferred)

    def undo(self) -> None:
        """Take back the bytes of a failed attempt."""
        self._on_bytes(-self._copied)


def file_md5(path: Path) -> str:
    """Return the MD5 of a file as 32 hex digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def request_upload(
    path: Path, uri: str, arguments: Mapping[str, Any], on_bytes: OnBytes
) -> "Callable[[S3Client], None]":
    """Return the request that copies a file to `uri`. `arguments` are further arguments of PutObject."""
    bucket, key = parse_uri(uri)

    def upload(s3: "S3Client") -> None:
        progress = _Progress(on_bytes)
        try:
            size = path.stat().st_size
            with _attempt(progress), _manager(s3, size) as manager:
                manager.upload(str(path), bucket, key, dict(arguments), [progress]).result()
        except OSError as error:  # botocore's own errors have other types
            raise Unavailable(f"{path} cannot be read: {error.strerror}") from error

    return upload


def request_download(info: ObjectInfo, path: Path, on_bytes: OnBytes) -> "Callable[[S3Client], None]":
    """Return the request that copies one version of an object into a file, and checks it as `request_bytes` does."""
    bucket, key = parse_uri(info.uri)
    read_at_once = request_bytes(info.uri, info.etag)
    mismatches: set[str] = set()

    def download(s3: "S3Client") -> None:
        if info.size < _PART:
            data = read_at_once(s3)
            with _writing(path):
                path.write_bytes(data)
            on_bytes(len(data))
            return
        progress = _Progress(on_bytes, info)
        with _writing(path), _attempt(progress), _manager(s3, info.size) as manager:
            manager.download(bucket, key, str(path), None, [progress]).result()
        with _writing(path):
            md5 = file_md5(path)
        if md5 == info.etag:
            return
        try:
            check_md5(s3.head_object(Bucket=bucket, Key=key), md5, bucket)
        except FlexibleChecksumError as error:
            progress.undo()
            if md5 in mismatches:
                raise CorruptObject(f"{info.uri} is damaged in the store: {error}") from error
            mismatches.add(md5)
            raise

    return download


def _manager(s3: "S3Client", size: int) -> TransferManager:
    """Return a transfer manager for one file. It starts threads only for a large one."""
    config = TransferConfig(
        multipart_threshold=_PART,
        multipart_chunksize=_PART,
        max_request_concurrency=_PARTS,
        num_download_attempts=1,  # `storage` repeats attempts
    )
    return TransferManager(s3, config, executor_cls=NonThreadedExecutor if size < _PART else None)


@contextmanager
def _attempt(progress: _Progress) -> Iterator[None]:
    """Take back the progress of an attempt that fails, and raise the cause of its failure."""
    try:
        yield
    except RetriesExceededError as error:
        progress.undo()
        cause = error.last_exception
        raise ResponseStreamingError(error=cause) if isinstance(cause, OSError) else cause from error
    except S3DownloadFailedError as error:
        progress.undo()
        raise PreconditionFailed(str(error)) from error
    except BaseException:
        progress.undo()
        raise


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise the failures of a local file as `Unavailable`, so that they are not taken for failures of S3."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from error
