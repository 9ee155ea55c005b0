"""Feature accentuation: the penalty of the setting `stay_near`, as Hamblin et al. (2024) describe it."""

import pytest
import torch
from torch import Tensor

from dreamcore.ascent import Sample, ascend
from dreamcore.catalog import resolve_layers
from dreamcore.errors import InvalidInput
from dreamcore.fourier import from_spectrum, to_spectrum
from dreamcore.objective import Objective, measure
from dreamcore.settings import DreamSettings
from dreamcore.targets import Anchor
from dreamcore.tiles import even_tiles
from dreamcore.views import View
from tests.support.tiny import changed, dreams, picture, tiny_network

PLAIN = {"octaves": 1, "gradient": "plain", "normalise": "rms", "layers": "deep:5"}
WEIGHT = 3.0


@pytest.mark.parametrize("space", ["picture", "fourier"])
def test_the_ascent_maximizes_the_feature_minus_the_weighted_distance(space: str) -> None:
    """The score is log mean a² of the feature, minus λ |f(x) - f(x₀)| / |f(x₀)| at the layer to stay near."""
    network = tiny_network()
    network.module.double()
    start, size = picture(33, 41).double(), (33, 41)
    settings = changed(**PLAIN, space=space, steps=4, stay_near=f"body={WEIGHT}")

    def activations(images: Tensor, layer: str) -> Tensor:
        return network.activations(images, [layer])[layer]

    free = to_spectrum(start) if space == "fourier" else start
    for step in range(4):
        free = free.detach().requires_grad_()
        view = View.choose(settings, 0, step)
        viewed = view.apply(from_spectrum(free, size) if space == "fourier" else free)
        feature = (activations(viewed, "deep")[:, 5].square().mean() + 1e-20).log()
        known = activations(view.apply(start), "body")
        distance = (activations(viewed, "body") - known).norm() / known.norm()
        (gradient,) = torch.autograd.grad(feature - WEIGHT * (distance.square() + 1e-8).sqrt(), free)
        free = free + settings.step_size * gradient / gradient.square().mean().sqrt()
        free = free if space == "fourier" else free.clamp(0, 1)
    expected = from_spectrum(free.detach(), size) if space == "fourier" else free.detach()
    found = ascend(network, [Sample(start[0], settings)]).images
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    without = dreams(network, start, settings.model_copy(update={"stay_near": None}))
    assert (found - without).abs().max() > 0.01


def distance_at(layer: str, images: Tensor, source: Tensor) -> float:
    one, other = (tiny_network().activations(each, [layer])[layer] for each in (images, source))
    return float((one - other).norm() / other.norm())


def test_larger_weights_keep_the_activations_nearer_while_the_feature_still_grows() -> None:
    found = {}
    for weight in (None, 1, 10):
        near = weight and f"stem={weight}"
        result = ascend(tiny_network(), [Sample(picture()[0], changed(**PLAIN, steps=20, stay_near=near))])
        found[weight] = distance_at("stem", result.images, picture()), result.measured[0, 0].item()
    assert found[10][0] < 0.7 * found[1][0] < 0.7 * found[None][0]
    before = ascend(tiny_network(), [Sample(picture()[0], changed(**PLAIN, steps=0))]).measured[0, 0].item()
    assert before + 0.1 < found[10][1] < found[None][1]


def test_the_distance_of_an_image_is_that_of_its_tiles_together() -> None:
    network, images, source = tiny_network(), picture(96, 128, seed=1), picture(96, 128)
    settings = changed(stay_near="body=5")
    objective = Objective(network, [settings.layers], "log_mean_square", [None], [settings.stay_near])
    whole, tiled = (measure(network, images, objective, even_tiles((96, 128), side, 1), source) for side in (0, 64))
    distance = objective.each(whole)[0, -1]
    assert distance == pytest.approx(distance_at("body", images, source), rel=1e-3)
    assert objective.each(tiled)[0, -1] == pytest.approx(distance.item(), rel=0.02)  # tiles have other borders
    assert objective.score(whole) == pytest.approx((objective.each(whole)[0, 0] - 5 * distance).item())
    not_measured = measure(network, images, objective, even_tiles((96, 128), 0, 1))
    assert objective.score(not_measured) == pytest.approx(objective.each(whole)[0, 0].item())


def test_the_layer_to_stay_near_is_checked_and_may_be_a_depth() -> None:
    settings = DreamSettings.model_validate({"layers": "blocks.4", "stay_near": "30%=2"})
    assert settings.stay_near == Anchor(layer="30%", weight=2)
    assert str(settings.stay_near) == "30%=2"
    assert resolve_layers(settings).stay_near == Anchor(layer="blocks.2", weight=2)
    assert resolve_layers(settings).layer_names == {"blocks.2", "blocks.4"}
    with pytest.raises(InvalidInput, match=r"blocks\.33"):
        resolve_layers(DreamSettings.model_validate({"stay_near": "blocks.33"}))
