"""Rows of the cache as `DreamRow`s."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from flows.gallery.points import Point
from flows.gallery.records import DreamRow, LayerScore, SeenClass
from flows.gallery.tables import STATUSES

__all__ = ["read_dream", "select"]

_COLUMNS = {
    "result_no": "d.result_no",
    "settings_no": "d.settings_no",
    "source_uri": "s.uri",
    "source_etag": "x.source_etag",
    "source_name": "s.name",
    "run_id": "r.run_id",
    "status": "d.status",
    "error_kind": "x.error_kind",
    "error": "x.error",
    "number": "d.number",
    "settings_json": "p.text",
    "score_before": "x.score_before",
    "score_after": "d.score",
    "gain": "d.gain",
    "gain_rank": "d.gain_rank",
    "layer_scores": "x.layer_scores",
    "octave_scores": "x.octave_scores",
    "stage_scores": "x.stage_scores",
    "classes_before": "x.classes_before",
    "classes_after": "x.classes_after",
    "width": "x.width",
    "height": "x.height",
    "seconds": "d.seconds",
    "device": "x.device",
    "result_uri": "x.result_uri",
    "result_bytes": "x.result_bytes",
    "created_at": "d.created_at",
    "mark": "m.mark",
    "enlarged_from": "x.enlarged_from",
}

_FROM = """
FROM dreams d
JOIN details x ON x.dream_no = d.dream_no
JOIN sources s ON s.source_no = d.source_no
JOIN settings p ON p.settings_no = d.settings_no
JOIN runs r ON r.run_no = d.run_no
LEFT JOIN live.marks m ON m.result_no = d.result_no AND d.status = 0
"""


def select(*more: str) -> str:
    """Return the beginning of a query whose rows `read_dream` reads. `more` are constant expressions behind these."""
    return f"SELECT {', '.join([*_COLUMNS.values(), *more])} {_FROM}"


def read_dream(row: Sequence[Any], points: Mapping[int, Point]) -> DreamRow:
    """Return one row of a query that begins with `select`."""
    values = dict(zip(_COLUMNS, row, strict=False))
    point = points[values.pop("settings_no")]
    created_at: datetime = values.pop("created_at")
    original = values.pop("enlarged_from")
    return DreamRow(
        result_id=f"{values.pop('result_no'):016x}",
        settings_id=point.settings_id,
        status=STATUSES[values.pop("status")],  # type: ignore[arg-type]
        model=point.model,
        layers=point.layers,
        objective=point.objective,
        settings=point.settings,
        layer_scores=_scores(values.pop("layer_scores")),
        stage_scores=_scores(values.pop("stage_scores")),
        octave_scores=tuple(values.pop("octave_scores") or ()),
        classes_before=_classes(values.pop("classes_before")),
        classes_after=_classes(values.pop("classes_after")),
        created_at=created_at.replace(tzinfo=UTC),
        enlarged_from=None if original is None else f"{original:016x}",
        **values,
    )


def _scores(entries: Sequence[Mapping[str, Any]] | None) -> tuple[LayerScore, ...]:
    return tuple(LayerScore(each["layer"], each["before"], each["after"]) for each in entries or ())


def _classes(entries: Sequence[Mapping[str, Any]] | None) -> tuple[SeenClass, ...]:
    return tuple(SeenClass(each["label"], each["p"]) for each in entries or ())
