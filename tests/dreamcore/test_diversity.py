"""Diversity between the samples of a batch, compared with the objective `diversity` of lucid."""

import torch
from torch import Tensor

from dreamcore.ascent import Sample, ascend
from dreamcore.batch import DreamRequest, Limits, dream_photographs
from dreamcore.diversity import similarity
from dreamcore.errors import ImageError
from dreamcore.images import Photograph
from dreamcore.network import LayerActivations
from tests.support.tiny import changed, picture, pixels, tiny_network

PLAIN = {"octaves": 1, "gradient": "plain", "normalise": "rms", "layers": "deep:5", "jitter": 0}


def lucid_diversity(features: Tensor) -> Tensor:
    """The objective as its authors describe it, written out as loops over features (B, C, h, w)."""
    grams = []
    for image in features:
        flat = image.flatten(1).T  # (positions, C)
        gram = flat.T @ flat
        grams.append(gram / gram.square().sum().sqrt())
    pairs = [(grams[i] * grams[j]).sum() for i in range(len(grams)) for j in range(len(grams)) if i != j]
    return torch.stack(pairs).sum() / len(grams)


def test_the_similarity_is_that_of_lucid() -> None:
    features = torch.randn(4, 6, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = similarity({"layer": LayerActivations([0, 1, 2, 3], features)})
    torch.testing.assert_close(found.sum(), lucid_diversity(features))
    assert similarity({"layer": LayerActivations([0], features[:1])}).tolist() == [0]


def test_the_ascent_maximizes_the_scores_minus_the_weighted_similarity() -> None:
    network = tiny_network()
    network.module.double()
    start = torch.cat([picture(seed=seed) for seed in range(3)]).double()
    settings = changed(**PLAIN, steps=3)
    images = start
    for _ in range(3):
        images = images.detach().requires_grad_()
        features = network.activations(images, ["deep"])["deep"]
        scores = (features[:, 5].square().mean((1, 2)) + 1e-20).log()
        (gradient,) = torch.autograd.grad(scores.sum() - 10 * lucid_diversity(features), images)
        direction = gradient / gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        images = (images + settings.step_size * direction).clamp(0, 1)
    found = ascend(network, [Sample(image, settings, diversity=10) for image in start]).images
    torch.testing.assert_close(found, images.detach(), atol=1e-9, rtol=0)


def test_samples_with_diversity_differ_more_and_still_excite_their_channel() -> None:
    network, settings = tiny_network(), changed(**PLAIN, steps=20)
    similarities, scores = [], []
    for weight in (0.0, 1.0, 10.0):
        samples = [Sample(picture(seed=seed)[0], settings, diversity=weight) for seed in range(3)]
        result = ascend(network, samples)
        features = network.activations(result.images, ["deep"])["deep"]
        similarities.append(float(lucid_diversity(features)))
        scores.append(float(result.measured.mean()))
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[2] < 0.9 * similarities[0]
    before = float((network.activations(picture(), ["deep"])["deep"][:, 5].square().mean() + 1e-20).log())
    assert min(scores) > before


def test_diverse_samples_that_do_not_fit_into_the_memory_together_are_refused() -> None:
    photograph = Photograph(pixels(), width=64, height=48)
    requests = [DreamRequest(photograph, changed(steps=1, seed=seed), diversity=1) for seed in range(3)]
    for found in dream_photographs(tiny_network(), requests, Limits(max_memory=1)):
        assert isinstance(found, ImageError)
        assert "3 samples that depend on one another: lower max_pixels" in str(found)
