"""Thumbnails of dreams and of photographs.

A shard writes the thumbnail of each dream to `DEST/thumbs/`. Destinations of earlier versions have none. Then the
thumbnail is made once and kept on this machine's disk, and in the destination if that may be written. The small
pictures of photographs are kept on disk only. Pictures may come from anybody, so each is decoded in a child process.
"""

import hashlib
import io
import math
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dreamcore.errors import DreamgridError
from dreamcore.thumbnail import MAX_LONGER_SIDE, MAX_SHORTER_SIDE, THUMBNAIL_TYPE, encode_thumbnail
from flows.decoding.decoder import decode
from flows.jobs.noise_source import noise_size, shown_noise
from flows.machine.machine import cores_per_worker
from flows.s3.layout import thumb_uri
from flows.s3.storage import Storage

__all__ = ["Missing", "Thumbnails", "pixels_of"]

_ENOUGH_PIXELS = 4 * MAX_SHORTER_SIDE * MAX_LONGER_SIDE
"""A picture is decoded with at most this many pixels, from which its thumbnail is made."""


class Missing(DreamgridError):
    """The object of a picture does not exist in S3."""


class Thumbnails:
    """The small pictures of one destination.

    Args:
        destination: folder of the results.
        storage: access to S3.
        folder: where small pictures are kept on this machine; nobody else can read it.
        read_only: whether nothing may be written to the destination.
    """

    def __init__(self, destination: str, storage: Storage, folder: Path, *, read_only: bool) -> None:
        self._destination, self._storage, self._folder = destination, storage, folder
        self._may_write = not read_only
        self._turns = threading.Semaphore(2 * cores_per_worker())

    def of_dream(self, result_uri: str, etag: str) -> bytes:
        """Return the thumbnail of a dream as WebP.

        Args:
            result_uri: the address of the dream, below the images of the destination.
            etag: the version of the dream, or anything else that changes with it.

        Raises:
            Missing: the dream does not exist.
            ImageError: the dream is not an image.
            InvalidInput, Unavailable: S3 refuses, or does not respond.
        """
        kept = self._place("dream", result_uri, etag)
        if data := _read(kept):
            return data
        uri = thumb_uri(self._destination, result_uri)
        data = self._storage.read(uri)
        if data is None:
            with self._turns:
                data = encode_thumbnail(decode(self._whole(result_uri), max_pixels=_ENOUGH_PIXELS).pixels)
            self._keep_in_destination(uri, data)
        _write(kept, data)
        return data

    def of_photograph(self, uri: str, etag: str, seed: int = 0) -> bytes:
        """Return a small picture of a photograph as WebP; of noise, for the seed of the dream.

        Raises:
            ImageError: it was replaced or removed, or is not an image.
            InvalidInput, Unavailable: S3 refuses, or does not respond.
        """
        return self._photograph("small", (uri, etag, seed), _ENOUGH_PIXELS, encode_thumbnail)

    def photograph(self, uri: str, etag: str, pixels: int, seed: int = 0) -> bytes:
        """Return a photograph, shrunk to at most `pixels` pixels, as WebP or JPEG; see `of_photograph` for errors."""
        return self._photograph(str(pixels), (uri, etag, seed), pixels, _encode_large)

    def _photograph(
        self, kind: str, version: tuple[str, str, int], pixels: int, encode: Callable[[NDArray[np.uint8]], bytes]
    ) -> bytes:
        uri, etag, seed = version
        is_noise = noise_size(uri) is not None
        kept = self._place(f"photograph-{kind}", uri, f"{etag} {seed}" if is_noise else etag)
        if data := _read(kept):
            return data
        with self._turns:
            found = shown_noise(uri, seed) if is_noise else None
            found = found or decode(self._storage.read_version(uri, etag), max_pixels=pixels)
            data = encode(found.pixels)
        _write(kept, data)
        return data

    def _whole(self, uri: str) -> bytes:
        """Return a whole dream as it is stored; raise `Missing` if it does not exist."""
        data = self._storage.read(uri)
        if data is None:
            raise Missing(f"{uri} does not exist")
        return data

    def _keep_in_destination(self, uri: str, data: bytes) -> None:
        """Write a thumbnail to the destination. If that is refused once, no other is tried."""
        if not self._may_write:
            return
        try:
            self._storage.write_if_absent(uri, data, THUMBNAIL_TYPE)
        except DreamgridError:
            self._may_write = False

    def _place(self, kind: str, uri: str, etag: str) -> Path:
        name = hashlib.sha256(f"{kind}\n{uri}\n{etag}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.webp"


def _encode_large(pixels: NDArray[np.uint8]) -> bytes:
    """Return a picture as WebP, or as JPEG if it has a side that WebP does not allow."""
    sink = io.BytesIO()
    if max(pixels.shape[:2]) > 16_383:
        Image.fromarray(pixels).save(sink, "JPEG", quality=92)
    else:
        Image.fromarray(pixels).save(sink, "WEBP", quality=90, method=2)
    return sink.getvalue()


def _read(path: Path) -> bytes | None:
    with suppress(OSError):
        return path.read_bytes()
    return None


def _write(path: Path, data: bytes) -> None:
    """Write a file as a whole. A full disk, or a cache that cannot be written, only costs time later."""
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(name).replace(path)


def pixels_of(width: int | None, height: int | None) -> int:
    """Return the number of pixels at which a photograph covers a dream of this size."""
    return max(1, math.prod((width or MAX_SHORTER_SIDE, height or MAX_SHORTER_SIDE)))
