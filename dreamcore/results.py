"""What goes into a dream and what comes out: the request, the dream, and its measurements."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dreamcore.images import Photograph, encode
from dreamcore.observation import Observation
from dreamcore.settings import ALGORITHM_VERSION, DreamSettings, settings_id

__all__ = [
    "ClassProbability",
    "Classes",
    "Dream",
    "DreamRequest",
    "LayerScore",
    "Measurements",
    "Score",
    "to_pixels",
    "to_tensor",
]


@dataclass(frozen=True, eq=False)
class DreamRequest:
    """One photograph, to be dreamt with one point of the grid."""

    photograph: Photograph
    """Decoded, with at most `settings.max_pixels` pixels."""
    settings: DreamSettings
    guide: Photograph | None = None
    """The decoded image that `settings.guide` names."""
    mask: Photograph | None = None
    """The decoded image that `settings.mask` names. It is stretched to the size of the photograph."""
    dream: Photograph | None = None
    """The decoded dream that `settings.enlarge` names, at its full size."""
    before: Observation | None = None
    """The observation of the photograph, if it is known already. Otherwise the network computes it."""
    diversity: float = 0.0
    """Weight of the penalty on the similarity to the other dreams of the batch. See `dreamcore.diversity`."""


class Score(NamedTuple):
    """A score in the photograph and in the dream."""

    before: float
    after: float


class Classes(NamedTuple):
    """The five likeliest classes of the photograph and of the dream; empty for a network without classes."""

    before: "list[ClassProbability]"
    after: "list[ClassProbability]"


@dataclass(frozen=True)
class LayerScore:
    """The score of one layer in the photograph and in the dream."""

    layer: str
    before: float
    after: float


@dataclass(frozen=True)
class ClassProbability:
    """A class and the probability that the network gives it."""

    label: str
    p: float


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What was measured of a dream, and how it was computed. The fields are columns of the manifest."""

    source_width: int
    """Width of the photograph in pixels, before it was shrunk to `max_pixels`."""
    source_height: int
    """Height of the photograph in pixels, before it was shrunk to `max_pixels`."""
    score_before: float
    """Weighted sum over the targets, in the photograph."""
    score_after: float
    """Weighted sum over the targets, in the dream."""
    layer_scores: list[LayerScore]
    """The score of each target."""
    octave_scores: list[float]
    """The score after each octave, from coarse to fine."""
    stage_scores: list[LayerScore] | None
    """The score of each stage of the network; None unless it was requested."""
    classes_before: list[ClassProbability]
    """The five likeliest classes of the photograph, the likeliest first; empty for a network without classes."""
    classes_after: list[ClassProbability]
    """The five likeliest classes of the dream, the likeliest first; empty for a network without classes."""
    octaves_left_out: int
    """Number of octaves that were skipped because they are too small for the network."""
    width: int
    """Width of the dream in pixels."""
    height: int
    """Height of the dream in pixels."""
    device: str
    """Name of the GPU, or `cpu`."""
    precision: str
    """The dtype of the arithmetic, as `Network.precisions` returns it."""
    batch: int
    """Size of the batch."""
    tile: int | None
    """Side in pixels of the tiles: those of the setting `tile`, or else memory tiles. None: the image was not split."""
    seconds: float
    """This dream's share of the time of its batch."""


@dataclass(frozen=True, eq=False, repr=False)
class Dream:
    """A finished dream of one photograph: the image, and everything that was measured."""

    pixels: NDArray[np.uint8]
    """(H, W, 3), sRGB."""
    request: DreamRequest
    weights: str
    """Identity of the network's weights."""
    before: Observation
    """The observation of the photograph."""
    after: Observation
    """The observation of the dream."""
    octave_scores: list[float]
    """The score after each octave, from coarse to fine."""
    skipped_octaves: int
    """Number of octaves that were skipped because they are too small for the network."""
    device: str
    """Name of the GPU, or `cpu`."""
    precision: str
    """The dtype of the arithmetic, as `Network.precisions` returns it."""
    batch: int
    """Size of the batch."""
    tile: int | None
    """Side in pixels of the tiles: those of the setting `tile`, or else memory tiles. None: the image was not split."""
    seconds: float
    """This dream's share of the time of its batch, for the ascent and the observation of the result."""

    @property
    def settings(self) -> DreamSettings:
        """The settings of the dream. `dreamcore.dream(image, settings=...)` with these settings repeats it."""
        return self.request.settings

    @property
    def settings_id(self) -> str:
        """Identity of the settings and the weights: 16 hex digits."""
        return settings_id(self.settings, self.weights)

    @property
    def image(self) -> Image.Image:
        """The dream as a PIL image in RGB."""
        return Image.fromarray(self.pixels)

    @property
    def array(self) -> NDArray[np.uint8]:
        """The dream as an array (H, W, 3), uint8."""
        return self.pixels

    @property
    def tensor(self) -> Tensor:
        """The dream as a float tensor (3, H, W) in [0, 1] on the CPU: the values of `array` over 255."""
        return to_tensor(self.pixels)[0]

    @property
    def scores(self) -> dict[str, Score]:
        """The score of each target before and after, by its name, such as `blocks.4` or `blocks.4:12`."""
        return {each.layer: Score(each.before, each.after) for each in self.measurements.layer_scores}

    @property
    def classes(self) -> Classes:
        """The five likeliest classes before and after, the likeliest first."""
        return Classes(self.measurements.classes_before, self.measurements.classes_after)

    @property
    def measurements(self) -> Measurements:
        """Sizes, scores, classes and circumstances of the dream."""
        names = [target.name for target in self.settings.layers]
        return Measurements(
            source_width=self.request.photograph.width,
            source_height=self.request.photograph.height,
            score_before=self.before.score(self.settings.layers),
            score_after=self.after.score(self.settings.layers),
            layer_scores=_layer_scores(names, self.before.scores, self.after.scores),
            octave_scores=self.octave_scores,
            stage_scores=_layer_scores(self.after.stages, self.before.stages, self.after.stages) or None,
            classes_before=[ClassProbability(*each) for each in self.before.classes],
            classes_after=[ClassProbability(*each) for each in self.after.classes],
            octaves_left_out=self.skipped_octaves,
            width=self.pixels.shape[1],
            height=self.pixels.shape[0],
            device=self.device,
            precision=self.precision,
            batch=self.batch,
            tile=self.tile,
            seconds=round(self.seconds, 4),
        )

    def metadata(self) -> dict[str, Any]:
        """Return what is written into the image file: enough to reproduce the dream and to compare the result."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "settings_id": self.settings_id,
            "weights_sha256": self.weights,
            "algorithm_version": ALGORITHM_VERSION,
            **({"diversity": self.request.diversity} if self.request.diversity else {}),
            **asdict(self.measurements),
        }

    def encode(self) -> bytes:
        """Return the dream as a file in the format of `settings.output`, with its metadata inside."""
        output = self.settings.output
        return encode(self.pixels, output.format, output.quality, self.metadata())

    def _repr_png_(self) -> bytes | None:
        """Show the dream in a notebook."""
        data: bytes | None = self.image._repr_png_()
        return data

    def __repr__(self) -> str:
        height, width = self.pixels.shape[:2]
        scores = ", ".join(f"{name}: {score.before:.2f} to {score.after:.2f}" for name, score in self.scores.items())
        return f"<Dream {width}x{height} of {self.settings.model}, {scores}>"


def _layer_scores(names: Iterable[str], before: dict[str, float], after: dict[str, float]) -> list[LayerScore]:
    return [LayerScore(name, before[name], after[name]) for name in names]


def to_tensor(pixels: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """Return 8-bit pixels (H, W, 3) as a batch of one image, (1, 3, H, W) in [0, 1].

    Example:
        >>> import numpy as np
        >>> to_tensor(np.full((2, 3, 3), 255, np.uint8)).shape
        torch.Size([1, 3, 2, 3])
    """
    return torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1)[None].float().div_(255)


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Return images (B, 3, H, W) in [0, 1] as 8-bit pixels (B, H, W, 3), rounded.

    Example:
        >>> import torch
        >>> to_pixels(torch.ones(1, 3, 2, 3)).shape
        (1, 2, 3, 3)
    """
    pixels: NDArray[np.uint8] = (images.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    return pixels
