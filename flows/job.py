"""What a run takes: the form in the Prefect UI, the command line's flags and the job file are this one class."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from dreamcore.errors import InvalidInput
from dreamcore.grid import Grid
from dreamcore.settings import DreamSettings, MaxPixels, Output, digest
from dreamcore.targets import Frozen
from flows.layout import FOLDERS, check_uri, folder_uri


class DreamJob(Frozen):
    """Which photographs to dream, how, and where the dreams go."""

    source: Annotated[str, AfterValidator(check_uri)] = Field(
        json_schema_extra={"pattern": "^s3://[^/]+"},
        description="S3 prefix of the photographs, or one photograph.",
        examples=["s3://photos/incoming/"],
    )
    destination: Annotated[str, AfterValidator(folder_uri)] = Field(
        json_schema_extra={"pattern": "^s3://[^/]+"},
        description="S3 prefix for dreams, manifest and contact sheets.",
        examples=["s3://dreams/nightly/"],
    )
    grid: Grid = Field(default=Grid(), description="The settings to dream each photograph under.")
    max_pixels: MaxPixels = DreamSettings().max_pixels
    output: Output = Field(default=Output(), description="The files that the dreams become.")
    stage_scores: bool = Field(default=False, description="Score every stage of the network, too, before and after.")
    max_failures: float = Field(
        default=0.5, ge=0, le=1, description="Share of dreams that may fail; after 100, a run with more stops."
    )
    sheets: int = Field(default=24, ge=0, le=1000, description="Contact sheets to draw after a run, a photograph each.")

    @field_validator("grid", mode="before")
    @classmethod
    def _grid_holds_something(cls, grid: object) -> object:
        if isinstance(grid, Mapping) and not grid:
            raise ValueError(
                "it is empty: give an axis such as layers: [blocks.4], or leave it out for one default dream"
            )
        return grid

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.source.rstrip("/") + "/" == self.destination:
            raise ValueError(f"source and destination are both {self.destination}: choose another destination")
        for folder in FOLDERS:
            if f"{self.source}/".startswith(f"{self.destination}{folder}/"):
                raise ValueError(
                    f"the source {self.source} lies among the results in {self.destination}: choose another"
                )
        return self

    @property
    def job_id(self) -> str:
        """Identity of the work: 16 hex digits, the same however the job was written."""
        return digest(self.model_dump(mode="json", exclude={"sheets", "stage_scores", "max_failures"}))

    def settings(self) -> tuple[DreamSettings, ...]:
        """Every point of the grid."""
        return self.grid.expand(max_pixels=self.max_pixels, output=self.output)


def read_job(path: Path | None, overrides: Mapping[str, Any]) -> DreamJob:
    """The job in a YAML file with single fields overridden.

    Args:
        path: the job file; None when the overrides are the whole job.
        overrides: fields of the job; those of `grid` and `output` replace one entry each.

    Raises:
        InvalidInput: no such file, not YAML, or a field that is wrong; the message names the field.
    """
    fields = _read_yaml(path) if path else {}
    for name, value in overrides.items():
        if not isinstance(value, Mapping):
            fields[name] = value
        elif isinstance(entries := fields.get(name) or {}, Mapping):  # what is no mapping is left to be refused
            fields[name] = {**entries, **value}
    try:
        return DreamJob.model_validate(fields)
    except ValidationError as error:
        raise InvalidInput(f"{path or 'the job'}: {explain_validation(error)}{_remedy(error)}") from error


def _remedy(error: ValidationError) -> str:
    """The flags that give what a job lacks."""
    lacking = [detail["loc"] for detail in error.errors() if detail["type"] == "missing"]
    missing = [f"--{place[0]}" for place in lacking if len(place) == 1]
    return f"; give {' and '.join(missing)}" if missing else ""


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInput(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise InvalidInput(f"{path} is no job: it needs at least the fields source and destination")
    return fields


def explain_validation(error: ValidationError) -> str:
    """A validation error in one line: each wrong field, what is wrong with it and what was given."""
    complaints = []
    for detail in error.errors(include_url=False):
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = "there is no such field"
        elif detail["type"] == "missing":
            message = "it is missing"
        elif detail["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, not {detail['input']!r}"
        complaints.append(f"{place}: {message}" if place else message)
    return "; ".join(complaints)
