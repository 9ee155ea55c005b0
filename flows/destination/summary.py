"""What the rows of a destination say in sum: counts, mean scores, failures."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dreamcore.targets import Target, layers_label
from flows.destination import manifest
from flows.destination.manifest import value_counts
from flows.s3.storage import Storage

__all__ = ["failures", "main_settings", "summarize"]

_SETTINGS_COLUMNS = ["model", "layers", "octaves", "steps", "settings"]


def summarize(storage: Storage, destination: str) -> dict[str, Any]:
    """Return counts of a destination, and the mean scores of its dreams for each point of the grid."""
    columns = ["run_id", "status", "error_kind", "source_uri", "settings_id", "score_before", "score_after"]
    points: dict[str, dict[str, Any]] = {}  # long texts that many rows share
    tables = [manifest.empty_table(columns)]
    for part in manifest.iter_tables(storage, destination, [*columns, *_SETTINGS_COLUMNS]):
        for number, settings_id in enumerate(part["settings_id"].to_pylist()):
            if settings_id not in points:
                (points[settings_id],) = part.slice(number, 1).select(_SETTINGS_COLUMNS).to_pylist()
        tables.append(part.select(columns))
    table = pa.concat_tables(tables)
    done = table.filter(pc.field("status") == "done")
    means = done.group_by("settings_id", use_threads=False).aggregate(
        [("score_before", "mean"), ("score_after", "mean"), ("score_after", "count")]
    )
    return {
        "rows": len(table),
        "photographs": pc.count_distinct(table["source_uri"]).as_py(),
        "runs": pc.count_distinct(table["run_id"]).as_py(),
        "statuses": value_counts(table["status"]),
        "errors": value_counts(table["error_kind"].drop_null()),
        "settings": [_mean_scores(row, points[row["settings_id"]]) for row in means.to_pylist()],
    }


_FAILURE_COLUMNS = ["source_uri", "source_etag", "status", "error_kind", "error"]


def failures(storage: Storage, destination: str) -> list[dict[str, Any]]:
    """Return the photographs that failed or were skipped, with the reason and the number of missing dreams."""
    rows = manifest.read(storage, destination, _FAILURE_COLUMNS, where=pc.field("status") != "done")
    groups = rows.group_by(_FAILURE_COLUMNS, use_threads=False).aggregate([([], "count_all")])
    named = groups.rename_columns([*_FAILURE_COLUMNS, "dreams"])
    return named.sort_by("source_uri").to_pylist()  # type: ignore[no-any-return]


def main_settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the main settings of a row in words; the row needs the columns model, layers, octaves and steps."""
    layers = (Target(layer=each["name"], channels=each["channels"], weight=each["weight"]) for each in row["layers"])
    return {
        "model": row["model"],
        "layers": layers_label(tuple(layers)),
        "octaves": row["octaves"],
        "steps": row["steps"],
    }


def _mean_scores(row: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    return {
        "settings_id": row["settings_id"],
        **main_settings(point),
        "dreams": row["score_after_count"],
        "score_before": row["score_before_mean"],
        "score_after": row["score_after_mean"],
        "settings": json.loads(point["settings"]),
    }
