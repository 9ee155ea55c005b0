"""The result of `dream`: the image, its scores, classes, settings and measurements."""

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dreamcore import batch
from dreamcore.batch import ClassProbability, Measurements, to_tensor
from dreamcore.images import encode
from dreamcore.settings import DreamSettings, settings_id

__all__ = ["Classes", "Dream", "Score"]


class Score(NamedTuple):
    """The score of one layer, before and after the dream."""

    before: float
    after: float


class Classes(NamedTuple):
    """The five most probable classes, before and after the dream; empty for a network without classes."""

    before: list[ClassProbability]
    after: list[ClassProbability]


class Dream:
    """The dream of one image."""

    def __init__(self, dreamt: batch.Dream) -> None:
        self._dreamt = dreamt

    @cached_property
    def image(self) -> Image.Image:
        """The dream as a Pillow image in RGB."""
        return Image.fromarray(self.array)

    @property
    def array(self) -> NDArray[np.uint8]:
        """The dream as an array `(H, W, 3)` of uint8."""
        return self._dreamt.pixels

    @property
    def tensor(self) -> Tensor:
        """The dream as a float tensor `(3, H, W)` in [0, 1] on the CPU. Its values are those of `array`, over 255."""
        return to_tensor(self.array)[0]

    @property
    def scores(self) -> dict[str, Score]:
        """The score of each excited layer before and after, by name, such as `blocks.4` or `blocks.4:12`."""
        return {each.layer: Score(each.before, each.after) for each in self.measurements.layer_scores}

    @property
    def classes(self) -> Classes:
        """The most probable classes before and after, the most probable first."""
        return Classes(self.measurements.classes_before, self.measurements.classes_after)

    @property
    def settings(self) -> DreamSettings:
        """All settings of this dream. `dream(image, settings=...)` with these settings repeats it."""
        return self._dreamt.settings

    @property
    def settings_id(self) -> str:
        """Identity of the settings and the weights: 16 hex digits."""
        return settings_id(self.settings, self._dreamt.weights)

    @property
    def measurements(self) -> Measurements:
        """All measurements: sizes, scores, classes, device, precision, seconds."""
        return self._dreamt.measurements

    def encode(self) -> bytes:
        """Return the dream as a file in the format of `settings.output`, with settings and measurements inside."""
        output = self.settings.output
        return encode(self.array, output.format, output.quality, self._dreamt.metadata())

    def _repr_png_(self) -> bytes | None:
        """Show the dream in a notebook."""
        data: bytes | None = self.image._repr_png_()
        return data

    def __repr__(self) -> str:
        height, width = self.array.shape[:2]
        scores = ", ".join(f"{name}: {score.before:.2f} to {score.after:.2f}" for name, score in self.scores.items())
        return f"<Dream {width}x{height} of {self.settings.model}, {scores}>"
