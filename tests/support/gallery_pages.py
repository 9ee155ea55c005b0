"""A destination with real pictures for the gallery, made without dreaming, and a running gallery."""

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import uvicorn
from PIL import Image, ImageEnhance
from starlette.applications import Starlette

from dreamcore.settings import DreamSettings, result_id, settings_id
from flows.destination import manifest
from flows.destination.manifest import Row
from flows.gallery.server import listen
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.support.command import PHOTOS
from tests.support.rows import DONE, FAILED

__all__ = ["RUN", "SETTINGS", "fill", "served"]

RUN = "20260102T030405Z-abcdef"
SETTINGS = [
    {"layers": layers, "octaves": octaves, "seed": seed}
    for layers in ("blocks.2", "blocks.3")
    for octaves in (2, 4)
    for seed in (0, 1)
]
"""The grid: two values for each of three settings."""
SIZE = (240, 160)
_START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_KEPT = (
    *("run_id", "shard", "source_uri", "source_etag", "settings_id", "model", "layers", "octaves", "seed"),
    *("settings", "created_at"),
)


def fill(
    storage: Storage,
    source: str,
    destination: str,
    names: Sequence[str] = ("coffee.jpg", "chelsea.png"),
    failing: Sequence[str] = (),
    grid: Sequence[Mapping[str, Any]] = SETTINGS,
) -> list[Row]:
    """Write photographs, their dreams and the manifest of a run; return its rows.

    Args:
        storage: access to S3.
        source: folder of the photographs.
        destination: folder of the results.
        names: names of the photographs, which all show a cup of coffee.
        failing: names of photographs whose dreams failed.
        grid: the settings.
    """
    picture = Image.open(PHOTOS / "coffee.jpg").resize(SIZE)
    rows = []
    for number, name in enumerate([*names, *failing]):
        storage.write(source + name, _encode(ImageEnhance.Color(picture).enhance(0.3 * number), "JPEG"), "image/jpeg")
        photograph = storage.find(source + name)
        assert photograph is not None
        for place, fields in enumerate(grid):
            settings = DreamSettings.model_validate(fields)
            row = _failed(source + name, photograph.etag, settings, place)
            if name not in failing:
                row = _done(row, destination + layout.result_name(name, settings, str(row.result_id)), place)
                dream = ImageEnhance.Brightness(picture).enhance(0.5 + 0.15 * place)
                data = _encode(dream, "PNG")
                storage.write(str(row.result_uri), data, "image/png")
                row = replace(row, result_sha256=sha256(data).hexdigest())
            rows.append(row)
    storage.write(layout.part_uri(destination, RUN, 0), manifest.to_parquet(rows), manifest.CONTENT_TYPE)
    return rows


def _encode(picture: Image.Image, name: str) -> bytes:
    data = io.BytesIO()
    picture.save(data, name)
    return data.getvalue()


def _failed(source_uri: str, etag: str, settings: DreamSettings, place: int) -> Row:
    identity = settings_id(settings, "weights")
    return replace(
        FAILED,
        run_id=RUN,
        shard=0,
        source_uri=source_uri,
        source_etag=etag,
        settings_id=identity,
        result_id=result_id(etag, identity),
        model=settings.model,
        layers=[target.model_dump() for target in settings.layers],
        octaves=settings.octaves,
        seed=settings.seed,
        settings=settings.canonical_json(),
        created_at=_START + timedelta(seconds=place),
    )


def _done(row: Row, uri: str, place: int) -> Row:
    return replace(
        DONE,
        **{name: getattr(row, name) for name in _KEPT},
        result_id=row.result_id,
        result_uri=uri,
        width=SIZE[0],
        height=SIZE[1],
        enlarged_from=None,
        score_before=3.0,
        score_after=3.0 + 0.1 * (place + 1),
    )


@contextmanager
def served(app: Starlette) -> Iterator[str]:
    """Serve a gallery on a free port, and return its address."""
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        app.state.site.close()
