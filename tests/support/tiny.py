"""A tiny network, images for it, and settings that take milliseconds."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dreamcore.ascent import Sample, ascend
from dreamcore.network import Network
from dreamcore.presets import AS_PUBLISHED
from dreamcore.settings import DreamSettings
from dreamcore.spec import Layer, NetworkSpec
from dreamcore.targets import LOGITS

LABELS = tuple("abcdefg")
SETTINGS = DreamSettings.model_validate(
    {**AS_PUBLISHED, "model": "tiny", "layers": "deep", "octaves": 2, "steps": 5, "step_size": 0.02, "jitter": 4}
)
"""Fast settings; most tests change one of them with `changed`."""


def tiny_network(activation: Callable[[], nn.Module] = nn.SiLU, min_size: int = 1) -> Network:
    """Return three convolutions and a classifier of seven classes, always with the same weights.

    Args:
        activation: activation function after each convolution.
        min_size: smallest side that the network accepts, in pixels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts: dict[str, nn.Module] = {
            "stem": nn.Conv2d(3, 8, 5, stride=2, padding=2),
            "stem_bend": activation(),
            "body": nn.Conv2d(8, 12, 3, padding=1),
            "body_bend": activation(),
            "deep": nn.Conv2d(12, 16, 3, stride=2, padding=1),
            "deep_bend": activation(),
            "pool": nn.AdaptiveAvgPool2d(1),
            "flat": nn.Flatten(),
            "head": nn.Linear(16, len(LABELS)),
        }
    channels, strides = {"stem": 8, "body": 12, "deep": 16}, {"stem": 2, "body": 2, "deep": 4}
    fields = {"stem": 5, "body": 9, "deep": 13}
    names = [name for name in parts if name.partition("_")[0] in channels]
    layers = [(name, type(parts[name]).__name__, name.partition("_")[0]) for name in names]
    spec = NetworkSpec(
        model="tiny",
        weights="tiny weights",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        size=32,
        min_size=min_size,
        layers=(
            *(Layer(name, kind, channels[stage], strides[stage], 100, fields[stage]) for name, kind, stage in layers),
            Layer(LOGITS, "Sequential", len(LABELS), 224, 100),
        ),
    )
    return Network(nn.Sequential(OrderedDict(parts)), spec, LABELS, plain=True)


def pixels(height: int = 48, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) of waves and some noise, away from black and white."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin((x * across + y * down) / 9 + 1) for across, down in random.uniform(-1, 1, (3, 2))]
    image = 128 + 50 * np.stack(waves, axis=-1) + random.normal(0, 8, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def picture(height: int = 48, width: int = 64, seed: int = 0) -> Tensor:
    """Return the same image as a batch of one: (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels(height, width, seed)).permute(2, 0, 1)[None].float() / 255


def dreams(network: Network, images: Tensor, settings: DreamSettings, **options: Any) -> Tensor:
    """Return the dreams (B, 3, H, W) of `images` (B, 3, H, W), all with the same settings."""
    return ascend(network, [Sample(each, settings) for each in images], **options).images


def changed(**fields: object) -> DreamSettings:
    """Return `SETTINGS` with some fields changed."""
    return DreamSettings.model_validate({**SETTINGS.model_dump(mode="json"), **fields})
