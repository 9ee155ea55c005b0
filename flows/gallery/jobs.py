"""Jobs that are composed from chosen dreams of a destination: on the whole collection, variations, or enlarged dreams.

A composed job is an ordinary job for the same destination. Its plan leaves out what the destination has.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product
from typing import Any, Self, TypeGuard

import pyarrow.compute as pc
import yaml
from pydantic import ValidationError

from dreamcore.catalog import network_spec
from dreamcore.errors import InvalidInput
from dreamcore.settings import BUNDLED, DreamSettings, read_recorded
from dreamcore.sweeps import MAX_GRID_POINTS
from dreamcore.targets import Target, layers_label
from flows.destination import manifest, run_record
from flows.destination.parts import list_parts
from flows.jobs.job import DreamJob, explain_validation
from flows.jobs.job_options import RetryFailed
from flows.planning.estimate import estimate
from flows.s3.storage import Storage

__all__ = [
    "ChosenDream",
    "Preview",
    "Variations",
    "enlarge",
    "job_yaml",
    "more_like",
    "preview",
    "retry_failed",
    "whole_collection",
]

HALF_STEPS = ("octaves", "octave_scale", "steps", "step_size")
"""The settings that `Variations.half_steps` changes if the destination has no axes."""
_OF_THE_JOB = ("max_pixels", "output")
"""Settings that a job has once, for all points of its grid."""
_NOTHING_CHOSEN = "no dream is chosen: choose at least one"
_READ_PARTS = 8
"""Newest parts of the manifest whose rows say how large a dream is."""


# --- what jobs are composed from


@dataclass(frozen=True)
class ChosenDream:
    """One dream of a destination that somebody has chosen."""

    source_uri: str
    """Address of the photograph."""
    settings: DreamSettings

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the dream of a row of the manifest. Only the columns `source_uri` and `settings` (JSON) are read.

        An enlarged dream stands for its settings at the usual size, and a movie for those of its frames.

        Raises:
            InvalidInput: the settings are those of a version of Dreamgrid that has other settings.
        """
        try:
            settings = read_recorded(json.loads(row["settings"]))
        except ValidationError as error:
            raise InvalidInput(
                f"this version of Dreamgrid cannot use the settings of the dream of {row['source_uri']}: "
                f"{explain_validation(error)}"
            ) from error
        if settings.enlarge:
            settings = settings.model_copy(update={"enlarge": None, "max_pixels": DreamSettings().max_pixels})
        settings = settings.model_copy(update={"movie": None})
        return cls(str(row["source_uri"]), settings)


@dataclass(frozen=True)
class Variations:
    """Which variations of the chosen dreams to make, and how many of each kind. The kinds are not combined."""

    seeds: int = 0
    """Further seeds of each dream."""
    channels: int = 0
    """For each target with one channel: this many channels on either side of it. If no target names channels: this
    many channels of the heaviest target, those that each photograph excites most."""
    mixes: int = 0
    """Steps between each two of the dreams of one network. Weights and numbers are interpolated."""
    half_steps: Mapping[str, Sequence[float]] | None = None
    """For each of these settings, the values on its axis: one dream halfway to the next smaller value and one halfway
    to the next larger one. Beyond the ends of the axis, the neighbours are half and double the value. An empty mapping
    stands for `HALF_STEPS`."""


# --- jobs


def whole_collection(dreams: Iterable[ChosenDream], source: str, destination: str) -> DreamJob:
    """Return the job that dreams a whole collection with the settings of the chosen dreams.

    Args:
        dreams: the chosen dreams.
        source: the prefix of the collection.
        destination: the destination of the dreams.

    Raises:
        InvalidInput: no dream is chosen, or the source is no address.
    """
    return _job({"source": source}, destination, [dream.settings for dream in dreams])


def more_like(dreams: Sequence[ChosenDream], variations: Variations, destination: str) -> DreamJob:
    """Return the job that dreams the photographs of the chosen dreams with variations of their settings.

    Each photograph gets every variation. The grid has `points` only.

    Raises:
        InvalidInput: no dream is chosen, there is no such variation, or there are too many.
    """
    chosen = list(dict.fromkeys(dream.settings for dream in dreams))
    points = chain(
        chain.from_iterable(_other_seeds(settings, variations.seeds) for settings in chosen),
        chain.from_iterable(_other_channels(settings, variations.channels) for settings in chosen),
        chain.from_iterable(_between(one, other, variations.mixes) for one, other in combinations(chosen, 2)),
        chain.from_iterable(_half_steps(settings, variations.half_steps) for settings in chosen),
    )
    found = [settings for settings in dict.fromkeys(points) if settings not in chosen]
    if chosen and not found:
        raise InvalidInput("these dreams have no such variation: choose another kind, or for mixes two dreams")
    return _job({"sources": [dream.source_uri for dream in dreams]}, destination, found)


def enlarge(dreams: Mapping[str, str], destination: str, options: Mapping[str, Any], output: str = "jpg") -> DreamJob:
    """Return the job that enlarges dreams of a destination.

    Args:
        dreams: the address of the photograph of each dream, by the `result_id` of the dream.
        destination: the destination, which has the dreams.
        options: `max_pixels` and `strength`.
        output: the file format of the enlarged dreams.

    Raises:
        InvalidInput: no dream is chosen, or too many; or an option is out of range.
    """
    if not dreams:
        raise InvalidInput(_NOTHING_CHOSEN)
    fields = {"sources": sorted(set(dreams.values())), "destination": destination, "output": {"format": output}}
    return _validated({**fields, "enlarge": {**options, "dreams": list(dreams)}})


def retry_failed(destination: str, kinds: RetryFailed, storage: Storage) -> DreamJob:
    """Return the job that tries failed dreams of a destination again: the newest recorded job, with `retry_failed`.

    Args:
        destination: folder of the results.
        kinds: the error kinds to try again, or True for all failed dreams.
        storage: access to S3.

    Raises:
        InvalidInput: the destination has no finished run of this version of Dreamgrid.
    """
    for run_id in sorted(run_record.finished_run_ids(destination, storage), reverse=True):
        if run := run_record.find_run(destination, run_id, storage):
            return _validated({**run.job.model_dump(mode="json"), "retry_failed": kinds})
    raise InvalidInput(f"{destination} has no finished run whose job this version of Dreamgrid can read")


def _job(sources: Mapping[str, Any], destination: str, settings: Sequence[DreamSettings]) -> DreamJob:
    """Return the job with these settings as points. Its own `max_pixels` and `output` are the most frequent ones."""
    settings = list(dict.fromkeys(settings))
    if not settings:
        raise InvalidInput(_NOTHING_CHOSEN)
    if len(settings) > MAX_GRID_POINTS:
        raise InvalidInput(f"these are {len(settings):,} variations, but a job takes {MAX_GRID_POINTS:,}: choose fewer")
    counts = {name: Counter(getattr(each, name) for each in settings) for name in _OF_THE_JOB}
    common = {name: values.most_common(1)[0][0] for name, values in counts.items()}
    points = [_point(each, common) for each in settings]
    return _validated({**sources, "destination": destination, "grid": {"points": points}, **common})


def _validated(fields: Mapping[str, Any]) -> DreamJob:
    try:
        return DreamJob.model_validate(fields)
    except ValidationError as error:
        raise InvalidInput(explain_validation(error)) from error


def _point(settings: DreamSettings, common: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of settings that differ from the defaults, or from those that the job has for all points."""
    defaults = {**dict(DreamSettings()), **common}
    names = [name for name in DreamSettings.model_fields if getattr(settings, name) != defaults[name]]
    if settings.model != BUNDLED and "layers" not in names:
        names.append("layers")  # other networks have other default layers
    return settings.model_dump(mode="json", include=set(names)) or settings.model_dump(mode="json", include={"seed"})


# --- variations


def _other_seeds(settings: DreamSettings, count: int) -> Iterator[DreamSettings]:
    for seed in range(settings.seed + 1, settings.seed + 1 + count):
        yield settings.model_copy(update={"seed": seed})


def _other_channels(settings: DreamSettings, count: int) -> Iterator[DreamSettings]:
    """Yield the settings with neighbouring channels, or one sweep over the channels that photographs excite most."""
    if not count:
        return
    spec = network_spec(settings.model)
    single = [target for target in settings.layers if len(target.channels) == 1]
    for target, distance in product(single, [*range(-count, 0), *range(1, count + 1)]):
        channel = target.channels[0] + distance
        if 0 <= channel < spec.layer(target.layer).channels:
            yield from _with_target(settings, target, {"channels": (channel,)})
    whole = [target for target in settings.layers if not target.channels]
    if not single and whole:
        heaviest = max(whole, key=lambda target: abs(target.weight))
        size = min(count, spec.layer(heaviest.layer).channels)
        yield from _with_target(settings, heaviest, {"sweep": f"top{size}"})


def _with_target(settings: DreamSettings, old: Target, update: Mapping[str, Any]) -> Iterator[DreamSettings]:
    new = old.model_copy(update=update)
    yield from _changed(settings, {"layers": [new if target == old else target for target in settings.layers]})


def _between(one: DreamSettings, other: DreamSettings, count: int) -> Iterator[DreamSettings]:
    """Yield settings between two. Values that are neither numbers nor weights are those of the nearer settings."""
    if one.model != other.model or one.weights != other.weights:
        return
    for step in range(1, count + 1):
        share = step / (count + 1)
        nearer = one if share < 0.5 else other
        numbers = {
            name: _interpolated(getattr(one, name), getattr(other, name), share)
            for name in DreamSettings.model_fields
            if name not in ("seed", *_OF_THE_JOB) and _is_number(getattr(one, name))
        }
        yield from _changed(nearer, {**numbers, "layers": _mixed(one.layers, other.layers, share)})


def _mixed(one: Iterable[Target], other: Iterable[Target], share: float) -> list[Target]:
    """Return the targets of both with interpolated weights; a target that one side does not have has the weight 0."""
    weights: dict[str, float] = {}
    targets: dict[str, Target] = {}
    for side, part in ((one, 1 - share), (other, share)):
        for target in side:
            targets[target.name] = target
            weights[target.name] = weights.get(target.name, 0.0) + part * target.weight
    rounded = {name: round(weight, 4) for name, weight in weights.items()}
    return [targets[name].model_copy(update={"weight": weight}) for name, weight in rounded.items() if weight]


def _half_steps(settings: DreamSettings, axes: Mapping[str, Sequence[float]] | None) -> Iterator[DreamSettings]:
    """Yield the settings with one number changed by half a step."""
    if axes is None:
        return
    for name, values in (axes or dict.fromkeys(HALF_STEPS, ())).items():
        value = getattr(settings, name, None)
        if not _is_number(value):
            raise InvalidInput(f"{name} is not a setting with a number: choose another axis")
        smaller = max((each for each in values if each < value), default=value / 2)
        larger = min((each for each in values if each > value), default=value * 2)
        for neighbour in (smaller, larger):
            if (halfway := _interpolated(value, neighbour, 0.5)) != value:
                yield from _changed(settings, {name: halfway})


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _interpolated(one: float, other: float, share: float) -> float:
    value = one + share * (other - one)
    return round(value) if isinstance(one, int) else float(f"{value:.6g}")


def _changed(settings: DreamSettings, update: Mapping[str, Any]) -> Iterator[DreamSettings]:
    """Yield the settings with these fields changed, unless they are out of range or contradict each other."""
    try:
        yield DreamSettings.model_validate({**dict(settings), **update})
    except ValidationError:
        return


# --- the job as text, and what it would do


def job_yaml(job: DreamJob) -> str:
    """Return the job as the job file that `dreamgrid run` takes. Fields at their default are left out."""
    fields = job.model_dump(mode="json", exclude_defaults=True)
    grid = {name: [_text_of(name, value) for value in values] for name, values in fields.pop("grid", {}).items()}
    if points := grid.get("points"):
        grid["points"] = [{name: _text_of(name, value) for name, value in point.items()} for point in points]
    text = io.StringIO()
    yaml.safe_dump(fields | ({"grid": grid} if grid else {}), text, sort_keys=False, allow_unicode=True, width=110)
    return text.getvalue()


def _text_of(name: str, value: Any) -> Any:
    """Return layers in the syntax `blocks.3=0.3+blocks.4`, unless it would round a weight; any other value as it is."""
    if name != "layers":
        return value
    targets = DreamSettings(layers=value).layers
    text = layers_label(targets)
    return text if DreamSettings.model_validate({"layers": text}).layers == targets else value


@dataclass(frozen=True)
class Preview:
    """What a job would do. Nothing was written or dreamt for it."""

    photographs: int
    dreams: int
    """Dreams that the destination does not have yet."""
    done: int
    """Dreams of the job that the destination has."""
    seconds: float
    """Estimated duration on this machine."""
    bytes: int | None
    """Estimated size of the new dreams; None if the destination has no dreams to estimate it from."""
    cost: float | None
    """Estimated cost in the currency of `price_per_hour`; None if no price is given."""
    refused: str | None
    """Why the run would be refused, for example because another run is unfinished; None if it would not."""
    estimate: Mapping[str, Any]
    """Everything that `dreamgrid plan --json` prints."""


def preview(job: DreamJob, storage: Storage, price_per_hour: float | None = None) -> Preview:
    """Return what a run of the job would do, take and cost.

    Args:
        job: the job.
        storage: access to S3.
        price_per_hour: what an hour of this machine costs.

    Raises:
        InvalidInput: the job cannot run.
    """
    found = estimate(job, price_per_hour)
    size = _mean_size(job, storage)
    return Preview(
        photographs=found["photographs"],
        dreams=found["planned"],
        done=found["done"],
        seconds=found["estimated_seconds"],
        bytes=None if size is None else round(size * found["planned"]),
        cost=found["estimated_cost"],
        refused=found["refused"],
        estimate=found,
    )


def _mean_size(job: DreamJob, storage: Storage) -> float | None:
    """Return the mean number of bytes of the newest dreams in the destination with the file format of the job."""
    newest = sorted(list_parts(storage, job.destination), key=lambda part: part.run_id)[-_READ_PARTS:]
    is_alike = pc.ends_with(pc.field("result_uri"), f".{job.output.format}") & (pc.field("status") == "done")
    sizes = manifest.read_rows(
        storage, [part.uri for part in newest], ["result_bytes", "result_uri", "status"], is_alike
    )
    mean: float | None = pc.mean(sizes["result_bytes"]).as_py()
    return mean
