"""The settings of one dream, and their identity.

Imports no torch, so that planning a run is cheap.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from dreamcore.presets import PRESETS
from dreamcore.targets import Frozen, Layers, Target

ALGORITHM_VERSION = 2
"""Raised whenever the same settings would give another picture; part of every `settings_id`."""

BUNDLED = "efficientnet_lite0"
"""The network that needs no download."""
DEFAULT_DEPTH = "65%"
"""What is excited in other networks where no layer is named: as deep as `blocks.4` of the bundled one."""


def format_of(suffix: str) -> str:
    """The output format that a file's suffix asks for, such as `jpg` for `.JPEG`; it may be no format of ours."""
    return suffix.lstrip(".").lower().replace("jpeg", "jpg")


class Output(Frozen):
    """The file a dream becomes."""

    format: Literal["png", "webp", "jpg"] = "png"
    """File format."""
    quality: int = Field(default=95, ge=1, le=100)
    """Of jpg and webp (100 is lossless webp); png is always lossless."""

    @field_validator("quality")
    @classmethod
    def _png_has_no_quality(cls, quality: int, info: ValidationInfo) -> int:
        """A quality that changes no byte must not change the identity."""
        return cls().quality if info.data.get("format") == "png" else quality


class Reference(Frozen):
    """A file that the settings rest on: where it lies, and what it held."""

    uri: str = Field(min_length=1)
    """Address in S3, or a path on this machine."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Of its bytes, in hex; it is the identity, wherever the file lies."""

    def __str__(self) -> str:
        return self.uri + (f"#sha256={self.sha256}" if self.sha256 else "")


def _read_reference(value: object) -> object:
    """`URI` or `URI#sha256=HEX` as a reference."""
    if not isinstance(value, str):
        return value
    uri, sha256 = re.fullmatch(r"(?s)(.*?)(?:#sha256=([0-9a-fA-F]*))?", value).groups()  # type: ignore[union-attr]
    return {"uri": uri, "sha256": sha256.lower() if sha256 is not None else None}


FileReference = Annotated[Reference, BeforeValidator(_read_reference, json_schema_input_type=str)]

Model = Annotated[
    str,
    Field(
        min_length=1,
        description="Network: efficientnet_lite0 (bundled), efficientnet_lite1 or efficientnet_lite2 (extras), "
        "a torchvision name, or timm/NAME.",
    ),
]
Weights = Annotated[
    FileReference | None,
    Field(description="Weights of your own for the network, as URI#sha256=DIGEST: safetensors, or PyTorch tensors."),
]
Guide = Annotated[
    FileReference | None,
    Field(description="Picture whose features are excited where they fit best, instead of whatever is there."),
]
Mask = Annotated[
    FileReference | None,
    Field(description="Picture laid over every photograph: white dreams, black stays, gray dreams less."),
]
Octaves = Annotated[int, Field(ge=1, le=32, description="Scales, from coarse to fine; more gives larger creatures.")]
OctaveScale = Annotated[float, Field(gt=1, le=4, description="Ratio of the sizes of neighbouring octaves.")]
OctavesAbove = Annotated[int, Field(ge=0, le=31, description="Of the octaves, how many are larger than the picture.")]
Rounding = Annotated[Literal["nearest", "down"], Field(description="How the sides of an octave become whole pixels.")]
Resample = Annotated[
    Literal["bicubic", "bilinear", "zoom"],
    Field(
        description="How octaves are resized; bilinear is unsmoothed, zoom is linear from octave to octave as in 2015."
    ),
]
Steps = Annotated[int, Field(ge=0, le=10_000, description="Steps up the gradient in each octave.")]
StepSize = Annotated[
    float, Field(gt=0, le=1, description="Mean change of a pixel in one step, where 1 is black to white.")
]
Space = Annotated[
    Literal["picture", "network"],
    Field(description="Where a step is taken: in the picture, or in the values that the network normalises it to."),
]
StopAt = Annotated[
    float | None,
    BeforeValidator(lambda value: None if value == "none" else value),
    Field(description="Score at which an octave ends early; none: every step is taken."),
]
Clip = Annotated[bool, Field(description="Keep the picture between black and white after every step.")]
Jitter = Annotated[int, Field(ge=0, le=4096, description="Largest random shift before each step, in pixels.")]
Tile = Annotated[
    int,
    Field(ge=0, description="Side of the tiles that are dreamt each for itself, in pixels; 0 is the whole picture."),
]
Measure = Annotated[
    Literal["log_mean_square", "mean_square", "half_sum_square", "l2_norm", "mean", "inner_mean_square"],
    Field(description="What is measured of a target's activations; the logarithm makes a mix independent of scales."),
]
Gradient = Annotated[
    Literal["laplacian", "gaussian", "plain"],
    Field(description="laplacian evens out its bands: large, soft creatures; gaussian smooths it; plain is 2015."),
]
Normalise = Annotated[
    Literal["mean_abs", "std", "zero_mean_std", "rms", "adam", "tf2", "keras"],
    Field(description="What the gradient is divided by before the step, or Adam's moments of it."),
]
Carry = Annotated[
    Literal["detail", "result", "result_8bit"],
    Field(description="What goes from an octave to the next: what was dreamt into it, or the picture as it is."),
]
Flip = Annotated[bool, Field(description="Mirror the picture before about half of the steps.")]
TotalVariation = Annotated[float, Field(ge=0, description="Weight of the total variation, held against the score.")]
L2 = Annotated[float, Field(ge=0, description="Weight of the picture's mean squared change, held against the score.")]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="Seed of jitter and flips.")]
MaxPixels = Annotated[int, Field(ge=1, description="Photographs with more pixels are shrunk to this many.")]


def expand_preset(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of settings with `preset` replaced by what it stands for, and a depth where no layer is named."""
    given = dict(fields)
    model = given.get("model", BUNDLED)
    name = given.pop("preset", None)
    if name is None:
        return given if "layers" in given or model == BUNDLED else {**given, "layers": DEFAULT_DEPTH}
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}: choose {', '.join(PRESETS)}")
    preset = PRESETS[name]
    return {"layers": preset.layers if model == preset.model else preset.depths, **preset.settings, **given}


def nearest_preset(settings: "DreamSettings") -> str | None:
    """The preset from which settings differ in the fewest fields, network and layers aside; None: the defaults."""

    def differing(fields: Mapping[str, Any]) -> int:
        usual = DreamSettings.model_fields
        return sum(getattr(settings, name) != fields.get(name, usual[name].default) for name in told)

    told = {name for preset in PRESETS.values() for name in preset.settings}
    bases: dict[str | None, Mapping[str, Any]] = {None: {}, **{name: each.settings for name, each in PRESETS.items()}}
    return min(bases, key=lambda name: differing(bases[name]))


class DreamSettings(Frozen):
    """All that changes the picture of one dream, and nothing else. The defaults make a good dream.

    `preset` may be given beside the fields: it stands for the fields of one of `PRESETS`, and fields that are given
    too go before it.
    """

    model: Model = BUNDLED
    weights: Weights = None
    layers: Layers = Field(
        default=(Target(layer="blocks.4"),), description="What to excite: a layer, or a mix of layers."
    )
    guide: Guide = None
    mask: Mask = None
    octaves: Octaves = 6
    octave_scale: OctaveScale = 1.4
    octaves_above: OctavesAbove = 0
    rounding: Rounding = "nearest"
    resample: Resample = "bicubic"
    steps: Steps = 10
    step_size: StepSize = 0.008
    space: Space = "picture"
    stop_at: StopAt = None
    clip: Clip = True
    jitter: Jitter = 32
    flip: Flip = False
    tile: Tile = 0
    measure: Measure = "log_mean_square"
    gradient: Gradient = "laplacian"
    normalise: Normalise = "mean_abs"
    total_variation: TotalVariation = 0.0
    l2: L2 = 0.0
    carry: Carry = "detail"
    seed: Seed = 0
    max_pixels: MaxPixels = 1_000_000
    output: Output = Output()

    @model_validator(mode="before")
    @classmethod
    def _without_preset(cls, value: object) -> object:
        return expand_preset(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.weights and not self.weights.sha256:
            raise ValueError(f"weights: write {self.weights.uri}#sha256=DIGEST, with what `sha256sum` says of the file")
        if self.octaves_above >= self.octaves:
            raise ValueError(
                f"octaves_above is {self.octaves_above} of {self.octaves} octaves: one must be the picture"
            )
        if self.octave_scale**self.octaves_above > MAX_SCALE_ABOVE:
            raise ValueError(
                f"octaves_above: the largest octave may have {MAX_SCALE_ABOVE} times the sides of the picture"
            )
        if self.resample == "zoom" and self.octaves_above:
            raise ValueError("resample: zoom makes each octave from the next larger one, so octaves_above must be 0")
        if 0 < self.tile < MIN_TILE:
            raise ValueError(f"tile is {self.tile} pixels: make it {MIN_TILE} or more, or 0 for the whole picture")
        return self

    def canonical_json(self) -> str:
        """The one spelling of these settings, whatever way they were written."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


MAX_SCALE_ABOVE = 4
"""How many times the sides of the picture those of an octave may be."""
MIN_TILE = 64
"""Side in pixels of the smallest tile that shows a network enough."""

BATCH_FIELDS = [
    "model",
    "weights",
    "octaves",
    "octave_scale",
    "octaves_above",
    "rounding",
    "resample",
    "steps",
    "space",
    "clip",
    "tile",
    "measure",
    "gradient",
    "normalise",
    "carry",
    "max_pixels",
]
"""What samples of one batch must have in common; everything else may differ among them."""


def batch_key(settings: DreamSettings) -> tuple[object, ...]:
    """Settings with the same key can be dreamt in one batch, if the pictures have one size."""
    return tuple(getattr(settings, name) for name in BATCH_FIELDS)


def digest(*parts: object) -> str:
    """First 16 hex digits of the SHA-256 of `parts` as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_id(settings: DreamSettings, weights: str) -> str:
    """Identity of a picture's settings: 16 hex digits.

    What is at its default does not count, so that a setting that is new leaves the identity of all that was dreamt
    without it. A default that changes must therefore raise `ALGORITHM_VERSION`. Files count by what they hold.

    Args:
        settings: the settings.
        weights: identity of the network's weights: their SHA-256, or the library's versioned name for them.

    Raises:
        ValueError: it is not known yet what guide or mask hold.
    """
    chosen = settings.model_dump(mode="json", exclude_defaults=True, exclude={"weights", "guide", "mask"})
    for name, file in (("guide", settings.guide), ("mask", settings.mask)):
        if file:
            if file.sha256 is None:
                raise ValueError(f"{name} has no SHA-256 yet: {file.uri} must be read first")
            chosen[name] = file.sha256
    return digest(chosen, weights, ALGORITHM_VERSION)


def result_id(source_etag: str, settings_id: str) -> str:
    """Identity of the dream of one version of a photograph under some settings: 16 hex digits."""
    return digest(source_etag, settings_id)
