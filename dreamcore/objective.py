"""How strongly pictures excite what was asked for, and what the network says it sees."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dreamcore.network import LayerActivations, Network, index
from dreamcore.targets import LOGITS, Target
from dreamcore.tiles import INSIDE, Edges, Tile

TINY = 1e-20
"""Added to a mean square, so that a layer which activations nothing at all scores -46 and not minus infinity."""

BORDER = 2
"""Positions along each edge of a picture that `inner_mean_square` leaves out, as keras-io does."""

MATCHED = 2**22
"""Dot products with a guide's features that are held in memory at once."""

Place = tuple[float, float]
"""Across and down, each from 0 to 1."""

MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "log_mean_square": lambda total, count: (total.clamp_min(0) / count + TINY).log(),
    "mean_square": lambda total, count: total / count,
    "inner_mean_square": lambda total, count: total / count,
    "half_sum_square": lambda total, _count: total / 2,
    "l2_norm": lambda total, _count: (total.clamp_min(0) + TINY).sqrt(),
    "mean": lambda total, count: total / count,
}
"""What may be measured, from the sum over a target's activations (of their squares, but for `mean`) and their number.

The logarithm makes a mix independent of each layer's scale: doubling any target's activations adds the same. For one
target all the squares have the same normalised gradient, that of 2015; the mean is TensorFlow's tutorial.
"""


class Objective:
    """What each sample of a batch is to excite.

    Everything is measured in sums, which can be added up over the tiles of a picture before they become scores.

    Args:
        network: the network.
        targets: the objective of each sample.
        measure: one of `MEASURES`, for all of them.
        guides: the guide (3, h, w) of each sample, or None.
    """

    def __init__(
        self,
        network: Network,
        targets: Sequence[Sequence[Target]],
        measure: str,
        guides: Sequence[Tensor | None],
    ) -> None:
        self.targets, self.measure = targets, measure
        self.layers = [frozenset(target.layer for target in each) for each in targets]
        shape = len(targets), max(len(each) for each in targets)
        self.weights = torch.zeros(shape, device=network.device)
        self.as_it_is = torch.zeros(shape, dtype=torch.bool, device=network.device)
        self._features: list[dict[str, Tensor]] = []
        known: dict[tuple[int, frozenset[str]], dict[str, Tensor]] = {}
        for sample, (each, guide) in enumerate(zip(targets, guides, strict=True)):
            for column, target in enumerate(each):
                self.weights[sample, column] = target.weight
                self.as_it_is[sample, column] = guide is not None or target.layer == LOGITS
            key = id(guide), self.layers[sample]
            if key not in known:
                known[key] = {} if guide is None else network.features(guide[None], self.layers[sample])
            self._features.append(known[key])

    def sums(
        self, activations: Mapping[str, LayerActivations], where: Callable[[int, Place], Place | None], edges: Edges
    ) -> Tensor:
        """Sum and number (B, targets, 2) of what each sample's targets answer.

        Args:
            activations: what the network's layers answer to a picture or a tile of it.
            where: tells where in that tile a place of a sample's picture lies; None is outside.
            edges: which of the tile's edges are those of the picture.
        """
        alike: dict[tuple[str, tuple[int, ...], Place | None, int], list[tuple[int, int]]] = {}
        for sample, targets in enumerate(self.targets):
            for column, target in enumerate(targets):
                at = where(sample, target.at) if target.at else None
                if at or not target.at:
                    guide = id(self._features[sample].get(target.layer))
                    alike.setdefault((target.layer, target.channels, at, guide), []).append((sample, column))
        dtype = next(iter(activations.values())).features.dtype
        sums = torch.zeros((*self.weights.shape, 2), device=self.weights.device, dtype=dtype)
        for (layer, channels, at, _), members in alike.items():
            samples, columns = zip(*members, strict=True)
            chosen = _chosen(activations[layer], samples, channels, at)
            guide = self._features[samples[0]].get(layer)
            if guide is not None:
                total, count = _matched(chosen, _part(guide, channels)[0])
            else:
                total, count = _added(chosen, "mean" if layer == LOGITS else self.measure, INSIDE if at else edges)
            at_rows, at_columns = index(samples, sums.device), index(columns, sums.device)
            sums[at_rows, at_columns, 0] = total
            sums[at_rows, at_columns, 1] = count
        return sums

    def each(self, sums: Tensor) -> Tensor:
        """What is measured (B, targets) of each target, from its `sums` (B, targets, 2)."""
        total, count = sums[..., 0], sums[..., 1].clamp_min(1)
        return torch.where(self.as_it_is, total / count, MEASURES[self.measure](total, count))

    def score(self, sums: Tensor, whole: Tensor | None = None) -> Tensor:
        """Score (B,) of each sample: the weighted sum of what is measured of its targets.

        Args:
            sums: of the pictures (B, targets, 2), or of a tile of them.
            whole: the sums of the whole pictures, of which `sums` are a part: the score is then that of the whole,
                and its gradient what the tile has of it.
        """
        if whole is not None:
            sums = whole + (sums - sums.detach())
        return (self.weights * self.each(sums)).sum(1)


def _chosen(answer: LayerActivations, samples: tuple[int, ...], channels: tuple[int, ...], at: Place | None) -> Tensor:
    """Of what a layer activations, the part (b, C, ...) that a target asks of some samples."""
    features = answer.features
    if list(samples) != answer.samples:
        rows = tuple(answer.samples.index(sample) for sample in samples)
        features = features.index_select(0, index(rows, features.device))
    features = _part(features, channels)
    if at:
        across, down = (int(part * side * 0.9999) for part, side in zip(at, features.shape[:1:-1], strict=True))
        features = features[:, :, down : down + 1, across : across + 1]
    return features


def _part(features: Tensor, channels: tuple[int, ...]) -> Tensor:
    """These channels of `features` (b, C, ...); all where none are named."""
    return features.index_select(1, index(channels, features.device)) if channels else features


def _added(features: Tensor, measure: str, edges: Edges) -> tuple[Tensor, int]:
    """Sum (b,) over the activations (b, ...) of each sample, or over their squares, and their number."""
    count = features[0].numel()
    if measure == "inner_mean_square" and features.ndim == 4:
        features = _inner(features, edges)
    return (features if measure == "mean" else features.square()).flatten(1).sum(1), count


def _inner(features: Tensor, edges: Edges) -> Tensor:
    """What of `features` (b, C, h, w) is further than `BORDER` from these edges; all of a picture that has no more."""
    height, width = features.shape[2:]
    (top, bottom), (left, right) = edges
    if (top and bottom and height <= 2 * BORDER) or (left and right and width <= 2 * BORDER):
        return features
    rows, columns = slice(BORDER * top, height - BORDER * bottom), slice(BORDER * left, width - BORDER * right)
    return features[:, :, rows, columns]


def _matched(features: Tensor, guide: Tensor) -> tuple[Tensor, int]:
    """Sum (b,) over the positions of `features` (b, C, h, w), each times that vector of `guide` which it is most like.

    Most like is what has the largest dot product: Mordvintsev, Olah and Tyka's notebook (2015), in which the gradient
    of each position is that vector, as it is here. It is measured in mean squares of the guide, so that a picture like
    its guide scores about 1 in any layer.
    """
    vectors = guide.flatten(1) if guide.ndim > 1 else guide[:, None]  # (C, Q)
    positions = features.flatten(2) if features.ndim == 4 else features[..., None]  # (b, C, P)
    with torch.no_grad():
        at_once = max(1, MATCHED // (vectors.shape[1] * len(positions)))
        best = torch.cat([(vectors.T @ part).argmax(1) for part in torch.split(positions, at_once, 2)], 1)  # (b, P)
    like = vectors.T[best].transpose(1, 2)  # (b, C, P)
    return (positions * like).flatten(1).sum(1) / vectors.square().sum(0).mean().clamp_min(TINY), positions.shape[2]


@torch.no_grad()
def measure(network: Network, pictures: Tensor, objective: Objective, tiles: Sequence[Tile]) -> Tensor:
    """The sums (B, targets, 2) of whole `pictures` (B, 3, H, W) in [0, 1], seen tile by tile."""
    size = (pictures.shape[-2], pictures.shape[-1])
    parts = []
    for tile in tiles:
        activations = network.sample_activations(tile.crop(pictures), objective.layers)
        sums = objective.sums(
            activations,
            lambda _sample, at, tile=tile: tile.locate(at, size),  # type: ignore[misc]
            tile.edges(size),
        )
        parts.append(sums)
    return torch.stack(parts).sum(0)
