"""The settings of one dream, and their identity.

This module imports no torch, so that planning a run stays fast.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from dreamcore.fields import (
    L2,
    Carry,
    Clip,
    Flip,
    Gradient,
    Guide,
    Jitter,
    Mask,
    MaxPixels,
    Measure,
    Model,
    Normalise,
    Octaves,
    OctavesAbove,
    OctaveScale,
    Output,
    Resample,
    Rounding,
    Seed,
    Space,
    Steps,
    StepSize,
    StopAt,
    Tile,
    TotalVariation,
    Transforms,
    Weights,
)
from dreamcore.presets import PRESETS
from dreamcore.targets import Frozen, Layers, Target

__all__ = [
    "ALGORITHM_VERSION",
    "BATCH_FIELDS",
    "BUNDLED",
    "DEFAULT_DEPTH",
    "MAX_SCALE_ABOVE",
    "MIN_TILE",
    "DreamSettings",
    "batch_key",
    "digest",
    "expand_preset",
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
    transforms: Transforms = "shift"
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
    "transforms",
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
