"""Pictures of what the channels of a layer react to. Each picture is dreamt from noise.

Planning an atlas imports no torch. Only `draw_channels` does.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dreamcore.errors import ImageError
from dreamcore.images import Photograph
from dreamcore.settings import DreamSettings, digest, settings_id
from dreamcore.spec import NetworkSpec
from dreamcore.targets import Target

if TYPE_CHECKING:
    from dreamcore.batch import Limits
    from dreamcore.network import Network

__all__ = ["channel_settings", "draw_channels", "picture_id", "picture_size"]

SIZES = range(64, 129)
"""Sides of pictures in pixels, unless the network needs more."""
ASCENT: dict[str, Any] = {
    "preset": "lucid",
    "octaves": 2,
    "steps": 40,
    "gradient": "gaussian",
    "measure": DreamSettings.model_fields["measure"].default,
}
"""How pictures are dreamt: as lucid does, but with a coarse octave first, which saves most of the steps. The Gaussian
filter removes fine dots. Because of the default measure, a photograph that is dreamt with the same layer and channel
shows the motifs of the picture."""


def picture_size(spec: NetworkSpec, layer: str) -> int:
    """Return the side in pixels of the pictures of a layer.

    It grows with the receptive field, so that a picture shows the motif a few times. The motif of an early layer has a
    few pixels, and would not be visible in a large picture. The middle of a receptive field matters most, so pictures
    of late layers may be smaller than the field.

    Args:
        spec: the network.
        layer: a layer of the network.

    Example:
        >>> from dreamcore import network_spec
        >>> spec = network_spec("efficientnet_lite0")
        >>> [picture_size(spec, layer) for layer in ("blocks.0", "blocks.4", "logits")]
        [64, 128, 128]
    """
    field = spec.layer(layer).receptive_field
    side = SIZES[-1] if field is None else 16 * round(7 * field**0.5 / 16)
    return max(min(max(side, SIZES[0]), SIZES[-1]), spec.min_size)


def channel_settings(model: str, layer: str, channel: int) -> DreamSettings:
    """Return the settings with which the picture of one channel is dreamt from noise."""
    return DreamSettings(model=model, layers=(Target(layer=layer, channels=(channel,)),), **ASCENT)


def picture_id(spec: NetworkSpec, layer: str, channel: int, size: int) -> str:
    """Return the identity of the picture of one channel: 16 hex digits.

    Args:
        spec: the network.
        layer: a layer of the network.
        channel: a channel of the layer.
        size: side of the picture in pixels.
    """
    return digest(settings_id(channel_settings(spec.model, layer, channel), spec.weights), size)


def draw_channels(
    network: "Network", layer: str, channels: Sequence[int], size: int, limits: "Limits | None" = None
) -> list[NDArray[np.uint8]]:
    """Draw what each of some channels of a layer reacts to, starting from noise.

    Up to rounding, a picture does not depend on the other channels.

    Args:
        network: the network.
        layer: a layer of the network.
        channels: channels of the layer.
        size: side of the pictures in pixels.
        limits: the memory limit of the machine; by default none.

    Returns:
        A picture (size, size, 3) for each channel.

    Raises:
        InvalidInput: the layer or a channel does not exist.
        ImageError: `too_small` for the network, or `out_of_memory`.

    Example:
        >>> from dreamcore import load_network
        >>> picture, = draw_channels(load_network("efficientnet_lite0"), "blocks.0", [3], 32)
        >>> picture.shape
        (32, 32, 3)
    """
    from dreamcore.batch import DreamRequest, Limits, dream_photographs
    from dreamcore.noise import noise_image

    network.spec.check_channels(layer, channels)
    start = Photograph(np.asarray(noise_image(size, size)), size, size)
    requests = [DreamRequest(start, channel_settings(network.spec.model, layer, channel)) for channel in channels]
    pictures: list[NDArray[np.uint8]] = []
    for dream in dream_photographs(network, requests, limits or Limits()):
        if isinstance(dream, ImageError):
            raise dream
        pictures.append(dream.pixels)
    return pictures
