"""The conditional reads and writes on which the run protocol relies, against several real S3 servers."""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from tempfile import TemporaryFile
from typing import Any

import pytest
from botocore.exceptions import ClientError

from dreamcore.errors import DreamgridError, ImageError, InvalidInput, Unavailable
from flows.local.stack import Stack
from flows.planning.scan import store_warning
from flows.running.shard import dream_shard
from flows.s3 import listing
from flows.s3.errors import UnreadableObject, is_transient, translate
from flows.s3.layout import parse_uri
from flows.s3.listing import list_objects
from flows.s3.storage import DEFAULT_RETRY, FAIL_FAST, RetryPolicy, Storage, retry_policy
from tests.support import servers as stores
from tests.support.command import Command
from tests.support.servers import Store
from tests.support.shards import plan_run, put_photograph, rows_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["seaweedfs", "moto", "rclone", "ceph"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Each of the servers, one after another."""
    if request.param == "seaweedfs":
        yield stores.seaweedfs(request.getfixturevalue("stack"))
    else:
        with getattr(stores, request.param)(tmp_path_factory.mktemp(request.param)) as running:
            yield running


@pytest.fixture
def storage(store: Store) -> Storage:
    return Storage(environment=store.environment)


def test_written_objects_are_found_listed_and_read(storage: Storage, source: str) -> None:
    for name in ("b.png", "a b+c%2F.png", "ä/🎈.png", "out2/x", "out/x"):
        storage.write(source + name, name.encode(), "image/png")
    listed = {found.uri: found for found in storage.list(source)}
    assert set(listed) == {source + name for name in ("b.png", "a b+c%2F.png", "ä/🎈.png", "out2/x", "out/x")}
    for uri, found in listed.items():
        assert storage.read(uri) == uri.removeprefix(source).encode()
        assert storage.find(uri) == found
    assert [found.uri for found in storage.list(source + "out/")] == [source + "out/x"]


def test_a_divided_listing_is_the_plain_listing(
    store: Store, storage: Storage, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = Storage(RetryPolicy(0.5, 5), store.environment)
    for name in (
        "a.png",
        "a/",
        "a/b.png",
        "a//b.png",
        "a/./c.png",
        "b/",
        "b",
        "b/c/d.png",
        "\xe4/\U0001f388.png",
        "-/x",
    ):
        with suppress(DreamgridError):  # a store may refuse a key
            impatient.write(source + name, name.encode(), "image/png")
    plain = sorted(storage.list(source), key=lambda info: info.uri)
    assert len(plain) >= 5
    assert sorted(list_objects(storage, source), key=lambda info: info.uri) == plain
    monkeypatch.setattr(listing, "_ENOUGH", 3)
    objects, prefixes = listing._divide(storage, source)  # a listing with one page is not divided
    objects += itertools.chain.from_iterable(listing._list_all(storage, prefixes))
    assert sorted(objects, key=lambda info: info.uri) == plain


def test_a_large_object_is_copied_into_a_file(storage: Storage, source: str) -> None:
    data = bytes(range(256)) * 10_000
    storage.write(source + "x", data, "text/plain")
    with TemporaryFile() as file:
        file.write(b"of an earlier attempt" * 200_000)
        assert storage.copy_to(source + "x", file)
        file.seek(0)
        assert file.read() == data
        assert not storage.copy_to(source + "y", file)


def test_a_missing_object_is_none(storage: Storage, source: str) -> None:
    assert storage.read(source + "nothing") is None
    assert storage.find(source + "nothing") is None
    storage.delete(source + "nothing")


def test_only_the_requested_version_is_read(storage: Storage, source: str) -> None:
    storage.write(source + "cat.png", b"first", "image/png")
    (first,) = storage.list(source)
    assert storage.read_version(first.uri, first.etag) == b"first"
    storage.write(source + "cat.png", b"second", "image/png")
    with pytest.raises(ImageError, match="replaced") as changed:
        storage.read_version(first.uri, first.etag)
    assert changed.value.kind == "source_changed"
    storage.delete(source + "cat.png")
    with pytest.raises(ImageError, match="deleted") as missing:
        storage.read_version(first.uri, first.etag)
    assert missing.value.kind == "source_missing"


@pytest.mark.parametrize(
    ("store", "arguments", "code"),
    [
        ("moto", {"StorageClass": "GLACIER"}, "InvalidObjectState"),
        ("seaweedfs", {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": os.urandom(32)}, "InvalidArgument"),
    ],
    indirect=["store"],
    ids=["archived", "encrypted"],
)
def test_a_photograph_that_the_store_does_not_deliver_is_a_failed_row(
    storage: Storage, source: str, destination: str, arguments: dict[str, Any], code: str
) -> None:
    put_photograph(storage, source + "good.png")
    bucket, key = parse_uri(source + "unreadable.png")
    storage._client.put_object(Bucket=bucket, Key=key, Body=b"unreadable", **arguments)
    run, shard = plan_run(storage, source, destination, ["blocks.0"])
    assert dream_shard(run, shard, storage) == {"done": 1, "failed": 1}
    (failed,) = (row for row in rows_of(storage, run) if row["status"] == "failed")
    assert failed["error_kind"] == "source_unreadable"
    assert f"{source}unreadable.png: the store at {storage.endpoint} returned {code} " in str(failed["error"])
    with pytest.raises(Unavailable, match=code):  # for other objects than photographs it stops the run
        storage.read(source + "unreadable.png")


@pytest.mark.parametrize("reason", ["DisabledException", "KMSInvalidStateException", "NotFoundException"])
def test_an_object_with_an_unusable_kms_key_is_unreadable(reason: str) -> None:
    response: Any = {"Error": {"Code": f"KMS.{reason}"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    error = ClientError(response, "GetObject")
    assert not is_transient(error)
    assert type(translate(error, "s3://photos/x", "https://s3")) is UnreadableObject


def test_the_first_writer_wins(store: Store, storage: Storage, source: str) -> None:
    if not store.conditional_writes:
        pytest.skip("this store ignores conditional writes")
    assert storage.write_if_absent(source + "x", b"first", "text/plain")
    assert storage.write_if_absent(source + "x", b"first", "text/plain"), (
        "a retry finds the object of its own first attempt"
    )
    assert not storage.write_if_absent(source + "x", b"second", "text/plain")
    assert storage.read(source + "x") == b"first"


def test_only_the_named_version_is_replaced(store: Store, storage: Storage, source: str) -> None:
    if not store.conditional_writes:
        pytest.skip("this store ignores conditional writes")
    uri = source + "x"
    assert not storage.write_if_unchanged(uri, b"first", "text/plain", "0" * 32), "there is no object yet"
    storage.write(uri, b"first", "text/plain")
    found = storage.find(uri)
    assert found is not None
    assert storage.write_if_unchanged(uri, b"second", "text/plain", found.etag)
    assert storage.write_if_unchanged(uri, b"second", "text/plain", found.etag), (
        "a retry finds the object of its own first attempt"
    )
    assert not storage.write_if_unchanged(uri, b"third", "text/plain", found.etag)
    assert storage.read(uri) == b"second"


def test_a_changed_object_is_not_deleted(storage: Storage, source: str) -> None:
    storage.write(source + "x", b"first", "text/plain")
    storage.delete_if_unchanged(source + "x", b"second")
    assert storage.read(source + "x") == b"first"
    for _ in range(2):  # the second time the object does not exist
        storage.delete_if_unchanged(source + "x", b"first")
        assert storage.read(source + "x") is None


def test_many_objects_are_deleted_with_few_requests(storage: Storage, source: str) -> None:
    names = [f"{number:04d}" for number in range(3)] + ["a b+c%2F&<>.png", "ä/🎈.png"]
    for name in [*names, "kept"]:
        storage.write(source + name, b"x", "text/plain")
    requests: list[str] = []
    storage._client.meta.events.register("before-send.s3", lambda request, **_: requests.append(request.method))
    storage.delete_many(source + name for name in [*names, *(f"missing/{number}" for number in range(1000))])
    assert [found.uri for found in storage.list(source)] == [source + "kept"]
    assert requests[:-1] == ["POST", "POST"]
    storage.delete_many([])
    assert len(requests) == 3


@pytest.mark.parametrize("deletes_many", [True, False])
def test_versions_are_deleted_and_other_versions_are_kept_if_the_store_obeys(
    deletes_many: bool, storage: Storage, source: str
) -> None:
    for name in ("one", "two", "changed"):
        storage.write(source + name, b"first", "text/plain")
    versions = list(storage.list(source))
    storage.write(source + "changed", b"second", "text/plain")
    storage._deletes_many = deletes_many
    storage.delete_versions(versions)
    left = [found.uri for found in storage.list(source)]
    assert left in ([], [source + "changed"])
    storage.delete_versions(versions)
    assert [found.uri for found in storage.list(source)] == left, "objects that do not exist are no error"


def test_the_check_of_conditional_writes_is_right_and_leaves_no_object(
    store: Store, storage: Storage, source: str
) -> None:
    for replacing in (False, True):
        assert storage.supports_conditional_writes(source, replacing=replacing) == store.conditional_writes
    assert list(storage.list(source)) == []


def test_a_store_that_ignores_conditional_writes_gives_a_warning(store: Store, storage: Storage, source: str) -> None:
    warning = store_warning(source, storage)
    if store.conditional_writes:
        assert warning is None
    else:
        assert warning is not None
        assert warning.startswith(f"{storage.endpoint} ignores conditional writes: make sure that no other run writes")
        assert source in warning


def test_a_missing_bucket_is_named(storage: Storage) -> None:
    for attempt in (
        lambda: list(storage.list("s3://nowhere/x/")),
        lambda: storage.check_bucket("s3://nowhere/x/"),
        lambda: storage.write("s3://nowhere/x", b"", "text/plain"),
        lambda: storage.read("s3://nowhere/x"),
    ):
        with pytest.raises(InvalidInput, match="no bucket 'nowhere'"):
            attempt()


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_refused_credentials_are_invalid_input(store: Store, source: str, variable: str) -> None:
    if not store.checks_credentials:
        pytest.skip("this store accepts any credentials")
    unauthorized = Storage(FAIL_FAST, store.environment | {variable: "wrong"})
    with pytest.raises(InvalidInput, match="refuses access") as refused:
        list(unauthorized.list(source))
    assert store.environment["AWS_SECRET_ACCESS_KEY"] not in str(refused.value)
    with pytest.raises(InvalidInput, match="refuses access"):
        unauthorized.find(source + "x")
    with pytest.raises(InvalidInput, match="refuses access"):
        unauthorized.read_version(source + "x", "etag")


ENVIRONMENT = dict.fromkeys(("AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "unused")


def test_an_unreachable_endpoint_is_unavailable() -> None:
    unreachable = Storage(RetryPolicy(1, 1), ENVIRONMENT | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9 does not answer"):
        unreachable.read("s3://photos/x")


def test_a_malformed_endpoint_is_invalid_input() -> None:
    with pytest.raises(InvalidInput, match=r"the S3 client cannot be set up: .*nonsense"):
        Storage(environment=ENVIRONMENT | {"AWS_ENDPOINT_URL": "nonsense"})


@pytest.mark.parametrize(
    ("variables", "policy"),
    [
        ({}, DEFAULT_RETRY),
        ({"DREAMGRID_RETRY_SECONDS": "600"}, RetryPolicy(600, 30)),
        ({"DREAMGRID_PATIENCE": "7"}, RetryPolicy(7, 7)),
        ({"DREAMGRID_RETRY_SECONDS": "5", "DREAMGRID_PATIENCE": "7"}, RetryPolicy(5, 5)),
        ({"DREAMGRID_RETRY_SECONDS": "", "DREAMGRID_PATIENCE": "7"}, RetryPolicy(7, 7)),
    ],
)
def test_the_retry_time_is_set_by_a_variable_or_by_its_former_name(
    variables: dict[str, str], policy: RetryPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DREAMGRID_RETRY_SECONDS", "DREAMGRID_PATIENCE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert retry_policy() == policy


@pytest.mark.parametrize("name", ["DREAMGRID_RETRY_SECONDS", "DREAMGRID_PATIENCE"])
def test_a_malformed_retry_time_is_invalid_input(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "lots")
    with pytest.raises(InvalidInput, match=f"{name} is 'lots': give a number of seconds, 1 or more"):
        retry_policy()


@pytest.mark.soak
def test_a_run_completes_on_every_store_and_a_second_run_has_nothing_to_do(
    store: Store, stack: Stack, storage: Storage, source: str, destination: str, dreamgrid: Command
) -> None:
    for number in range(4):
        put_photograph(storage, f"{source}{number}.png", number)
    grid = ["--layers", "blocks.0", "--octaves", "1", "--steps", "1"]
    variables = {
        **stack.environment(),
        **store.environment,
        "AWS_ENDPOINT_URL_S3": store.environment["AWS_ENDPOINT_URL"],
    }
    for state, done in (("completed", 4), ("nothing to do", 0)):
        ran = dreamgrid("run", "--source", source, "--destination", destination, *grid, "--json", **variables)
        assert ran.returncode == 0, ran.stderr
        report = json.loads(ran.stdout)
        assert (report["state"], report["done"], report["failed"]) == (state, done, 0)
        assert ("ignores conditional writes" in ran.stderr) != store.conditional_writes
