"""Diversity: how similar the images of a batch are to one another, as a penalty.

A channel often reacts to several motifs, and every ascent finds the strongest one. With this penalty, the images of a
batch show different motifs. It is the objective `diversity` of lucid: Olah, Mordvintsev and Schubert, "Feature
Visualization", Distill (2017).
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dreamcore.network import LayerActivations

__all__ = ["similarity"]


def similarity(activations: Mapping[str, LayerActivations]) -> Tensor:
    """Return the similarity (B,) of each image to the others, averaged over the layers, from 0 to (B - 1) / B.

    At one layer, it is the sum of the cosine similarities of the image's Gram matrix and those of the other images,
    divided by B. The Gram matrix (C, C) has the products of every two channels, summed over all positions: the texture,
    wherever it is in the image.

    Args:
        activations: the activations (B, C, ...) of each layer, for all images.

    Example:
        >>> features = torch.tensor([[[[1.0]], [[0.0]]], [[[1.0]], [[0.0]]], [[[0.0]], [[1.0]]]])  # (3, 2, 1, 1)
        >>> similarity({"layer": LayerActivations([0, 1, 2], features)})
        tensor([0.3333, 0.3333, 0.0000])
    """
    similarities = []
    for layer in activations.values():
        positions = layer.features.flatten(2) if layer.features.ndim == 4 else layer.features[..., None]  # (B, C, P)
        grams = normalize((positions @ positions.mT).flatten(1), dim=1)  # (B, C * C)
        cosines = grams @ grams.T  # (B, B)
        similarities.append((cosines.sum(1) - cosines.diagonal()) / len(cosines))
    return torch.stack(similarities).mean(0)
