"""The units of work: one photograph, one point of the grid, a shard of both, and the result of a shard."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii

import numpy as np
from numpy.typing import NDArray

from dreamcore.settings import RecordedSettings, digest
from dreamcore.sweeps import Rank
from dreamcore.targets import Frozen

__all__ = [
    "Keys",
    "PlannedSettings",
    "ReplacedPart",
    "Shard",
    "ShardResult",
    "Source",
    "Work",
    "dream_key",
    "dream_keys",
    "uri_key",
]

Keys = NDArray[np.uint64]
"""Identities of dreams or of photographs as 64-bit numbers."""


@dataclass(frozen=True, slots=True)
class Source:
    """One version of one photograph in S3."""

    uri: str
    name: str
    """The name in the destination: the key below the source prefix, or bucket and key. `uri` ends with it."""
    etag: str
    size: int
    """Size of the file in bytes."""


class PlannedSettings(Frozen):
    """One point of the grid, ready to be dreamt: every layer is named and every file has its SHA-256."""

    settings: RecordedSettings
    settings_id: str
    """Identity of the settings: 16 hex digits."""
    weights: str
    """Identity of the network's weights."""
    cost: int
    """Multiply-adds of one forward pass per pixel of the image, up to the deepest target layer."""
    ranks: tuple[Rank, ...] = ()
    """Which photographs are dreamt under these settings: those of one of these ranks; if empty, all photographs."""
    photograph: tuple[str, str] | None = None
    """Address and ETag of the only photograph that is dreamt under these settings; None: there is no such limit."""


@dataclass(frozen=True, slots=True)
class Work:
    """One photograph and the settings under which a shard dreams it."""

    source: Source
    settings: tuple[int, ...]
    """Indices into the settings of the run."""


@dataclass(frozen=True, slots=True)
class ReplacedPart:
    """The version of a part of an earlier run that a shard replaces."""

    run_id: str
    """The run that wrote the part. The settings of the shard are indices into the settings of this run."""
    etag: str
    last: int | None = None
    """Number of the last shard of a merged part; None for the part of one shard."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The work of one task."""

    number: int
    """Number of the shard in its plan, from 0; with `replaces`, the number of the first shard of that part."""
    works: tuple[Work, ...]
    replaces: ReplacedPart | None = None
    """Set if the shard tries failed dreams again: their new rows replace the old ones in this part."""
    process: str | None = None
    """The token of the process that submitted the shard: it leaves shards with the hint of another process for later.
    Without a token, the shard is dreamt whatever its hint says."""

    @property
    def dreams(self) -> int:
        """The number of rows that the shard's part of the manifest will have."""
        return sum(len(work.settings) for work in self.works)

    def run_of_part(self, run_id: str) -> str:
        """Return the run whose part has the shard's rows: an earlier run, or `run_id`, which dreams the shard."""
        return self.replaces.run_id if self.replaces else run_id


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What a worker process reports about a finished shard."""

    number: int
    """The number of the shard."""
    run_of_part: str
    """The run whose part of the manifest has the rows of the shard."""
    rows: Mapping[str, int]
    """Number of rows by status: done, failed and skipped."""
    failures: Mapping[str, int]
    """Number of failed and skipped dreams by error kind, among the rows that this attempt made."""
    new: int
    """The rows that this attempt made. 0 if another attempt had finished the shard before."""
    node: str
    """The host name of the machine."""
    worker: int
    """The process id of the worker process."""
    seconds: float
    """The duration of the attempt."""


def dream_key(source_uri: str, etag: str, settings_id: str) -> int:
    """Return the identity of one dream in a destination as a 64-bit number. The manifest has one row for each."""
    return int(digest(source_uri, etag, settings_id), 16)


def dream_keys(source_uris: Iterable[str], etags: Iterable[str], settings_ids: Iterable[str]) -> Keys:
    """Return the `dream_key` of each dream. For millions of dreams, this is several times as fast as one by one."""
    quote, sha256 = encode_basestring_ascii, hashlib.sha256
    texts = (
        f"[{quote(uri)},{quote(etag)},{quote(settings_id)}]"  # as `digest` writes them
        for uri, etag, settings_id in zip(source_uris, etags, settings_ids, strict=False)
    )
    digests = b"".join([sha256(text.encode()).digest()[:8] for text in texts])
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def uri_key(uri: str) -> int:
    """Return a 64-bit number for the address of an object."""
    return int.from_bytes(hashlib.sha256(uri.encode()).digest()[:8])
