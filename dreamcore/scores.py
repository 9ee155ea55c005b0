"""How strongly a picture excites what was asked for, and what the network says it sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamcore.models import Network
from dreamcore.settings import Target

TINY = 1e-20
"""Added to a mean square, so that a layer which answers nothing at all scores -46 and not minus infinity."""


@dataclass(frozen=True)
class Sight:
    """What the network makes of one picture."""

    scores: dict[str, float]
    """Score of each target by its name: the natural logarithm of the mean square of its activations."""
    classes: list[tuple[str, float]]
    """The five likeliest classes with their probabilities, the likeliest first; none where there is no classifier."""

    def score(self, objective: Sequence[Target]) -> float:
        """The score of a whole objective: the weighted sum over its targets."""
        return sum(target.weight * self.scores[target.name] for target in objective)


def score(activations: Mapping[str, Tensor], objective: Sequence[Target]) -> Tensor:
    """Score of each sample (B,): the weighted sum, over the targets, of the log of their mean square.

    The logarithm makes the mix independent of each layer's scale: doubling any target's activations adds the same.
    For one target the normalised gradient is that of half the sum of squares, as in 2015.
    """
    scores = [target.weight * target_score(activations[target.layer], target) for target in objective]
    return torch.stack(scores).sum(0)


def target_score(activation: Tensor, target: Target) -> Tensor:
    """Log of the mean square (B,) of one target's activations (B, C, H, W)."""
    chosen = activation[:, list(target.channels)] if target.channels else activation
    return (chosen.float().square().flatten(1).mean(1) + TINY).log()


@torch.no_grad()
def look(network: Network, pictures: Tensor, targets: Sequence[Target]) -> list[Sight]:
    """What `network` makes of each of `pictures` (B, 3, H, W) in [0, 1]: scores at full size, and classes."""
    activations = network.activations(pictures, {target.layer for target in targets})
    scores = {target.name: target_score(activations[target.layer], target).tolist() for target in targets}
    classes = likeliest(network, pictures)
    return [
        Sight({name: values[sample] for name, values in scores.items()}, classes[sample])
        for sample in range(len(pictures))
    ]


def likeliest(network: Network, pictures: Tensor) -> list[list[tuple[str, float]]]:
    """The five likeliest classes of each of `pictures` (B, 3, H, W) in [0, 1], with their probabilities."""
    if not network.labels:
        return [[] for _ in pictures]
    probabilities, indices = network.classify(pictures).topk(min(5, len(network.labels)))
    return [
        [(network.labels[index], probability) for index, probability in zip(*sample, strict=True)]
        for sample in zip(indices.tolist(), probabilities.tolist(), strict=True)
    ]
