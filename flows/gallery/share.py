"""Zips of chosen dreams: the original files, or a share pack of smaller JPEGs with captions.

A zip is a stream: only a few dreams are in memory, and the zip is never kept as a whole.
"""

import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

import pyarrow.compute as pc
from PIL import Image

from dreamcore.errors import ImageError
from flows.decoding.decoder import Decoders
from flows.destination import manifest
from flows.destination.favourites import read_marks
from flows.destination.movie_metadata import without_metadata
from flows.destination.summary import main_settings
from flows.gallery.points import read_point
from flows.gallery.whole import look_of
from flows.machine.machine import core_count
from flows.machine.prefetch import ordered_prefetch, thread_pool
from flows.s3.errors import CorruptObject, UnreadableObject
from flows.s3.layout import is_movie
from flows.s3.storage import Storage

__all__ = ["MAX_SIDE", "MISSING", "ChosenDream", "favourites", "stream_share_pack", "stream_zip"]

MAX_SIDE = 1600
"""Longer side of a picture in a share pack, in pixels."""
CAPTIONS = "captions.csv"
MISSING = "missing.txt"
"""The file of a zip that lists the dreams that could not be read. It exists only if there are such dreams."""

_QUALITY = 88
_READERS = 4
_MAX_DECODED = 4 * MAX_SIDE**2
"""A larger dream is decoded at about this many pixels, so that little memory is used."""
_UNSAFE = re.compile(r"[^\w.-]")
_COLUMNS = ("result_id", "result_uri", "source_uri", "status", "model", "layers", "octaves", "steps", "settings")

OnMissing = Callable[["ChosenDream"], None]
"""Called with a dream whose object is missing, archived or damaged. The zip lists it in `MISSING`."""


@dataclass(frozen=True)
class ChosenDream:
    """A dream that goes into a zip."""

    result_id: str
    result_uri: str
    source_uri: str
    model: str
    layers: str
    """As `blocks.4` or `blocks.3=0.3+blocks.4`."""
    octaves: int
    steps: int
    mark: int = 0
    look: str = ""
    """As `architecture, seed 2`; empty if the settings are not those of a look."""

    @property
    def photograph(self) -> str:
        """The file name of the photograph."""
        return PurePosixPath(self.source_uri).name

    @property
    def stem(self) -> str:
        """The name of the dream in a zip, without suffix. Any file system takes it, and no other dream has it."""
        name = _UNSAFE.sub("_", PurePosixPath(self.source_uri).stem).lstrip(".-")[:60]
        return f"{name}-{self.result_id}"

    @property
    def caption(self) -> str:
        """The dream in words."""
        if self.look:
            return f"{self.photograph}: {self.look}"
        return f"{self.photograph}: {self.layers} of {self.model}, {self.octaves} octaves of {self.steps} steps"


def favourites(destination: str, storage: Storage, marks_min: int = 1) -> list[ChosenDream]:
    """Return the dreams of a destination with at least this mark, the best first.

    Raises:
        InvalidInput: access is refused, or an object with marks is damaged.
        Unavailable: S3 failed.
    """
    marks = {name: mark for name, mark in read_marks(destination, storage).items() if mark >= marks_min}
    if not marks:
        return []
    chosen = (pc.field("status") == "done") & pc.field("result_id").isin(list(marks))
    rows = manifest.read(storage, destination, _COLUMNS, where=chosen).to_pylist()
    dreams = (
        ChosenDream(
            **{name: row[name] for name in ("result_id", "result_uri", "source_uri")},
            **main_settings(row),
            mark=marks[row["result_id"]],
            look=look_of(read_point("", row["settings"])),
        )
        for row in rows
    )
    return sorted(dreams, key=lambda dream: (-dream.mark, dream.source_uri, dream.result_id))


def stream_zip(dreams: Iterable[ChosenDream], storage: Storage, on_missing: OnMissing) -> Iterator[bytes]:
    """Yield a zip with the files of dreams as they are, in pieces of about one file.

    Raises:
        InvalidInput: access is refused.
        Unavailable: S3 failed.
    """

    def load(dream: ChosenDream) -> tuple[str, bytes | None]:
        return f"{dream.stem}{PurePosixPath(dream.result_uri).suffix}", _read(dream, storage)

    pack, missing = _Zip(), _Missing(on_missing)
    for _, name, data in _loaded(dreams, load, missing):
        yield pack.add(name, data)
    yield missing.add_to(pack) + pack.end()


def stream_share_pack(dreams: Iterable[ChosenDream], storage: Storage, on_missing: OnMissing) -> Iterator[bytes]:
    """Yield a zip with dreams as JPEGs for the web, and their captions as CSV. Movies stay as they are.

    The longer side of a picture has at most `MAX_SIDE` pixels. A picture is sRGB and has no metadata. Neither pictures
    nor captions contain an address in S3.

    Raises:
        InvalidInput: access is refused.
        Unavailable: S3 failed.
    """
    pack, packed, missing = _Zip(), [], _Missing(on_missing)
    with closing(Decoders(core_count())) as decoders:

        def load(dream: ChosenDream) -> tuple[str, bytes | None]:
            if is_movie(dream.result_uri):
                data = _read(dream, storage)
                return f"{dream.stem}.mp4", None if data is None else without_metadata(data)
            name = f"{dream.stem}.jpg"
            try:
                data = _read(dream, storage)
                return name, _web_jpeg(decoders, data) if data is not None else None
            except ImageError:
                return name, None

        for dream, name, data in _loaded(dreams, load, missing):
            packed.append((dream, name))
            yield pack.add(name, data)
    yield pack.add(CAPTIONS, _captions(packed))
    yield missing.add_to(pack) + pack.end()


def _loaded(
    dreams: Iterable[ChosenDream], load: Callable[[ChosenDream], tuple[str, bytes | None]], on_missing: OnMissing
) -> Iterator[tuple[ChosenDream, str, bytes]]:
    """Yield each dream with its file name and its bytes. Equal dreams of two equal files with one name come once."""
    once = {dream.stem: dream for dream in dreams}.values()
    with thread_pool(_READERS) as readers:
        for dream, (name, data) in zip(once, ordered_prefetch(readers, load, once, _READERS), strict=True):
            if data is None:
                on_missing(dream)
            else:
                yield dream, name, data


def _read(dream: ChosenDream, storage: Storage) -> bytes | None:
    try:
        return storage.read(dream.result_uri)
    except (CorruptObject, UnreadableObject):
        return None


def _web_jpeg(decoders: Decoders, data: bytes) -> bytes:
    image = Image.fromarray(decoders.decode(data, max_pixels=_MAX_DECODED).pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=_QUALITY)
    return sink.getvalue()


def _captions(packed: Sequence[tuple[ChosenDream, str]]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["file", "caption", "photograph", "model", "layers", "octaves", "steps", "mark", "result_id"])
    for dream, name in packed:
        words = (name, dream.caption, dream.photograph, dream.model, dream.layers)
        table.writerow([*map(_cell, words), dream.octaves, dream.steps, dream.mark, dream.result_id])
    return text.getvalue().encode("utf-8-sig")  # spreadsheets need the mark of the encoding


def _cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


class _Zip:
    """A zip that is written piece by piece. Its files are compressed already."""

    def __init__(self) -> None:
        self._pieces = _Pieces()
        self._zip = zipfile.ZipFile(self._pieces, "w", zipfile.ZIP_STORED)
        self._time = datetime.now(UTC).timetuple()[:6]

    def add(self, name: str, data: bytes) -> bytes:
        """Add a file and return the next piece of the zip."""
        entry = zipfile.ZipInfo(name, self._time)
        entry.external_attr = 0o644 << 16
        self._zip.writestr(entry, data)
        return self._pieces.take()

    def end(self) -> bytes:
        """Return the last piece."""
        self._zip.close()
        return self._pieces.take()


class _Missing:
    """The dreams that a zip goes without. Each is also given to `on_missing`."""

    def __init__(self, on_missing: OnMissing) -> None:
        self._on_missing = on_missing
        self._lines: list[str] = []

    def __call__(self, dream: ChosenDream) -> None:
        self._on_missing(dream)
        self._lines.append(f"{dream.result_id}  {dream.photograph}\n")

    def add_to(self, pack: _Zip) -> bytes:
        """Add the list to a zip if a dream is missing, and return the next piece of the zip."""
        if not self._lines:
            return b""
        head = "These dreams are missing in the store, or cannot be read:\n"
        return pack.add(MISSING, "".join([head, *self._lines]).encode())


class _Pieces(io.RawIOBase):
    """A file that can only be written. `take` returns what was written since the last call."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Keep bytes until the next `take`."""
        self._written.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Return the bytes since the last call, and forget them."""
        data = b"".join(self._written)
        self._written.clear()
        return data
