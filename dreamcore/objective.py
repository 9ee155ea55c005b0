"""Objectives: how strongly images excite the targets of their settings."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from dreamcore.errors import InvalidInput
from dreamcore.network import LayerActivations, Network, index
from dreamcore.targets import LOGITS, Anchor, Target
from dreamcore.tiles import INSIDE, Edges, Tile

__all__ = ["MEASURES", "Objective", "Position", "measure"]

_TINY = 1e-20
"""Added to a mean square, so that a layer of zeros scores -46 and not minus infinity."""

_BLUNT = 1e-4
"""Rounds off the kink of the relative distance at 0, where an ascent begins and a root has no gradient."""

_BORDER = 2
"""Positions along each edge of the image that `inner_mean_square` leaves out, as keras-io does."""

_MIN_COSINE = 0.1
"""Smallest cosine similarity by which a direction is multiplied, as in lucid: at 0 the gradient would vanish."""

_MAX_PRODUCTS = 2**22
"""Largest number of dot products with a guide's features that are in memory at the same time."""

Position = tuple[float, float]
"""Position (x, y), each from 0 to 1."""

MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "log_mean_square": lambda total, count: (total.clamp_min(0) / count + _TINY).log(),
    "mean_square": lambda total, count: total / count,
    "inner_mean_square": lambda total, count: total / count,
    "half_sum_square": lambda total, _count: total / 2,
    "l2_norm": lambda total, _count: (total.clamp_min(0) + _TINY).sqrt(),
    "mean": lambda total, count: total / count,
}
"""Functions of (total, count) by the value of the setting `measure`.

The total is the sum of the squared activations of a target; for `mean` it is the sum of the activations. The count is
the number of activations.

With the logarithm, a mix does not depend on the scale of each layer: doubling the activations of any target adds the
same score. For a single target, all squares give the same normalized gradient as the program of 2015. `mean` is that of
TensorFlow's tutorial.
"""


class Objective:
    """The objectives of a batch: what each sample excites.

    Scores are computed from totals and counts. These can be added over the tiles of an image.

    Args:
        network: the network.
        targets: the targets of each sample.
        measure: a key of `MEASURES`, for all samples.
        guides: the guide image (3, h, w) in [0, 1] of each sample, or None.
        anchors: the layer at which each sample stays near its source image, or None; by default none for all samples.

    Raises:
        InvalidInput: the network has no such layer, or a target has a sweep.
    """

    def __init__(
        self,
        network: Network,
        targets: Sequence[Sequence[Target]],
        measure: str,
        guides: Sequence[Tensor | None],
        anchors: Sequence[Anchor | None] = (),
    ) -> None:
        self.targets, self.measure = targets, measure
        layers = [frozenset(target.layer for target in each) for each in targets]
        self._anchors = [*anchors] or [None] * len(targets)
        self._anchor_layers = frozenset(anchor.layer for anchor in self._anchors if anchor)
        self.layers = [
            each | {anchor.layer} if anchor else each for each, anchor in zip(layers, self._anchors, strict=True)
        ]
        """The layers whose activations each sample needs."""
        columns = max(len(each) for each in targets) + bool(self._anchor_layers)
        weights = [[0.0] * columns for _ in targets]
        plain_mean = [[False] * columns for _ in targets]
        self._guide_features: list[dict[str, Tensor]] = []
        """Features of each sample's guide by layer; empty without a guide."""
        known: dict[tuple[int, frozenset[str]], dict[str, Tensor]] = {}
        for sample, (each, guide) in enumerate(zip(targets, guides, strict=True)):
            for column, target in enumerate(each):
                weights[sample][column] = target.weight
                plain_mean[sample][column] = guide is not None or target.layer == LOGITS or bool(target.direction)
                if target.sweep:
                    raise InvalidInput(f"{target.name} has no channels yet: resolve the settings first")
            key = id(guide), layers[sample]
            if key not in known:
                known[key] = {} if guide is None else network.features(guide[None], layers[sample])
            self._guide_features.append(known[key])
            if anchor := self._anchors[sample]:
                weights[sample][-1] = -anchor.weight
        self.weights = torch.tensor(weights, device=network.device)
        self._plain_mean = torch.tensor(plain_mean, device=network.device)
        """(B, targets): whether a target is measured by its mean, whatever `measure` is."""

    @torch.no_grad()
    def source_activations(self, network: Network, images: Tensor) -> dict[str, LayerActivations]:
        """Return the activations of `images` (B, 3, H, W), the source images, at the layers of all anchors."""
        if not self._anchor_layers:
            return {}
        return network.sample_activations(images, [self._anchor_layers] * len(images))

    def sums(
        self,
        activations: Mapping[str, LayerActivations],
        locate: Callable[[int, Position], Position | None],
        edges: Edges,
        source: Mapping[str, LayerActivations] | None = None,
    ) -> Tensor:
        """Return the total and count (B, targets, 2) of each sample's targets.

        If a sample has an anchor, there is one more column: the squared distance from the source image at the layer of
        the anchor, and the sum of the squared activations of the source image.

        Args:
            activations: activations of the network's layers for a tile.
            locate: function of (sample, position in its image) that returns the position in the tile, or None if the
                position is outside the tile.
            edges: which edges of the tile are edges of the image.
            source: the `source_activations` for the same tile. Without them, no distance is measured.
        """
        # Targets that differ only in the sample or the weight are computed together.
        groups: dict[Hashable, list[tuple[int, int]]] = {}
        places: dict[tuple[int, int], Position | None] = {}
        for sample, targets in enumerate(self.targets):
            for column, target in enumerate(targets):
                at = locate(sample, target.at) if target.at else None
                if at or not target.at:
                    guide = id(self._guide_features[sample].get(target.layer))
                    what = target.layer, target.channels, target.direction, target.cosine, at, guide
                    groups.setdefault(what, []).append((sample, column))
                    places[sample, column] = at
        dtype = next(iter(activations.values())).features.dtype
        sums = torch.zeros((*self.weights.shape, 2), device=self.weights.device, dtype=dtype)
        for members in groups.values():
            samples, columns = zip(*members, strict=True)
            target, at = self.targets[samples[0]][columns[0]], places[members[0]]
            layer, channels = target.layer, target.channels
            features = _select(activations[layer], samples, () if target.direction else channels, at)
            guide = self._guide_features[samples[0]].get(layer)
            if guide is not None:
                total, count = _similarity(features, _select_channels(guide, channels)[0])
            elif target.direction:
                total, count = _projection(features, target)
            else:
                total, count = _total(features, "mean" if layer == LOGITS else self.measure, INSIDE if at else edges)
            sample_index, column_index = index(samples, sums.device), index(columns, sums.device)
            sums[sample_index, column_index, 0] = total
            sums[sample_index, column_index, 1] = _number(count, sums.device, dtype)
        for sample, anchor in enumerate(self._anchors if source else ()):
            if anchor and source:
                known = _select(source[anchor.layer], (sample,), (), None)
                features = _select(activations[anchor.layer], (sample,), (), None)
                sums[sample, -1, 0] = (features - known).square().sum()
                sums[sample, -1, 1] = known.square().sum()
        return sums

    def each(self, sums: Tensor) -> Tensor:
        """Return the measured value (B, targets) of each target from its `sums` (B, targets, 2).

        The last column of a sample with an anchor is the distance from the source image, relative to the norm of the
        source image's activations.
        """
        total, count = sums[..., 0], sums[..., 1].clamp_min(1)
        values = torch.where(self._plain_mean, total / count, MEASURES[self.measure](total, count))
        if not self._anchor_layers:
            return values
        distance = _relative_distance(sums[:, -1, 0], sums[:, -1, 1])
        return torch.cat([values[:, :-1], distance[:, None]], 1)

    def score(self, sums: Tensor, whole: Tensor | None = None) -> Tensor:
        """Return the score (B,) of each sample: the weighted sum of the measured values of its targets.

        Args:
            sums: totals and counts (B, targets, 2) of the images, or of one tile.
            whole: totals and counts (B, targets, 2) of the whole images, if `sums` are those of one tile. The result is
                then the score of the whole images, and its gradient is this tile's part of the gradient.
        """
        if whole is not None:
            sums = whole + (sums - sums.detach())
        return (self.weights * self.each(sums)).sum(1)


def _select(
    activations: LayerActivations, samples: tuple[int, ...], channels: tuple[int, ...], at: Position | None
) -> Tensor:
    """Return the activations (b, C, ...) of some samples, at the channels and the position of a target."""
    features = activations.features
    if list(samples) != activations.samples:
        rows = tuple(activations.samples.index(sample) for sample in samples)
        features = features.index_select(0, index(rows, features.device))
    features = _select_channels(features, channels)
    if at:
        x, y = (int(part * side * 0.9999) for part, side in zip(at, features.shape[:1:-1], strict=True))
        features = features[:, :, y : y + 1, x : x + 1]
    return features


def _select_channels(features: Tensor, channels: tuple[int, ...]) -> Tensor:
    """Return `channels` of `features` (b, C, ...); all channels if `channels` is empty."""
    return features.index_select(1, index(channels, features.device)) if channels else features


def _total(features: Tensor, measure: str, edges: Edges) -> tuple[Tensor, int]:
    """Return the total (b,) of each sample of `features` (b, ...), and the count of activations in a sample."""
    count = features[0].numel()
    if measure == "inner_mean_square" and features.ndim == 4:
        features = _without_border(features, edges)
    return (features if measure == "mean" else features.square()).flatten(1).sum(1), count


def _without_border(features: Tensor, edges: Edges) -> Tensor:
    """Return `features` (b, C, h, w) without `_BORDER` positions at `edges`, or unchanged if nothing would remain."""
    height, width = features.shape[2:]
    (top, bottom), (left, right) = edges
    if (top and bottom and height <= 2 * _BORDER) or (left and right and width <= 2 * _BORDER):
        return features
    rows, columns = slice(_BORDER * top, height - _BORDER * bottom), slice(_BORDER * left, width - _BORDER * right)
    return features[:, :, rows, columns]


def _relative_distance(total: Tensor, norm: Tensor) -> Tensor:
    """Return the distance (B,) of activations from those of the source image, relative to the norm of the latter.

    This is the regularizer of Hamblin et al., "Feature Accentuation" (2024), divided by a norm that does not change.

    Args:
        total: squared distance (B,).
        norm: squared norm (B,) of the activations of the source image; 0 if the distance was not measured.
    """
    distance: Tensor = (total / norm.clamp_min(_TINY) + _BLUNT**2).sqrt() - _BLUNT
    return distance


def _projection(features: Tensor, target: Target) -> tuple[Tensor, int]:
    """Return the dot products (b,) with the direction of a target, summed over positions, and their number.

    Each dot product is multiplied by the cosine similarity to the power `target.cosine`. With a power, a position
    scores only as far as it has nothing besides the direction. This is `direction(..., cossim_pow)` of lucid (Olah,
    Mordvintsev and Schubert, "Feature Visualization", 2017).
    """
    positions = features.flatten(2) if features.ndim == 4 else features[..., None]  # (b, C, P)
    factors = _tensor(target.direction, positions.device).to(positions.dtype)
    dots = torch.einsum("bcp,c->bp", _select_channels(positions, target.channels), factors)
    if target.cosine:
        lengths = (positions.square().sum(1) + _TINY).sqrt() * factors.norm()  # (b, P)
        dots = dots * (dots / lengths).clamp_min(_MIN_COSINE) ** target.cosine
    return dots.sum(1), positions.shape[2]


@lru_cache(maxsize=4096)
def _tensor(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Return `numbers` on `device`, cached as by `index`."""
    return torch.tensor(numbers, device=device)


@lru_cache(maxsize=4096)
def _number(number: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `number` as a tensor () on `device`, cached, and filled there: nothing is copied to a GPU."""
    return torch.full((), number, device=device, dtype=dtype)


def _similarity(features: Tensor, guide: Tensor) -> tuple[Tensor, int]:
    """Return the similarity (b,) of each sample to a guide, summed over its positions, and the number of positions.

    Each position of `features` (b, C, h, w) is compared with the guide's most similar feature vector: the vector of the
    largest dot product. This is the method of Mordvintsev, Olah and Tyka's notebook (2015). The gradient at each
    position is that vector. The result is divided by the mean squared length of the guide's vectors, so that an image
    like its guide scores about 1 in any layer.
    """
    vectors = guide.flatten(1) if guide.ndim > 1 else guide[:, None]  # (C, Q)
    positions = features.flatten(2) if features.ndim == 4 else features[..., None]  # (b, C, P)
    with torch.no_grad():
        chunk = max(1, _MAX_PRODUCTS // (vectors.shape[1] * len(positions)))
        best = torch.cat([(vectors.T @ part).argmax(1) for part in torch.split(positions, chunk, 2)], 1)  # (b, P)
    nearest = vectors.T[best].transpose(1, 2)  # (b, C, P)
    scale = vectors.square().sum(0).mean().clamp_min(_TINY)
    return (positions * nearest).flatten(1).sum(1) / scale, positions.shape[2]


@torch.no_grad()
def measure(
    network: Network, images: Tensor, objective: Objective, tiles: Sequence[Tile], source: Tensor | None = None
) -> Tensor:
    """Return the totals and counts of whole images, computed tile by tile.

    Args:
        network: the network.
        images: images (B, 3, H, W) in [0, 1].
        objective: the objectives of the batch.
        tiles: tiles that cover the images.
        source: the source images (B, 3, H, W), to measure the distance from them as well. It is measured only if a
            sample has an anchor.

    Returns:
        Totals and counts (B, targets, 2).
    """
    size = (images.shape[-2], images.shape[-1])
    parts = []
    for tile in tiles:
        activations = network.sample_activations(tile.crop(images), objective.layers)
        sums = objective.sums(
            activations,
            lambda _sample, at, tile=tile: tile.locate(at, size),  # type: ignore[misc]
            tile.edges(size),
            None if source is None else objective.source_activations(network, tile.crop(source)),
        )
        parts.append(sums)
    return torch.stack(parts).sum(0)
