"""The flow with one parameter for each field of its form in the Prefect UI.

Prefect draws the form of a deployment from the signature of the flow: a parameter of a nested type becomes nested
boxes, and an optional one asks which type it has. So this flow has plain parameters, and runs `dream_collection`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from dreamcore.errors import InvalidInput
from dreamcore.fields import Model, Octaves, Steps
from dreamcore.grid import Grid
from dreamcore.looks import LookName
from dreamcore.presets import PresetName
from flows.destination.run_report import Report
from flows.dream_collection import dream_collection
from flows.jobs.job import DreamJob, explain_validation
from flows.prefect_ui.prefect_names import run_name

__all__ = ["ADDRESSES", "dream_from_form", "job_from_form"]

AXES = ("look", "layers", "octaves", "steps", "model", "preset")
"""The axes of the grid with a field of their own. All others are entries of `more`, and so are ranges of these axes."""


ADDRESSES = ("source", "sources", "destination")
"""The fields of the form with addresses. Exactly one of the first two is given."""


class _OtherFields:
    """Let the JSON schema of `more` accept the other fields of a job and the axes of the grid, and nothing else.

    The forms of Prefect show `properties` as boxes. They ignore `propertyNames` and `patternProperties`, which its
    server checks, and show a text field.
    """

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        fields: dict[str, Any] = {}
        for model in (DreamJob, Grid):
            fields |= handler.resolve_ref_schema(handler(model.__pydantic_core_schema__))["properties"]
        others = {name: field for name, field in fields.items() if name not in (*ADDRESSES, "grid")}
        return {
            **handler(schema),
            "propertyNames": {"enum": sorted(others)},
            "patternProperties": {f"^{name}$": field for name, field in others.items()},
        }


Address = Annotated[str, Field(pattern="^s3://[^/]+")]
Source = Annotated[str, Field(pattern="^(s3://[^/]+|noise:[0-9]+x[0-9]+$)")]
SourceOrEmpty = Annotated[str, Field(pattern="^(s3://[^/]+.*|noise:[0-9]+x[0-9]+)?$")]
Layer = Annotated[str, Field(min_length=1)]


@flow(name=dream_collection.name, flow_run_name=run_name)
def dream_from_form(
    source: SourceOrEmpty = "",
    sources: list[Source] = [],  # noqa: B006 - Prefect shows an empty list as a list, and None as a choice of types
    *,
    destination: Address,
    look: list[LookName] = [],  # noqa: B006
    layers: list[Layer] = [],  # noqa: B006
    octaves: list[Octaves] = [],  # noqa: B006
    steps: list[Steps] = [],  # noqa: B006
    model: list[Model] = [],  # noqa: B006
    preset: list[PresetName] = [],  # noqa: B006
    more: Annotated[dict[str, Any], _OtherFields()] = {},  # noqa: B006
) -> State[Report]:
    """Dream every photograph of the source under every combination of the values in the lists.

    Nothing is done twice: a run skips what the destination has, and continues an unfinished run.

    Args:
        source: S3 prefix of the photographs, or the address of one photograph. Example: s3://photos/incoming/
            noise:640x360 begins with noise of this size, which depends on the seed.
        sources: Instead of the source: several prefixes, addresses of photographs and sizes of noise. Empty: the
            source.
        destination: S3 prefix for dreams, manifest and contact sheets. Example: s3://dreams/nightly/
        look: Looks, each a set of settings for one style. Explicit settings override the look. Empty: the default look.
        layers: What to excite. Each item is a layer (blocks.4), a mix with weights (blocks.3=0.3+blocks.4), channels
            of a layer (blocks.4:12,17), a class (logits:285), a depth (65%) or a sweep over channels (blocks.4:0-63,
            blocks.4:* or blocks.4:top16). The command `dreamgrid atlas` draws what each channel reacts to.
            Empty: blocks.3=0.3+blocks.4+blocks.5=0.5.
        octaves: Number of scales, 1 to 32. More octaves give larger shapes. Empty: 6.
        steps: Gradient ascent steps in each octave, 0 to 10000. Empty: 10.
        model: Networks. Each item is efficientnet_lite0 (bundled), a torchvision name, or timm/NAME.
            Empty: efficientnet_lite0.
        preset: Published DeepDream programs. Settings given explicitly override the preset. Empty: none.
        more: Other settings and job fields by name, as in a job file.
            Example: {"jitter": [16, 32], "max_pixels": 500000, "output": {"format": "jpg"}}
            {"steps": "4-8", "step_size": "0.004-0.012/5"} gives ranges.
            {"retry_failed": true} tries failed dreams of earlier runs again. {"executor": "ray"} uses a Ray cluster.
    """
    axes: dict[str, list[Any]] = {
        "look": look,
        "layers": layers,
        "octaves": octaves,
        "steps": steps,
        "model": model,
        "preset": preset,
    }
    addresses = {"source": source, "sources": sources, "destination": destination}
    return dream_collection.fn(job_from_form(addresses, axes, more))


def job_from_form(addresses: Mapping[str, Any], axes: Mapping[str, Any], more: Mapping[str, Any]) -> DreamJob:
    """Return the job that a form describes.

    Args:
        addresses: `source` or `sources`, and `destination`. An empty one counts as not given.
        axes: the lists of the form. An empty list leaves its setting at the default.
        more: fields of `DreamJob` that have no field in the form, and axes of `Grid` whose field is empty or missing.

    Raises:
        InvalidInput: a field is wrong, or `more` repeats a field of the form.

    Example:
        >>> addresses = {"source": "s3://photos/", "destination": "s3://dreams/"}
        >>> job = job_from_form(addresses, {"octaves": [4, 6], "steps": []}, {"jitter": 16})
        >>> [(settings.octaves, settings.steps, settings.jitter) for settings in job.settings()]
        [(4, 10, 16), (6, 10, 16)]
    """
    given = {name: values for name, values in axes.items() if values}
    if repeated := {*ADDRESSES, "grid", *given} & more.keys():
        raise InvalidInput(f"more: {', '.join(sorted(repeated))} cannot be given here: use the fields of the form")
    grid = given | {name: value for name, value in more.items() if name in Grid.model_fields}
    fields = {name: value for name, value in more.items() if name not in Grid.model_fields}
    try:
        places = {name: value for name, value in addresses.items() if value}
        return DreamJob.model_validate({**places, **fields, "grid": Grid(**grid)})
    except ValidationError as error:
        raise InvalidInput(explain_validation(error)) from error
