"""Enlarge a dream: the same composition with more pixels, and details in them.

The detail of the dream, which is the dream minus the photograph at the size of the dream, is resized and added to the
large photograph. Then only the octaves larger than the dream are dreamt (see `ascent`). Dreaming the large photograph
anew would give another composition, because every octave then has another size.
"""

import math

from dreamcore.errors import InvalidInput
from dreamcore.fields import Enlarge, Reference
from dreamcore.images import Photograph
from dreamcore.octaves import resize
from dreamcore.results import DreamRequest, to_tensor
from dreamcore.settings import DreamSettings

__all__ = [
    "check_dream",
    "enlarged_photograph",
    "enlarged_settings",
    "settings_of_ascent",
]


def enlarged_photograph(photograph: Photograph, max_pixels: int) -> Photograph:
    """Return the photograph at the largest size of its aspect ratio that has at most `max_pixels` pixels.

    A photograph with fewer pixels is upsampled.

    Args:
        photograph: a photograph, decoded with at most `max_pixels` pixels.
        max_pixels: number of pixels of the result, at most.

    Example:
        >>> import numpy as np
        >>> small = Photograph(np.zeros((20, 30, 3), np.uint8), width=30, height=20)
        >>> enlarged_photograph(small, 2400).pixels.shape
        (40, 60, 3)
    """
    height, width = photograph.pixels.shape[:2]
    factor = math.sqrt(max_pixels / (height * width))
    size = math.floor(height * factor), math.floor(width * factor)
    if photograph.width * photograph.height >= max_pixels or size[0] <= height or size[1] <= width:
        return photograph
    large = resize(to_tensor(photograph.pixels), size).clamp_(0, 1).mul_(255).round_().byte()
    return Photograph(large[0].permute(1, 2, 0).numpy(), photograph.width, photograph.height)


def enlarged_settings(settings: DreamSettings, dream: Reference, strength: float, max_pixels: int) -> DreamSettings:
    """Return the settings of an enlarged dream.

    Args:
        settings: the settings of the dream.
        dream: the file of the dream, with its SHA-256.
        strength: factor of the step size in the new octaves, 0 to 2.
        max_pixels: number of pixels of the enlarged dream, at most.
    """
    enlarge = Enlarge.model_validate({"uri": dream.uri, "sha256": dream.sha256, "strength": strength})
    return settings.model_copy(update={"enlarge": enlarge, "max_pixels": max_pixels})


def settings_of_ascent(settings: DreamSettings) -> DreamSettings:
    """Return the settings with which an ascent goes on from a dream; settings without `enlarge` stay as they are.

    Each octave keeps the detail of the photograph, whatever `carry` says, and none is larger than the enlarged dream.
    """
    if settings.enlarge is None:
        return settings
    step_size = settings.step_size * settings.enlarge.strength
    return settings.model_copy(update={"step_size": step_size, "carry": "detail", "octaves_above": 0})


def check_dream(request: DreamRequest) -> None:
    """Check that a request has the dream that its settings name, and that its photograph is not smaller.

    Raises:
        InvalidInput: the dream is missing, is given but not named by the settings, or is larger than the photograph.
    """
    if (request.settings.enlarge is None) != (request.dream is None):
        raise InvalidInput("a dream is enlarged with its image and with settings that name it: give both")
    if request.dream and request.dream.pixels.size > request.photograph.pixels.size:
        sizes = (f"{each.pixels.shape[1]} x {each.pixels.shape[0]}" for each in (request.dream, request.photograph))
        raise InvalidInput("the dream has {} pixels, and the photograph only {}: give a larger one".format(*sizes))
