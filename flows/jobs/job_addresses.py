"""The addresses of a job, checked: its sources, its destination and its inventory."""

import json
from collections.abc import Callable
from shlex import quote

from flows.jobs.noise_source import NOISE, check_noise
from flows.s3.layout import check_uri, folder_uri

__all__ = ["MAX_SOURCES", "check_destination", "check_inventory", "check_source", "sorted_sources"]

MAX_SOURCES = 5000
"""Largest number of sources in a list: Prefect's server refuses parameters of more than 512 KiB."""
_MAX_SOURCES_BYTES = 400_000
"""As JSON, in which other characters than ASCII take six bytes."""


def check_source(uri: str) -> str:
    """Return a source, an S3 address or a size of noise, in its canonical form; raise ValueError if it is neither."""
    if uri.startswith(NOISE):
        return check_noise(uri)
    upload = f"dreamgrid upload {quote(uri)} s3://BUCKET/PREFIX/"
    return _checked(check_uri, uri, f"Is it a folder of this machine? Upload it with: {upload}")


def sorted_sources(sources: tuple[str, ...]) -> tuple[str, ...]:
    """Return the sources without repetitions in a fixed order, which the identity of the job needs."""
    sources = tuple(map(check_source, sources))
    size = sum(map(len, map(json.dumps, sources)))
    if len(sources) > MAX_SOURCES or size > _MAX_SOURCES_BYTES:
        raise ValueError(
            f"there are {len(sources):,} sources with {size:,} bytes of text, but a job takes {MAX_SOURCES:,} with "
            f"{_MAX_SOURCES_BYTES:,} bytes: name folders, or write several jobs"
        )
    return tuple(sorted(set(sources)))


def check_destination(uri: str) -> str:
    """Return the address of a destination with one slash at its end; raise ValueError if it is no S3 address."""
    download = f"dreamgrid download s3://BUCKET/PREFIX/ {quote(uri)}"
    return _checked(folder_uri, uri, f"To copy the results into a folder: {download}")


def _checked(check: Callable[[str], str], uri: str, advice: str) -> str:
    """Return what `check` returns. If it raises ValueError for a path of this machine, add the advice."""
    try:
        return check(uri)
    except ValueError as error:
        if "://" in uri or not uri:
            raise
        raise ValueError(f"{error}. {advice}") from error


def check_inventory(uri: str | None) -> str | None:
    """Return the address of an inventory; raise ValueError if it cannot be that of one."""
    if uri is not None:
        check_uri(uri)
        if not uri.endswith(("/", ".json")):
            raise ValueError(f"{uri} is neither the address of a manifest.json nor a folder with a slash at its end")
    return uri
