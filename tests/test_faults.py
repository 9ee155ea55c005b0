"""S3 misbehaves, and the world changes: a real store behind a proxy that harms what it is told to harm."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamcore.errors import ImageError, InvalidInput, Unavailable
from flows.stack import Stack
from flows.storage import Patience, Storage
from tests.faults import Call, Fault, Proxy, first, some

DATA = os.urandom(50_000)
OUTLIVED = [fault for fault in Fault if fault not in (Fault.ROTTEN, Fault.SILENT)]
"""Faults after which the same request does better."""


@pytest.fixture
def proxy(stack: Stack) -> Iterator[Proxy]:
    """A proxy before the stack's store."""
    with Proxy(stack.s3_url) as running:
        yield running


@pytest.fixture
def harmed(stack: Stack, proxy: Proxy) -> Storage:
    """The stack's S3 through the proxy, with some patience."""
    return Storage(Patience(10, 3), proxy.environment(stack.environment()))


@pytest.mark.parametrize("fault", OUTLIVED, ids=lambda fault: fault.name)
def test_a_fault_is_outlived(fault: Fault, storage: Storage, harmed: Storage, proxy: Proxy, source: str) -> None:
    proxy.choose = first(fault, "PUT", source)
    harmed.write(source + "written", DATA, "image/png")
    assert storage.read(source + "written") == DATA
    proxy.choose = first(fault, "PUT", source)
    assert harmed.write_new(source + "new", DATA, "image/png")
    assert storage.read(source + "new") == DATA
    proxy.choose = first(fault, "GET", source)
    assert harmed.read(source + "written") == DATA
    proxy.choose = first(fault, "GET", source)
    listed = list(harmed.list(source))
    assert [found.uri for found in listed] == [source + "new", source + "written"]
    assert proxy.count(fault) == 4
    proxy.choose = first(fault, "HEAD", source)
    assert harmed.find(listed[0].uri) == listed[0]
    proxy.choose = first(fault, "DELETE", source)
    harmed.delete(listed[0].uri)
    assert storage.find(listed[0].uri) is None


def test_silence_is_outlived(stack: Stack, proxy: Proxy, source: str) -> None:
    storage = Storage(Patience(10, 1), proxy.environment(stack.environment()))
    proxy.choose = first(Fault.SILENT, "PUT", source)
    assert storage.write_new(source + "x", DATA, "image/png")
    proxy.choose = first(Fault.SILENT, "GET", source)
    assert [found.uri for found in storage.list(source)] == [source + "x"]


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.CUT], ids=lambda fault: fault.name)
def test_a_conditional_put_whose_answer_was_lost_is_found_to_be_our_own(
    fault: Fault, storage: Storage, harmed: Storage, proxy: Proxy, source: str
) -> None:
    proxy.choose = first(fault, "PUT", source)
    assert harmed.write_new(source + "x", DATA, "image/png")
    assert [call.method for call, _ in proxy.calls] == ["PUT", "PUT", "GET"]

    storage.write(source + "y", b"another's", "image/png")
    proxy.choose = first(fault, "PUT", source)
    assert not harmed.write_new(source + "y", DATA, "image/png")
    assert storage.read(source + "y") == b"another's"


@pytest.mark.parametrize("fault", [Fault.FLIPPED, Fault.TRUNCATED], ids=lambda fault: fault.name)
@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_a_harmed_read_is_read_again(
    fault: Fault, checksums: str, stack: Stack, harmed: Storage, proxy: Proxy, source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By the checksum that a store keeps, and by the ETag alone where whoever put the object gave none."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", checksums)
    Storage(environment=stack.environment()).write(source + "cat.png", DATA, "image/png")
    (found,) = harmed.list(source)
    proxy.choose = first(fault, "GET", source, times=2)
    assert harmed.read(found.uri) == DATA
    assert proxy.count(fault) == 2
    proxy.choose = first(fault, "GET", source, times=2)
    assert harmed.read_version(found) == DATA


def test_bytes_that_rotted_in_the_store_are_told_and_never_used(
    storage: Storage, harmed: Storage, proxy: Proxy, source: str
) -> None:
    storage.write(source + "cat.png", DATA, "image/png")
    (found,) = storage.list(source)
    proxy.choose = lambda _call: Fault.ROTTEN
    with pytest.raises(ImageError, match="damaged in the store") as damaged:
        harmed.read_version(found)
    assert damaged.value.kind == "damaged"
    with pytest.raises(Unavailable, match="damaged in the store"):
        harmed.read(found.uri)


def test_a_photograph_that_is_replaced_while_it_is_read_again_is_another(
    storage: Storage, harmed: Storage, proxy: Proxy, source: str
) -> None:
    storage.write(source + "cat.png", DATA, "image/png")
    (found,) = storage.list(source)

    def replaced(call: Call) -> Fault:
        storage.write(source + "cat.png", DATA[::-1], "image/png")
        return Fault.TRUNCATED

    proxy.choose = replaced
    with pytest.raises(ImageError, match="replaced") as changed:
        harmed.read_version(found)
    assert changed.value.kind == "source_changed"


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.RESET, Fault.SILENT, Fault.FLIPPED], ids=lambda f: f.name)
def test_patience_has_an_end(fault: Fault, stack: Stack, storage: Storage, proxy: Proxy, source: str) -> None:
    storage.write(source + "x", DATA, "image/png")
    impatient = Storage(Patience(1, 0.6), proxy.environment(stack.environment()))
    proxy.choose = lambda _call: fault
    started = time.monotonic()
    with pytest.raises(Unavailable):
        impatient.read(source + "x")
    assert 0.5 < time.monotonic() - started < 3
    assert proxy.count() > 1


def test_half_of_all_answers_being_slow_down_loses_nothing(harmed: Storage, proxy: Proxy, source: str) -> None:
    proxy.choose = some(seed=1, slow_down=0.5)
    for number in range(12):
        assert harmed.write_new(f"{source}{number}", DATA, "image/png")
    assert len(list(harmed.list(source))) == 12
    assert proxy.count(Fault.SLOW_DOWN) > 6
    assert proxy.count() < 3 * 13


def test_renewed_credentials_are_heard(
    stack: Stack, storage: Storage, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(source + "x", DATA, "image/png")
    file = tmp_path / "credentials"
    text = f"[default]\naws_access_key_id = {{}}\naws_secret_access_key = {stack.secret_key}\n"
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    file.write_text(text.format("EXPIRED"))
    renewed = Storage()
    with pytest.raises(InvalidInput, match="refuses access"):
        renewed.read(source + "x")
    file.write_text(text.format(stack.access_key))
    assert renewed.read(source + "x") == DATA
