"""The settings of one dream, and their identity.

This module imports no torch, so that planning a run stays fast.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from dreamcore.fields import (
    L2,
    Blend,
    Calm,
    Carry,
    Clip,
    Color,
    Contrast,
    Enlarged,
    Flip,
    Gradient,
    Guide,
    Jitter,
    KeepColors,
    Mask,
    MaxPixels,
    Measure,
    Model,
    Movie,
    Normalise,
    Octaves,
    OctavesAbove,
    OctaveScale,
    Output,
    Resample,
    Rounding,
    Seed,
    SoftClip,
    Space,
    StayNear,
    Steps,
    StepSize,
    StopAt,
    Tile,
    TotalVariation,
    Transforms,
    Weights,
)
from dreamcore.looks import LOOKS
from dreamcore.presets import PRESETS, Preset
from dreamcore.targets import Frozen, Layers, Target

__all__ = [
    "ALGORITHM_VERSION",
    "BATCH_FIELDS",
    "BUNDLED",
    "DEFAULT_DEPTHS",
    "MAX_SCALE_ABOVE",
    "MIN_TILE",
    "DreamSettings",
    "RecordedSettings",
    "batch_key",
    "digest",
    "expand_names",
    "nearest_name",
    "read_recorded",
    "result_id",
    "settings_id",
]

ALGORITHM_VERSION = 2
"""Part of every `settings_id`. Increase it with every change after which the same settings give a different image."""

BUNDLED = "efficientnet_lite0"
"""The network whose weights are installed with Dreamgrid."""
DEFAULT_DEPTHS = "41%=0.3+63%+87%=0.5"
"""Default objective of other networks: the depths of the default layers of the bundled network."""


def expand_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` of settings with a preset or look replaced by its fields, and with a default for the layers.

    Args:
        fields: fields of `DreamSettings`, and optionally `preset` or `look`. They override the preset or look.

    Raises:
        ValueError: the preset or look does not exist, or both are given.

    Example:
        >>> fields = expand_names({"preset": "gordic", "steps": 3})
        >>> fields["layers"], fields["steps"], fields["step_size"]
        ('91%', 3, 0.09)
    """
    given = dict(fields)
    preset, look = given.pop("preset", None), given.pop("look", None)
    if preset and look:
        raise ValueError(f"the preset {preset} and the look {look} set the same fields; leave one out")
    if preset or look:
        known: Mapping[str, Preset] = PRESETS if preset else LOOKS  # type: ignore[assignment]
        return _fields_of(known, "preset" if preset else "look", preset or look, given)
    model = given.get("model", BUNDLED)
    return given if "layers" in given or model == BUNDLED else {**given, "layers": DEFAULT_DEPTHS}


def _fields_of(known: Mapping[str, Preset], kind: str, name: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a preset or look, and `given` over them."""
    if name not in known:
        raise ValueError(f"there is no {kind} {name!r}; choose {', '.join(known)}")
    layers = known[name].layers if given.get("model", BUNDLED) == known[name].model else known[name].depths
    return {"layers": layers, **known[name].settings, **given}


def nearest_name(settings: "DreamSettings") -> dict[str, str]:
    """Return the preset or look that differs from `settings` in the fewest fields; empty if the defaults do not more.

    Only fields that some preset or look sets are compared. Network and layers are not.

    Example:
        >>> nearest_name(DreamSettings(preset="keras", steps=30))
        {'preset': 'keras'}
        >>> nearest_name(DreamSettings(steps=30))
        {}
    """
    bases: list[tuple[dict[str, str], Mapping[str, Any]]] = [({}, {})]
    bases += [({"preset": name}, each.settings) for name, each in PRESETS.items()]
    bases += [({"look": name}, each.settings) for name, each in LOOKS.items()]
    compared = {name for _, fields in bases for name in fields}

    def differing(fields: Mapping[str, Any]) -> int:
        defaults = DreamSettings.model_fields
        return sum(getattr(settings, name) != fields.get(name, defaults[name].default) for name in compared)

    return min(bases, key=lambda base: differing(base[1]))[0]


class DreamSettings(Frozen):
    """Every setting that changes the image of a dream, and no other.

    `preset` or `look` may be given together with the fields: they stand for the fields of one of `PRESETS` or `LOOKS`.
    Fields that are given explicitly override them.

    Raises:
        ValidationError: a value is out of range, or two settings contradict each other.

    Example:
        >>> settings = DreamSettings(layers="blocks.3", octaves=4)
        >>> settings.octaves, settings.octave_scale
        (4, 1.4)
        >>> DreamSettings(preset="google2015", steps=20).step_size == 1.5 / 255
        True

        Spelling does not change the identity:

        >>> spelled_out = DreamSettings(octaves=6, layers={"blocks.5": 0.5, "blocks.4": 1, "blocks.3": 0.3})
        >>> settings_id(spelled_out, weights="w") == settings_id(DreamSettings(), weights="w")
        True
    """

    model: Model = BUNDLED
    weights: Weights = None
    layers: Layers = Field(
        default=tuple(
            Target(layer=layer, weight=weight)
            for layer, weight in (("blocks.3", 0.3), ("blocks.4", 1.0), ("blocks.5", 0.5))
        ),
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
    step_size: StepSize = 0.01
    space: Space = "picture"
    stop_at: StopAt = None
    color: Color = 0.9
    soft_clip: SoftClip = 0.15
    calm: Calm = 0.08
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
    stay_near: StayNear = None
    carry: Carry = "detail"
    contrast: Contrast = 1.0
    keep_colors: KeepColors = 0.4
    blend: Blend = 0.0
    seed: Seed = 0
    max_pixels: MaxPixels = 1_000_000
    output: Output = Output()
    enlarge: Enlarged = None
    movie: Movie = None

    @model_validator(mode="before")
    @classmethod
    def _without_names(cls, value: object) -> object:
        return expand_names(value) if isinstance(value, Mapping) else value

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

    @property
    def layer_names(self) -> frozenset[str]:
        """The layers whose activations the ascent needs: those of the objective, and the one to stay near."""
        anchors = {self.stay_near.layer} if self.stay_near else set()
        return frozenset({target.layer for target in self.layers} | anchors)

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
    "color",
    "soft_clip",
    "calm",
    "clip",
    "transforms",
    "tile",
    "measure",
    "gradient",
    "normalise",
    "carry",
    "max_pixels",
    "enlarge",
    "movie",
]
"""Fields that must be equal for all samples of a batch. All other fields may differ."""


def batch_key(settings: DreamSettings) -> tuple[object, ...]:
    """Return a key for grouping: samples with the same key and image size can share a batch."""
    return tuple(getattr(settings, name) for name in BATCH_FIELDS)


def digest(*parts: object) -> str:
    """Return the first 16 hex digits of the SHA-256 of `parts` as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _FirstSettings(DreamSettings):
    """The settings with the defaults of the first dreams. An identity leaves these defaults out, not the present ones.

    So a new default changes the identity of a job that does not name the setting, and older dreams keep theirs.
    """

    layers: Layers = (Target(layer="blocks.4"),)
    step_size: StepSize = 0.008
    color: Color = 0.0
    soft_clip: SoftClip = 0.0
    calm: Calm = 0.0
    keep_colors: KeepColors = 0.0


def read_recorded(fields: object) -> DreamSettings:
    """Return the settings that a run or a dream has recorded, with what older versions did not record.

    Raises:
        ValidationError: a value is out of range or missing.
    """
    first = {name: _FirstSettings.model_fields[name].default for name in _FirstSettings.__annotations__}
    return DreamSettings.model_validate({**first, **fields} if isinstance(fields, Mapping) else fields)


RecordedSettings = Annotated[DreamSettings, BeforeValidator(read_recorded)]
"""Field type of settings in a record, as `read_recorded` reads them."""


def settings_id(settings: DreamSettings, weights: str) -> str:
    """Return the identity of settings and weights: 16 hex digits.

    Fields at the default of the first dreams are left out. So neither a new setting nor a new default changes the
    identity of existing dreams. Guide, mask and the dream to enlarge count by their content.

    Args:
        settings: the settings.
        weights: identity of the network's weights: their SHA-256, or the versioned name that the library gives them.

    Raises:
        ValueError: guide or mask have no SHA-256 yet.
    """
    first = _FirstSettings.model_construct(**dict(settings))
    separate = {"weights", "guide", "mask", "enlarge", "movie"}
    chosen = first.model_dump(mode="json", exclude_defaults=True, exclude=separate)
    if settings.enlarge:
        chosen["enlarge"] = [settings.enlarge.sha256, settings.enlarge.strength]
    if settings.movie:
        chosen["movie"] = settings.movie.model_dump(mode="json")
    for name, file in (("guide", settings.guide), ("mask", settings.mask)):
        if file:
            if file.sha256 is None:
                raise ValueError(f"{name} has no SHA-256; read {file.uri} first")
            chosen[name] = file.sha256
    return digest(chosen, weights, ALGORITHM_VERSION)


def result_id(source_etag: str, settings_id: str) -> str:
    """Return the identity of the dream of one version of a source image under one `settings_id`: 16 hex digits."""
    return digest(source_etag, settings_id)
