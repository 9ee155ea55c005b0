"""From sources and settings to shards: pure functions, no S3, no clock, no torch."""

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from dreamcore.objectives import Frozen, objective_label
from dreamcore.settings import DreamSettings, digest

SHARD_SECONDS = 60.0
"""A shard is cut at about this much work on one process: long against a task's overhead, short to lose."""
SHARDS_AT_LEAST = 8
"""A small run is still cut into so many shards, so that all processes have work and the progress moves."""

_BITS_A_PIXEL = {"jpg": 2.5, "jpeg": 2.5, "jpe": 2.5, "webp": 2.0, "png": 12.0, "gif": 6.0}
_BITS_A_PIXEL_UNPACKED = 24.0
_STEP_PASSES = 2.0
"""A step runs forward and back to the picture: about two forward passes."""
_SECONDS_BESIDES = 0.1
"""To read, decode, encode and write, whatever is dreamt."""
_MULTIPLY_ADDS_A_SECOND = 25e9
"""Of one core of 2024; plans only compare with it and estimate, nothing is decided by it."""


@dataclass(frozen=True)
class Source:
    """One photograph: one version of one object."""

    uri: str
    name: str
    """Its key below the source prefix."""
    etag: str
    size: int
    """Bytes."""


class PlannedSettings(Frozen):
    """One point of the grid, ready to be dreamt."""

    settings: DreamSettings
    settings_id: str
    weights: str
    cost: int
    """Multiply-adds of one forward pass for each pixel of the picture."""


@dataclass(frozen=True)
class Work:
    """One photograph and the settings, by their index in the run, under which a shard dreams it."""

    source: Source
    settings: tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """The work of one task."""

    number: int
    works: tuple[Work, ...]

    @property
    def dreams(self) -> int:
        """How many rows the shard's part of the manifest will have."""
        return sum(len(work.settings) for work in self.works)


def dream_key(source_uri: str, etag: str, settings_id: str) -> str:
    """Identity of one dream in a destination; the manifest holds exactly one row for each."""
    return digest(source_uri, etag, settings_id)


def estimate_pixels(source: Source, max_pixels: int) -> int:
    """Pixels that will be dreamt, guessed from the file's size: a scan does not open photographs."""
    bits = _BITS_A_PIXEL.get(source.name.rpartition(".")[2].lower(), _BITS_A_PIXEL_UNPACKED)
    return max(1, min(max_pixels, round(source.size * 8 / bits)))


def estimate_seconds(source: Source, planned: PlannedSettings) -> float:
    """Seconds of one dream on one core, roughly."""
    settings = planned.settings
    levels = (settings.octaves_above - level for level in range(settings.octaves))
    octaves = sum(settings.octave_scale ** (2 * level) for level in levels)
    passes = octaves * settings.steps * _STEP_PASSES
    multiply_adds = estimate_pixels(source, settings.max_pixels) * passes * planned.cost
    return _SECONDS_BESIDES + multiply_adds / _MULTIPLY_ADDS_A_SECOND


def make_plan(
    sources: Iterable[Source], settings: Sequence[PlannedSettings], is_done: Callable[[str], bool]
) -> list[Shard]:
    """Cut what is not done yet into shards of about equal cost.

    Args:
        sources: the photographs; their order does not matter.
        settings: the points of the grid.
        is_done: whether the manifest already has the dream with this `dream_key`.

    Returns:
        Shards in a stable order. Every (source, settings) that is not done is in exactly one of them.
    """
    todo: list[tuple[Source, int, float]] = []
    for source in sorted(sources, key=lambda source: source.uri):
        for index, planned in enumerate(settings):
            if not is_done(dream_key(source.uri, source.etag, planned.settings_id)):
                todo.append((source, index, estimate_seconds(source, planned)))
    total = sum(seconds for _, _, seconds in todo)
    count = min(len(todo), max(SHARDS_AT_LEAST, math.ceil(total / SHARD_SECONDS)))
    return [Shard(number, _by_source(chunk)) for number, chunk in enumerate(_cut(todo, count, total))]


def _cut(todo: Iterable[tuple[Source, int, float]], count: int, total: float) -> list[list[tuple[Source, int, float]]]:
    """Cut into at most `count` chunks of `total` seconds together: a dream goes where the middle of its time lies."""
    chunks: dict[int, list[tuple[Source, int, float]]] = {}
    spent = 0.0
    for entry in todo:
        chunks.setdefault(int((spent + entry[2] / 2) * count / total), []).append(entry)
        spent += entry[2]
    return list(chunks.values())


def _by_source(chunk: list[tuple[Source, int, float]]) -> tuple[Work, ...]:
    works: dict[Source, list[int]] = {}
    for source, index, _ in chunk:
        works.setdefault(source, []).append(index)
    return tuple(Work(source, tuple(indices)) for source, indices in works.items())


def result_name(source: Source, planned: PlannedSettings, result_id: str) -> str:
    """Key of a dream below the destination: `images/<source>/<readable label>-<result_id>.<suffix>`."""
    settings = planned.settings
    label = quote(f"{objective_label(settings.layers)}-{settings.octaves}x{settings.steps}", safe="=+,")[:60]
    return f"images/{safe_name(source.name)}/{label}-{result_id}.{settings.output.format}"


def safe_name(name: str) -> str:
    """`name` as a key that every store keeps apart: what reads as a path step or a control code is spelt out."""
    spelt = "".join(quote(c) if c == "%" or not c.isprintable() else c for c in name)
    # Neither %20 nor %2D can come from a name: a space and a hyphen stay as they are.
    parts = ["%2E" * len(part) if part in (".", "..") else part or "%20" for part in spelt.split("/")]
    name = "/".join(parts)
    if len(name.encode()) <= 800:
        return name
    # A key has 1,024 bytes; the rest of a long one is told apart by its digest.
    return name.encode()[:700].decode(errors="ignore") + "%2D" + digest(name)


_PLAN = pa.schema(
    [
        ("shard", pa.int32()),
        ("source_uri", pa.string()),
        ("source_name", pa.string()),
        ("source_etag", pa.string()),
        ("source_bytes", pa.int64()),
        ("settings", pa.list_(pa.int32())),
    ]
)


def to_parquet(shards: Sequence[Shard]) -> bytes:
    """The plan as it is frozen: a row for each photograph in a shard."""
    rows = [
        (shard.number, work.source.uri, work.source.name, work.source.etag, work.source.size, work.settings)
        for shard in shards
        for work in shard.works
    ]
    columns = list(zip(*rows, strict=True)) or [()] * len(_PLAN)
    table = pa.table([pa.array(c, field.type) for c, field in zip(columns, _PLAN, strict=True)], schema=_PLAN)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def from_parquet(data: bytes) -> list[Shard]:
    """The inverse of `to_parquet`."""
    works: dict[int, list[Work]] = {}
    for row in pq.read_table(io.BytesIO(data)).to_pylist():
        source = Source(row["source_uri"], row["source_name"], row["source_etag"], row["source_bytes"])
        works.setdefault(row["shard"], []).append(Work(source, tuple(row["settings"])))
    return [Shard(number, tuple(entries)) for number, entries in works.items()]
