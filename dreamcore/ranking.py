"""Channels that a photograph excites most or least, for targets such as `blocks.4:(top16)`."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamcore.catalog import resolve_layers, with_channels
from dreamcore.network import Network
from dreamcore.results import to_tensor
from dreamcore.settings import DreamSettings
from dreamcore.sweeps import Ranking, ranked

__all__ = ["choose_channels", "ranked_channels"]


@torch.no_grad()
def ranked_channels(network: Network, image: Tensor, ranking: Ranking) -> list[int]:
    """Return the channels of a layer that an image excites most or least, in the order of the ranking.

    The channels are ordered by their mean activation over the image, which is resized to the training size of the
    network. Of equal channels, the one of the smaller number comes first.

    Args:
        network: the network.
        image: an image (3, H, W) in [0, 1] on the device of the network. Images are ranked one by one, so that the
            channels of an image never depend on other images.
        ranking: the layer, which of its channels and how many, and where in the image activations are measured.
    """
    features = network.features(image[None], [ranking.layer])[ranking.layer][0]  # (C, h, w) or (C,)
    if ranking.at and features.ndim == 3:
        x, y = (int(part * side * 0.9999) for part, side in zip(ranking.at, features.shape[:0:-1], strict=True))
        features = features[:, y, x]
    means = features.flatten(1).mean(1) if features.ndim > 1 else features
    order = torch.argsort(means, descending=ranking.order == "top", stable=True)
    return [int(channel) for channel in order[: ranking.size].tolist()]


def choose_channels(network: Network, settings: DreamSettings, pixels: NDArray[np.uint8]) -> DreamSettings:
    """Return resolved settings in which channels that depend on the photograph, such as `(top16)`, are named.

    Args:
        network: the network of the settings.
        settings: settings from `resolve_layers`.
        pixels: the photograph (H, W, 3).
    """
    if not any(target.sweep for target in settings.layers):
        return settings
    image, targets = to_tensor(pixels, network.device)[0], []
    for target in settings.layers:
        if order := ranked(target.sweep):
            target = with_channels(target, ranked_channels(network, image, Ranking(*order, target.layer, target.at)))
        targets.append(target)
    return resolve_layers(settings.model_copy(update={"layers": tuple(targets)}), network.spec)
