"""Fixtures for the tests of `flows`."""

from collections.abc import Iterator

import pytest

from flows.local.stack import Stack
from tests.support.faults import Proxy
from tests.support.inprocess import dreamgrid_inprocess

__all__ = ["dreamgrid_inprocess", "proxy"]


@pytest.fixture
def proxy(stack: Stack) -> Iterator[Proxy]:
    """A proxy in front of the stack's store."""
    with Proxy(stack.s3_url) as running:
        yield running
