"""What the queries of the gallery take and return: immutable values, independent of the cache's tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from flows.gallery.points import Point

__all__ = [
    "Axis",
    "BestBy",
    "CostPoint",
    "Counts",
    "DreamRow",
    "Failure",
    "FailureKind",
    "Filters",
    "Histogram",
    "LayerScore",
    "MarkCount",
    "Photograph",
    "Run",
    "RunState",
    "ScoreMap",
    "SeenClass",
    "Sort",
]

RunState = Literal["finished", "unfinished", "abandoned", "nothing to do"]
"""`unfinished`: the run holds the destination, and may be going on at the moment. `nothing to do`: its plan is empty. A
run that was abandoned before it had a plan leaves the same record."""
BestBy = Literal["gain", "mark", "score"]
"""What makes a dream the best one of its photograph. Ranks of gains and scores within their objective are compared."""
Sort = Literal["name", "gain", "mark", "newest", "cost"]
"""The order of photographs: by name, highest rank of a gain first, highest mark first, newest dream first, most seconds
first."""


class LayerScore(NamedTuple):
    """The score of one layer before and after a dream."""

    layer: str
    before: float | None
    after: float | None


class SeenClass(NamedTuple):
    """A class that the network sees in an image, and its probability from 0 to 1."""

    label: str
    p: float


@dataclass(frozen=True)
class Filters:
    """Which dreams are shown. All conditions must be true; an empty condition is always true."""

    text: str = ""
    """Words that must all be found: each in the photograph's name or in the class that the network sees after the
    dream, or as the beginning of the `result_id` (four digits or more), or as the number of the dream (`37`, `#37`)."""
    status: str = "done"
    """`done`, `failed` or `skipped`; empty for all rows."""
    model: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    """Layers as `DreamRow.layers` writes them."""
    seen: tuple[str, ...] = ()
    """Labels. The most probable class after the dream is one of them."""
    run: str = ""
    """A `run_id`."""
    since: datetime | None = None
    """The dream is from this time or later. A time without a zone is UTC."""
    until: datetime | None = None
    """The dream is older than this time."""
    marks_min: int | None = None
    """The dream has at least this mark."""
    marked: bool | None = None
    """Whether the dream has a mark, also that of a rejection."""
    hide_rejected: bool = False
    """The dream is not rejected."""
    settings: tuple[tuple[str, str], ...] = ()
    """Settings with their values as text. `objective` and `settings_id` count as settings, too."""
    gain_min: float | None = None
    """The dream has at least this gain."""
    gain_max: float | None = None
    """The dream has at most this gain."""


@dataclass(frozen=True, kw_only=True)
class DreamRow:
    """One row of the manifest: a dream, or one that failed."""

    result_id: str
    """16 hex digits. A failed dream has the `result_id` that the dream would have."""
    settings_id: str
    source_uri: str
    source_etag: str
    source_name: str
    """The name of the photograph below its source."""
    run_id: str
    status: Literal["done", "failed", "skipped"]
    error_kind: str | None
    error: str | None
    model: str
    layers: str
    """The layers with channels and weights, such as `blocks.3=0.3+blocks.4`."""
    objective: str
    """Model, layers, measure, guide and anchor. Gains of different objectives cannot be compared."""
    number: int
    """The position of the dream among those of its photograph, from 1: by run, shard and time. 0 if it failed."""
    settings: Mapping[str, str]
    """The settings that differ from the defaults, without model and layers, as text by name."""
    settings_json: str
    """All settings as canonical JSON."""
    score_before: float | None
    score_after: float | None
    gain: float | None
    """`score_after` minus `score_before`."""
    gain_rank: float | None
    """Rank of the gain among all dreams with the same objective, from 0 to 1; 0.5 if it is the only one."""
    layer_scores: tuple[LayerScore, ...]
    octave_scores: tuple[float, ...]
    stage_scores: tuple[LayerScore, ...]
    classes_before: tuple[SeenClass, ...]
    classes_after: tuple[SeenClass, ...]
    width: int | None
    """In pixels."""
    height: int | None
    """In pixels."""
    seconds: float | None
    device: str | None
    result_uri: str | None
    result_bytes: int | None
    created_at: datetime
    mark: int | None
    enlarged_from: str | None
    """The `result_id` of the dream that this dream enlarges; None for any other dream."""


@dataclass(frozen=True)
class Photograph:
    """One photograph and its best dream among those that are shown."""

    source_uri: str
    source_etag: str
    """The version of the best dream, or the newest one."""
    name: str
    best: DreamRow | None
    """None if no dream is shown."""
    dreams: int
    """Number of dreams that are done, under the conditions of the filters besides the status."""
    failed: int
    """Number of dreams that failed or were skipped, likewise."""
    objectives: int = 1
    """Number of different objectives among the dreams. If there are several, the best one is chosen by rank."""


@dataclass(frozen=True)
class Counts:
    """How much the filters show."""

    photographs: int
    dreams: int
    failed: int
    """Failed and skipped dreams under the conditions besides the status."""


@dataclass(frozen=True)
class Axis:
    """A setting that varies among dreams, with its values as text, in a sensible order."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class ScoreMap:
    """Mean gains over the values of two settings."""

    x: Axis
    y: Axis
    cells: tuple[tuple["ScoreCell | None", ...], ...]
    """One row for each value of `y`, with one cell for each value of `x`; None where there is no dream."""
    by: Literal["gain", "rank"]
    """`rank` if the dreams have several objectives. Then `value` is the mean rank of the gain within its objective."""


class ScoreCell(NamedTuple):
    """The dreams with one value of each of two settings."""

    value: float
    dreams: int
    best: str
    """`result_id` of the dream with the highest value."""


class CostPoint(NamedTuple):
    """The dreams of one settings: their mean gain against their mean duration."""

    point: Point
    seconds: float
    gain: float
    rank: float
    """Mean rank of the gain within its objective."""
    dreams: int


@dataclass(frozen=True)
class Histogram:
    """The distribution of the gain of one objective."""

    objective: str
    edges: tuple[float, ...]
    """The limits of the bins, one more than bins."""
    counts: tuple[int, ...]
    dreams: int


class MarkCount(NamedTuple):
    """The dreams with one mark."""

    mark: int
    dreams: int
    bytes: int
    """The size of their files."""


class FailureKind(NamedTuple):
    """How many dreams failed for a kind of reason."""

    kind: str
    photographs: int
    dreams: int


@dataclass(frozen=True)
class Failure:
    """A photograph whose dreams failed for one reason."""

    source_uri: str
    source_etag: str
    name: str
    status: Literal["failed", "skipped"]
    kind: str
    error: str
    dreams: int
    run_id: str
    """The latest run."""
    created_at: datetime
    """The latest time."""


@dataclass(frozen=True)
class Run:
    """One run of a destination and its progress."""

    run_id: str
    state: RunState
    started_at: datetime | None
    source: str
    planned: int
    """Number of dreams; 0 if the run has no plan yet."""
    done: int
    failed: int
    skipped: int
    is_retry: bool = False
    """Whether the run tries failed dreams of earlier runs again."""
    seconds: float | None = None
    """Duration of a finished run."""
    summary: str = ""
    """The outcome of a finished run in words."""
    failures: Mapping[Any, int] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    """The fields of the job, as JSON values."""

    @property
    def progress(self) -> float:
        """The finished share of the planned dreams, from 0 to 1."""
        return min(1.0, (self.done + self.failed + self.skipped) / self.planned) if self.planned else 0.0
