"""How strongly a picture excites what was asked for, and what the network says it sees."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamcore.models import Network
from dreamcore.settings import LOGITS, DreamSettings, Target

TINY = 1e-20
"""Added to a mean square, so that a layer which answers nothing at all scores -46 and not minus infinity."""


@dataclass(frozen=True)
class Sight:
    """What the network makes of one picture."""

    scores: dict[str, float]
    """What was measured of each target, by its name."""
    classes: list[tuple[str, float]]
    """The five likeliest classes with their probabilities, the likeliest first; none where there is no classifier."""

    def score(self, objective: Sequence[Target]) -> float:
        """The score of a whole objective: the weighted sum over its targets."""
        return sum(target.weight * self.scores[target.name] for target in objective)


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "log_mean_square": lambda chosen: (chosen.square().mean(1) + TINY).log(),
    "mean_square": lambda chosen: chosen.square().mean(1),
    "half_sum_square": lambda chosen: chosen.square().sum(1) / 2,
    "l2_norm": lambda chosen: (chosen.square().sum(1) + TINY).sqrt(),
    "mean": lambda chosen: chosen.mean(1),
}
"""What may be measured of a target's activations, as (B, N) -> (B,).

The logarithm makes a mix independent of each layer's scale: doubling any target's activations adds the same. For one
target all the squares have the same normalised gradient, that of 2015; the mean is TensorFlow's tutorial.
"""


def score(activations: Mapping[str, Tensor], objective: Sequence[Target], measure: str) -> Tensor:
    """Score of each sample (B,): the weighted sum of what is measured of the targets."""
    scores = [target.weight * target_score(activations[target.layer], target, measure) for target in objective]
    return torch.stack(scores).sum(0)


def target_score(activation: Tensor, target: Target, measure: str) -> Tensor:
    """What is measured (B,) of one target's activations (B, C, H, W), or of logits (B, C): their mean always."""
    chosen = activation[:, list(target.channels)] if target.channels else activation
    if target.at:
        across, down = (int(where * side * 0.9999) for where, side in zip(target.at, chosen.shape[:1:-1], strict=True))
        chosen = chosen[:, :, down, across]
    measured: Tensor = MEASURES["mean" if target.layer == LOGITS else measure](chosen.flatten(1))
    return measured


def penalty(pictures: Tensor, undreamt: Tensor, settings: DreamSettings) -> Tensor:
    """What is held against each sample (B,) of `pictures` (B, 3, H, W), dreamt from `undreamt` of the same shape."""
    across = (pictures[..., :, 1:] - pictures[..., :, :-1]).abs().mean((1, 2, 3))
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).abs().mean((1, 2, 3))
    change = (pictures - undreamt).square().mean((1, 2, 3))
    return settings.total_variation * (across + down) + settings.l2 * change


@torch.no_grad()
def look(network: Network, pictures: Tensor, targets: Sequence[Target], measure: str) -> list[Sight]:
    """What `network` makes of each of `pictures` (B, 3, H, W) in [0, 1]: scores at full size, and classes."""
    activations = network.activations(pictures, {target.layer for target in targets})
    scores = {target.name: target_score(activations[target.layer], target, measure).tolist() for target in targets}
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
