"""One dream anew, alone, from the settings inside its picture: what it was, made again and held against it.

The same machine, threads and settings give the same bits, but for those networks whose gradients oneDNN sums in an
order that depends on the batch, such as ResNet-18's, if the dream was one of a batch. A run's workers dream on one
thread each, `dreamgrid image` on all that torch takes; nothing tells the two apart but that a run's dream names its
source in S3. So a dream that names one is dreamt anew on one thread, any other on torch's own number of them.

A picture may come from anybody: what it says is validated before anything is read or dreamt by it, and nothing larger
than the picture itself is dreamt, but for octaves of at most four times its sides.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from dreamcore.errors import ImageError, InvalidInput, Unavailable
from dreamcore.images import MAX_SOURCE_PIXELS, Photograph, encode, read_metadata
from dreamcore.settings import ALGORITHM_VERSION, DreamSettings, Output, format_of, settings_id
from dreamcore.targets import Frozen
from flows.assets import resolve
from flows.job import explain_validation
from flows.layout import parse_uri
from flows.single import check_result, decode_named, description, dream_resolved, read_file, write_file
from flows.storage import FAIL_FAST, Storage
from flows.terminal import one_line

if TYPE_CHECKING:
    from dreamcore.batch import Dream, OnStep

SAME_SCORE = 0.001
"""Two scores of one photograph differ by less, on whatever machine: as a share of them, or at all."""
REMEDY = "give the photograph with --source FILE"

_Word = Annotated[str, Field(pattern=r"^[ -~]{1,200}$")]


class Description(Frozen):
    """What redreaming needs of the description inside a picture; what else is there does not matter."""

    model_config = ConfigDict(extra="ignore")

    settings: DreamSettings
    settings_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    weights_sha256: _Word
    algorithm_version: int = Field(ge=0, le=10**9)
    score_before: float | None = None
    score_after: float
    device: _Word | None = None
    tile: int | None = None
    source_uri: str | None = Field(default=None, pattern=r"(?s)^s3://[A-Za-z0-9._-]{3,255}/.+$")
    source_etag: str | None = Field(default=None, pattern=r"^[!#-~]{1,200}$")

    @field_validator("settings", mode="before")
    @classmethod
    def _says_what_was_dreamt(cls, settings: object) -> object:
        """Settings that an older version did not know are left at their defaults; these it knew."""
        if isinstance(settings, dict) and (missing := {"model", "layers", "max_pixels", "output"} - set(settings)):
            raise ValueError(f"there is no {sorted(missing)[0]}")
        return settings

    @model_validator(mode="after")
    def _is_affordable(self) -> Self:
        if self.settings.max_pixels > MAX_SOURCE_PIXELS:
            raise ValueError(f"max_pixels is over {MAX_SOURCE_PIXELS:,}, more than any photograph that is read has")
        return self

    def differences(self, now: "Dream") -> tuple[str, ...]:
        """What is no longer as it was when the dream was made, for people to read."""
        found, weights = [], now.weights
        if self.weights_sha256 != weights:
            found.append(f"the weights of {self.settings.model} were {self.weights_sha256}, now they are {weights}")
        if self.algorithm_version != ALGORITHM_VERSION:
            found.append(f"ALGORITHM_VERSION was {self.algorithm_version}, now it is {ALGORITHM_VERSION}")
        if not found and self.settings_id != settings_id(self.settings, weights):
            new = sorted(set(DreamSettings.model_fields) - self.settings.model_fields_set)
            why = f"{', '.join(new)} came later, and is at its default" if new else "one of the two was edited"
            found.append(f"its settings_id is not that of its settings: {why}")
        if not found and self.tile == now.tile:  # tiles are looked at each for itself
            found += self._another_photograph(now.before.score(now.settings.layers))
        if self.device not in (None, now.device):
            found.append(f"it was dreamt on {self.device}, now on {now.device}")
        return tuple(found)

    def _another_photograph(self, score: float) -> list[str]:
        """Whether the photograph that has this score seems to be another one than was dreamt."""
        then = self.score_before
        if then is None or math.isclose(then, score, rel_tol=SAME_SCORE, abs_tol=SAME_SCORE):
            return []
        return [f"the photograph had the score {then:.4f}, now it has {score:.4f}: it may be another one"]


@dataclass(frozen=True)
class Reproduction:
    """A dream made anew, held against the one it was made after."""

    settings_id: str
    """Identity of the dream's settings as they are understood now, with the weights and the algorithm of now."""
    same_settings: bool
    """Whether the dream says the same of itself."""
    psnr_db: float
    """Between the pixels of both files as they are decoded; infinite when they are equal."""
    score_after_then: float
    score_after_now: float
    result: str
    differences: tuple[str, ...]
    """What is no longer as it was when the dream was made."""

    @property
    def equal(self) -> bool:
        """Whether both files have the same pixels."""
        return math.isinf(self.psnr_db)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON, which knows no infinity: `psnr_db` is null when the pixels are equal."""
        return {
            "settings_id": self.settings_id,
            "same_settings": self.same_settings,
            "psnr_db": None if self.equal else self.psnr_db,
            "score_after_then": self.score_after_then,
            "score_after_now": self.score_after_now,
            "result": self.result,
            "differences": list(self.differences),
        }


def redream(
    dream: str, result: Path, source: Path | None, watch: "OnStep", files: Mapping[str, Path] | None = None
) -> Reproduction:
    """Make the dream in `dream` anew, write it to `result` and tell how close it came.

    Args:
        dream: a file or an S3 object with its description inside, of a run or of `dreamgrid image`.
        result: where the new one goes; its suffix says the format.
        source: the photograph; None to read it from where the description says, in the version that it says.
        watch: called after every step with the steps done and the steps in all.
        files: guide, mask and weights, where they are to be had elsewhere than the description says.

    Raises:
        InvalidInput: no such file, no or a malformed description, an unknown network, nowhere to write to, or not
            the photograph of then; nothing was dreamt.
        ImageError: `dream` or the photograph is no picture, or one that cannot be dreamt.
        Unavailable: the store is in trouble.
    """
    data = _read_dream(dream)
    then = read_description(data, dream)
    output = _output(then.settings.output, result)
    files = files or {}
    check_result(result, dream, source or dream, *files.values())
    wanted = _with_files(then.settings, files, dream).model_copy(update={"output": output})
    try:
        settings = resolve(wanted, local=True)
    except (InvalidInput, Unavailable) as error:
        raise type(error)(one_line(str(error))) from error
    photograph = _read_photograph(then, source, dream)
    picture = decode_named(data, dream).pixels
    _check_size(photograph, picture, dream)
    with threads(1 if then.source_uri else None):
        dreamt = dream_resolved(photograph, settings, watch)
    new = encode(dreamt.pixels, output.format, output.quality, _description(dreamt, None if source else then))
    write_file(result, new)
    identity = settings_id(then.settings, dreamt.weights)
    return Reproduction(
        settings_id=identity,
        same_settings=identity == then.settings_id,
        psnr_db=psnr(picture, decode_named(new, result).pixels),
        score_after_then=then.score_after,
        score_after_now=dreamt.measurements.score_after,
        result=str(result),
        differences=then.differences(dreamt),
    )


def read_description(data: bytes, name: str) -> Description:
    """The description inside a picture that may be anybody's.

    Raises:
        InvalidInput: there is none, or what it says is no dream; the message is one line.
        ImageError: it is no picture.
    """
    try:
        inside = read_metadata(data)
    except ImageError as error:
        raise ImageError(error.kind, f"{name}: {error}") from error
    if inside is None:
        raise InvalidInput(f"{name} holds no settings: it is no dream of Dreamgrid, or they were removed from it")
    try:
        return Description.model_validate(inside)
    except ValidationError as error:
        raise InvalidInput(
            f"{name}: the description inside is malformed: {one_line(explain_validation(error))}"
        ) from error


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB between pictures (H, W, 3) of 8 bits; infinite when they are equal."""
    error = float(np.square(one.astype(np.int32) - other).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch compute on `count` threads in this block; None leaves it as it is."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read_dream(dream: str) -> bytes:
    if not dream.startswith("s3://"):
        return read_file(Path(dream))
    try:
        _, key = parse_uri(dream)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    data = Storage(FAIL_FAST).read(dream) if key else None
    if data is None:
        raise InvalidInput(f"there is no {dream}: name one dream, as the manifest has it in result_uri")
    return data


def _output(then: Output, result: Path) -> Output:
    """The file to write: the dream's own kind with its quality, or another by the suffix."""
    suffix = format_of(result.suffix)
    try:
        return then if suffix == then.format else Output.model_validate({"format": suffix})
    except ValidationError as error:
        raise InvalidInput(f"{result}: {explain_validation(error)}") from error


def _read_photograph(then: Description, source: Path | None, dream: str) -> Photograph:
    """The photograph of then, from `source` or in its version from the store."""
    limit = then.settings.max_pixels
    if source is not None:
        return decode_named(read_file(source), source, limit)
    if then.source_uri is None or then.source_etag is None:
        raise InvalidInput(f"{dream} names no source in S3, as the dreams of `dreamgrid image` do not: {REMEDY}")
    uri = one_line(then.source_uri)
    try:
        data = Storage(FAIL_FAST).read_version(then.source_uri, then.source_etag)
    except ImageError as error:
        happened = {"source_missing": "is gone", "source_changed": "is no longer the one that was dreamt"}
        why = happened.get(error.kind, f"cannot be had ({one_line(str(error))})")
        raise InvalidInput(f"{uri} {why}: {REMEDY}") from error
    except (InvalidInput, Unavailable) as error:
        raise type(error)(f"{one_line(str(error))}; or {REMEDY}") from error
    return decode_named(data, uri, limit)


def _with_files(settings: DreamSettings, files: Mapping[str, Path], dream: str) -> DreamSettings:
    """The settings with their files where they are to be had.

    A picture may come from anybody: no file of this machine is read because a picture names it.
    """
    found = {}
    if needless := [name for name in files if getattr(settings, name) is None]:
        raise InvalidInput(f"{dream} was dreamt without a {needless[0]}: leave --{needless[0]} out")
    for name in ("guide", "mask", "weights"):
        reference = getattr(settings, name)
        if reference is None:
            continue
        if name in files:
            found[name] = reference.model_copy(update={"uri": str(files[name])})
        elif not reference.uri.startswith("s3://"):
            raise InvalidInput(f"{dream} was dreamt with a {name} of its own: give that file with --{name} FILE")
        if reference.sha256 is None:
            raise InvalidInput(f"{dream}: the description inside says nothing of what its {name} held")
    return settings.model_copy(update=found)


def _check_size(photograph: Photograph, picture: NDArray[np.uint8], dream: str) -> None:
    """What is dreamt anew is as large as the dream, or one of the two is not what it was."""
    (height, width), (new_height, new_width) = picture.shape[:2], photograph.pixels.shape[:2]
    if (height, width) != (new_height, new_width):
        raise InvalidInput(
            f"{dream} has {width} x {height} pixels, and its settings make {new_width} x {new_height} of this "
            f"photograph: either it is another one ({REMEDY}), or the dream was resized"
        )


def _description(dreamt: "Dream", then: Description | None) -> dict[str, Any]:
    """What is written into the new picture; `then` where its source is known to be the same."""
    told = description(dreamt) | {"created_at": datetime.now(UTC).isoformat()}
    return told | (then.model_dump(include={"source_uri", "source_etag"}) if then else {})
