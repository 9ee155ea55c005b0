"""Zips of dreams and share packs."""

import csv
import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamcore.images import encode, read_metadata
from dreamcore.settings import DreamSettings
from flows.destination import manifest
from flows.destination.favourites import Mark, Marks
from flows.gallery.share import CAPTIONS, MISSING, ChosenDream, favourites, stream_share_pack, stream_zip
from flows.s3 import layout
from flows.s3.storage import Storage
from tests.support.command import Command
from tests.support.rows import DONE, FAILED
from tests.support.tiny import pixels

SECRET = "s3://secret-bucket"


def dream(number: int, name: str = "cat.jpg", suffix: str = "png") -> ChosenDream:
    uri = f"s3://dreams/share/images/{name}/blocks.4-1x1-{number:016x}.{suffix}"
    return ChosenDream(f"{number:016x}", uri, f"{SECRET}/{name}", "efficientnet_lite0", "blocks.4", 2, 3, 5)


class Pictures(Storage):
    """Made when they are read, so that only the zip holds memory."""

    def __init__(self, make: Callable[[str], bytes | None]) -> None:
        self.read = make  # type: ignore[method-assign, assignment]


def picture(width: int = 40, height: int = 32) -> bytes:
    image = np.asarray(Image.fromarray(pixels(8, 8)).resize((width, height)))
    return encode(image, "png", 100, {"source_uri": SECRET, "settings_id": "ab" * 8})


def unzip(pieces: Iterator[bytes]) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as pack:
        assert pack.testzip() is None
        names = pack.namelist()
        assert len(names) == len(set(names))
        return {name: pack.read(name) for name in names}


def test_a_zip_has_the_files_as_they_are() -> None:
    data, missing = {1: picture(), 3: b"anything"}, list[ChosenDream]()
    dreams = [dream(1), dream(2), dream(3, "trip/../\u00e4 <b>.x.tif", "webp"), dream(1)]
    by_uri = {each.result_uri: data.get(int(each.result_id)) for each in dreams}
    found = unzip(stream_zip(dreams, Pictures(by_uri.__getitem__), missing.append))
    assert found.pop(MISSING).decode().splitlines()[1:] == [f"{2:016x}  cat.jpg"]
    assert found == {f"cat-{1:016x}.png": data[1], f"\u00e4__b_.x-{3:016x}.webp": data[3]}
    assert missing == [dreams[1]]


def test_a_share_pack_has_small_jpegs_without_metadata_and_captions() -> None:
    sizes = {1: (2000, 1000), 2: (40, 32), 4: (3200, 20)}
    data = {f"{number:016x}": picture(*size) for number, size in sizes.items()} | {f"{3:016x}": b"damaged"}
    missing = list[ChosenDream]()
    dreams = [dream(number, "=cmd.jpg" if number == 2 else "cat.jpg") for number in (1, 2, 3, 4)]
    store = Pictures(lambda uri: data[str(layout.result_id_of(uri))])
    found = unzip(stream_share_pack(dreams, store, missing.append))
    assert missing == [dreams[2]]
    assert f"{3:016x}  cat.jpg" in found.pop(MISSING).decode()
    table = list(csv.DictReader(io.StringIO(found.pop(CAPTIONS).decode("utf-8-sig"))))
    assert [row["file"] for row in table] == list(found)
    assert table[0]["caption"] == "cat.jpg: blocks.4 of efficientnet_lite0, 2 octaves of 3 steps"
    assert replace(dream(1), look="architecture, seed 2").caption == "cat.jpg: architecture, seed 2"
    assert (table[1]["photograph"], table[1]["mark"]) == ("'=cmd.jpg", "5")
    for jpeg, expected in zip(found.values(), [(1600, 800), (40, 32), (1600, 10)], strict=True):
        with Image.open(io.BytesIO(jpeg)) as image:
            assert (image.format, image.size) == ("JPEG", expected)
            assert not {"exif", "comment", "xmp", "icc_profile"} & set(image.info)
        assert read_metadata(jpeg) is None
    assert SECRET.encode() not in b"".join(found.values())
    assert SECRET not in str(table)


def test_a_large_zip_is_never_in_memory() -> None:
    dreams = [dream(number) for number in range(60)]
    size = 0
    tracemalloc.start()
    try:
        for piece in stream_zip(dreams, Pictures(lambda _uri: bytes(2**20)), lambda _dream: None):
            size += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 60 * 2**20
    assert peak < 20 * 2**20


@pytest.fixture
def rated(storage: Storage, destination: str) -> str:
    """A destination with a failed row and four dreams. Three of the dreams are rated."""
    rows, marks = [FAILED], (5, 2, -1, 3)
    for number in range(4):
        each = dream(number)
        uri = f"{destination}images/cat.jpg/{each.result_uri.rpartition('/')[2]}"
        layers = [{"name": "blocks.4", "channels": [], "weight": 1.0}]
        row = replace(DONE, result_uri=uri, result_id=each.result_id, source_uri=each.source_uri, layers=layers)
        row = replace(row, settings=DreamSettings.model_validate({"look": "neon"}).canonical_json()) if number else row
        rows.append(row)
        storage.write(uri, picture(), "image/png")
    storage.write(layout.part_uri(destination, "r1", 3), manifest.to_parquet(rows), manifest.CONTENT_TYPE)
    Marks(destination, storage).add(Mark(f"{number:016x}", mark) for number, mark in enumerate(marks))
    return destination


def test_the_best_favourites_come_first(storage: Storage, rated: str) -> None:
    found = favourites(rated, storage)
    assert [(each.result_id[-1], each.mark) for each in found] == [("0", 5), ("3", 3), ("1", 2)]
    assert [each.mark for each in favourites(rated, storage, 4)] == [5]
    assert found[0].layers == "blocks.4"
    assert [each.look for each in found] == ["default", "neon", "neon"]


def test_the_command_writes_a_zip_or_a_share_pack(
    dreamgrid_inprocess: Command, storage: Storage, rated: str, tmp_path: Path
) -> None:
    done = dreamgrid_inprocess("favourites", rated, "all.zip", "--json")
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "all.zip").stat().st_size
    assert json.loads(done.stdout) == {"file": "all.zip", "dreams": 3, "bytes": size, "missing": []}
    with zipfile.ZipFile(tmp_path / "all.zip") as pack:
        assert pack.namelist() == [f"cat-{number:016x}.png" for number in (0, 3, 1)]
    lost = favourites(rated, storage)[0].result_uri
    storage.delete(lost)
    shared = dreamgrid_inprocess("favourites", rated, "best.zip", "--marks-min", "3", "--share")
    assert (shared.returncode, lost in shared.stderr.replace("\n", "")) == (1, True)
    assert shared.stdout.startswith("best.zip: 1 dreams, ")
    with zipfile.ZipFile(tmp_path / "best.zip") as pack:
        assert pack.namelist() == [f"cat-{3:016x}.jpg", CAPTIONS, MISSING]
    assert sorted(path.name for path in tmp_path.glob("*.zip*")) == ["all.zip", "best.zip"]


def test_the_command_names_what_is_wrong(dreamgrid_inprocess: Command, rated: str) -> None:
    none = dreamgrid_inprocess("favourites", f"{rated}elsewhere/", "none.zip")
    assert (none.returncode, "has no dream that is rated 1 or better" in none.stderr) == (2, True)
    nowhere = dreamgrid_inprocess("favourites", rated, "nowhere/none.zip")
    assert (nowhere.returncode, "cannot be written" in nowhere.stderr) == (2, True)
