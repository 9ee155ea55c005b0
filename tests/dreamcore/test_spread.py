"""The scores of sixteen dreams do not tell which way they were computed: they stay within the spread of null runs.

A dream is chaotic: after some steps a change of one part in a million shows in its score. So scores that are computed
another way are not held against a tolerance out of the air, but against runs that ought to change nothing.
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

PHOTOGRAPHS = [picture(96, 128, seed=seed) for seed in range(16)]


@dataclass(frozen=True)
class Way:
    """How the photographs are dreamt: one after another, on one thread, unless it says otherwise."""

    step_size: float = 0.01
    noise: int = 0
    """Seed of noise of one part in a million over the photographs; 0 is none."""
    threads: int = 1
    batch: int = 1
    neighbours: bool = False
    """Whether samples of other settings are in each batch."""
    plain: bool = False
    """Whether the network runs as it is, and not made fast."""


REFERENCE = Way()
GENTLE = Way(step_size=0.001)
"""Less room for chaos: a little shows more clearly."""

NEIGHBOURS = ("blocks.1:3=-1", "blocks.2+blocks.4:7")


@cache
def scores(way: Way) -> list[float]:
    """Score of each dream."""
    network = load_network(BUNDLED)
    if way.plain:
        network = Network(network.module, network.spec, plain=True)
    settings = DreamSettings(layers="blocks.3", octaves=2, steps=5, step_size=way.step_size)
    others = [
        Sample(PHOTOGRAPHS[0][0], DreamSettings.model_validate({**dict(settings), "layers": layers, "seed": 5}))
        for layers in NEIGHBOURS
        if way.neighbours
    ]
    generator = torch.Generator().manual_seed(way.noise)
    amount = 1e-6 if way.noise else 0
    shown = [each[0] + amount * torch.randn(each[0].shape, generator=generator) for each in PHOTOGRAPHS]
    found: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(way.threads)
    try:
        for first in range(0, len(shown), way.batch):
            batch = [Sample(each, settings) for each in shown[first : first + way.batch]]
            found += ascend(network, [*batch, *others]).measured[: len(batch), 0].tolist()
    finally:
        torch.set_num_threads(threads)
    return found


@cache
def rise(reference: Way) -> float:
    """Of the mean score, by dreaming."""
    network, targets = load_network(BUNDLED), DreamSettings(layers="blocks.3").layers
    before = [observe(network, each, targets, "log_mean_square")[0].scores["blocks.3"] for each in PHOTOGRAPHS]
    return fmean(scores(reference)) - fmean(before)


def differences(way: Way, reference: Way) -> list[float]:
    """Of each dream's score from that in the reference run, as a share of the mean rise."""
    both = zip(scores(way), scores(reference), strict=True)
    return [(one - other) / rise(reference) for one, other in both]


def apart(found: list[float]) -> float:
    """Root mean square."""
    return sqrt(fmean(each**2 for each in found))


def spread(reference: Way) -> float:
    """Of the differences of null runs."""
    return apart([each for noise in (1, 2) for each in differences(replace(reference, noise=noise), reference)])


def limit(reference: Way) -> float:
    """Of a mean difference that may be chance: four times the spread of the means of as many dreams."""
    return 4 * spread(reference) / sqrt(len(PHOTOGRAPHS))


@pytest.mark.parametrize("reference", [REFERENCE, GENTLE], ids=["usual", "gentle"])
def test_null_runs_spread_but_not_far(reference: Way) -> None:
    """Their means by a few percent, at most, of what dreaming raises the score by."""
    assert 0 < limit(reference) < 0.03
    assert abs(fmean(differences(replace(reference, noise=3), reference))) < limit(reference)


@pytest.mark.parametrize(
    ("reference", "how"),
    [
        (REFERENCE, {"batch": 4}),
        (REFERENCE, {"batch": 8, "neighbours": True}),
        (REFERENCE, {"plain": True}),
        (GENTLE, {"batch": 4}),
        (GENTLE, {"batch": 4, "noise": 4}),
        (GENTLE, {"batch": 8, "neighbours": True}),
        (GENTLE, {"plain": True}),
        (GENTLE, {"threads": 2, "batch": 16}),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else str(each.step_size),
)
def test_the_way_does_not_show_in_the_scores(reference: Way, how: dict[str, int]) -> None:
    found = differences(replace(reference, **how), reference)  # type: ignore[arg-type]
    assert abs(fmean(found)) < limit(reference)
    assert apart(found) < 2 * spread(reference)


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_a_step_of_another_size_would_show(factor: float) -> None:
    found = differences(replace(GENTLE, step_size=factor * GENTLE.step_size), GENTLE)
    assert abs(fmean(found)) > 2 * limit(GENTLE)
