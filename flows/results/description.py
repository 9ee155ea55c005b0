"""The description inside a dream, from which the dream can be reproduced.

A file may come from an untrusted person. Its description is validated before anything else is read or dreamt.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from dreamcore.errors import ImageError, InvalidInput, Unavailable
from dreamcore.images import MAX_SOURCE_PIXELS, read_metadata
from dreamcore.settings import ALGORITHM_VERSION, DreamSettings, RecordedSettings, settings_id
from dreamcore.targets import Frozen
from flows.destination.movie_metadata import is_mp4
from flows.jobs.assets import FILES, resolve
from flows.jobs.job import explain_validation
from flows.machine.terminal import one_line

if TYPE_CHECKING:
    from dreamcore.batch import Dream

__all__ = ["Description", "read_description", "resolve_untrusted", "with_files"]

SCORE_TOLERANCE = 0.001
"""Relative and absolute tolerance: the scores of one photograph on two machines differ by less than this."""

_Word = Annotated[str, Field(pattern=r"^[ -~]{1,200}$")]


class Description(Frozen):
    """The part of the metadata inside a dream that is needed to reproduce the dream. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    settings: RecordedSettings
    settings_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    weights_sha256: _Word
    algorithm_version: int = Field(ge=0, le=10**9)
    score_before: float | None = None
    score_after: float
    device: _Word | None = None
    tile: int | None = None
    diversity: float = 0.0
    source_uri: str | None = Field(
        default=None, pattern=r"(?s)^(s3://[A-Za-z0-9._-]{3,255}/.+|noise:[0-9]{1,9}x[0-9]{1,9})$"
    )
    source_etag: str | None = Field(default=None, pattern=r"^[!#-~]{1,200}$")

    @field_validator("settings", mode="before")
    @classmethod
    def _require_old_settings(cls, settings: object) -> object:
        """Require the settings that every version writes. Newer settings may be missing and have their defaults."""
        if isinstance(settings, dict) and (missing := {"model", "layers", "max_pixels", "output"} - set(settings)):
            raise ValueError(f"{sorted(missing)[0]} is missing")
        return settings

    @model_validator(mode="after")
    def _limit_max_pixels(self) -> Self:
        if self.settings.max_pixels > MAX_SOURCE_PIXELS:
            raise ValueError(f"max_pixels is over {MAX_SOURCE_PIXELS:,}, the largest photograph that can be read")
        return self

    def differences(self, now: "Dream") -> tuple[str, ...]:
        """Return what has changed since the dream was made, as messages for people."""
        found, weights = self.changed_network(now.weights), now.weights
        if not found and self.settings_id != settings_id(self.settings, weights):
            new = sorted(set(DreamSettings.model_fields) - self.settings.model_fields_set)
            reason = f"the newer settings {', '.join(new)} have their defaults" if new else "one of them was edited"
            found.append(f"the settings_id in the file does not match its settings: {reason}")
        if not found and self.tile == now.tile:  # with other tiles even the same photograph has another score
            found += self._changed_photograph(now.before.score(now.settings.layers))
        if self.device not in (None, now.device):
            found.append(f"the dream was made on {self.device}, now on {now.device}")
        return tuple(found)

    def changed_network(self, weights: str) -> list[str]:
        """Return messages if the network has other `weights` now, or if the algorithm has changed."""
        found = []
        if self.weights_sha256 != weights:
            found.append(f"the weights of {self.settings.model} were {self.weights_sha256}, now they are {weights}")
        if self.algorithm_version != ALGORITHM_VERSION:
            found.append(f"ALGORITHM_VERSION was {self.algorithm_version}, now it is {ALGORITHM_VERSION}")
        return found

    def _changed_photograph(self, score: float) -> list[str]:
        """Return a message if `score`, that of the photograph, shows that the dream was made of another one."""
        then = self.score_before
        if then is None or math.isclose(then, score, rel_tol=SCORE_TOLERANCE, abs_tol=SCORE_TOLERANCE):
            return []
        return [f"the photograph had the score {then:.4f}, now it has {score:.4f}: it may be another photograph"]


def read_description(data: bytes, name: str) -> Description:
    """Return the description inside an image, which may come from an untrusted person.

    Args:
        data: the bytes of the file.
        name: the name of the file for messages.

    Raises:
        InvalidInput: the description is missing or malformed; the message is one line.
        ImageError: the file is not an image.
    """
    if is_mp4(data):
        raise InvalidInput(f"{name} is a movie: this command takes single dreams; `dreamgrid zoom` makes one movie")
    try:
        inside = read_metadata(data)
    except ImageError as error:
        raise ImageError(error.kind, f"{name}: {error}") from error
    if inside is None:
        raise InvalidInput(f"{name} contains no settings: it is not a dream of Dreamgrid, or its metadata was removed")
    try:
        return Description.model_validate(inside)
    except ValidationError as error:
        raise InvalidInput(
            f"{name}: the description inside is malformed: {one_line(explain_validation(error))}"
        ) from error


def with_files(settings: DreamSettings, files: Mapping[str, Path], dream: str) -> DreamSettings:
    """Return the settings with the given files, by the setting that refers to each.

    A dream may come from an untrusted person, so no file of this machine is read only because a dream names it.

    Raises:
        InvalidInput: a file is given that the dream does not use, or one is missing that it needs.
    """
    found = {}
    if superfluous := [name for name in files if getattr(settings, name) is None]:
        without = "to enlarge another dream" if superfluous[0] == "enlarge" else f"with a {superfluous[0]}"
        raise InvalidInput(f"{dream} was not dreamt {without}: leave out --{superfluous[0]}")
    for name in FILES:
        reference = getattr(settings, name)
        if reference is None:
            continue
        if name in files:
            found[name] = reference.model_copy(update={"uri": str(files[name])})
        elif not reference.uri.startswith("s3://"):
            if name == "enlarge":
                raise InvalidInput(f"{dream} enlarges the dream {reference.uri}: give that file with --enlarge FILE")
            raise InvalidInput(f"{dream} was dreamt with a local file as {name}: give that file with --{name} FILE")
        if reference.sha256 is None:
            raise InvalidInput(f"{dream}: the description inside has no SHA-256 of its {name}, so it cannot be checked")
    return settings.model_copy(update=found)


def resolve_untrusted(settings: DreamSettings) -> DreamSettings:
    """Return settings that a file described, resolved (see `resolve`). The message of an error is one line."""
    try:
        return resolve(settings, local=True)
    except (InvalidInput, Unavailable) as error:
        raise type(error)(one_line(str(error))) from error
