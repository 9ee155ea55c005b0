"""Manifests for tests of the gallery: rows of photographs and settings, written as real parts."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import md5

from dreamcore.settings import DreamSettings, result_id, settings_id
from flows.destination import manifest
from flows.destination.manifest import Row
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.support.rows import DONE, FAILED

__all__ = ["RUN", "START", "make_row", "write_part"]

RUN = "20260102T030405Z-abcdef"
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def make_row(
    destination: str,
    name: str = "a.jpg",
    settings: DreamSettings | None = None,
    *,
    gain: float | None = 1.0,
    label: str = "tabby",
    run_id: str = RUN,
    second: int = 0,
    status: str = "done",
    seconds: float = 1.0,
    original: str | None = None,
) -> Row:
    """Return the row of a photograph under these settings; `original` is the dream that it enlarges."""
    settings = settings or DreamSettings()
    etag, identity = md5(name.encode()).hexdigest(), settings_id(settings, "w")
    found = result_id(etag, identity)
    always = {
        "run_id": run_id,
        "shard": 0,
        "source_uri": f"s3://photos/in/{name}",
        "source_etag": etag,
        "settings_id": identity,
        "settings": settings.canonical_json(),
        "model": settings.model,
        "created_at": START + timedelta(seconds=second),
    }
    if status != "done":
        return replace(FAILED, **always, status=status)  # type: ignore[arg-type]
    return replace(
        DONE,
        **always,  # type: ignore[arg-type]
        result_id=found,
        result_uri=destination + layout.result_name(name, settings, found),
        enlarged_from=original,
        score_before=0.0 if gain is not None else None,
        score_after=gain,
        classes_after=[{"label": label, "p": 0.5}],
        seconds=seconds,
    )


def write_part(
    storage: Storage, destination: str, rows: Sequence[Row], shards: Iterable[int] = (0,), run_id: str = RUN
) -> None:
    """Write rows as the part of one shard, or as the merged part of several."""
    first, *others = shards
    uri = layout.part_uri(destination, run_id, first, others[-1] if others else None)
    storage.write(uri, manifest.to_parquet(rows), manifest.CONTENT_TYPE)
