"""The settings of dreams as the gallery shows them: the model, the layers, the objective, and what differs."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dreamcore.settings import DreamSettings, read_recorded
from dreamcore.targets import Target, layers_label
from dreamcore.zoom import Zoom

__all__ = ["WHOLE", "Point", "defaults", "read_point"]

WHOLE = "settings"
"""The name of all settings together, as one axis."""

_NOT_SHOWN = ("model", "layers")
"""Fields that a point has beside its other settings."""
_OWN = (*_NOT_SHOWN, "objective", "settings_id")
_TARGETS = TypeAdapter(tuple[Target, ...])


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a grid, as text."""

    settings_id: str
    model: str
    layers: str
    objective: str
    """Model, layers, measure, guide and anchor: gains are comparable only if they are equal."""
    settings: Mapping[str, str]
    """The settings that differ from the defaults, without model and layers."""

    @property
    def enlarges(self) -> str:
        """The file of the dream that is enlarged; empty for any other dream."""
        return self.settings.get("enlarge", "").partition(" (")[0]

    def value(self, name: str) -> str:
        """Return the value of a setting, also if it is at its default; empty if this version has no such setting.

        The objective and the `settings_id` have values, too. `WHOLE` stands for all settings.
        """
        if name == WHOLE:
            return self.settings_id
        if name in _OWN:
            return str(getattr(self, name))
        return self.settings.get(name) or defaults().get(name, "")

    @property
    def seed(self) -> int:
        """The seed; 0 if another version of Dreamgrid has written none."""
        text = self.value("seed")
        return int(text) if text.isdecimal() else 0


@lru_cache
def defaults() -> Mapping[str, str]:
    """Return the defaults of all settings but model and layers, as text."""
    return _as_text(DreamSettings().model_dump(mode="json"))


def read_point(settings_id: str, text: str) -> Point:
    """Return the settings of a manifest row from their canonical JSON. Any version may have written it."""
    try:
        fields: Any = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        return Point(settings_id, "", "", "", {})
    with suppress(ValidationError):  # settings of another version with other fields are shown as they are
        fields = read_recorded(fields).model_dump(mode="json")
    values, known = _as_text(fields), defaults()
    model, layers = str(fields.get("model", "")), _layers(fields.get("layers"))
    others = [f"{name} {values[name]}" for name in ("guide", "stay_near") if values.get(name, "none") != "none"]
    words = [model, layers, values.get("measure", ""), *others]
    differing = {name: value for name, value in values.items() if value != known.get(name)}
    return Point(settings_id, model, layers, " ".join(filter(None, words)), differing)


def _layers(value: object) -> str:
    try:
        return layers_label(_TARGETS.validate_python(value))
    except ValidationError:
        return json.dumps(value)


def _as_text(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value) for name, value in fields.items() if name not in _NOT_SHOWN}


def _text(value: object) -> str:
    """Return the value of a setting as people write it: `none`, `yes`, `0.9`, a file's name, `webp 90`."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return f"{value:.12g}" if isinstance(value, float) else str(value)
        case str():
            return value
        case {"uri": str(uri)}:
            sha256 = value.get("sha256") if isinstance(value, dict) else None
            name = uri.rpartition("/")[2] + (f" ({sha256[:8]})" if isinstance(sha256, str) else "")
            strength = value.get("strength") if isinstance(value, dict) else None
            return f"{name}, strength {strength:g}" if isinstance(strength, (int, float)) else name
        case {"format": "png"}:
            return "png"
        case {"format": str(name), "quality": quality}:
            return f"{name} {quality}"
        case {"seconds": _, "fps": _}:
            return _movie(Zoom.model_validate(value))
        case {"layer": str(layer), "weight": weight}:
            return layer if weight == 1 else f"{layer}={weight:g}"
        case _:
            return json.dumps(value, sort_keys=True)


def _movie(zoom: Zoom) -> str:
    """Return what a movie does, other than by default."""
    fields = zoom.model_dump(mode="json", exclude_defaults=True)
    return ", ".join(f"{name} {_text(value)}" for name, value in fields.items()) or "zoom"
