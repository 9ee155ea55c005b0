"""Access to S3. This is the only module that imports boto3.

Objects are named by their address, `s3://bucket/key`. Credentials, region and endpoint come from the usual AWS chain,
so `AWS_ENDPOINT_URL` selects any store with the S3 API.

Failed requests are retried here until the retry policy's time is over. botocore's own retries are switched off: its
retry quota is used up within seconds if half of the responses are "slow down", and its limit is a number of attempts
and not a time.
"""

import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from dreamcore.errors import ImageError, InvalidInput, Unavailable
from flows.s3.errors import (
    S3_ERRORS,
    CorruptObject,
    NotFound,
    PreconditionFailed,
    UnreadableObject,
    describe,
    is_expired,
    is_transient,
    translate,
)
from flows.s3.layout import parse_uri
from flows.s3.objects import ObjectInfo, Page, object_info
from flows.s3.requests import MAX_DELETIONS, key_batches, request_bytes, request_deletion
from flows.s3.retry_policy import DEFAULT_RETRY, FAIL_FAST, RetryPolicy, retry_policy
from flows.s3.transfers import MD5, OnBytes, request_download, request_upload

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef

__all__ = [
    "DEFAULT_RETRY",
    "FAIL_FAST",
    "ObjectInfo",
    "Page",
    "RetryPolicy",
    "Storage",
    "probe",
    "retry_policy",
    "storage",
]

# At DEBUG level botocore logs session tokens and responses with credentials. Prefect stores log records in its
# database, so a user who logs everything would store them there.
logging.getLogger("botocore").setLevel(logging.INFO)


_CONNECTIONS = 256
"""Connections that are kept open, more than a process has threads. Any further request would open a new connection."""

_CHUNK = 2**20
"""Bytes of a large object that are in memory while it is copied into a file."""

_Response = TypeVar("_Response")


class Storage:
    """S3 with the conditional reads and writes on which the run protocol relies.

    Every method raises `InvalidInput` if access is refused or the bucket does not exist, and `Unavailable` if the
    request still fails when the time of the retry policy is over.

    Args:
        retry: the retry policy of every request.
        environment: variables with the endpoint, the region and the credentials, instead of the usual AWS chain.

    Raises:
        InvalidInput: the endpoint is malformed, or the AWS configuration is incomplete.
    """

    def __init__(self, retry: RetryPolicy = DEFAULT_RETRY, environment: Mapping[str, str] | None = None) -> None:
        self._retry, self._environment = retry, environment
        self._client = self._connect()
        self._deletes_many = True  # False as soon as the store refuses DeleteObjects

    def __reduce__(self) -> tuple[type["Storage"], tuple[RetryPolicy, Mapping[str, str] | None]]:
        """Let another process of this machine make its own client. By default it takes the credentials of the chain."""
        return Storage, (self._retry, self._environment)

    def _connect(self) -> "S3Client":
        """Return a client with the current credentials of the chain."""
        environment, timeout = self._environment, self._retry.timeout
        chain = {
            "endpoint_url": environment["AWS_ENDPOINT_URL"],
            "region_name": environment["AWS_DEFAULT_REGION"],
            "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
        } if environment else {}  # fmt: skip
        no_retries = {"mode": "standard", "total_max_attempts": 1}
        config = Config(
            retries=no_retries,  # type: ignore[arg-type]
            connect_timeout=timeout,
            read_timeout=timeout,
            max_pool_connections=_CONNECTIONS,
        )
        try:
            return boto3.Session().client("s3", config=config, **chain)  # type: ignore[call-overload, no-any-return]
        except (BotoCoreError, OSError, ValueError) as error:
            raise InvalidInput(
                f"the S3 client cannot be set up: {describe(error)}; check AWS_ENDPOINT_URL and AWS_PROFILE"
            ) from error

    @property
    def endpoint(self) -> str:
        """The address of the store."""
        return self._client.meta.endpoint_url

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose address starts with `prefix`. The order differs between stores."""
        page = self.list_page(prefix)
        yield from page.objects
        while page.token:
            page = self.list_page(prefix, token=page.token)
            yield from page.objects

    def list_page(self, prefix: str, *, token: str | None = None, by_folder: bool = False) -> Page:
        """Return one page of a listing of the objects whose addresses start with `prefix`.

        Args:
            prefix: the beginning of the addresses.
            token: the token of the page before this one.
            by_folder: list only objects without a slash after `prefix`, and a prefix for each folder of the others.
        """
        bucket, key = parse_uri(prefix)
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": key}
        request |= {"ContinuationToken": token} if token else {}
        request |= {"Delimiter": "/"} if by_folder else {}
        page = self._request(prefix, lambda s3: s3.list_objects_v2(**request))
        return Page(
            [object_info(f"s3://{bucket}/{entry['Key']}", entry) for entry in page.get("Contents", ())],
            [f"s3://{bucket}/{entry['Prefix']}" for entry in page.get("CommonPrefixes", ())],
            page["NextContinuationToken"] if page.get("IsTruncated") else None,
        )

    def find(self, uri: str) -> ObjectInfo | None:
        """Return the object at `uri`; None if it does not exist."""
        bucket, key = parse_uri(uri)
        with suppress(NotFound):
            head = self._request(uri, lambda s3: s3.head_object(Bucket=bucket, Key=key))
            return object_info(uri, head)
        return None

    def read(self, uri: str) -> bytes | None:
        """Return the bytes at `uri`; None if the object does not exist."""
        with suppress(NotFound):
            return self._request(uri, request_bytes(uri))
        return None

    def copy_to(self, uri: str, file: BinaryIO) -> bool:
        """Write the bytes at `uri` into an empty file; return False if the object does not exist."""
        bucket, key = parse_uri(uri)

        def copy(s3: "S3Client") -> None:
            file.seek(0)
            file.truncate()  # an earlier attempt may have failed
            with closing(s3.get_object(Bucket=bucket, Key=key)["Body"]) as body:
                for chunk in body.iter_chunks(_CHUNK):
                    file.write(chunk)

        with suppress(NotFound):
            self._request(uri, copy)
            return True
        return False

    def copy(self, uri: str, target: str) -> bool:
        """Copy an object within the store, and replace the target; return False if the object does not exist."""
        bucket, key = parse_uri(target)
        source_bucket, source_key = parse_uri(uri)
        source: CopySourceTypeDef = {"Bucket": source_bucket, "Key": source_key}
        with suppress(NotFound):
            self._request(uri, lambda s3: s3.copy_object(Bucket=bucket, Key=key, CopySource=source))
            return True
        return False

    def read_start(self, uri: str, length: int) -> bytes | None:
        """Return the first bytes of the object at `uri`, at most `length`; None if there is no such object."""
        bucket, key = parse_uri(uri)

        def read(s3: "S3Client") -> bytes:
            response = s3.get_object(Bucket=bucket, Key=key, Range=f"bytes=0-{length - 1}")
            with closing(response["Body"]) as body:
                return body.read()

        with suppress(NotFound):
            return self._request(uri, read)
        return None

    def read_version(self, uri: str, etag: str) -> bytes:
        """Return the bytes of one version of a photograph, never those of another version.

        Args:
            uri: the address of the photograph.
            etag: the version, from a listing.

        Raises:
            ImageError: `source_missing` or `source_changed`: the photograph was removed or replaced after it was
                listed; `damaged`: its bytes do not match their checksum; `source_unreadable`: the store does not
                deliver it.
        """
        try:
            return self._request(uri, request_bytes(uri, etag))
        except NotFound as error:
            raise ImageError("source_missing", f"{uri} was deleted after the scan") from error
        except PreconditionFailed as error:
            raise ImageError("source_changed", f"{uri} was replaced after the scan") from error
        except CorruptObject as error:
            raise ImageError("damaged", str(error)) from error
        except UnreadableObject as error:
            raise ImageError(
                "source_unreadable", f"{error}: it may be archived, or encrypted with a key that S3 does not have"
            ) from error

    def download(self, info: ObjectInfo, path: Path, on_bytes: OnBytes) -> None:
        """Write an object into a file, with several requests at a time if it is large.

        Args:
            info: the object, from a listing. No other version of it is written.
            path: the file. If the method raises, the file may be incomplete.
            on_bytes: called with numbers of bytes as they arrive; negative ones are read again.

        Raises:
            NotFound, PreconditionFailed: the object was deleted or replaced.
            CorruptObject, UnreadableObject: the object does not match its checksum, or the store does not deliver it.
            Unavailable: the file cannot be written.
        """
        self._request(info.uri, request_download(info, path, on_bytes))

    def upload(self, path: Path, uri: str, md5: str, content_type: str, on_bytes: OnBytes) -> None:
        """Write a file to `uri`, with several requests at a time if it is large, and replace the object if it exists.

        Args:
            path: the file.
            uri: the address of the object.
            md5: MD5 of the file in hex digits; it is kept in the metadata of the object.
            content_type: the media type of the file.
            on_bytes: called with numbers of bytes as they are sent; negative ones are sent again.

        Raises:
            Unavailable: the file cannot be read.
        """
        self._request(uri, request_upload(path, uri, {"ContentType": content_type, "Metadata": {MD5: md5}}, on_bytes))

    def recorded_md5(self, uri: str) -> str | None:
        """Return the MD5 that `upload` recorded; None if there is no such object or another client wrote it."""
        bucket, key = parse_uri(uri)
        with suppress(NotFound):
            return self._request(uri, lambda s3: s3.head_object(Bucket=bucket, Key=key)).get("Metadata", {}).get(MD5)
        return None

    def write(self, uri: str, data: bytes, content_type: str) -> None:
        """Write `data` to `uri`, and replace the object if it exists."""
        bucket, key = parse_uri(uri)
        self._request(uri, lambda s3: s3.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type))

    def write_if_absent(self, uri: str, data: bytes, content_type: str) -> bool:
        """Write `data` to `uri` only if the object does not exist: a conditional write.

        Returns:
            Whether the object now holds `data`. If the response to a first attempt is lost, the retry finds the object
            that the first attempt wrote; therefore an existing object is read and compared.
        """
        bucket, key = parse_uri(uri)
        request = {"Bucket": bucket, "Key": key, "ContentType": content_type, "IfNoneMatch": "*"}
        with suppress(PreconditionFailed):
            self._request(uri, lambda s3: s3.put_object(Body=data, **request))  # type: ignore[arg-type]
            return True
        return self.read(uri) == data

    def write_if_unchanged(self, uri: str, data: bytes, content_type: str, etag: str) -> bool:
        """Replace the object at `uri` only if it still has this ETag: a conditional write.

        Args:
            uri: the address of the object.
            data: the new content.
            content_type: the media type of the new content.
            etag: the ETag that the object must have, from `find` or a listing.

        Returns:
            Whether the object now holds `data`, as for `write_if_absent`.
        """
        bucket, key = parse_uri(uri)
        for condition in (f'"{etag}"', etag):  # Ceph compares the condition together with its quotation marks
            request = {"Bucket": bucket, "Key": key, "ContentType": content_type, "IfMatch": condition}
            with suppress(NotFound, PreconditionFailed):
                self._request(uri, lambda s3: s3.put_object(Body=data, **request))  # type: ignore[arg-type]  # noqa: B023 - called at once
                return True
            found = self.find(uri)
            if found is None or found.etag != etag:
                break
        return self.read(uri) == data

    def delete(self, uri: str) -> None:
        """Delete the object at `uri`, if it exists."""
        bucket, key = parse_uri(uri)
        self._request(uri, lambda s3: s3.delete_object(Bucket=bucket, Key=key))

    def delete_many(self, uris: Iterable[str]) -> None:
        """Delete the objects at these addresses, as far as they exist, with one request for up to 1,000 of a bucket.

        If the method raises, some of the objects may be deleted; the same call again deletes the others. A store
        without DeleteObjects gets one request for each object.

        Raises:
            InvalidInput: the store refuses to delete one of the objects; the message names it.
        """
        for bucket, keys in key_batches(uris):
            request = request_deletion(bucket, [{"Key": key} for key in keys])
            self._deletes_many = self._deletes_many and self._request(f"s3://{bucket}/{keys[0]}", request)
            if not self._deletes_many:
                for key in keys:
                    self.delete(f"s3://{bucket}/{key}")

    def delete_versions(self, objects: Sequence[ObjectInfo]) -> None:
        """Delete the objects of one bucket that still have their ETag, with one request for up to 1,000.

        An object that was replaced meanwhile is kept if the store obeys this condition. Some stores ignore it.
        """
        for first in range(0, len(objects), MAX_DELETIONS):
            batch = objects[first : first + MAX_DELETIONS]
            bucket, _ = parse_uri(batch[0].uri)
            entries = [{"Key": parse_uri(info.uri)[1], "ETag": f'"{info.etag}"'} for info in batch]
            deleted = False
            with suppress(PreconditionFailed):
                deleted = self._deletes_many and self._request(batch[0].uri, request_deletion(bucket, entries))
            for info in batch if not deleted else ():
                self._delete_version(info)

    def _delete_version(self, info: ObjectInfo) -> None:
        bucket, key = parse_uri(info.uri)
        with suppress(NotFound, PreconditionFailed):
            self._request(info.uri, lambda s3: s3.delete_object(Bucket=bucket, Key=key, IfMatch=f'"{info.etag}"'))

    def delete_if_unchanged(self, uri: str, data: bytes) -> None:
        """Delete the object at `uri` only if it holds `data`; what another process writes meanwhile is kept."""
        found = self.find(uri)
        if found is not None and self.read(uri) == data:
            self._delete_version(found)

    def check_bucket(self, uri: str) -> None:
        """Raise `InvalidInput` if the bucket of `uri` cannot be listed."""
        bucket, key = parse_uri(uri)
        self._request(uri, lambda s3: s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1))

    def create_bucket(self, uri: str) -> None:
        """Create the bucket of `uri` if it does not exist."""
        bucket, _ = parse_uri(uri)
        with suppress(PreconditionFailed):
            self._request(uri, lambda s3: s3.create_bucket(Bucket=bucket))

    def supports_conditional_writes(self, folder: str, *, replacing: bool = False) -> bool:
        """Return whether the store refuses a conditional write over an existing object; some ignore the condition.

        Args:
            folder: where a test object is written and deleted.
            replacing: also check that the store refuses to replace an object that does not have the given ETag.
        """
        uri = f"{folder}probe-{uuid.uuid4().hex}"
        try:
            return (
                self.write_if_absent(uri, b"first", "text/plain")
                and not self.write_if_absent(uri, b"second", "text/plain")
                and not (replacing and self.write_if_unchanged(uri, b"third", "text/plain", "0" * 32))
            )
        finally:
            with suppress(InvalidInput, Unavailable):
                self.delete(uri)

    def _request(self, uri: str, request: "Callable[[S3Client], _Response]") -> _Response:
        """Return the response of a request, with retries; raise its failure as one of Dreamgrid's errors."""
        try:
            try:
                return self._retry_transient(request)
            except S3_ERRORS as error:
                if not is_expired(error):
                    raise
                self._client = self._connect()
                return self._retry_transient(request)
        except S3_ERRORS as error:
            raise translate(error, uri, self.endpoint) from error

    def _retry_transient(self, request: "Callable[[S3Client], _Response]") -> _Response:
        seconds = self._retry.seconds
        retrying = Retrying(
            retry=retry_if_exception(is_transient),
            wait=wait_random_exponential(multiplier=0.1, max=seconds / 10),
            stop=stop_before_delay(seconds),
            reraise=True,
        )
        return retrying(lambda: request(self._client))


@lru_cache(maxsize=1)
def storage() -> Storage:
    """Return the storage of this process, with the retry policy of `retry_policy`.

    Raises:
        InvalidInput: the retry variable is not a positive integer, or the S3 client cannot be set up.
    """
    return Storage(retry_policy())


def probe(environment: Mapping[str, str]) -> None:
    """Write and read an object at the endpoint that `environment` names.

    Raises:
        Unavailable, InvalidInput: it did not work.
    """
    store = Storage(FAIL_FAST, environment)
    uri, data = "s3://dreamgrid-ready/ready", os.urandom(8)
    store.create_bucket(uri)
    store.write(uri, data, "application/octet-stream")
    if store.read(uri) != data:
        raise Unavailable(f"{store.endpoint} does not return the bytes that were written")
