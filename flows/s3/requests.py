"""Requests to S3 that need more than one call of the client: read an object and check it, delete many objects.

Each function returns a function that takes the client and makes one attempt. `storage` repeats attempts.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from botocore.exceptions import FlexibleChecksumError

from flows.s3.errors import S3_ERRORS, CorruptObject, PreconditionFailed, failed_deletion, is_unsupported
from flows.s3.layout import parse_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["MAX_DELETIONS", "check_md5", "key_batches", "request_bytes", "request_deletion"]

MAX_DELETIONS = 1000
"""Keys of one DeleteObjects request; S3 allows no more."""


def key_batches(uris: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield buckets with up to 1,000 keys of these addresses."""
    keys: dict[str, list[str]] = {}
    for uri in uris:
        bucket, key = parse_uri(uri)
        keys.setdefault(bucket, []).append(key)
        if len(keys[bucket]) == MAX_DELETIONS:
            yield bucket, keys.pop(bucket)
    yield from keys.items()


def request_deletion(bucket: str, entries: list[dict[str, str]]) -> "Callable[[S3Client], bool]":
    """Return the request that deletes objects; its response is False if the store does not support such requests."""

    def delete(s3: "S3Client") -> bool:
        try:
            response = s3.delete_objects(Bucket=bucket, Delete={"Objects": entries, "Quiet": True})  # type: ignore[typeddict-item]
        except S3_ERRORS as error:
            if is_unsupported(error):
                return False
            raise
        if failure := failed_deletion(response, bucket):
            raise failure
        return True

    return delete


def request_bytes(uri: str, etag: str | None = None) -> "Callable[[S3Client], bytes]":
    """Return the request for the bytes at `uri`, optionally only if they have this ETag.

    botocore compares the body with the length in the response, and with the checksum if the store has one. Corruption
    on the way is transient and is retried. The same corruption twice means that the object in the store is damaged.
    """
    bucket, key = parse_uri(uri)
    condition = {"IfMatch": f'"{etag}"'} if etag else {}
    mismatches: set[str] = set()

    def read(s3: "S3Client") -> bytes:
        try:
            response = s3.get_object(Bucket=bucket, Key=key, **condition)  # type: ignore[arg-type]
            with closing(response["Body"]) as body:  # a body that is not read would keep its connection
                if etag not in (None, response["ETag"].strip('"')):  # some stores ignore the condition
                    raise PreconditionFailed(f"{uri} does not have the ETag {etag}")
                data = body.read()
            check_md5(response, hashlib.md5(data, usedforsecurity=False).hexdigest(), bucket)
        except FlexibleChecksumError as error:
            if str(error) in mismatches:
                raise CorruptObject(f"{uri} is damaged in the store: {error}") from error
            mismatches.add(str(error))
            raise
        return data

    return read


def check_md5(response: Mapping[str, Any], md5: str, bucket: str) -> None:
    """Check the bytes of an object against its ETag, if that is an MD5.

    The ETag is not an MD5 if the object was uploaded in several parts, is encrypted with a customer's key, or is in an
    AWS directory bucket.

    Args:
        response: the response to a GET or HEAD request of the object.
        md5: the MD5 of the bytes that were read, in hex digits.
        bucket: the bucket of the object.

    Raises:
        FlexibleChecksumError: the MD5 is another one.
    """
    etag = response["ETag"].strip('"')
    encrypted = "SSECustomerAlgorithm" in response or response.get("ServerSideEncryption", "").startswith("aws:kms")
    if re.fullmatch("[0-9a-f]{32}", etag) and etag != md5 and not (encrypted or bucket.endswith("--x-s3")):
        raise FlexibleChecksumError(error_msg=f"the ETag is {etag}, but the MD5 of the bytes that were read is {md5}")
