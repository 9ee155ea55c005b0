"""What a store's trouble means: what may pass, what is refused, and all of it in our words."""

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from dreamcore.errors import InvalidInput, Unavailable
from flows.layout import parse_uri

S3_ERRORS = (boto.BotoCoreError, boto.ClientError, ResponseParserError)
"""All that boto3 raises when a request comes to nothing."""

_MISSING = {"404", "NoSuchKey", "NotFound"}
_CONFLICT = {"412", "PreconditionFailed", "BucketAlreadyOwnedByYou", "BucketAlreadyExists"}
# Of an object that is archived, or encrypted with a key that the request does not bring or that is not in use any more.
_UNREADABLE = {
    "InvalidArgument",
    "InvalidObjectState",
    "InvalidRequest",
    "KMS.DisabledException",
    "KMS.KMSInvalidStateException",
    "KMS.NotFoundException",
}
# A HEAD has no body to tell one reason from another.
_EXPIRED = {"400", "401", "403", "ExpiredToken", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId"}
_REFUSED = _EXPIRED | {"AccessDenied", "SignatureDoesNotMatch", "AllAccessDisabled", "Forbidden"}
# No fault of the request, though its status is below 500: it was too slow, too many, too early, or harmed on its way.
_PASSING = {
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
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.SSOError,
    boto.TokenRetrievalError,
)


class NotFound(Unavailable):
    """Nothing is there."""


class PreconditionFailed(Unavailable):
    """Something else is there than the request was meant for."""


class CorruptObject(Unavailable):
    """The store keeps other bytes than it was given."""


class UnreadableObject(Unavailable):
    """The store keeps the object and does not give it out, however often it is asked."""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may do better in a while."""
    if isinstance(error, boto.ClientError):
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return (status >= 500 and status != 501) or _code(error) in _PASSING
    passing = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.FlexibleChecksumError)
    return isinstance(error, (*passing, ResponseParserError))


def is_expired(error: Exception) -> bool:
    """Whether credentials were refused that may have been renewed since they were read."""
    return isinstance(error, boto.ClientError) and _code(error) in _EXPIRED


def translate(error: Exception, uri: str, endpoint: str) -> InvalidInput | Unavailable:
    """What is wrong and what to do, of a request for `uri`: `InvalidInput` where somebody has to put it right."""
    if isinstance(error, _NO_CREDENTIALS):
        return InvalidInput(
            f"no credentials for {uri} ({error}): set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            '(for the embedded stack: eval "$(dreamgrid env)")'
        )
    if isinstance(error, boto.ParamValidationError):
        return InvalidInput(f"{uri} is no address of an object: {' '.join(str(error).split())}")
    if not isinstance(error, boto.ClientError):
        return Unavailable(f"{uri}: the store at {endpoint} does not answer ({error}); see AWS_ENDPOINT_URL")
    code, message = _code(error), error.response["Error"].get("Message") or ""
    if code == "NoSuchBucket":
        bucket, _ = parse_uri(uri)
        return InvalidInput(f"there is no bucket {bucket!r} at {endpoint}: create it, or correct {uri}")
    if code in _REFUSED:
        return InvalidInput(
            f"{uri}: {endpoint} refuses access ({code} {message}): see the credentials "
            "(AWS_PROFILE, AWS_ACCESS_KEY_ID) and the bucket's policy"
        )
    if code == "NotImplemented":
        return InvalidInput(
            f"{uri}: the store at {endpoint} does not know what is asked of it ({code} {message}): a run needs a store "
            "that takes conditional writes (If-None-Match)"
        )
    kinds = {NotFound: _MISSING, PreconditionFailed: _CONFLICT, UnreadableObject: _UNREADABLE}
    kind = next((kind for kind, codes in kinds.items() if code in codes), Unavailable)
    return kind(f"{uri}: the store at {endpoint} answers {code} {message}")


def _code(error: boto.ClientError) -> str:
    return str(error.response["Error"]["Code"])
