"""The published DeepDream programs as settings, step for step; `docs/presets.md` shows what each makes.

A preset says how to dream, not with what: on the network of its authors it excites their layers, on any other the
layers at the same depth, as a share of the multiply-adds up to them. Pictures are in [0, 1] here, so step sizes of
programs that work in [-1, 1] or in 0 to 255 are divided by 2 or by 255.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

PresetName = Literal["google2015", "tf2", "tf2_tiled", "keras", "gordic"]
PRESET = "One of the published programs, step for step; settings that are given beside it go before its own."


@dataclass(frozen=True)
class Preset:
    """One program."""

    model: str
    """The network of its authors."""
    layers: str
    """What they excite in it."""
    depths: str
    """What stands in for these layers in any other network."""
    settings: Mapping[str, Any]
    """Everything else in which it differs from the defaults."""


_KERAS_FAMILY = {
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
    # TensorFlow's tutorial deepdream.ipynb: over octaves ...
    "tf2": Preset(
        model="inception_v3",
        layers="Mixed_6a+Mixed_6c",  # Keras calls them mixed3 and mixed5
        depths="51%+66%",
        settings={**_TENSORFLOW, "steps": 50, "carry": "result_8bit"},
    ),
    # ... and in tiles, of which the tutorial leaves the last, partial ones out: here every tile is dreamt.
    "tf2_tiled": Preset(
        model="inception_v3",
        layers="Mixed_6a+Mixed_6c",
        depths="51%+66%",
        settings={**_TENSORFLOW, "steps": 100, "carry": "result", "jitter": 512, "tile": 512},
    ),
    # Chollet: keras-io, deep_dream.py.
    "keras": Preset(
        model="inception_v3",
        layers="Mixed_6b+Mixed_6c=1.5+Mixed_6d=2+Mixed_6e=2.5",  # mixed4 to mixed7
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
}
