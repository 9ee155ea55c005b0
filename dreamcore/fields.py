"""The types of the fields of `DreamSettings`: their ranges and descriptions.

This module imports no torch, so that planning a run stays fast.
"""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from dreamcore.targets import AnchorLayer, Frozen
from dreamcore.zoom import Zoom

__all__ = [
    "L2",
    "Blend",
    "Calm",
    "Carry",
    "Clip",
    "Color",
    "Contrast",
    "Enlarge",
    "Enlarged",
    "FileReference",
    "Flip",
    "Gradient",
    "Guide",
    "Jitter",
    "KeepColors",
    "Mask",
    "MaxPixels",
    "Measure",
    "Model",
    "Movie",
    "Normalise",
    "OctaveScale",
    "Octaves",
    "OctavesAbove",
    "Output",
    "Reference",
    "Resample",
    "Rounding",
    "Seed",
    "SoftClip",
    "Space",
    "StayNear",
    "StepSize",
    "Steps",
    "StopAt",
    "Tile",
    "TotalVariation",
    "Transforms",
    "Weights",
    "format_of",
]


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


class Enlarge(Reference):
    """The dream that an enlarged dream starts from."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the file of the dream in hex."""
    strength: float = Field(default=0.5, ge=0, le=2)
    """Factor of the step size in the octaves that are larger than the dream; 0 dreams nothing new."""


def _read_reference(value: object) -> object:
    """Return the fields of a reference that is written as `URI` or `URI#sha256=HEX`."""
    if not isinstance(value, str):
        return value
    uri, sha256 = re.fullmatch(r"(?s)(.*?)(?:#sha256=([0-9a-fA-F]*))?", value).groups()  # type: ignore[union-attr]
    return {"uri": uri, "sha256": sha256.lower() if sha256 is not None else None}


FileReference = Annotated[Reference, BeforeValidator(_read_reference, json_schema_input_type=str)]
"""Field type of a file. It accepts a `Reference` or the text `URI` or `URI#sha256=HEX`."""

# `DreamSettings` and `Grid` share these types, with their descriptions.

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
    Field(description="Guide image; the dream takes up features of the guide instead of enhancing those of the image."),
]
Mask = Annotated[
    FileReference | None,
    Field(
        description="Mask image, stretched to each image; white areas change, black areas stay, gray areas change less."
    ),
]
Enlarged = Annotated[
    Enlarge | None,
    Field(
        description="Dream to go on from: only octaves larger than this dream are dreamt. `dreamgrid enlarge` sets it."
    ),
]
Movie = Annotated[
    Zoom | None,
    Field(description="Movie to make instead of a single dream. The field `zoom` of a job sets it."),
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
    Field(
        gt=0,
        le=1,
        description="Mean change of a pixel per step; 1 is the distance from black to white. In Fourier space: of a "
        "coefficient.",
    ),
]
Space = Annotated[
    Literal["picture", "network", "fourier"],
    Field(
        description="What a step changes: the pixels (picture), the normalized input of the network (network), or the "
        "spectrum of the image with decorrelated colors, as in lucid (fourier)."
    ),
]
StopAt = Annotated[
    float | None,
    BeforeValidator(lambda value: None if value == "none" else value),
    Field(description="Score at which an octave ends early; none runs all steps."),
]
Clip = Annotated[bool, Field(description="Clip the pixels to the range from black to white after every step.")]
SoftClip = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Steps towards white become smaller within this distance of white, and steps towards black within "
        "this distance of black; 0 turns it off.",
    ),
]
Calm = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Areas change less where the local contrast (standard deviation of the brightness) is below this; "
        "0 turns it off.",
    ),
]
Color = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="How much the steps follow the colors of natural images: 0 gives strong, unnatural colors, 1 "
        "almost only light and dark.",
    ),
]
Blend = Annotated[
    float, Field(ge=0, lt=1, description="Share of the photograph that is mixed into the finished dream.")
]
KeepColors = Annotated[
    float,
    Field(ge=0, le=1, description="How much of the colors of the photograph the finished dream takes; 1 takes all."),
]
Contrast = Annotated[
    float, Field(gt=0, le=4, description="Factor of the contrast of the finished dream; below 1 it is flatter.")
]
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
Transforms = Annotated[
    Literal["shift", "lucid", "crops"],
    Field(
        description="Random transforms before each step: shift by `jitter` (shift); shift, scale and rotation on gray "
        "padding (lucid); or enlarged crops (crops)."
    ),
]
Flip = Annotated[bool, Field(description="Mirror the image in about half of the steps, at random.")]
TotalVariation = Annotated[
    float, Field(ge=0, description="Weight of the total variation penalty; larger values give a smoother image.")
]
L2 = Annotated[
    float,
    Field(ge=0, description="Weight of the penalty on the mean squared change; larger values change the image less."),
]
StayNear = Annotated[
    AnchorLayer | None,
    Field(
        description="Feature accentuation: the activations of this layer stay near those of the image, as "
        "LAYER=WEIGHT; larger weights keep more of the image."
    ),
]
Seed = Annotated[
    int,
    Field(
        ge=0,
        lt=2**63,
        description="Random seed of jitter, flip, transforms and noise.",
    ),
]
MaxPixels = Annotated[int, Field(ge=1, description="Images with more pixels are downscaled to this number of pixels.")]
