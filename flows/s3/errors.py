"""The errors of S3: which are transient, which are refusals, and their translation into the errors of Dreamgrid."""

from collections.abc import Mapping
from typing import Any

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from dreamcore.errors import InvalidInput, Unavailable
from flows.s3.layout import parse_uri

__all__ = [
    "S3_ERRORS",
    "CorruptObject",
    "NotFound",
    "PreconditionFailed",
    "UnreadableObject",
    "concerns_one_object",
    "describe",
    "failed_deletion",
    "is_expired",
    "is_transient",
    "is_unsupported",
    "translate",
]

S3_ERRORS = (boto.BotoCoreError, boto.ClientError, ResponseParserError, OSError, ValueError)
"""Every error that boto3 raises when a request fails. OSError and ValueError are raised by the sources of credentials,
for example if a token file is missing or a program prints no valid JSON."""

_MISSING = {"404", "NoSuchKey", "NotFound"}
_CONFLICT = {"412", "PreconditionFailed", "BucketAlreadyOwnedByYou", "BucketAlreadyExists"}
# The object is archived, or encrypted with a key that the request does not supply or that is disabled.
_UNREADABLE = {
    "InvalidArgument",
    "InvalidObjectState",
    "InvalidRequest",
    "KMS.DisabledException",
    "KMS.KMSInvalidStateException",
    "KMS.NotFoundException",
}
# The response to a HEAD request has no body, so its status is the only reason that is given.
_EXPIRED = {"400", "401", "403", "ExpiredToken", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId"}
_REFUSED = _EXPIRED | {"AccessDenied", "SignatureDoesNotMatch", "AllAccessDisabled", "Forbidden"}
# Transient although the status is below 500: timeouts, rate limits, conflicts, and requests corrupted on the way.
_TRANSIENT = {
    "429",
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "XAmzContentSHA256Mismatch",
}
_NO_CREDENTIALS = (
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.TokenRetrievalError,
)
_LOGIN_NEEDED = (boto.LoginError, boto.SSOError)
_NO_ANSWER = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.FlexibleChecksumError)
# Requests that obtain credentials, by services other than S3.
_CREDENTIAL_REQUESTS = {
    "AssumeRole",
    "AssumeRoleWithWebIdentity",
    "CreateOAuth2Token",
    "CreateToken",
    "GetRoleCredentials",
}


class NotFound(Unavailable):
    """The object does not exist."""


class PreconditionFailed(Unavailable):
    """The condition of a request does not hold: the object exists already, or has another ETag."""


class CorruptObject(Unavailable):
    """The bytes in the store do not match their checksum."""


class UnreadableObject(Unavailable):
    """The object exists, but the store does not deliver it, and retrying does not help."""


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, boto.ClientError):
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return (status >= 500 and status != 501) or _code(error) in _TRANSIENT
    return isinstance(error, (*_NO_ANSWER, ResponseParserError)) and not _is_unusable_proxy(error)


def concerns_one_object(error: Unavailable) -> bool:
    """Return whether an error of `translate` concerns only the object that it names, so that others can be tried."""
    if isinstance(error, (NotFound, PreconditionFailed, CorruptObject, UnreadableObject)):
        return True
    return isinstance(error.__cause__, boto.ClientError) and not is_transient(error.__cause__)


def is_expired(error: Exception) -> bool:
    """Return whether credentials were refused that may have been renewed since they were read."""
    return isinstance(error, boto.ClientError) and _code(error) in _EXPIRED


def is_unsupported(error: Exception) -> bool:
    """Return whether the store does not know a kind of request, or refuses the form in which botocore sends it."""
    if not isinstance(error, boto.ClientError) or is_expired(error) or is_transient(error):
        return False
    return error.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 405, 411, 501)


def failed_deletion(response: Mapping[str, Any], bucket: str) -> boto.ClientError | None:
    """Return the first error in the response to DeleteObjects; None if all objects are deleted.

    The response has the status 200 even if no object could be deleted. An object that does not exist is no error.
    """
    failures = [each for each in response.get("Errors", ()) if each.get("Code") not in _MISSING]
    if not failures:
        return None
    first, refused = failures[0], _REFUSED | _CONFLICT | _UNREADABLE
    text = f"{first.get('Message', '')} for s3://{bucket}/{first.get('Key')}".strip()
    status = 403 if first.get("Code") in refused else 500  # any other error, such as SlowDown, may pass
    answer: Any = {"Error": {**first, "Message": text}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(answer, "DeleteObjects")


def translate(error: Exception, uri: str, endpoint: str) -> InvalidInput | Unavailable:
    """Return the Dreamgrid error for a failed request, with a message that says what to do.

    Args:
        error: one of `S3_ERRORS`.
        uri: the address that was requested.
        endpoint: the address of the store.

    Returns:
        `InvalidInput` if the user has to correct something, such as credentials or the name of a bucket; otherwise
        `Unavailable` or one of its subclasses in this module.
    """
    if not isinstance(error, boto.ClientError):
        return _translate_local(error, uri, endpoint)
    code, message = _code(error), error.response["Error"].get("Message") or ""
    if code == "NoSuchBucket":
        bucket, _ = parse_uri(uri)
        return InvalidInput(f"there is no bucket {bucket!r} at {endpoint}: create it, or correct {uri}")
    if error.operation_name in _CREDENTIAL_REQUESTS and not is_transient(error):
        return InvalidInput(
            f"no credentials for {uri}: AWS refuses {error.operation_name} ({code} {message}): check AWS_PROFILE, "
            "the role and the token"
        )
    if code in _REFUSED:
        return InvalidInput(
            f"{uri}: {endpoint} refuses access ({code} {message}): check the credentials "
            "(AWS_PROFILE, AWS_ACCESS_KEY_ID) and the bucket's policy"
        )
    if code == "NotImplemented":
        return InvalidInput(
            f"{uri}: the store at {endpoint} does not implement this request ({code} {message}): a run needs a store "
            "that supports conditional writes (If-None-Match)"
        )
    kinds = {NotFound: _MISSING, PreconditionFailed: _CONFLICT, UnreadableObject: _UNREADABLE}
    kind = next((kind for kind, codes in kinds.items() if code in codes), Unavailable)
    return kind(f"{uri}: the store at {endpoint} returned {code} {message}")


def describe(error: Exception) -> str:
    """Return an error as one line, with a remedy if one is known."""
    if isinstance(error, boto.MissingDependencyException):
        return "this profile or address needs the AWS Common Runtime: pip install 'dreamgrid[crt]'"
    message = " ".join(str(error).split())
    if isinstance(error, _LOGIN_NEEDED):
        return f"{message}; log in again with `aws login` or `aws sso login`"
    return message


def _translate_local(error: Exception, uri: str, endpoint: str) -> InvalidInput | Unavailable:
    """Return the Dreamgrid error for a request that was not sent, or has no answer."""
    if isinstance(error, _NO_CREDENTIALS):
        return InvalidInput(
            f"no credentials for {uri} ({describe(error)}): set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
            'AWS_SECRET_ACCESS_KEY (for the embedded servers: eval "$(dreamgrid env)")'
        )
    if isinstance(error, boto.ParamValidationError):
        return InvalidInput(f"{uri} is not the address of an object: {describe(error)}")
    if is_transient(error):
        return Unavailable(
            f"{uri}: the store at {endpoint} does not answer ({describe(error)}); check AWS_ENDPOINT_URL"
        )
    return InvalidInput(
        f"no request can be made for {uri} ({describe(error)}): check AWS_PROFILE, the other AWS variables and "
        "HTTPS_PROXY"
    )


def _is_unusable_proxy(error: BaseException) -> bool:
    """Return whether the environment names a proxy that botocore does not support, such as a SOCKS proxy."""
    # botocore puts http:// before a scheme that it does not know.
    return isinstance(error, boto.ProxyConnectionError) and error.kwargs["proxy_url"].count("://") > 1


def _code(error: boto.ClientError) -> str:
    return str(error.response["Error"]["Code"])
