"""The settings of one dream, and their identity.

This module imports no torch, so that planning a run stays fast.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from dreamcore.presets import PRESETS
from dreamcore.targets import Frozen, Layers, Target

__all__ = [
    "ALGORITHM_VERSION",
    "BATCH_FIELDS",
    "BUNDLED",
    "DEFAULT_DEPTH",
    "L2",
    "MAX_SCALE_ABOVE",
    "MIN_TILE",
    "Carry",
    "Clip",
    "DreamSettings",
    "FileReference",
    "Flip",
    "Gradient",
    "Guide",
    "Jitter",
    "Mask",
    "MaxPixels",
    "Measure",
    "Model",
    "Normalise",
    "OctaveScale",
    "Octaves",
    "OctavesAbove",
    "Output",
    "Reference",
    "Resample",
    "Rounding",
    "Seed",
    "Space",
    "StepSize",
    "Steps",
    "StopAt",
    "Tile",
    "TotalVariation",
    "Weights",
    "batch_key",
    "digest",
    "expand_preset",
    "format_of",
    "nearest_preset",
    "result_id",
    "settings_id",
]

ALGORITHM_VERSION = 2
"""Part of every `settings_id`. Increase it with every change after which the same settings give a different image."""

BUNDLED = "efficientnet_lite0"
"""The network whose weights are installed with Dreamgrid."""
DEFAULT_DEPTH = "65%"
"""Default objective of other networks: the depth of `blocks.4` in the bundled network."""


def format_of(suffix: str) -> str:
    """Return the file format for a suffix, such as `jpg` for `.JPEG`. The format may be unsupported.

    Example:
        >>> format_of(".JPEG")
        'jpg'
    """
    return suffix.lstrip(".").lower().replace("jpeg", "jpg")


class Output(Frozen):
    """The file format of a dream."""

    format: Literal["png", "webp", "jpg"] = "png"
    """File format."""
    quality: int = Field(default=95, ge=1, le=100)
    """Quality of jpg and webp, 1 to 100; 100 is lossless webp. png is always lossless."""

    @field_validator("quality")
    @classmethod
    def _png_has_no_quality(cls, quality: int, info: ValidationInfo) -> int:
        """Reset the quality of png, which does not change the file and so must not change `settings_id`."""
        return cls().quality if info.data.get("format") == "png" else quality


class Reference(Frozen):
    """A file that the settings refer to: its location and the SHA-256 of its content."""

    uri: str = Field(min_length=1)
    """S3 URI, or a path on this machine."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the file in hex. It identifies the file, wherever the file is stored."""

    def __str__(self) -> str:
        return self.uri + (f"#sha256={self.sha256}" if self.sha256 else "")


def _read_reference(value: object) -> object:
    """Return the fields of a reference that is written as `URI` or `URI#sha256=HEX`."""
    if not isinstance(value, str):
        return value
    uri, sha256 = re.fullmatch(r"(?s)(.*?)(?:#sha256=([0-9a-fA-F]*))?", value).groups()  # type: ignore[union-attr]
    return {"uri": uri, "sha256": sha256.lower() if sha256 is not None else None}


FileReference = Annotated[Reference, BeforeValidator(_read_reference, json_schema_input_type=str)]
"""Field type of a file. It accepts a `Reference` or the text `URI` or `URI#sha256=HEX`."""

# The field types of the settings. `DreamSettings` and `Grid` share them, with their descriptions.

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
    Field(description="Custom weights of the network, as URI#sha256=DIGEST; a safetensors or PyTorch file."),
]
Guide = Annotated[
    FileReference | None,
    Field(description="Guide image; the dream takes up features of the guide instead of enhancing its own."),
]
Mask = Annotated[
    FileReference | None,
    Field(
        description="Mask image, stretched to each image; white areas change, black areas stay, gray areas change less."
    ),
]
Octaves = Annotated[
    int, Field(ge=1, le=32, description="Number of scales, from coarse to fine; more octaves give larger shapes.")
]
OctaveScale = Annotated[float, Field(gt=1, le=4, description="Size ratio of neighbouring octaves.")]
OctavesAbove = Annotated[int, Field(ge=0, le=31, description="How many of the octaves are larger than the image.")]
Rounding = Annotated[
    Literal["nearest", "down"], Field(description="How the sides of an octave are rounded to whole pixels.")
]
Resample = Annotated[
    Literal["bicubic", "bilinear", "zoom"],
    Field(description="Resizing filter: bicubic (antialiased), bilinear, or zoom (linear, fixed corners)."),
]
Steps = Annotated[int, Field(ge=0, le=10_000, description="Gradient ascent steps in each octave.")]
StepSize = Annotated[
    float,
    Field(gt=0, le=1, description="Mean change of a pixel per step; 1 is the distance from black to white."),
]
Space = Annotated[
    Literal["picture", "network"],
    Field(description="What a step changes: the pixels (picture), or the normalized input of the network (network)."),
]
StopAt = Annotated[
    float | None,
    BeforeValidator(lambda value: None if value == "none" else value),
    Field(description="Score at which an octave ends early; none runs all steps."),
]
Clip = Annotated[bool, Field(description="Clip the pixels to the range from black to white after every step.")]
Jitter = Annotated[int, Field(ge=0, le=4096, description="Maximum random shift before each step, in pixels.")]
Tile = Annotated[
    int,
    Field(ge=0, description="Side in pixels of tiles that are scored separately; 0 scores the whole image."),
]
Measure = Annotated[
    Literal["log_mean_square", "mean_square", "half_sum_square", "l2_norm", "mean", "inner_mean_square"],
    Field(description="Statistic of the activations to maximize; log_mean_square balances the layers of a mix."),
]
Gradient = Annotated[
    Literal["laplacian", "gaussian", "plain"],
    Field(description="Gradient filter: laplacian (large, soft shapes), gaussian (smooth), or plain (as in 2015)."),
]
Normalise = Annotated[
    Literal["mean_abs", "std", "zero_mean_std", "rms", "adam", "tf2", "keras"],
    Field(description="Normalization of the gradient before each step: mean absolute value, deviation, RMS or Adam."),
]
Carry = Annotated[
    Literal["detail", "result", "result_8bit"],
    Field(description="What an octave passes on: its changes (detail), its image (result), or that image in 8 bits."),
]
Flip = Annotated[bool, Field(description="Mirror the image in about half of the steps, at random.")]
TotalVariation = Annotated[
    float, Field(ge=0, description="Weight of the total variation penalty; larger values give a smoother image.")
]
L2 = Annotated[
    float,
    Field(ge=0, description="Weight of the penalty on the mean squared change; larger values change the image less."),
]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="Random seed of jitter and flip.")]
MaxPixels = Annotated[int, Field(ge=1, description="Images with more pixels are downscaled to this number of pixels.")]


def expand_preset(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` of settings with the preset replaced by its fields, and with a default for the layers.

    Args:
        fields: fields of `DreamSettings`, and optionally `preset`. They override the preset.

    Raises:
        ValueError: the preset does not exist.

    Example:
        >>> fields = expand_preset({"preset": "gordic", "steps": 3})
        >>> fields["layers"], fields["steps"], fields["step_size"]
        ('91%', 3, 0.09)
    """
    given = dict(fields)
    model = given.get("model", BUNDLED)
    name = given.pop("preset", None)
    if name is None:
        return given if "layers" in given or model == BUNDLED else {**given, "layers": DEFAULT_DEPTH}
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; choose {', '.join(PRESETS)}")
    preset = PRESETS[name]
    return {"layers": preset.layers if model == preset.model else preset.depths, **preset.settings, **given}


def nearest_preset(settings: "DreamSettings") -> str | None:
    """Return the preset that differs from `settings` in the fewest fields; None if the defaults differ in no more.

    Only fields that some preset sets are compared. Network and layers are not.

    Example:
        >>> nearest_preset(DreamSettings(preset="keras", steps=30))
        'keras'
    """
    compared = {name for preset in PRESETS.values() for name in preset.settings}

    def differing(fields: Mapping[str, Any]) -> int:
        defaults = DreamSettings.model_fields
        return sum(getattr(settings, name) != fields.get(name, defaults[name].default) for name in compared)

    bases: dict[str | None, Mapping[str, Any]] = {None: {}, **{name: each.settings for name, each in PRESETS.items()}}
    return min(bases, key=lambda name: differing(bases[name]))


class DreamSettings(Frozen):
    """Every setting that changes the image of a dream, and no other.

    `preset` may be given together with the fields: it stands for the fields of one of `PRESETS`. Fields that are given
    explicitly override the preset.

    Raises:
        ValidationError: a value is out of range, or two settings contradict each other.

    Example:
        >>> settings = DreamSettings(layers="blocks.3", octaves=4)
        >>> settings.octaves, settings.octave_scale
        (4, 1.4)
        >>> DreamSettings(preset="google2015", steps=20).step_size == 1.5 / 255
        True

        Defaults are not part of the identity, and spelling does not change it:

        >>> spelled_out = DreamSettings(octaves=6, layers={"blocks.4": 1})
        >>> settings_id(spelled_out, weights="w") == settings_id(DreamSettings(), weights="w")
        True
    """

    model: Model = BUNDLED
    weights: Weights = None
    layers: Layers = Field(
        default=(Target(layer="blocks.4"),),
        description="What to excite: a layer, or a mix of layers such as blocks.3=0.3+blocks.4.",
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
            raise ValueError(
                f"weights need a SHA-256; write {self.weights.uri}#sha256=DIGEST with the output of `sha256sum`"
            )
        if self.octaves_above >= self.octaves:
            raise ValueError(f"octaves_above is {self.octaves_above}; it must be less than octaves ({self.octaves})")
        if self.octave_scale**self.octaves_above > MAX_SCALE_ABOVE:
            raise ValueError(
                f"the largest octave may have at most {MAX_SCALE_ABOVE} times the sides of the image; "
                "reduce octaves_above or octave_scale"
            )
        if self.resample == "zoom" and self.octaves_above:
            raise ValueError("octaves_above must be 0 with resample zoom; use bicubic or bilinear instead")
        if 0 < self.tile < MIN_TILE:
            raise ValueError(f"tile is {self.tile} pixels; use {MIN_TILE} or more, or 0 for the whole image")
        return self

    def canonical_json(self) -> str:
        """Return these settings as JSON. Equal settings give the same text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


MAX_SCALE_ABOVE = 4
"""Largest ratio of the sides of an octave to the sides of the image."""
MIN_TILE = 64
"""Smallest side of a tile in pixels. Smaller tiles contain too little context for a network."""

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
"""Fields that must be equal for all samples of a batch. All other fields may differ."""


def batch_key(settings: DreamSettings) -> tuple[object, ...]:
    """Return a key for grouping: samples with the same key and image size can share a batch."""
    return tuple(getattr(settings, name) for name in BATCH_FIELDS)


def digest(*parts: object) -> str:
    """Return the first 16 hex digits of the SHA-256 of `parts` as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_id(settings: DreamSettings, weights: str) -> str:
    """Return the identity of settings and weights: 16 hex digits.

    Fields at their default are left out. So a new setting does not change the identity of existing dreams. A changed
    default would go unnoticed and must increase `ALGORITHM_VERSION`. Guide and mask count by their content.

    Args:
        settings: the settings.
        weights: identity of the network's weights: their SHA-256, or the versioned name that the library gives them.

    Raises:
        ValueError: guide or mask have no SHA-256 yet.
    """
    chosen = settings.model_dump(mode="json", exclude_defaults=True, exclude={"weights", "guide", "mask"})
    for name, file in (("guide", settings.guide), ("mask", settings.mask)):
        if file:
            if file.sha256 is None:
                raise ValueError(f"{name} has no SHA-256; read {file.uri} first")
            chosen[name] = file.sha256
    return digest(chosen, weights, ALGORITHM_VERSION)


def result_id(source_etag: str, settings_id: str) -> str:
    """Return the identity of the dream of one version of a source image under one `settings_id`: 16 hex digits."""
    return digest(source_etag, settings_id)
