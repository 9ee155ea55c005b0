"""How fast this machine dreams: as an earlier run or a measurement showed, or as typical machines do."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, islice
from random import Random
from statistics import median
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import ValidationError

from dreamcore.catalog import network_spec
from dreamcore.errors import InvalidInput
from dreamcore.settings import read_recorded
from flows.destination import manifest, run_record
from flows.destination.parts import list_parts
from flows.jobs import calibration
from flows.jobs.calibration import Calibration, machine_name
from flows.jobs.cost import CORE, GPU, START_SECONDS, Throughput, step_kind, step_seconds
from flows.jobs.work import PlannedSettings
from flows.machine.machine import core_count, gpu_count, worker_count
from flows.s3 import layout
from flows.s3.storage import Storage

__all__ = ["Earlier", "earlier_run", "speed_from", "throughput"]

_SIMILAR_COST = 1.2
"""The speed of a kind of step is used for another one if their costs differ by at most this factor."""
_ROW_SECONDS = 1.0
"""Seconds of the reference core that the rows of a kind must add up to: the first dream of a worker is slow."""
_RUNS, _PARTS, _ROWS = 10, 16, 10_000
"""Earlier runs whose reports are read; of one run, shards whose parts are read, and rows, at most."""
_ROW_COLUMNS = ("status", "settings_id", "weights_sha256", "settings", "width", "height", "batch", "seconds")


def throughput(settings: Sequence[PlannedSettings] = ()) -> Throughput:
    """Return the speed of this machine, for which a plan is cut: as measured by an earlier estimate, else a guess.

    Raises:
        InvalidInput: `DREAMGRID_WORKERS` is not a positive integer.
    """
    return speed_from(settings, calibration.kept(), {})


def speed_from(
    settings: Sequence[PlannedSettings], measured: Calibration | None, earlier: Mapping[str, float]
) -> Throughput:
    """Combine the speeds of a calibration and of an earlier run, which are more exact."""
    speeds = {**(measured.speeds if measured else {}), **earlier}
    found = {step_kind(planned): _similar(planned, speeds) for planned in settings}
    by_kind = {kind: speed for kind, speed in found.items() if speed}
    usual = median(speeds.values()) if speeds else GPU if gpu_count() else CORE
    # Prefect and the search for the work take about as long as torch.
    start = 2 * measured.start_seconds if measured else START_SECONDS
    return Throughput(worker_count(), usual, by_kind, start)


def _similar(planned: PlannedSettings, speeds: Mapping[str, float]) -> float | None:
    """Return the speed of the kind of these settings, or of the kind that is most like it; None if there is none."""
    if exact := speeds.get(step_kind(planned)):
        return exact
    rest, _, cost = step_kind(planned).rpartition("|")
    ratios: list[tuple[float, float | None]] = []
    for kind, speed in speeds.items():
        if kind.rpartition("|")[0] == rest:
            low, high = sorted((int(cost), int(kind.rpartition("|")[2])))
            ratios.append((high / max(low, 1), speed))
    ratio, nearest = min(ratios, default=(_SIMILAR_COST + 1, None))
    return nearest if ratio <= _SIMILAR_COST else None


class Earlier(NamedTuple):
    """The speeds of an earlier run."""

    run_id: str
    speeds: dict[str, float]
    """Speed of one process relative to the reference core, by kind of step."""


def earlier_run(destination: str, settings: Sequence[PlannedSettings], store: Storage) -> Earlier | None:
    """Return the speeds of the newest finished run of this destination on a machine like this one."""
    newest = sorted(run_record.finished_run_ids(destination, store), reverse=True)
    for run_id in islice(newest, _RUNS):
        report = json.loads(store.read(layout.success_uri(destination, run_id)) or b"{}")
        if report.get("machine") == machine_name() and (speeds := _speeds_of(run_id, destination, settings, store)):
            return Earlier(run_id, speeds)
    return None


def _speeds_of(run_id: str, destination: str, settings: Sequence[PlannedSettings], store: Storage) -> dict[str, float]:
    """Return the speed of each kind of step in some parts of a run; the wait for a shared core does not count."""
    table = manifest.read_rows(store, _drawn_parts(run_id, destination, store), _ROW_COLUMNS)
    rows = table.take(pa.array(range(0, len(table), len(table) // _ROWS + 1), pa.int64())).to_pylist()
    expected: dict[str, float] = defaultdict(float)
    needed: dict[str, float] = defaultdict(float)
    known: dict[str, PlannedSettings | None] = {planned.settings_id: planned for planned in settings}
    models = {planned.settings.model for planned in settings}
    for row in rows:
        if row["status"] != "done" or not row["seconds"]:
            continue
        if row["settings_id"] not in known:
            known[row["settings_id"]] = _planned_of(row, models)
        if planned := known[row["settings_id"]]:
            kind = step_kind(planned)
            expected[kind] += step_seconds(planned, row["width"] * row["height"], row["batch"] or 1)
            needed[kind] += row["seconds"]
    sharing = 1.0 if gpu_count() else max(1.0, worker_count() / core_count())
    return {kind: sharing * seconds / needed[kind] for kind, seconds in expected.items() if seconds >= _ROW_SECONDS}


def _drawn_parts(run_id: str, destination: str, store: Storage) -> list[str]:
    """Return some parts of a run, drawn because neighbouring parts may have the same settings."""
    parts = list_parts(store, destination, run_id)
    drawn = Random(run_id).sample(parts, min(len(parts), _PARTS))  # noqa: S311 - not a secret
    shards = list(accumulate(len(part.shards) for part in drawn))  # one merged part may be enough
    return [part.uri for part, before in zip(drawn, [0, *shards], strict=False) if before < _PARTS]


def _planned_of(row: Mapping[str, Any], models: Iterable[str]) -> PlannedSettings | None:
    """Return the settings of a row; None if they are of another version or network, whose costs are not known here."""
    with suppress(ValidationError, InvalidInput):
        settings = read_recorded(json.loads(row["settings"]))
        if settings.model in models:
            cost = max(network_spec(settings.model).layer(layer).cost for layer in settings.layer_names)
            weights = row["weights_sha256"]
            return PlannedSettings(settings=settings, settings_id=row["settings_id"], weights=weights, cost=cost)
    return None
