"""S3, and nothing but S3: the only module that imports boto3.

Objects go by their address, `s3://bucket/key`. Credentials, region and endpoint come from the usual AWS chain, so
`AWS_ENDPOINT_URL` points the same code at any store that speaks S3.

A request whose trouble may pass is tried again until retry ends, and all trying again is here: botocore's own stops
when its quota is spent, which half of the answers being "slow down" does within seconds, and knows no clock.
"""

import hashlib
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, FlexibleChecksumError
from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from dreamcore.errors import ImageError, InvalidInput, Unavailable
from flows.layout import parse_uri
from flows.machine import env_int
from flows.s3_errors import (
    S3_ERRORS,
    CorruptObject,
    NotFound,
    PreconditionFailed,
    UnreadableObject,
    is_expired,
    is_transient,
    translate,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# At DEBUG botocore logs requests with their session token, and answers that bring credentials; whoever logs everything
# would keep them, Prefect in its database.
logging.getLogger("botocore").setLevel(logging.INFO)


class RetryPolicy(NamedTuple):
    """How long a request is tried."""

    seconds: float
    """No attempt begins later than this after the first."""
    timeout: float
    """Seconds that one attempt waits for the store to say anything."""


DEFAULT_RETRY = RetryPolicy(60, 30)
RETRY_VARIABLES = ("DREAMGRID_RETRY_SECONDS", "DREAMGRID_PATIENCE")
FAIL_FAST = RetryPolicy(4, 5)
"""To find out quickly whether a job can run at all."""

CONNECTIONS = 256
"""Kept open at most. A process has fewer threads that ask; any beyond would make a new connection for each request."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class ObjectInfo:
    """An object as a listing shows it."""

    uri: str
    etag: str
    """Opaque, without quotation marks."""
    size: int


class Storage:
    """S3 with the conditional reads and writes that the protocol rests on.

    Every method raises `InvalidInput` when access is refused or the bucket is not there, and `Unavailable` when the
    store does not answer as it should before retry ends.

    Args:
        retry: how long to try.
        environment: where to find endpoint, region and credentials, instead of the usual chain.
    """

    def __init__(self, retry: RetryPolicy = DEFAULT_RETRY, environment: Mapping[str, str] | None = None) -> None:
        self._retry, self._environment = retry, environment
        self._client = self._connect()

    def _connect(self) -> "S3Client":
        """A client with the credentials that the chain gives now."""
        environment, timeout = self._environment, self._retry.timeout
        chain = {
            "endpoint_url": environment["AWS_ENDPOINT_URL"],
            "region_name": environment["AWS_DEFAULT_REGION"],
            "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
        } if environment else {}  # fmt: skip
        once = {"mode": "standard", "total_max_attempts": 1}
        config = Config(
            retries=once,  # type: ignore[arg-type]
            connect_timeout=timeout,
            read_timeout=timeout,
            max_pool_connections=CONNECTIONS,
        )
        try:
            return boto3.Session().client("s3", config=config, **chain)  # type: ignore[call-overload, no-any-return]
        except (BotoCoreError, ValueError) as error:
            raise InvalidInput(f"S3 cannot be used: {error}; see AWS_ENDPOINT_URL and AWS_PROFILE") from error

    @property
    def endpoint(self) -> str:
        """Address of the store."""
        return self._client.meta.endpoint_url

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose address begins with `prefix`, in the store's own order, which differs between stores."""
        bucket, key = parse_uri(prefix)
        rest: dict[str, Any] = {}
        while True:
            page = self._request(prefix, lambda s3: s3.list_objects_v2(Bucket=bucket, Prefix=key, **rest))  # noqa: B023 - asked at once
            for entry in page.get("Contents", ()):
                yield ObjectInfo(f"s3://{bucket}/{entry['Key']}", entry["ETag"].strip('"'), entry["Size"])
            if not page.get("IsTruncated"):
                return
            rest = {"ContinuationToken": page["NextContinuationToken"]}

    def find(self, uri: str) -> ObjectInfo | None:
        """The object at `uri`, or None."""
        bucket, key = parse_uri(uri)
        with suppress(NotFound):
            head = self._request(uri, lambda s3: s3.head_object(Bucket=bucket, Key=key))
            return ObjectInfo(uri, head["ETag"].strip('"'), head["ContentLength"])
        return None

    def read(self, uri: str) -> bytes | None:
        """The bytes at `uri`, or None."""
        with suppress(NotFound):
            return self._request(uri, _reading(uri))
        return None

    def read_version(self, uri: str, etag: str) -> bytes:
        """The bytes of one version of a photograph, never of another.

        Raises:
            ImageError: `source_missing` or `source_changed` since it was found; `damaged` in the store, or
                `source_unreadable` there.
        """
        try:
            return self._request(uri, _reading(uri, etag))
        except NotFound as error:
            raise ImageError("source_missing", f"{uri} was deleted after the scan") from error
        except PreconditionFailed as error:
            raise ImageError("source_changed", f"{uri} was replaced after the scan") from error
        except CorruptObject as error:
            raise ImageError("damaged", str(error)) from error
        except UnreadableObject as error:
            raise ImageError(
                "source_unreadable", f"{error}: it is archived, or encrypted with a key of its own"
            ) from error

    def write(self, uri: str, data: bytes, content_type: str) -> None:
        """Put `data` at `uri`, over what may be there."""
        bucket, key = parse_uri(uri)
        self._request(uri, lambda s3: s3.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type))

    def write_if_absent(self, uri: str, data: bytes, content_type: str) -> bool:
        """Put `data` at `uri` only if nothing is there; says whether what is there now is `data`.

        A retried put may find its own first attempt, whose answer was lost: so what is there is read and compared.
        """
        bucket, key = parse_uri(uri)
        what = {"Bucket": bucket, "Key": key, "ContentType": content_type, "IfNoneMatch": "*"}
        with suppress(PreconditionFailed):
            self._request(uri, lambda s3: s3.put_object(Body=data, **what))  # type: ignore[arg-type]
            return True
        return self.read(uri) == data

    def delete(self, uri: str) -> None:
        """Remove the object at `uri`, if there is one."""
        bucket, key = parse_uri(uri)
        self._request(uri, lambda s3: s3.delete_object(Bucket=bucket, Key=key))

    def delete_if_unchanged(self, uri: str, data: bytes) -> None:
        """Remove the object at `uri` only if it holds `data`, and never what another puts there meanwhile."""
        bucket, key = parse_uri(uri)
        found = self.find(uri)
        if found is not None and self.read(uri) == data:
            with suppress(NotFound, PreconditionFailed):
                self._request(uri, lambda s3: s3.delete_object(Bucket=bucket, Key=key, IfMatch=f'"{found.etag}"'))

    def check_bucket(self, uri: str) -> None:
        """Raise `InvalidInput` unless the bucket of `uri` can be listed."""
        bucket, key = parse_uri(uri)
        self._request(uri, lambda s3: s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1))

    def create_bucket(self, uri: str) -> None:
        """Create the bucket of `uri` unless it is there."""
        bucket, _ = parse_uri(uri)
        with suppress(PreconditionFailed):
            self._request(uri, lambda s3: s3.create_bucket(Bucket=bucket))

    def supports_conditional_writes(self, folder: str) -> bool:
        """Whether the store refuses a conditional write over an object that is there; some ignore the condition."""
        uri = f"{folder}probe-{uuid.uuid4().hex}"
        try:
            return self.write_if_absent(uri, b"first", "text/plain") and not self.write_if_absent(
                uri, b"second", "text/plain"
            )
        finally:
            with suppress(InvalidInput, Unavailable):
                self.delete(uri)

    def _request(self, uri: str, request: "Callable[[S3Client], _Answer]") -> _Answer:
        """What the store answers, at last; or its trouble in our words."""
        try:
            try:
                return self._retried(request)
            except S3_ERRORS as error:
                if not is_expired(error):
                    raise
                self._client = self._connect()
                return self._retried(request)
        except S3_ERRORS as error:
            raise translate(error, uri, self.endpoint) from error

    def _retried(self, request: "Callable[[S3Client], _Answer]") -> _Answer:
        seconds = self._retry.seconds
        retrying = Retrying(
            retry=retry_if_exception(is_transient),
            wait=wait_random_exponential(multiplier=0.1, max=seconds / 10),
            stop=stop_before_delay(seconds),
            reraise=True,
        )
        return retrying(lambda: request(self._client))


def _reading(uri: str, etag: str | None = None) -> "Callable[[S3Client], bytes]":
    """The request for the bytes at `uri`, if they have this ETag; what comes harmed is `FlexibleChecksumError`.

    botocore holds an answer's length, and its checksum where the store keeps one, against what came.
    """
    bucket, key = parse_uri(uri)
    condition = {"IfMatch": f'"{etag}"'} if etag else {}
    harmed: set[str] = set()

    def read(s3: "S3Client") -> bytes:
        try:
            answer = s3.get_object(Bucket=bucket, Key=key, **condition)  # type: ignore[arg-type]
            with closing(answer["Body"]) as body:  # unread, it would keep its connection
                if etag not in (None, answer["ETag"].strip('"')):  # some stores ignore the condition
                    raise PreconditionFailed(f"{uri} is another version than {etag}")
                data = body.read()
            _check_md5(answer, data, bucket)
        except FlexibleChecksumError as error:
            if str(error) in harmed:
                raise CorruptObject(f"{uri} is damaged in the store: {error}") from error
            harmed.add(str(error))
            raise
        return data

    return read


def _check_md5(answer: Mapping[str, Any], data: bytes, bucket: str) -> None:
    """Hold bytes against their ETag where that is their MD5: it is not for what was put in several parts, is encrypted
    with a key of the owner's, or lies in a directory bucket of AWS.
    """
    etag, found = answer["ETag"].strip('"'), hashlib.md5(data, usedforsecurity=False).hexdigest()
    encrypted = "SSECustomerAlgorithm" in answer or answer.get("ServerSideEncryption", "").startswith("aws:kms")
    if re.fullmatch("[0-9a-f]{32}", etag) and etag != found and not (encrypted or bucket.endswith("--x-s3")):
        raise FlexibleChecksumError(error_msg=f"its ETag is {etag}, and the MD5 of what was read {found}")


@lru_cache(maxsize=1)
def storage() -> Storage:
    """Return the storage of this process; `DREAMGRID_RETRY_SECONDS` sets how long requests are retried.

    `DREAMGRID_PATIENCE` is the former name of the variable and still works.

    Raises:
        InvalidInput: the variable is not a positive integer.
    """
    seconds = next(filter(None, (env_int(name, "seconds") for name in RETRY_VARIABLES)), DEFAULT_RETRY.seconds)
    return Storage(RetryPolicy(seconds, min(seconds, DEFAULT_RETRY.timeout)))


def probe(environment: Mapping[str, str]) -> None:
    """Put and get a real key at the endpoint that `environment` names.

    Raises:
        Unavailable, InvalidInput: it did not work.
    """
    store = Storage(FAIL_FAST, environment)
    uri, word = "s3://dreamgrid-ready/ready", os.urandom(8)
    store.create_bucket(uri)
    store.write(uri, word, "application/octet-stream")
    if store.read(uri) != word:
        raise Unavailable(f"{store.endpoint} does not give back what was put there")
