"""One photograph: dreamt, looked at before and after, and what is worth keeping of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dreamcore.dream import dream, to_pixels, to_tensor
from dreamcore.errors import ImageError
from dreamcore.images import Photograph
from dreamcore.models import Network
from dreamcore.scores import Sight, look
from dreamcore.settings import ALGORITHM_VERSION, DreamSettings, settings_id


@dataclass(frozen=True, eq=False)
class Dreamt:
    """A finished dream."""

    pixels: NDArray[np.uint8]
    """(H, W, 3)"""
    settings: DreamSettings
    weights: str
    """Identity of the network's weights."""
    photograph: Photograph
    before: Sight
    after: Sight
    device: str
    precision: str
    seconds: float

    def measures(self) -> dict[str, Any]:
        """What was measured and cannot be told from the settings, by the manifest's names for it."""
        names = [target.name for target in self.settings.layers]
        scores = ((name, self.before.scores[name], self.after.scores[name]) for name in names)
        return {
            "source_width": self.photograph.width,
            "source_height": self.photograph.height,
            "score_before": self.before.score(self.settings.layers),
            "score_after": self.after.score(self.settings.layers),
            "layer_scores": [{"layer": name, "before": before, "after": after} for name, before, after in scores],
            "classes_before": [{"label": label, "p": p} for label, p in self.before.classes],
            "classes_after": [{"label": label, "p": p} for label, p in self.after.classes],
            "width": self.pixels.shape[1],
            "height": self.pixels.shape[0],
            "device": self.device,
            "precision": self.precision,
            "batch": 1,
            "seconds": round(self.seconds, 4),
        }

    def description(self) -> dict[str, Any]:
        """What is written into the picture: enough to dream it again and to tell how it came out."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "settings_id": settings_id(self.settings, self.weights),
            "weights_sha256": self.weights,
            "algorithm_version": ALGORITHM_VERSION,
            **self.measures(),
        }


def dream_photograph(
    network: Network,
    photograph: Photograph,
    settings: DreamSettings,
    clean: Sight | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Dreamt:
    """Dream one photograph under one point of the grid.

    Args:
        network: the network that `settings` name.
        photograph: decoded, and no larger than `settings.max_pixels`.
        settings: what to dream.
        clean: what the network sees in the photograph, where that is known already.
        watch: called after every step with the steps done and the steps in all.

    Raises:
        ImageError: `too_small` for the network, `out_of_memory`, or `non_finite`.
    """
    picture = to_tensor(photograph.pixels, network.device)
    before = clean or look(network, picture, settings.layers, settings.measure)[0]
    started = time.perf_counter()
    try:
        dreamt = dream(network, picture, settings, watch)
    except torch.OutOfMemoryError as error:
        raise ImageError("out_of_memory", "the GPU's memory does not hold it: lower max_pixels") from error
    if not dreamt.isfinite().all():
        raise ImageError("non_finite", "the ascent left the finite numbers: lower step_size")
    after = look(network, dreamt, settings.layers, settings.measure)[0]
    on_cuda = network.device.type == "cuda"
    return Dreamt(
        pixels=to_pixels(dreamt),
        settings=settings,
        weights=network.card.weights,
        photograph=photograph,
        before=before,
        after=after,
        device=torch.cuda.get_device_name(network.device) if on_cuda else "cpu",
        precision=str(dreamt.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - started,
    )
