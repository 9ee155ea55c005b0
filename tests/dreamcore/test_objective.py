"""Objectives and observations: measures, channels, positions, guides, tiles and classes."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamcore.ascent import Sample, ascend
from dreamcore.catalog import resolve_layers
from dreamcore.errors import InvalidInput
from dreamcore.network import LayerActivations, Network
from dreamcore.objective import MEASURES, Objective, measure
from dreamcore.observation import observe
from dreamcore.settings import DreamSettings
from dreamcore.targets import Target
from dreamcore.tiles import fixed_tiles, whole_image
from tests.support.references import guided_gradient
from tests.support.tiny import LABELS, SETTINGS, changed, picture, tiny_network

LOG = "log_mean_square"
ALL = (True, True), (True, True)


def random_activations(seed: int = 0) -> Tensor:
    """Return activations (2, 6, 5, 4) of two samples."""
    return torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(seed))


def score(activations: Mapping[str, Tensor], layers: object, measure: str = LOG) -> Tensor:
    """Return the scores (2,) of both samples."""
    objective = Objective(tiny_network(), [changed(layers=layers).layers] * 2, measure, [None, None])
    both = {name: LayerActivations([0, 1], features) for name, features in activations.items()}
    return objective.score(objective.sums(both, lambda _sample, at: at, ALL))


def test_a_score_is_the_log_of_the_mean_square() -> None:
    expected = [math.log((sample.numpy() ** 2).mean()) for sample in random_activations()]
    assert score({"a": random_activations()}, "a").tolist() == pytest.approx(expected)


def test_channels_select_a_part_of_the_layer() -> None:
    chosen = score({"a": random_activations()[:, [1, 4]]}, "a")
    torch.testing.assert_close(score({"a": random_activations()}, "a:1,4"), chosen)
    assert not torch.isclose(chosen, score({"a": random_activations()}, "a")).any()


def test_a_mix_is_a_weighted_sum_that_does_not_depend_on_the_scale_of_a_layer() -> None:
    activations = {"a": random_activations(1), "b": random_activations(2)}
    mix = score(activations, "a=0.5+b:2=-3")
    torch.testing.assert_close(mix, 0.5 * score(activations, "a") - 3 * score(activations, "b:2"))
    louder = score({"a": random_activations(1) * 10, "b": random_activations(2)}, "a=0.5+b:2=-3")
    torch.testing.assert_close(louder - mix, torch.full((2,), 0.5 * math.log(100)))


def test_a_layer_of_zeros_has_a_finite_score_and_gradient() -> None:
    zeros = torch.zeros(2, 6, 5, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(score({"a": zeros}, "a").sum(), zeros)
    assert gradient.isfinite().all()
    assert score({"a": zeros}, "a").tolist() == pytest.approx([-46.05, -46.05], abs=0.01)


def test_each_measure_equals_its_formula() -> None:
    for method, expected in (
        ("mean_square", [(sample**2).mean() for sample in random_activations().numpy()]),
        (
            "inner_mean_square",
            [(sample[:, 2:-2, 2:-2] ** 2).sum() / sample.size for sample in large_activations().numpy()],
        ),
        ("half_sum_square", [(sample**2).sum() / 2 for sample in random_activations().numpy()]),
        ("l2_norm", [math.sqrt((sample**2).sum()) for sample in random_activations().numpy()]),
        ("mean", [sample.mean() for sample in random_activations().numpy()]),
    ):
        activations = {"a": large_activations() if method == "inner_mean_square" else random_activations()}
        assert score(activations, "a", method).tolist() == pytest.approx(expected, rel=1e-5)


def large_activations() -> Tensor:
    return torch.randn(2, 6, 7, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("at", "row", "column"), [((0, 0), 0, 0), ((1, 1), 4, 3), ((0.3, 0.9), 4, 1)])
def test_a_position_selects_one_position_of_the_layer(at: tuple[float, float], row: int, column: int) -> None:
    neuron = [{"layer": "a", "channels": [2], "at": at}]
    torch.testing.assert_close(
        score({"a": random_activations()}, neuron, "mean"), random_activations()[:, 2, row, column]
    )


def test_each_sample_has_a_separate_objective() -> None:
    network = tiny_network()
    both = torch.cat([picture(seed=1), picture(seed=2)])
    objectives = [changed(layers="stem:3=2").layers, changed(layers="stem+deep:1,2=-1+deep").layers]
    objective = Objective(network, objectives, LOG, [None, None])
    together = objective.score(measure(network, both, objective, whole_image((48, 64))))
    for sample, targets in enumerate(objectives):
        alone = observe(network, both[sample : sample + 1], targets, LOG)[0].score(targets)
        assert together[sample].item() == pytest.approx(alone, abs=1e-4)


# --- directions


def lucid_direction(features: NDArray[np.float32], vector: NDArray[np.float64], power: float) -> float:
    """`direction(layer, vector, cossim_pow)` of lucid, for features (C, h, w)."""
    x = features.astype(np.float64).transpose(1, 2, 0)  # lucid has the channels last
    dot = (x * vector).sum(-1)
    cosine = dot / np.sqrt((x**2).sum(-1)) / np.sqrt((vector**2).sum())
    return float((dot * np.maximum(0.1, cosine) ** power).mean())


@pytest.mark.parametrize("power", [0, 0.5, 1, 2])
def test_a_direction_is_scored_as_in_lucid_whatever_the_measure_is(power: float) -> None:
    vector = np.array([0, 0.8, 0, 0, -0.3, 2])
    expected = [lucid_direction(sample, vector, power) for sample in random_activations().numpy()]
    layers = f"a:5*2,1*0.8,4*-0.3^{power}"
    for method in ("mean_square", LOG):
        assert score({"a": random_activations()}, layers, method).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_direction_of_one_channel_is_the_mean_of_the_channel() -> None:
    for method in (LOG, "mean"):
        found = score({"a": random_activations()}, "a:3*1", method)
        torch.testing.assert_close(found, random_activations()[:, 3].mean((1, 2)))


def test_the_cosine_power_prefers_positions_with_nothing_else() -> None:
    """Both samples have the same channel 0, and one has other channels, too."""
    pure = torch.zeros(2, 6, 5, 4)
    pure[:, 0] = 1
    pure[1, 1:] = 1
    activations = {"a": pure}
    assert score(activations, "a:0*1").tolist() == pytest.approx([1, 1])
    assert score(activations, "a:0^2").tolist() == pytest.approx([1, 1 / 6])


def test_a_direction_has_a_finite_gradient_at_zero_and_where_it_is_negative() -> None:
    features = torch.cat([torch.zeros(1, 6, 5, 4), -random_activations()[:1].abs()]).requires_grad_()
    (gradient,) = torch.autograd.grad(score({"a": features}, "a:1*0.5,2*2^2").sum(), features)
    assert gradient.isfinite().all()
    assert gradient[1, [1, 2]].abs().min() > 0


def test_a_direction_at_a_position_and_of_classes() -> None:
    at = score({"a": random_activations()}, "a:1*2,2*-1@0.3,0.9")
    torch.testing.assert_close(at, 2 * random_activations()[:, 1, 4, 1] - random_activations()[:, 2, 4, 1])
    logits = torch.randn(2, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(score({"logits": logits}, "logits:1*2,2*-1"), 2 * logits[:, 1] - logits[:, 2])


def test_directions_of_a_batch_are_computed_as_alone_and_the_ascent_raises_them() -> None:
    network = tiny_network()
    both = torch.cat([picture(seed=1), picture(seed=2)])
    all_settings = [changed(layers="deep:1*0.5,3*-2^2"), changed(layers="deep:1*0.5,3*2+stem:2*1")]
    result = ascend(network, [Sample(image, each) for image, each in zip(both, all_settings, strict=True)]).images
    for sample, each in enumerate(all_settings):
        alone = ascend(network, [Sample(both[sample], each)]).images
        torch.testing.assert_close(result[sample : sample + 1], alone, atol=1e-4, rtol=0)
        before, after = (
            observe(network, image, each.layers, LOG)[0].score(each.layers) for image in (both[sample][None], alone)
        )
        assert after > before


def test_a_target_without_channels_yet_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"deep:top1 has no channels yet: resolve the settings first"):
        Objective(tiny_network(), [changed(layers="deep:top1").layers], LOG, [None])


def test_a_direction_and_a_guide_are_refused_together() -> None:
    settings = DreamSettings.model_validate({"layers": "blocks.4:3^2", "guide": "guide.png"})
    with pytest.raises(InvalidInput, match=r"blocks.4:3\*1\^2 is a direction, which a guide replaces"):
        resolve_layers(settings)


# --- guides


def guided(features: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
    """Return the score and gradient of one sample (1, C, h, w) for a guide with the activations (C, h, w)."""
    network = tiny_network()
    network.features = lambda *_args: {"deep": guide[None]}  # type: ignore[method-assign]
    objective = Objective(network, [SETTINGS.layers], LOG, [torch.zeros(3, 8, 8)])
    features = features.requires_grad_()
    result = objective.score(objective.sums({"deep": LayerActivations([0], features)}, lambda _sample, at: at, ALL))
    return result, torch.autograd.grad(result.sum(), features)[0]


def test_the_gradient_at_each_position_is_the_most_similar_vector_of_the_guide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in the program of 2015, except for the scale. The size of the chunks has no effect."""
    features, guide = random_activations()[:1], torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(9))
    expected = guided_gradient(features[0].numpy(), guide.numpy())
    for max_products in (2**22, 50):
        monkeypatch.setattr("dreamcore.objective._MAX_PRODUCTS", max_products)
        gradient = guided(features, guide)[1][0].numpy()
        np.testing.assert_allclose(gradient / np.abs(gradient).mean(), expected / np.abs(expected).mean(), rtol=1e-5)


def test_an_image_that_equals_its_guide_scores_one() -> None:
    # Vectors of equal length, because otherwise a longer vector may be more similar.
    features = torch.nn.functional.normalize(random_activations()[:1], dim=1)
    assert guided(features, features[0].detach())[0].item() == pytest.approx(1, rel=1e-5)


def test_a_guide_is_resized_to_the_training_size_of_the_network() -> None:
    network, sizes = tiny_network(), []
    network.module.register_forward_pre_hook(lambda _module, inputs: sizes.append(tuple(inputs[0].shape)))
    Objective(network, [SETTINGS.layers] * 3, LOG, [guide := torch.rand(3, 100, 200), None, guide])
    assert sizes == [(1, 3, 32, 64)], "one forward pass for each guide"


# --- tiles


@pytest.mark.parametrize("method", MEASURES)
def test_sums_over_tiles_equal_the_sums_of_the_whole_image(method: str) -> None:
    """Kernels of one pixel, so that no position depends on pixels outside its tile."""
    network = tiny_network()
    for name in ("stem", "body", "deep"):
        weight = network.module.get_parameter(f"{name}.weight")
        centre = torch.zeros_like(weight)
        centre[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = 1
        weight.mul_(centre)
    targets = changed(layers="stem:1,2+deep=-2+stem@0.1,0.9+logits:3+stem:1*2,3*-1^2").layers
    images = torch.cat([picture(64, 96, seed=1), picture(64, 96, seed=2)])
    objective = Objective(network, [targets, targets[:2]], method, [None, None])
    expected = objective.each(measure(network, images, objective, whole_image((64, 96))))
    found = objective.each(measure(network, images, objective, fixed_tiles((64, 96), 32, 16)))
    local = [column for column, target in enumerate(targets) if target.layer != "logits"]
    torch.testing.assert_close(found[:, local], expected[:, local], rtol=1e-3, atol=1e-3)


# --- observations


def test_observe_returns_scores_and_the_five_most_likely_classes() -> None:
    targets = changed(layers="stem+deep:1").layers
    observation = observe(tiny_network(), picture(seed=1), targets, LOG)[0]
    assert set(observation.scores) == {"stem", "deep:1"}
    assert observation.score(targets) == pytest.approx(sum(observation.scores.values()))
    labels, probabilities = zip(*observation.classes, strict=True)
    assert len(set(labels) & set(LABELS)) == 5
    assert list(probabilities) == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) < 1
    assert observation.stages == {}


def test_observe_scores_all_stages_on_request() -> None:
    network = tiny_network()
    stages = observe(network, picture(), [Target(layer="deep")], "mean", stages=True)[0].stages
    assert list(stages) == [stage.name for stage in network.spec.stages()]
    for name, found in stages.items():
        assert found == pytest.approx(observe(network, picture(), [Target(layer=name)], LOG)[0].scores[name])


def test_observe_returns_at_most_the_classes_of_the_network() -> None:
    network = tiny_network()
    without_labels = Network(network.module, network.spec)
    assert observe(without_labels, picture(), SETTINGS.layers, LOG)[0].classes == []
    network.module.head = torch.nn.Linear(16, 2)
    two_classes = Network(network.module, network.spec, ["cat", "dog"])
    assert {label for label, _ in observe(two_classes, picture(), SETTINGS.layers, LOG)[0].classes} == {"cat", "dog"}


def test_each_image_of_a_batch_has_the_observation_that_it_has_alone() -> None:
    network, targets = tiny_network(), changed(layers="stem+deep:1,2").layers
    together = torch.cat([picture(seed=seed) for seed in range(3)])
    found = observe(network, together, targets, LOG, stages=True)
    for observation, image in zip(found, torch.split(together, 1), strict=True):
        (alone,) = observe(network, image, targets, LOG, stages=True)
        assert observation.scores == pytest.approx(alone.scores, abs=1e-5)
        assert observation.stages == pytest.approx(alone.stages, abs=1e-5)
        assert dict(observation.classes) == pytest.approx(dict(alone.classes), abs=1e-5)


def test_observe_computes_no_gradients() -> None:
    image = picture().requires_grad_()
    observe(tiny_network(), image, SETTINGS.layers, LOG)
    assert image.grad is None


@pytest.mark.parametrize(("size", "expected"), [((64, 64), (32, 32)), ((16, 24), (32, 48)), ((2, 4000), (32, 128))])
def test_classify_resizes_to_the_training_size_of_the_network(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """The longer side is limited, because a narrow strip would take too much memory."""
    network, sizes = tiny_network(), []
    network.module.register_forward_pre_hook(lambda _module, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    assert network.classify(torch.rand(1, 3, *size)).sum().item() == pytest.approx(1)
    assert sizes == [expected]
