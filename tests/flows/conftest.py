"""Fixtures for the tests of `flows`."""

from tests.support.inprocess import dreamgrid_inprocess

__all__ = ["dreamgrid_inprocess"]
