"""How strongly a picture excites what was asked for, and what the network says it sees."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamcore.network import LayerActivations, Network
from dreamcore.objective import MEASURES, Objective, measure
from dreamcore.observation import observe
from dreamcore.targets import Target
from dreamcore.tiles import fixed_tiles, whole_image
from tests.support.references import guided_gradient
from tests.support.tiny import LABELS, SETTINGS, changed, picture, tiny_network

LOG = "log_mean_square"
ALL = (True, True), (True, True)


def heard(seed: int = 0) -> Tensor:
    """What a layer of six channels activations to two samples."""
    return torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(seed))


def score(activations: Mapping[str, Tensor], layers: object, how: str = LOG) -> Tensor:
    """Scores (2,) of both samples."""
    objective = Objective(tiny_network(), [changed(layers=layers).layers] * 2, how, [None, None])
    both = {name: LayerActivations([0, 1], features) for name, features in activations.items()}
    return objective.score(objective.sums(both, lambda _sample, at: at, ALL))


def test_a_score_is_the_log_of_the_mean_square() -> None:
    expected = [math.log((sample.numpy() ** 2).mean()) for sample in heard()]
    assert score({"a": heard()}, "a").tolist() == pytest.approx(expected)


def test_channels_choose() -> None:
    chosen = score({"a": heard()[:, [1, 4]]}, "a")
    torch.testing.assert_close(score({"a": heard()}, "a:1,4"), chosen)
    assert not torch.isclose(chosen, score({"a": heard()}, "a")).any()


def test_a_mix_is_the_weighted_sum_and_independent_of_each_layers_scale() -> None:
    activations = {"a": heard(1), "b": heard(2)}
    mix = score(activations, "a=0.5+b:2=-3")
    torch.testing.assert_close(mix, 0.5 * score(activations, "a") - 3 * score(activations, "b:2"))
    louder = score({"a": heard(1) * 10, "b": heard(2)}, "a=0.5+b:2=-3")
    torch.testing.assert_close(louder - mix, torch.full((2,), 0.5 * math.log(100)))


def test_a_layer_that_answers_nothing_has_a_finite_score_and_gradient() -> None:
    silence = torch.zeros(2, 6, 5, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(score({"a": silence}, "a").sum(), silence)
    assert gradient.isfinite().all()
    assert score({"a": silence}, "a").tolist() == pytest.approx([-46.05, -46.05], abs=0.01)


def test_each_measure_is_what_its_name_says() -> None:
    for how, expected in (
        ("mean_square", [(sample**2).mean() for sample in heard().numpy()]),
        ("inner_mean_square", [(sample[:, 2:-2, 2:-2] ** 2).sum() / sample.size for sample in bordered().numpy()]),
        ("half_sum_square", [(sample**2).sum() / 2 for sample in heard().numpy()]),
        ("l2_norm", [math.sqrt((sample**2).sum()) for sample in heard().numpy()]),
        ("mean", [sample.mean() for sample in heard().numpy()]),
    ):
        activations = {"a": bordered() if how == "inner_mean_square" else heard()}
        assert score(activations, "a", how).tolist() == pytest.approx(expected, rel=1e-5)


def bordered() -> Tensor:
    return torch.randn(2, 6, 7, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("at", "row", "column"), [((0, 0), 0, 0), ((1, 1), 4, 3), ((0.3, 0.9), 4, 1)])
def test_a_place_is_one_position_of_the_layer(at: tuple[float, float], row: int, column: int) -> None:
    neuron = [{"layer": "a", "channels": [2], "at": at}]
    torch.testing.assert_close(score({"a": heard()}, neuron, "mean"), heard()[:, 2, row, column])


def test_each_sample_has_an_objective_of_its_own() -> None:
    network = tiny_network()
    both = torch.cat([picture(seed=1), picture(seed=2)])
    objectives = [changed(layers="stem:3=2").layers, changed(layers="stem+deep:1,2=-1+deep").layers]
    objective = Objective(network, objectives, LOG, [None, None])
    together = objective.score(measure(network, both, objective, whole_image((48, 64))))
    for sample, targets in enumerate(objectives):
        alone = observe(network, both[sample : sample + 1], targets, LOG)[0].score(targets)
        assert together[sample].item() == pytest.approx(alone, abs=1e-4)


# --- likeness to a guide


def guided(features: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
    """Score and gradient of one sample (1, C, h, w) that is to become like a guide whose layer activations `guide`."""
    network = tiny_network()
    network.features = lambda *_args: {"deep": guide[None]}  # type: ignore[method-assign]
    objective = Objective(network, [SETTINGS.layers], LOG, [torch.zeros(3, 8, 8)])
    features = features.requires_grad_()
    result = objective.score(objective.sums({"deep": LayerActivations([0], features)}, lambda _sample, at: at, ALL))
    return result, torch.autograd.grad(result.sum(), features)[0]


def test_the_gradient_of_each_position_is_the_guides_vector_of_largest_dot_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in 2015, whose normalisation of the step leaves the scale open; however few are matched at once."""
    features, guide = heard()[:1], torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(9))
    expected = guided_gradient(features[0].numpy(), guide.numpy())
    for at_once in (2**22, 50):
        monkeypatch.setattr("dreamcore.objective._MAX_PRODUCTS", at_once)
        gradient = guided(features, guide)[1][0].numpy()
        np.testing.assert_allclose(gradient / np.abs(gradient).mean(), expected / np.abs(expected).mean(), rtol=1e-5)


def test_a_picture_is_most_like_itself() -> None:
    features = torch.nn.functional.normalize(heard()[:1], dim=1)  # else a longer vector may be liked better
    assert guided(features, features[0].detach())[0].item() == pytest.approx(1, rel=1e-5)


def test_a_guide_is_looked_at_in_the_size_that_the_network_learnt_at() -> None:
    network, sizes = tiny_network(), []
    network.module.register_forward_pre_hook(lambda _module, inputs: sizes.append(tuple(inputs[0].shape)))
    Objective(network, [SETTINGS.layers] * 3, LOG, [guide := torch.rand(3, 100, 200), None, guide])
    assert sizes == [(1, 3, 32, 64)], "once for each guide"


# --- tiles


@pytest.mark.parametrize("how", MEASURES)
def test_sums_of_tiles_are_the_sums_of_the_whole(how: str) -> None:
    """To the last digits, where no position of a layer sees beyond its tile."""
    network = tiny_network()
    for name in ("stem", "body", "deep"):
        weight = network.module.get_parameter(f"{name}.weight")
        centre = torch.zeros_like(weight)
        centre[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = 1
        weight.mul_(centre)
    targets = changed(layers="stem:1,2+deep=-2+stem@0.1,0.9+logits:3").layers
    pictures = torch.cat([picture(64, 96, seed=1), picture(64, 96, seed=2)])
    objective = Objective(network, [targets, targets[:2]], how, [None, None])
    expected = objective.each(measure(network, pictures, objective, whole_image((64, 96))))
    found = objective.each(measure(network, pictures, objective, fixed_tiles((64, 96), 32, 16)))
    torch.testing.assert_close(found[:, [0, 2, 3]], expected[:, [0, 2, 3]], rtol=1e-3, atol=1e-3)


# --- what the network sees


def test_look_tells_scores_and_the_five_likeliest_classes() -> None:
    targets = changed(layers="stem+deep:1").layers
    observation = observe(tiny_network(), picture(seed=1), targets, LOG)[0]
    assert set(observation.scores) == {"stem", "deep:1"}
    assert observation.score(targets) == pytest.approx(sum(observation.scores.values()))
    labels, probabilities = zip(*observation.classes, strict=True)
    assert len(set(labels) & set(LABELS)) == 5
    assert list(probabilities) == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) < 1
    assert observation.stages == {}


def test_all_stages_are_scored_when_asked_for() -> None:
    network = tiny_network()
    stages = observe(network, picture(), [Target(layer="deep")], "mean", stages=True)[0].stages
    assert list(stages) == [stage.name for stage in network.spec.stages()]
    for name, found in stages.items():
        assert found == pytest.approx(observe(network, picture(), [Target(layer=name)], LOG)[0].scores[name])


def test_a_network_of_few_classes_or_none_tells_what_it_can() -> None:
    network = tiny_network()
    mute = Network(network.module, network.spec)
    assert observe(mute, picture(), SETTINGS.layers, LOG)[0].classes == []
    network.module.head = torch.nn.Linear(16, 2)
    of_two = Network(network.module, network.spec, ["cat", "dog"])
    assert {label for label, _ in observe(of_two, picture(), SETTINGS.layers, LOG)[0].classes} == {"cat", "dog"}


def test_pictures_are_seen_together_each_as_it_would_be_alone() -> None:
    network, targets = tiny_network(), changed(layers="stem+deep:1,2").layers
    together = torch.cat([picture(seed=seed) for seed in range(3)])
    found = observe(network, together, targets, LOG, stages=True)
    for observation, seen in zip(found, torch.split(together, 1), strict=True):
        (alone,) = observe(network, seen, targets, LOG, stages=True)
        assert observation.scores == pytest.approx(alone.scores, abs=1e-5)
        assert observation.stages == pytest.approx(alone.stages, abs=1e-5)
        assert dict(observation.classes) == pytest.approx(dict(alone.classes), abs=1e-5)


def test_looking_neither_costs_nor_gives_gradients() -> None:
    seen = picture().requires_grad_()
    observe(tiny_network(), seen, SETTINGS.layers, LOG)
    assert seen.grad is None


@pytest.mark.parametrize(("size", "shown"), [((64, 64), (32, 32)), ((16, 24), (32, 48)), ((2, 4000), (32, 128))])
def test_classes_are_told_at_the_size_that_the_network_learnt_at(size: tuple[int, int], shown: tuple[int, int]) -> None:
    """Even of a strip of pixels, which would take all memory at its own aspect."""
    network, sizes = tiny_network(), []
    network.module.register_forward_pre_hook(lambda _module, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    assert network.classify(torch.rand(1, 3, *size)).sum().item() == pytest.approx(1)
    assert sizes == [shown]
