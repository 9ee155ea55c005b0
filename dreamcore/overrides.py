"""Combine whole settings, a preset and single settings by name, and explain what is wrong with them."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from dreamcore.errors import InvalidInput
from dreamcore.settings import BUNDLED, DreamSettings, expand_names

__all__ = ["choose_settings"]


def choose_settings(settings: DreamSettings | None, fields: Mapping[str, Any], model: str | None) -> DreamSettings:
    """Return `settings` with `fields` over them.

    Args:
        settings: whole settings; by default the defaults.
        fields: settings by name, and `preset` or `look`, which override `settings` and are overridden by other fields.
        model: the name of the network that is given; None if the settings choose it.

    Raises:
        InvalidInput: a field has an unknown name or a wrong value, or the settings name another network.
    """
    if not isinstance(settings, DreamSettings | None):
        raise InvalidInput(f"settings is a {type(settings).__name__}: give a DreamSettings")
    # Fields at their default do not count as named: `DreamSettings(steps=5)` fits any network.
    base = settings.model_dump(mode="json", exclude_unset=True) if settings else {}
    named = fields.get("model", base.get("model"))
    if model is not None and named not in (None, model):
        raise InvalidInput(f"the settings name the network {named!r}, but network is {model!r}: give only one of them")
    _check_names(fields)
    own = {**fields, "model": model or named or BUNDLED}
    try:
        own = expand_names(own) if fields.get("preset") or fields.get("look") else own
        return DreamSettings.model_validate({**base, **own})
    except ValidationError as error:
        raise InvalidInput("; ".join(map(_explain, error.errors()))) from error
    except ValueError as error:
        raise InvalidInput(str(error)) from error


def _check_names(fields: Mapping[str, Any]) -> None:
    known = [*DreamSettings.model_fields, "preset", "look"]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(known)}"
            raise InvalidInput(f"setting {name!r} does not exist; {hint}")


def _explain(detail: Any) -> str:
    """Return the message of one error that pydantic found, with the name of the setting."""
    name, message = ".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")
    return f"{name} is {detail['input']!r}: {message}" if name else str(message)
