"""Observations: the scores that a network gives an image, and its most likely classes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dreamcore.network import Network
from dreamcore.objective import Objective, measure
from dreamcore.targets import Target
from dreamcore.tiles import Tile, whole_image

__all__ = ["Observation", "observations", "observe", "scores_by_target", "stage_scores", "top_classes"]


@dataclass(frozen=True)
class Observation:
    """Scores and classes of one image."""

    scores: dict[str, float]
    """The measured value of each target, by the name of the target."""
    classes: list[tuple[str, float]]
    """The five most likely classes and their probabilities, sorted; empty for a network without classes."""

    stages: dict[str, float] = field(default_factory=dict)
    """Logarithm of the mean square of each stage of the network, by its name; empty if not requested."""

    def score(self, objective: Sequence[Target]) -> float:
        """Return the score of an objective: the weighted sum over its targets.

        Example:
            >>> observation = Observation(scores={"blocks.3": 2.0, "blocks.4": 1.0}, classes=[])
            >>> observation.score([Target(layer="blocks.3", weight=0.5), Target(layer="blocks.4")])
            2.0
        """
        return sum(target.weight * self.scores[target.name] for target in objective)


@torch.no_grad()
def observe(
    network: Network,
    images: Tensor,
    targets: Sequence[Target],
    measure: str,
    guides: Sequence[Tensor | None] | None = None,
    tiles: Sequence[Tile] | None = None,
    *,
    stages: bool = False,
) -> list[Observation]:
    """Return the scores and classes of each image.

    Args:
        network: the network.
        images: images (B, 3, H, W) in [0, 1]. Scores are measured at this size.
        targets: what to measure in each image; names must be unique.
        measure: a key of `MEASURES`.
        guides: the guide image (3, h, w) in [0, 1] of each image, or None. With a guide, the similarity to the guide
            is measured.
        tiles: tiles that cover the images; by default one tile, the whole image.
        stages: whether to measure every stage of the network as well.
    """
    tiles = tiles or whole_image((images.shape[-2], images.shape[-1]))
    objective = Objective(network, [targets] * len(images), measure, guides or [None] * len(images))
    scores = _scores(network, images, objective, tiles)
    return observations(network, images, scores, tiles, stages=stages)


def observations(
    network: Network, images: Tensor, scores: Sequence[dict[str, float]], tiles: Sequence[Tile], *, stages: bool
) -> list[Observation]:
    """Return the observations of `images` (B, 3, H, W) in [0, 1] whose `scores` are already known.

    Args:
        network: the network.
        images: images (B, 3, H, W) in [0, 1].
        scores: the scores of each image, by the name of the target.
        tiles: tiles that cover the images.
        stages: whether to measure every stage of the network as well.
    """
    stage_values = stage_scores(network, images, tiles) if stages else [{} for _ in scores]
    return [Observation(*each) for each in zip(scores, top_classes(network, images), stage_values, strict=True)]


def stage_scores(network: Network, images: Tensor, tiles: Sequence[Tile]) -> list[dict[str, float]]:
    """Return the logarithm of the mean square of each stage of the network, for `images` (B, 3, H, W) in [0, 1]."""
    targets = [Target(layer=stage.name) for stage in network.spec.stages()]
    objective = Objective(network, [targets] * len(images), "log_mean_square", [None] * len(images))
    return _scores(network, images, objective, tiles)


def _scores(network: Network, images: Tensor, objective: Objective, tiles: Sequence[Tile]) -> list[dict[str, float]]:
    """Return the measured value of each target by its name, for each of `images` (B, 3, H, W)."""
    return scores_by_target(objective.targets, objective.each(measure(network, images, objective, tiles)))


def scores_by_target(targets: Sequence[Sequence[Target]], measured: Tensor) -> list[dict[str, float]]:
    """Return the measured values by the names of the targets.

    Args:
        targets: the targets of each sample.
        measured: values (B, targets). Columns beyond the targets of a sample are ignored.

    Example:
        >>> scores_by_target([[Target(layer="a"), Target(layer="b")], [Target(layer="a")]], torch.eye(2))
        [{'a': 1.0, 'b': 0.0}, {'a': 0.0}]
    """
    rows = zip(targets, measured.tolist(), strict=True)
    return [{target.name: score for target, score in zip(*row, strict=False)} for row in rows]


def top_classes(network: Network, images: Tensor) -> list[list[tuple[str, float]]]:
    """Return the five most likely classes of each of `images` (B, 3, H, W) in [0, 1], with their probabilities."""
    if not network.labels:
        return [[] for _ in images]
    probabilities, indices = network.classify(images).topk(min(5, len(network.labels)))
    return [
        [(network.labels[index], p) for index, p in zip(*each, strict=True)]
        for each in zip(indices.tolist(), probabilities.tolist(), strict=True)
    ]
