"""S3, and nothing but S3: the only module that imports boto3.

Objects go by their address, `s3://bucket/key`. Credentials, region and endpoint come from the usual AWS chain, so
`AWS_ENDPOINT_URL` points the same code at any store that speaks S3.
"""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from dreamcore.errors import ImageError, InvalidInput, Unavailable
from flows.job import split_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# botocore's own 3 attempts lose requests as soon as a store asks to slow down.
PATIENT = Config(retries={"mode": "standard", "total_max_attempts": 10}, connect_timeout=10, read_timeout=60)
# To find out quickly whether a job can run at all.
HASTY = Config(retries={"mode": "standard", "total_max_attempts": 2}, connect_timeout=3, read_timeout=5)

_MISSING = {"404", "NoSuchKey", "NotFound"}
_CHANGED = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_REFUSED = {
    "401",
    "403",
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AllAccessDisabled",
    "Forbidden",
}


@dataclass(frozen=True)
class Found:
    """An object as a listing shows it."""

    uri: str
    etag: str
    """Opaque, without quotation marks."""
    size: int


class Storage:
    """S3 with the conditional reads and writes that the protocol rests on.

    Every method raises `InvalidInput` when access is refused or the bucket is not there, and `Unavailable` when the
    store does not answer as it should after retries.

    Args:
        config: how patiently to retry.
        environment: where to find endpoint, region and credentials, instead of the usual chain.
    """

    def __init__(self, config: Config = PATIENT, environment: Mapping[str, str] | None = None) -> None:
        chain = {
            "endpoint_url": environment["AWS_ENDPOINT_URL"],
            "region_name": environment["AWS_DEFAULT_REGION"],
            "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
        } if environment else {}  # fmt: skip
        try:
            self._client: S3Client = boto3.client("s3", config=config, **chain)  # type: ignore[call-overload]
        except (BotoCoreError, ValueError) as error:
            raise InvalidInput(f"S3 cannot be used: {error}; see AWS_ENDPOINT_URL and AWS_PROFILE") from error

    @property
    def endpoint(self) -> str:
        """Address of the store."""
        return self._client.meta.endpoint_url

    def list(self, prefix: str) -> Iterator[Found]:
        """Every object whose address begins with `prefix`, in the store's own order, which differs between stores."""
        bucket, key = split_uri(prefix)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        with self._explained(prefix):
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield Found(f"s3://{bucket}/{entry['Key']}", entry["ETag"].strip('"'), entry["Size"])

    def find(self, uri: str) -> Found | None:
        """The object at `uri`, or None."""
        bucket, key = split_uri(uri)
        with self._explained(uri, quiet=_MISSING):
            head = self._client.head_object(Bucket=bucket, Key=key)
            return Found(uri, head["ETag"].strip('"'), head["ContentLength"])
        return None

    def read(self, uri: str) -> bytes | None:
        """The bytes at `uri`, or None."""
        bucket, key = split_uri(uri)
        with self._explained(uri, quiet=_MISSING):
            return self._client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return None

    def read_version(self, source: Found) -> bytes:
        """The bytes of one version of a photograph, never of another.

        Raises:
            ImageError: `source_missing` or `source_changed` since it was found.
        """
        bucket, key = split_uri(source.uri)
        try:
            answer = self._client.get_object(Bucket=bucket, Key=key, IfMatch=f'"{source.etag}"')
            return answer["Body"].read()
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in _MISSING:
                raise ImageError("source_missing", f"{source.uri} was deleted after the scan") from error
            if code in _CHANGED:
                raise ImageError("source_changed", f"{source.uri} was replaced after the scan") from error
            raise self._explain(error, source.uri) from error
        except BotoCoreError as error:
            raise self._explain(error, source.uri) from error

    def write(self, uri: str, data: bytes, content_type: str) -> None:
        """Put `data` at `uri`, over what may be there."""
        bucket, key = split_uri(uri)
        with self._explained(uri):
            self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type)

    def write_new(self, uri: str, data: bytes, content_type: str) -> bool:
        """Put `data` at `uri` only if nothing is there; says whether what is there now is `data`.

        A retried put may find its own first attempt, whose answer was lost: so what is there is read and compared.
        """
        bucket, key = split_uri(uri)
        with self._explained(uri, quiet=_CHANGED):
            self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type, IfNoneMatch="*")
            return True
        return self.read(uri) == data

    def delete(self, uri: str) -> None:
        """Remove the object at `uri`, if there is one."""
        bucket, key = split_uri(uri)
        with self._explained(uri):
            self._client.delete_object(Bucket=bucket, Key=key)

    def check_bucket(self, uri: str) -> None:
        """Raise `InvalidInput` unless the bucket of `uri` can be listed."""
        bucket, key = split_uri(uri)
        with self._explained(uri):
            self._client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)

    def create_bucket(self, uri: str) -> None:
        """Create the bucket of `uri` unless it is there."""
        bucket, _ = split_uri(uri)
        with self._explained(uri, quiet={"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}):
            self._client.create_bucket(Bucket=bucket)

    def honours_conditions(self, folder: str) -> bool:
        """Whether the store refuses a conditional write over an object that is there; some ignore the condition."""
        uri = f"{folder}probe-{uuid.uuid4().hex}"
        try:
            return self.write_new(uri, b"first", "text/plain") and not self.write_new(uri, b"second", "text/plain")
        finally:
            with suppress(InvalidInput, Unavailable):
                self.delete(uri)

    @contextmanager
    def _explained(self, uri: str, quiet: frozenset[str] | set[str] = frozenset()) -> Iterator[None]:
        """Turn the client's errors into ours; those with a code in `quiet` just end the block."""
        try:
            yield
        except ClientError as error:
            if error.response["Error"]["Code"] not in quiet:
                raise self._explain(error, uri) from error
        except BotoCoreError as error:
            raise self._explain(error, uri) from error

    def _explain(self, error: ClientError | BotoCoreError, uri: str) -> InvalidInput | Unavailable:
        bucket, _ = split_uri(uri)
        if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
            return InvalidInput(
                f"no credentials for {uri}: set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                '(for the embedded stack: eval "$(dreamgrid env)")'
            )
        if isinstance(error, ParamValidationError):
            return InvalidInput(f"{uri} is no address of an object: {' '.join(str(error).split())}")
        if not isinstance(error, ClientError):
            return Unavailable(f"{uri}: the store at {self.endpoint} does not answer ({error}); see AWS_ENDPOINT_URL")
        code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        if code == "NoSuchBucket":
            return InvalidInput(f"there is no bucket {bucket!r} at {self.endpoint}: create it, or correct {uri}")
        if code in _REFUSED:
            return InvalidInput(
                f"{uri}: {self.endpoint} refuses access ({code} {message}): see the credentials "
                "(AWS_PROFILE, AWS_ACCESS_KEY_ID) and the bucket's policy"
            )
        return Unavailable(f"{uri}: the store at {self.endpoint} answers {code} {message}")


@lru_cache(maxsize=1)
def storage() -> Storage:
    """This process's patient storage."""
    return Storage()


def probe(environment: Mapping[str, str]) -> None:
    """Put and get a real key at the endpoint that `environment` names.

    Raises:
        Unavailable, InvalidInput: it did not work.
    """
    store = Storage(HASTY, environment)
    uri, word = "s3://dreamgrid-ready/ready", os.urandom(8)
    store.create_bucket(uri)
    store.write(uri, word, "application/octet-stream")
    if store.read(uri) != word:
        raise Unavailable(f"{store.endpoint} does not give back what was put there")
