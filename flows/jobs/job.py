"""The job of a run. One class is the job file, the flags of the command line and the form in the Prefect UI."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from dreamcore.errors import InvalidInput
from dreamcore.fields import FileReference, MaxPixels, Output
from dreamcore.grid import Grid
from dreamcore.settings import DreamSettings, digest
from dreamcore.targets import Frozen
from dreamcore.zoom import DEFAULTS, Zoom
from flows.jobs.job_addresses import MAX_SOURCES, check_destination, check_inventory, check_source, sorted_sources
from flows.jobs.job_file import read_job_file
from flows.jobs.job_options import EnlargeOptions, ExecutorOptions, RetryFailed
from flows.jobs.noise_source import noise_size
from flows.s3.globs import compile_globs
from flows.s3.layout import FOLDERS

__all__ = [
    "MAX_SOURCES",
    "WITHOUT_EFFECT_ON_DREAMS",
    "DreamJob",
    "explain_validation",
    "read_job",
]


# An inventory only says how the photographs are found. If it counted, the job of the next night, with a new inventory,
# could not continue an unfinished run, although the frozen plan of that run needs no inventory.
WITHOUT_EFFECT_ON_DREAMS = {
    "executor",
    "sheets",
    "stage_scores",
    "max_failures",
    "strict",
    "retry_failed",
    "inventory",
    "labels",
}
"""Fields that are not part of `job_id`."""

# fmt: off
_FIRST_AXES = {
    "preset", "model", "weights", "layers", "guide", "mask", "octaves", "octave_scale", "octaves_above", "rounding",
    "resample", "steps", "step_size", "space", "stop_at", "clip", "jitter", "flip", "tile", "measure", "gradient",
    "normalise", "total_variation", "l2", "carry", "seed", "points",
}
# fmt: on
"""Fields of a grid that are part of `job_id` also when they are not given. Later axes count only when they are given,
so that a run of a version without them can be resumed. This list never changes."""


_SOURCE_FIELDS = ("source", "sources")


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _sorted_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the patterns without repetitions in a fixed order, which the identity of the job needs."""
    compile_globs(patterns)
    return tuple(sorted(set(patterns)))


class DreamJob(Frozen):
    """The photographs to dream, the settings, and the destination of the dreams."""

    source: Annotated[str, AfterValidator(check_source)] | None = Field(
        default=None,
        json_schema_extra={"pattern": "^(s3://[^/]+|noise:[0-9]+x[0-9]+$)"},
        description="S3 prefix of the photographs, the address of one photograph, or noise:WIDTHxHEIGHT.",
        examples=["s3://photos/incoming/"],
    )
    sources: Annotated[tuple[str, ...], BeforeValidator(_as_list), AfterValidator(sorted_sources)] = Field(
        default=(),
        description="Instead of `source`: a list of S3 prefixes, addresses of single photographs, and sizes of noise.",
        examples=[["s3://photos/2025/cat.jpg", "s3://photos/2026/"]],
    )
    destination: Annotated[str, AfterValidator(check_destination)] = Field(
        json_schema_extra={"pattern": "^s3://[^/]+"},
        description="S3 prefix for dreams, manifest and contact sheets.",
        examples=["s3://dreams/nightly/"],
    )
    inventory: Annotated[str | None, AfterValidator(check_inventory)] = Field(
        default=None,
        json_schema_extra={"pattern": "^s3://[^/]+"},
        description="S3 Inventory to read instead of listing the source: the address of its manifest.json, or the "
        "folder of its configuration for the newest one.",
        examples=["s3://inventories/photos/daily/"],
    )
    exclude: Annotated[tuple[str, ...], BeforeValidator(_as_list), AfterValidator(_sorted_patterns)] = Field(
        default=(),
        description="Photographs to leave out: patterns for keys below the source, such as *.gif or drafts/.",
        examples=[["*.gif", "drafts/"]],
    )
    grid: Grid = Field(default=Grid(), description="The settings: each photograph is dreamt under every combination.")
    max_pixels: MaxPixels = DreamSettings().max_pixels
    output: Output = Field(default=Output(), description="The file format of the dreams.")
    enlarge: EnlargeOptions | None = Field(
        default=None,
        description="Instead of a grid: dreams of the destination to make large, by their result_id.",
        examples=[{"dreams": ["0123456789abcdef"], "max_pixels": 12_000_000}],
    )
    zoom: Zoom | None = Field(
        default=None,
        description="Make a movie of each photograph and grid point instead of a single dream: a zoom.",
        examples=[{"seconds": 10, "zoom": 1.3, "keyframes": [{"at": 5, "layers": "blocks.3"}]}],
    )
    stage_scores: bool = Field(
        default=False, description="Also score every stage of the network before and after the dream."
    )
    labels: FileReference | None = Field(
        default=None,
        description="Names of the classes of your own network: a file with one name per line, or a JSON list.",
        examples=["s3://weights/places.txt"],
    )
    max_failures: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Largest share of finished dreams that may fail; checked from the 100th dream on, and at the end.",
    )
    strict: bool = Field(
        default=False,
        description="Fail the run if a dream failed. With nothing to do, fail it also if a dream failed earlier, or if "
        "the source has no photograph.",
    )
    retry_failed: RetryFailed = Field(
        default=False,
        description="Try failed dreams of earlier runs again, and dream nothing new: true, or a list of error kinds.",
    )
    sheets: int = Field(
        default=24, ge=0, le=1000, description="Number of photographs that get a contact sheet after the run."
    )
    executor: ExecutorOptions = Field(
        default=ExecutorOptions(), description="Where the dreams are made: processes, or ray with its options."
    )

    @field_validator("grid", mode="before")
    @classmethod
    def _reject_empty_grid(cls, grid: object) -> object:
        if isinstance(grid, Mapping) and not grid:
            raise ValueError("the grid is empty: give an axis such as layers: [blocks.4], or leave out the grid")
        return grid

    @model_validator(mode="before")
    @classmethod
    def _need_a_source(cls, fields: object) -> object:
        """Leave out the field of `source` and `sources` that is empty. If both are empty, `source` is missing."""
        if not isinstance(fields, Mapping):
            return fields
        empty = [name for name in _SOURCE_FIELDS if fields.get(name) in (None, [], ())]
        given = {name: value for name, value in fields.items() if name not in empty}
        return {**given, "source": None} if len(empty) == len(_SOURCE_FIELDS) else given

    @field_validator("source", mode="before")
    @classmethod
    def _report_missing_source(cls, source: object) -> object:
        if source is None:
            raise PydanticKnownError("missing")
        return source

    @model_validator(mode="after")
    def _have_one_kind_of_source(self) -> Self:
        if self.source and self.sources:
            raise ValueError("source and sources are both given: write all addresses into sources")
        if self.inventory and self.sources:
            raise ValueError("an inventory takes the place of one listing: give one source, or leave out the inventory")
        if self.inventory and self.noise:
            raise ValueError(f"an inventory lists photographs, and {self.noise[0]} is noise: leave out the inventory")
        return self

    @model_validator(mode="after")
    def _limit_noise(self) -> Self:
        if self.enlarge or self.zoom:  # an enlarged dream is larger than its noise, and a movie has its own size
            return self
        for uri in self.noise:
            width, height = noise_size(uri) or (0, 0)
            if width * height > self.max_pixels:
                raise ValueError(
                    f"{uri} has {width * height:,} pixels, more than max_pixels ({self.max_pixels:,}): give a smaller "
                    "size or a larger max_pixels"
                )
        return self

    @model_validator(mode="after")
    def _separate_source_and_destination(self) -> Self:
        for source in self.addresses:
            if source.rstrip("/") + "/" == self.destination:
                raise ValueError(f"source and destination are both {self.destination}: choose another destination")
            for folder in FOLDERS:
                if f"{source}/".startswith(f"{self.destination}{folder}/"):
                    raise ValueError(
                        f"the source {source} is inside the results in {self.destination}: choose another source"
                    )
        return self

    @model_validator(mode="after")
    def _enlarge_without_a_grid(self) -> Self:
        if self.enlarge and self.grid != Grid():
            raise ValueError("grid and enlarge are both given: each enlarged dream keeps its own settings")
        return self

    @model_validator(mode="after")
    def _zoom_alone(self) -> Self:
        if not self.zoom:
            return self
        if self.enlarge:
            raise ValueError("enlarge and zoom are both given: write two jobs")
        if self.max_pixels != type(self).model_fields["max_pixels"].default:
            raise ValueError("max_pixels does not limit a movie: leave it out, and give zoom.width")
        if self.output != Output():
            raise ValueError("the movies of zoom are MP4 files: leave out output")
        return self

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses where the photographs are, and the sizes of noise: the one source, or all of the list."""
        return (self.source,) if self.source else self.sources

    @property
    def noise(self) -> tuple[str, ...]:
        """The sources that are sizes of noise."""
        return tuple(uri for uri in self.addresses if noise_size(uri))

    @property
    def s3_addresses(self) -> tuple[str, ...]:
        """The sources in S3."""
        return tuple(uri for uri in self.addresses if not noise_size(uri))

    @property
    def source_in_words(self) -> str:
        """The source for messages: its address, or the length of the list and its first address."""
        if len(self.addresses) == 1:
            return self.addresses[0]
        return f"a list of {len(self.sources):,} sources that begins with {self.sources[0]}"

    @property
    def job_id(self) -> str:
        """Identity of the work: 16 hex digits. It does not depend on how the job is written.

        Fields that change no dream do not count. Fields of later versions count only when they are given, so that runs
        of versions without these fields can be resumed.
        """
        left_out = WITHOUT_EFFECT_ON_DREAMS | {
            name for name in ("exclude", "sources", "enlarge", "zoom") if not getattr(self, name)
        }
        axes = {name for name in Grid.model_fields if name not in _FIRST_AXES and getattr(self.grid, name) is None}
        return digest(self.model_dump(mode="json", exclude={**dict.fromkeys(left_out, True), "grid": axes}))

    def settings(self) -> tuple[DreamSettings, ...]:
        """Return the settings of every point of the grid."""
        if self.zoom:
            return self.grid.with_defaults(DEFAULTS).expand(movie=self.zoom)
        return self.grid.expand(max_pixels=self.max_pixels, output=self.output)


def read_job(path: Path | None, overrides: Mapping[str, Any]) -> DreamJob:
    """Read a job from a YAML file, and override single fields.

    Args:
        path: the job file; None if `overrides` describes the whole job.
        overrides: values by field. A mapping for `grid`, `output` or `executor` replaces only the entries that it
            names. `source` or `sources` replaces both.

    Raises:
        InvalidInput: the file does not exist or is not YAML, or a field is wrong; the message names the field.
    """
    fields = read_job_file(path) if path else {}
    if any(overrides.get(name) for name in _SOURCE_FIELDS):
        fields = {name: value for name, value in fields.items() if name not in _SOURCE_FIELDS}
    for name, value in overrides.items():
        if not isinstance(value, Mapping):
            fields[name] = value
        elif isinstance(entries := fields.get(name) or {}, Mapping):  # otherwise the validation reports the field
            fields[name] = {**entries, **value}
        elif name == "executor":  # the name alone
            fields[name] = value
    try:
        return DreamJob.model_validate(fields)
    except ValidationError as error:
        raise InvalidInput(f"{path or 'the job'}: {explain_validation(error)}{_remedy(error)}") from error


def _remedy(error: ValidationError) -> str:
    """Return the flags that set the missing fields of a job."""
    missing = [detail["loc"] for detail in error.errors() if detail["type"] == "missing"]
    flags = [f"--{place[0]}" for place in missing if len(place) == 1]
    return f"; give {' and '.join(flags)}" if flags else ""


def explain_validation(error: ValidationError) -> str:
    """Return a validation error as one line: for each wrong field, what is wrong and the given value."""
    complaints = []
    for detail in error.errors(include_url=False):
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = "unknown field"
            if detail["loc"][-1] in ("samples", "diversity"):
                message = "a run dreams each photograph on its own: use `dreamgrid image --samples`"
        elif detail["type"] == "missing":
            message = "this field is required"
        elif detail["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, not {detail['input']!r}"
        complaints.append(f"{place}: {message}" if place else message)
    return "; ".join(complaints)
