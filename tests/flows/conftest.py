"""Fixtures for the tests of `flows`."""

from tests.support.inprocess import dreamgrid_inprocess
from tests.support.threads import one_thread

__all__ = ["dreamgrid_inprocess", "one_thread"]
