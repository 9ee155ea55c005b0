"""Parts of a job: which failed dreams are tried again, where dreams are made, and which dreams are enlarged."""

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from dreamcore.errors import ErrorKind
from dreamcore.fields import Enlarge
from dreamcore.targets import Frozen

__all__ = ["AUTO", "EnlargeOptions", "ExecutorName", "ExecutorOptions", "RetryFailed"]


def _read_kinds(value: object) -> object:
    """Return True, False or a tuple of error kinds. The name of one kind stands for a list, an empty list for False."""
    if value is None or isinstance(value, bool) or value in ("true", "false"):
        return value in (True, "true")
    names = value if isinstance(value, (list, tuple)) else [value]
    kinds = get_args(ErrorKind)
    if unknown := [name for name in names if name not in kinds]:
        raise ValueError(f"{unknown[0]!r} is not an error kind: give true, or a list of {', '.join(kinds)}")
    return tuple(names) or False


RetryFailed = Annotated[bool | tuple[ErrorKind, ...], BeforeValidator(_read_kinds)]
"""Which failed dreams of earlier runs a run tries again: none, all, or those of some error kinds."""


ExecutorName = Literal["processes", "ray"]
AUTO = "auto"
"""The address of the Ray cluster that this machine belongs to."""
_ADDRESS = r"^(auto|(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5})$"


class ExecutorOptions(Frozen):
    """Where the shards of a run are dreamt. The name alone stands for the mapping: `executor: ray`."""

    name: ExecutorName = "processes"
    """Where the dreams are made: processes of this machine, or tasks of a Ray cluster."""
    address: str = Field(default=AUTO, json_schema_extra={"pattern": _ADDRESS})
    """Address of the Ray cluster, HOST:PORT; auto is the cluster that this machine belongs to."""
    cpus: float = Field(default=1, gt=0)
    """CPUs that Ray reserves for each task. A task computes with one thread."""
    gpus: float | None = Field(default=None, ge=0, le=1)
    """GPUs of each task: 1, 0, or a fraction to share a GPU. The default is 1 if the cluster has GPUs, otherwise 0."""

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str) -> str:
        if not re.fullmatch(_ADDRESS, address):  # the message leaves out the address, which may contain a password
            raise ValueError("this is not the address of a Ray cluster: write HOST:PORT, for example 10.0.0.1:6379")
        return address

    @model_validator(mode="after")
    def _need_ray(self) -> Self:
        if self.name == "processes" and self != type(self).model_construct():
            raise ValueError("address, cpus and gpus cannot be given for processes: write name: ray")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        mapping = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [mapping, {"enum": list(get_args(ExecutorName))}]}


class EnlargeOptions(Frozen):
    """Dreams of the destination that a run makes large, instead of dreaming the source under a grid."""

    dreams: tuple[Annotated[str, Field(pattern="^[0-9a-f]{16}$")], ...] = Field(min_length=1, max_length=1000)
    """The `result_id` of each dream. Their photographs are in the source."""
    max_pixels: int = Field(default=12_000_000, ge=1)
    """Number of pixels of each enlarged dream. A smaller photograph is resampled."""
    strength: float = Field(default=Enlarge.model_fields["strength"].default, ge=0, le=2)
    """Factor of the step size for the new details; 0 adds none."""

    @field_validator("dreams")
    @classmethod
    def _sort_dreams(cls, dreams: tuple[str, ...]) -> tuple[str, ...]:
        """Return the dreams without repetitions in a fixed order, which the identity of the job needs."""
        return tuple(sorted(set(dreams)))
