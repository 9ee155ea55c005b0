"""How strongly a picture excites what was asked for, and what the network says it sees."""

import math

import pytest
import torch
from torch import Tensor

from dreamcore.models import Network
from dreamcore.scores import look, score, target_score
from dreamcore.settings import Target
from tests.tiny import LABELS, SETTINGS, changed, picture, tiny_network

LOG = "log_mean_square"


def answers(seed: int = 0) -> Tensor:
    return torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(seed))


def test_a_score_is_the_log_of_the_mean_square() -> None:
    expected = [math.log((sample.numpy() ** 2).mean()) for sample in answers()]
    assert target_score(answers(), Target(layer="a"), LOG).tolist() == pytest.approx(expected)


def test_channels_choose() -> None:
    chosen = target_score(answers()[:, [1, 4]], Target(layer="a"), LOG)
    torch.testing.assert_close(target_score(answers(), Target(layer="a", channels=(1, 4)), LOG), chosen)
    assert not torch.isclose(chosen, target_score(answers(), Target(layer="a"), LOG)).any()


def test_a_mix_is_the_weighted_sum_and_independent_of_each_layers_scale() -> None:
    objective = changed(layers="a=0.5+b:2=-3").layers
    heard = {"a": answers(1), "b": answers(2)}
    one, other = (target_score(heard[target.layer], target, LOG) for target in objective)
    torch.testing.assert_close(score(heard, objective, LOG), 0.5 * one - 3 * other)
    louder = score({"a": heard["a"] * 10, "b": heard["b"]}, objective, LOG)
    torch.testing.assert_close(louder - score(heard, objective, LOG), torch.full((2,), 0.5 * math.log(100)))


def test_a_layer_that_answers_nothing_has_a_finite_score_and_gradient() -> None:
    silence = torch.zeros(1, 6, 5, 4, requires_grad=True)
    score({"a": silence}, [Target(layer="a")], LOG).sum().backward()  # type: ignore[no-untyped-call]
    assert silence.grad is not None
    assert silence.grad.isfinite().all()
    assert target_score(silence, Target(layer="a"), LOG).item() == pytest.approx(-46.05, abs=0.01)


def test_look_tells_scores_and_the_five_likeliest_classes_of_each_picture() -> None:
    targets = changed(layers="stem+deep:1").layers
    both = look(tiny_network(), torch.cat([picture(seed=1), picture(seed=2)]), targets, LOG)
    for sight, seed in zip(both, (1, 2), strict=True):
        (alone,) = look(tiny_network(), picture(seed=seed), targets, LOG)
        assert sight.scores == pytest.approx(alone.scores, abs=1e-4)
        assert set(sight.scores) == {"stem", "deep:1"}
        assert sight.score(targets) == pytest.approx(sum(sight.scores.values()))
        labels, probabilities = zip(*sight.classes, strict=True)
        assert labels == tuple(label for label, _ in alone.classes)
        assert len(set(labels) & set(LABELS)) == 5
        assert list(probabilities) == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) < 1


def test_a_network_of_few_classes_or_none_tells_what_it_can() -> None:
    network = tiny_network()
    mute = Network(network.module, network.card)
    assert look(mute, picture(), SETTINGS.layers, LOG)[0].classes == []
    network.module.head = torch.nn.Linear(16, 2)
    of_two = Network(network.module, network.card, ["cat", "dog"])
    assert {label for label, _ in look(of_two, picture(), SETTINGS.layers, LOG)[0].classes} == {"cat", "dog"}


def test_looking_neither_costs_nor_gives_gradients() -> None:
    seen = picture().requires_grad_()
    look(tiny_network(), seen, SETTINGS.layers, LOG)
    assert seen.grad is None


@pytest.mark.parametrize(("size", "shown"), [((64, 64), (32, 32)), ((16, 24), (32, 48)), ((2, 4000), (32, 128))])
def test_classes_are_told_at_the_size_that_the_network_learnt_at(size: tuple[int, int], shown: tuple[int, int]) -> None:
    """Even of a strip of pixels, which would take all memory at its own aspect."""
    network, sizes = tiny_network(), []
    network.module.register_forward_pre_hook(lambda _module, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    assert network.classify(torch.rand(1, 3, *size)).sum().item() == pytest.approx(1)
    assert sizes == [shown]


def test_each_measure_is_what_its_name_says() -> None:
    for measure, expected in (
        ("mean_square", [(sample**2).mean() for sample in answers().numpy()]),
        ("half_sum_square", [(sample**2).sum() / 2 for sample in answers().numpy()]),
        ("l2_norm", [math.sqrt((sample**2).sum()) for sample in answers().numpy()]),
        ("mean", [sample.mean() for sample in answers().numpy()]),
    ):
        assert target_score(answers(), Target(layer="a"), measure).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("at", "row", "column"), [((0, 0), 0, 0), ((1, 1), 4, 3), ((0.3, 0.9), 4, 1)])
def test_a_place_is_one_position_of_the_layer(at: tuple[float, float], row: int, column: int) -> None:
    neuron = Target(layer="a", channels=(2,), at=at)
    torch.testing.assert_close(target_score(answers(), neuron, "mean"), answers()[:, 2, row, column])
