"""Addresses with the ARN of an access point in place of a bucket: how they are parsed, and which host gets requests."""

import importlib.util
from typing import Any

import pytest

from dreamcore.errors import InvalidInput
from flows.s3.layout import folder_uri, parse_uri
from flows.s3.storage import Storage

ACCOUNT = "eu-west-1:123456789012"
HOSTS = {
    f"arn:aws:s3:{ACCOUNT}:accesspoint/name": "name-123456789012.s3-accesspoint.eu-west-1.amazonaws.com",
    f"arn:aws:s3:{ACCOUNT}:accesspoint:name": "name-123456789012.s3-accesspoint.eu-west-1.amazonaws.com",
    f"arn:aws:s3-outposts:{ACCOUNT}:outpost/op-1/accesspoint/name": (
        "name-123456789012.op-1.s3-outposts.eu-west-1.amazonaws.com"
    ),
    f"arn:aws:s3-outposts:{ACCOUNT}:outpost:op-1:accesspoint:name": (
        "name-123456789012.op-1.s3-outposts.eu-west-1.amazonaws.com"
    ),
}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "unused")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-2")


class Sent(BaseException):
    """Raised in place of sending a request."""


@pytest.mark.parametrize("arn", HOSTS)
def test_requests_go_to_the_access_point_in_its_region(arn: str) -> None:
    assert parse_uri(f"s3://{arn}/a/b c.png") == (arn, "a/b c.png")
    assert parse_uri(f"s3://{arn}") == parse_uri(f"s3://{arn}/") == (arn, "")
    assert folder_uri(f"s3://{arn}/a") == f"s3://{arn}/a/"
    storage, urls = Storage(), list[str]()

    def send(request: Any, **_: object) -> None:
        urls.append(request.url)
        raise Sent

    storage._client.meta.events.register("before-send.s3", send)
    for call in (
        lambda: storage.read(f"s3://{arn}/a/b c.png"),
        lambda: storage.write_if_absent(f"s3://{arn}/a/b c.png", b"x", "text/plain"),
        lambda: list(storage.list(f"s3://{arn}/a/")),
    ):
        with pytest.raises(Sent):
            call()
    keys = ["a/b%20c.png", "a/b%20c.png", ""]
    assert [url.partition("?")[0] for url in urls] == [f"https://{HOSTS[arn]}/{key}" for key in keys]


@pytest.mark.parametrize(
    "path",
    [
        "arn:aws:s3:::bucket/key",
        f"arn:aws:s3:{ACCOUNT}:accesspoint",
        f"arn:aws:s3:{ACCOUNT}:accesspoint/",
        f"arn:aws:s3:{ACCOUNT}:accesspoint:name:more/key",
        f"arn:aws:s3-outposts:{ACCOUNT}:outpost/op-1/bucket/name",
        "arn:aws:iam::123456789012:role/x",
    ],
)
def test_other_arns_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is not an S3 address: write s3://ACCESS_POINT_ARN/PREFIX/"):
        parse_uri(f"s3://{path}")


def test_a_multi_region_access_point_names_the_extra_that_it_needs() -> None:
    if importlib.util.find_spec("awscrt"):
        pytest.skip("the extra is installed")
    with pytest.raises(InvalidInput, match=r"pip install 'dreamgrid\[crt\]'"):
        Storage().read("s3://arn:aws:s3::123456789012:accesspoint/x1y2z3.mrap/cat.png")
