"""What a network makes of an image: the score of each target, and the likeliest classes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dreamcore.network import Network
from dreamcore.objective import Objective, measure
from dreamcore.targets import Target
from dreamcore.tiles import Tile, whole_image


@dataclass(frozen=True)
class Observation:
    """What the network makes of one picture."""

    scores: dict[str, float]
    """What was measured of each target, by its name."""
    classes: list[tuple[str, float]]
    """The five likeliest classes and their probabilities, the likeliest first; empty for a network without classes."""

    stages: dict[str, float] = field(default_factory=dict)
    """Logarithm of the mean square of each stage of the network, by its name; none where it was not asked for."""

    def score(self, objective: Sequence[Target]) -> float:
        """The score of a whole objective: the weighted sum over its targets."""
        return sum(target.weight * self.scores[target.name] for target in objective)


@torch.no_grad()
def observe(
    network: Network,
    pictures: Tensor,
    targets: Sequence[Target],
    how: str,
    guides: Sequence[Tensor | None] | None = None,
    tiles: Sequence[Tile] | None = None,
    *,
    stages: bool = False,
) -> list[Observation]:
    """What `network` makes of each of `pictures` (B, 3, H, W) in [0, 1]: scores at full size, and classes.

    Args:
        network: the network.
        pictures: the pictures.
        targets: what to measure in each, every name once.
        how: one of `MEASURES`.
        guides: for each picture (3, h, w), where likeness to a guide is measured instead, or None.
        tiles: the tiles to look at one by one; the whole pictures at once where there are none.
        stages: whether to measure every stage of the network, too.
    """
    tiles = tiles or whole_image((pictures.shape[-2], pictures.shape[-1]))
    objective = Objective(network, [targets] * len(pictures), how, guides or [None] * len(pictures))
    scores = _scores(network, pictures, objective, tiles)
    return observations(network, pictures, scores, tiles, stages=stages)


def observations(
    network: Network, pictures: Tensor, scores: Sequence[dict[str, float]], tiles: Sequence[Tile], *, stages: bool
) -> list[Observation]:
    """What `network` makes of each of `pictures` (B, 3, H, W) in [0, 1], whose `scores` are measured already."""
    seen = stage_scores(network, pictures, tiles) if stages else [{} for _ in scores]
    return [Observation(*each) for each in zip(scores, top_classes(network, pictures), seen, strict=True)]


def stage_scores(network: Network, pictures: Tensor, tiles: Sequence[Tile]) -> list[dict[str, float]]:
    """The logarithm of the mean square of each stage of the network, for each of `pictures` (B, 3, H, W) in [0, 1]."""
    targets = [Target(layer=stage.name) for stage in network.spec.stages()]
    objective = Objective(network, [targets] * len(pictures), "log_mean_square", [None] * len(pictures))
    return _scores(network, pictures, objective, tiles)


def _scores(network: Network, pictures: Tensor, objective: Objective, tiles: Sequence[Tile]) -> list[dict[str, float]]:
    """What is measured of each target of an objective at each of `pictures` (B, 3, H, W), by the target's name."""
    return scores_by_target(objective.targets, objective.each(measure(network, pictures, objective, tiles)))


def scores_by_target(targets: Sequence[Sequence[Target]], measured: Tensor) -> list[dict[str, float]]:
    """What was `measured` (B, targets) of each sample's targets, by their names; samples may have fewer than others."""
    rows = zip(targets, measured.tolist(), strict=True)
    return [{target.name: score for target, score in zip(*row, strict=False)} for row in rows]


def top_classes(network: Network, pictures: Tensor) -> list[list[tuple[str, float]]]:
    """The five top_classes classes of each of `pictures` (B, 3, H, W) in [0, 1], with their probabilities."""
    if not network.labels:
        return [[] for _ in pictures]
    probabilities, indices = network.classify(pictures).topk(min(5, len(network.labels)))
    return [
        [(network.labels[index], p) for index, p in zip(*each, strict=True)]
        for each in zip(indices.tolist(), probabilities.tolist(), strict=True)
    ]
