"""Different ways to compute a dream give the same mean score, within the spread of null runs.

Gradient ascent is chaotic: after some steps, a change of one part in a million changes the score. So there is no
natural tolerance. These tests compare each way with null runs, which add a millionth of noise to the images.
"""

from dataclasses import dataclass, replace
from functools import cache
from math import sqrt
from statistics import fmean

import pytest
import torch

from dreamcore.ascent import Sample, ascend
from dreamcore.models import load_network
from dreamcore.network import Network
from dreamcore.observation import observe
from dreamcore.settings import BUNDLED, DreamSettings
from tests.support.tiny import picture

pytestmark = pytest.mark.slow

IMAGES = [picture(96, 128, seed=seed) for seed in range(16)]


@dataclass(frozen=True)
class Variant:
    """A way to compute the dreams. The defaults are one image at a time, on one thread."""

    step_size: float = 0.01
    noise: int = 0
    """Seed of noise of one part in a million, added to the images; 0 adds none."""
    threads: int = 1
    batch: int = 1
    neighbours: bool = False
    """Whether each batch contains samples with other settings."""
    plain: bool = False
    """Whether the network runs without `optimize`."""


REFERENCE = Variant()
SMALL_STEPS = Variant(step_size=0.001)
"""Smaller steps give less chaos, so that smaller errors become visible."""

NEIGHBOURS = ("blocks.1:3=-1", "blocks.2+blocks.4:7")


@cache
def scores(variant: Variant) -> list[float]:
    """Return the score of each dream."""
    network = load_network(BUNDLED)
    if variant.plain:
        network = Network(network.module, network.spec, plain=True)
    settings = DreamSettings(layers="blocks.3", octaves=2, steps=5, step_size=variant.step_size)
    others = [
        Sample(IMAGES[0][0], DreamSettings.model_validate({**dict(settings), "layers": layers, "seed": 5}))
        for layers in NEIGHBOURS
        if variant.neighbours
    ]
    generator = torch.Generator().manual_seed(variant.noise)
    amount = 1e-6 if variant.noise else 0
    shown = [each[0] + amount * torch.randn(each[0].shape, generator=generator) for each in IMAGES]
    found: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(variant.threads)
    try:
        for first in range(0, len(shown), variant.batch):
            batch = [Sample(each, settings) for each in shown[first : first + variant.batch]]
            found += ascend(network, [*batch, *others]).measured[: len(batch), 0].tolist()
    finally:
        torch.set_num_threads(threads)
    return found


@cache
def rise(reference: Variant) -> float:
    """Return how much the dreams raise the mean score."""
    network, targets = load_network(BUNDLED), DreamSettings(layers="blocks.3").layers
    before = [observe(network, each, targets, "log_mean_square")[0].scores["blocks.3"] for each in IMAGES]
    return fmean(scores(reference)) - fmean(before)


def differences(variant: Variant, reference: Variant) -> list[float]:
    """Return the difference of each score from the reference run, as a share of the mean rise."""
    both = zip(scores(variant), scores(reference), strict=True)
    return [(one - other) / rise(reference) for one, other in both]


def rms(values: list[float]) -> float:
    """Return the root mean square."""
    return sqrt(fmean(each**2 for each in values))


def spread(reference: Variant) -> float:
    """Return the RMS difference of two null runs."""
    return rms([each for noise in (1, 2) for each in differences(replace(reference, noise=noise), reference)])


def limit(reference: Variant) -> float:
    """Return the largest mean difference that can be chance: four standard errors of the mean of all images."""
    return 4 * spread(reference) / sqrt(len(IMAGES))


@pytest.mark.parametrize(
    "reference", [REFERENCE, pytest.param(SMALL_STEPS, marks=pytest.mark.soak)], ids=["default", "small steps"]
)
def test_the_mean_scores_of_null_runs_differ_little(reference: Variant) -> None:
    """They differ by at most three percent of the rise."""
    assert 0 < limit(reference) < 0.03
    assert abs(fmean(differences(replace(reference, noise=3), reference))) < limit(reference)


@pytest.mark.parametrize(
    ("reference", "changes"),
    [
        (REFERENCE, {"batch": 4}),
        (REFERENCE, {"batch": 8, "neighbours": True}),
        (REFERENCE, {"plain": True}),
        (SMALL_STEPS, {"batch": 4}),
        (SMALL_STEPS, {"batch": 4, "noise": 4}),
        (SMALL_STEPS, {"batch": 8, "neighbours": True}),
        (SMALL_STEPS, {"plain": True}),
        (SMALL_STEPS, {"threads": 2, "batch": 16}),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else str(each.step_size),
)
def test_the_variant_does_not_change_the_scores(reference: Variant, changes: dict[str, int]) -> None:
    found = differences(replace(reference, **changes), reference)  # type: ignore[arg-type]
    assert abs(fmean(found)) < limit(reference)
    assert rms(found) < 2 * spread(reference)


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_a_step_size_two_percent_off_is_detected(factor: float) -> None:
    found = differences(replace(SMALL_STEPS, step_size=factor * SMALL_STEPS.step_size), SMALL_STEPS)
    assert abs(fmean(found)) > 2 * limit(SMALL_STEPS)
