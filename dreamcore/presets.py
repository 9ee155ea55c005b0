"""Published programs as settings; `docs/presets.md` shows an image of each.

A preset reproduces every step of its program; the comment of `lucid` names two exceptions. A preset does not choose the
network. On the network of the program it excites the layers of the program. On any other network it excites the layers
at the same depth. The depth of a layer is the share of the network's multiply-adds up to that layer.

Images are in [0, 1] here. So the step sizes of programs that work in [-1, 1] or [0, 255] are divided by 2 or by 255.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["AS_PUBLISHED", "PRESET", "PRESETS", "Preset", "PresetName"]

PresetName = Literal["google2015", "tf2", "tf2_tiled", "keras", "gordic", "lucid"]
"""The names of `PRESETS`."""
PRESET = "A published program; settings given explicitly override the preset."
"""Description of the field `preset`."""


@dataclass(frozen=True)
class Preset:
    """One published program as settings."""

    model: str
    """Network of the program."""
    layers: str
    """Objective of the program in that network."""
    depths: str
    """Objective in any other network."""
    settings: Mapping[str, Any]
    """All other fields of `DreamSettings` that differ from the defaults."""


AS_PUBLISHED: Mapping[str, Any] = {
    "color": 0.0,
    "soft_clip": 0.0,
    "calm": 0.0,
    "keep_colors": 0.0,
}
"""Settings that turn off what no published program does. They are the same in all presets."""

_KERAS_FAMILY = {
    **AS_PUBLISHED,
    "resample": "bilinear",
    "rounding": "down",
    "step_size": 0.01 / 2,
    "jitter": 0,
    "gradient": "plain",
}

_TENSORFLOW = {
    **_KERAS_FAMILY,
    "octaves": 5,
    "octaves_above": 2,
    "octave_scale": 1.3,
    "measure": "mean",
    "normalise": "tf2",
}

PRESETS: dict[PresetName, Preset] = {
    # Mordvintsev, Olah and Tyka: google/deepdream, dream.ipynb (2015).
    "google2015": Preset(
        model="googlenet",
        layers="inception4c",
        depths="74%",
        settings={
            **AS_PUBLISHED,
            "octaves": 4,
            "octave_scale": 1.4,
            "resample": "zoom",
            "steps": 10,
            "step_size": 1.5 / 255,
            "jitter": 32,
            "measure": "half_sum_square",
            "gradient": "plain",
            "normalise": "mean_abs",
            "carry": "detail",
        },
    ),
    # TensorFlow's tutorial deepdream.ipynb, the section with octaves.
    "tf2": Preset(
        model="inception_v3",
        layers="Mixed_6a+Mixed_6c",  # mixed3 and mixed5 in Keras
        depths="51%+66%",
        settings={**_TENSORFLOW, "steps": 50, "carry": "result_8bit"},
    ),
    # TensorFlow's tutorial, the section with tiles. The tutorial skips the last, partial tiles; this preset does not.
    "tf2_tiled": Preset(
        model="inception_v3",
        layers="Mixed_6a+Mixed_6c",
        depths="51%+66%",
        settings={**_TENSORFLOW, "steps": 100, "carry": "result", "jitter": 512, "tile": 512},
    ),
    # Chollet: keras-io, deep_dream.py.
    "keras": Preset(
        model="inception_v3",
        layers="Mixed_6b+Mixed_6c=1.5+Mixed_6d=2+Mixed_6e=2.5",  # mixed4 to mixed7 in Keras
        depths="57%+66%=1.5+74.5%=2+85%=2.5",
        settings={
            **_KERAS_FAMILY,
            "octaves": 3,
            "octave_scale": 1.4,
            "steps": 20,
            "stop_at": 15,
            "clip": False,
            "measure": "inner_mean_square",
            "normalise": "keras",
            "carry": "detail",
        },
    ),
    # Gordić: pytorch-deepdream.
    "gordic": Preset(
        model="vgg16",
        layers="features.22",  # relu4_3
        depths="91%",
        settings={
            **AS_PUBLISHED,
            "octaves": 4,
            "octave_scale": 1.8,
            "resample": "bilinear",
            "steps": 10,
            "step_size": 0.09,
            "space": "network",
            "jitter": 32,
            "measure": "mean_square",
            "gradient": "gaussian",
            "normalise": "zero_mean_std",
            "carry": "result",
        },
    ),
    # Olah, Mordvintsev and Schubert: lucid, `render_vis` with its defaults, for feature visualization. Name a channel
    # and begin with noise. Two differences: all views of a step have one size, so that samples with different scales
    # share a batch; and each gradient is divided by its RMS before Adam, as everywhere in Dreamgrid.
    "lucid": Preset(
        model="googlenet",
        layers="inception4a",  # mixed4a
        depths="62.5%",
        settings={
            **AS_PUBLISHED,
            "octaves": 1,
            "steps": 512,
            "step_size": 0.05,
            "space": "fourier",
            "transforms": "lucid",
            "measure": "mean",
            "gradient": "plain",
            "normalise": "adam",
        },
    ),
}
"""The presets by name."""
