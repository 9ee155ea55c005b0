"""Malicious images in a run against a real S3: each becomes a failed row, and the other images are dreamt."""

import io
import os
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest
from PIL import ExifTags, Image, PngImagePlugin

from dreamcore.images import read_metadata
from flows.contact_sheets.sheets import draw_sheets
from flows.decoding.decoder import Decoders
from flows.destination import manifest
from flows.running.shard import dream_shard
from flows.s3.storage import Storage
from tests.support.decoding import ENDLESS, pid, when_busy
from tests.support.pictures import png, saved
from tests.support.shards import plan_run, put_photograph, rows_of
from tests.support.tiny import pixels

pytestmark = pytest.mark.slow


@pytest.fixture
def strict() -> Iterator[Decoders]:
    """Decoders with low limits: two seconds and 64 MiB."""
    with closing(Decoders(2, seconds=2, memory=2**26)) as decoders:
        yield decoders


def kinds(rows: list[dict[str, object]]) -> dict[str, object]:
    return {str(row["source_uri"]).rpartition("/")[2]: row["error_kind"] for row in rows}


def test_each_malicious_image_is_a_failed_row_and_the_others_are_dreamt(
    storage: Storage, source: str, destination: str, strict: Decoders
) -> None:
    malicious = {
        "too many pixels.png": png(30_000, 30_000, 8, 2, bytes(1000)),
        "a web page.jpg": b"<!DOCTYPE html><html>403 Forbidden</html>",
        "empty.gif": b"",
        "half.jpg": ENDLESS[:5000],
        "memory.png": saved(Image.new("1", (9900, 9900)), "PNG"),
        "endless scans.jpg": ENDLESS,
    }
    for name, data in malicious.items():
        storage.write(source + name, data, "image/jpeg")
    for number in range(3):
        put_photograph(storage, f"{source}good {number}.png", seed=number)
    run, shard = plan_run(storage, source, destination, ["blocks.0"])
    assert dream_shard(run, shard, storage, decode=strict.decode) == {"done": 3, "failed": len(malicious)}
    assert kinds(rows_of(storage, run)) == {
        "too many pixels.png": "too_large",
        "a web page.jpg": "not_an_image",
        "empty.gif": "not_an_image",
        "good 0.png": None,
        "good 1.png": None,
        "good 2.png": None,
        "half.jpg": "damaged",
        "memory.png": "out_of_memory",
        "endless scans.jpg": "undecodable",
    }


def test_a_decoder_that_crashes_is_a_failed_row(storage: Storage, source: str, destination: str) -> None:
    put_photograph(storage, source + "a.png")
    storage.write(source + "crash.jpg", ENDLESS, "image/jpeg")
    put_photograph(storage, source + "z.png", seed=1)
    run, shard = plan_run(storage, source, destination, ["blocks.0"])
    decoders = Decoders(1)
    (only,) = decoders.all
    child = pid(only)
    killer = when_busy(child, lambda: os.kill(child, signal.SIGSEGV))
    assert dream_shard(run, shard, storage, decode=decoders.decode) == {"done": 2, "failed": 1}
    killer.join()
    rows = rows_of(storage, run)
    assert kinds(rows) == {"a.png": None, "crash.jpg": "undecodable", "z.png": None}
    (error,) = (row["error"] for row in rows if row["error"])
    assert "Segmentation fault" in str(error)
    assert pid(only) != child
    decoders.close()


def with_private_metadata(format: str) -> bytes:
    """Return a photograph with a location, an author and comments in every field that its format has."""
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Secret author"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0Secret words"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (48.0, 51.0, 29.0), 3: "E", 4: (2.0, 17.0, 40.0)})
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "Secret comment")
    packet = b"<x:xmpmeta>Secret packet</x:xmpmeta>"
    options: dict[str, dict[str, object]] = {
        "JPEG": {"exif": exif, "comment": b"Secret comment", "xmp": packet},
        "PNG": {"exif": exif, "pnginfo": text},
        "WEBP": {"exif": exif, "xmp": packet},
        "TIFF": {"exif": exif},
        "GIF": {"comment": b"Secret comment"},
    }
    data = saved(Image.fromarray(pixels()), format, **options[format])
    assert b"Secret" in data
    return data


def test_no_metadata_of_a_photograph_is_written_to_the_destination(
    storage: Storage, source: str, destination: str
) -> None:
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "GIF"):
        storage.write(f"{source}photograph.{format.lower()}", with_private_metadata(format), "image/jpeg")
    run, shard = plan_run(storage, source, destination, ["blocks.0"])
    assert dream_shard(run, shard, storage) == {"done": 5}
    photographs = [(work.source.uri, work.source.etag) for work in shard.works]
    assert len(list(draw_sheets(destination, storage, photographs, pytest.fail))) == 5
    written = {found.uri: storage.read(found.uri) or b"" for found in storage.list(destination)}
    assert len(written) == 5 + 5 + 5 + 1  # dreams, thumbnails, sheets, and a part of the manifest
    for data in written.values():
        assert b"Secret" not in data
    assert "Secret" not in str(manifest.read(storage, destination).to_pylist())
    for row in rows_of(storage, run):
        dream = written[str(row["result_uri"])]
        assert read_metadata(dream) is not None
        with Image.open(io.BytesIO(dream)) as image:
            exif = image.getexif()
            assert set(exif) <= {ExifTags.Base.Software, ExifTags.IFD.Exif}
            assert set(exif.get_ifd(ExifTags.IFD.Exif)) == {ExifTags.Base.UserComment}
            assert exif.get_ifd(ExifTags.IFD.GPSInfo) == {}
            assert not {"icc_profile", "xmp", "comment", "Comment"} & set(image.info)
