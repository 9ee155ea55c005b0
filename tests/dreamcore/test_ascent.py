"""The six steps, against a plain account of them and against what each setting promises."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dreamcore.batch import to_pixels, to_tensor
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.network import Network
from dreamcore.observation import observe
from dreamcore.octaves import MIN_OCTAVE, octave_sizes, resize
from dreamcore.settings import DreamSettings
from dreamcore.views import View
from tests.support.tiny import SETTINGS, changed, dreams, picture, tiny_network


def jitter_offset(settings: DreamSettings, octave: int, step: int) -> tuple[int, int]:
    view = View.choose(settings, octave, step)
    return view.down, view.right


def score_of(network: Network, pictures: Tensor, settings: DreamSettings) -> float:
    return observe(network, pictures, settings.layers, settings.measure)[0].score(settings.layers)


# --- what a dream is


@pytest.mark.parametrize("gradient", ["laplacian", "gaussian", "plain"])
@pytest.mark.parametrize("bend", [nn.SiLU, nn.ReLU])
@pytest.mark.parametrize("layers", ["stem", "deep_bend", "body:0,5=2+deep"])
def test_the_objective_rises(gradient: str, bend: Callable[[], nn.Module], layers: str) -> None:
    network, settings = tiny_network(bend), changed(gradient=gradient, layers=layers)
    before, after = (score_of(network, seen, settings) for seen in (picture(), dreams(network, picture(), settings)))
    assert after > before + 0.1


def test_a_negative_weight_suppresses() -> None:
    network = tiny_network()
    quiet = dreams(network, picture(), changed(layers="deep=-1"))
    assert score_of(network, quiet, SETTINGS) < score_of(network, picture(), SETTINGS) - 0.1


def test_a_mix_lies_between_its_targets() -> None:
    network = tiny_network()
    one, other = changed(layers="deep:1"), changed(layers="deep:9")
    mixed = dreams(network, picture(), changed(layers="deep:1+deep:9"))
    for here, there in ((one, other), (other, one)):
        low, high = (score_of(network, dreams(network, picture(), settings), here) for settings in (there, here))
        assert low < score_of(network, mixed, here) < high


def test_without_steps_the_picture_comes_back() -> None:
    torch.testing.assert_close(dreams(tiny_network(), picture(), changed(steps=0)), picture())


def test_a_step_moves_the_mean_pixel_by_step_size() -> None:
    settings = changed(octaves=1, steps=1, step_size=0.03)
    moved = dreams(tiny_network(), picture(), settings) - picture()
    assert moved.abs().mean().item() == pytest.approx(0.03, rel=1e-4)


def test_pixels_stay_between_black_and_white() -> None:
    dreamt = dreams(tiny_network(), picture(), changed(step_size=1))
    assert dreamt.min() == 0
    assert dreamt.max() == 1


def plainly(network: Network, start: NDArray[np.float32], settings: DreamSettings) -> NDArray[np.float32]:
    """One octave of one target and its plain gradient, told again: the whole network, a hook, numpy for the rest."""
    (target,) = settings.layers
    heard: list[Tensor] = []
    hook = network.module.get_submodule(target.layer).register_forward_hook(lambda _m, _i, answer: heard.append(answer))
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (network.spec.mean, network.spec.std))
    dreamt = start
    for step in range(settings.steps):
        down, right = jitter_offset(settings, 0, step)
        shifted = np.concatenate([dreamt[:, -down:], dreamt[:, :-down]], 1) if down else dreamt
        shifted = np.concatenate([shifted[:, :, -right:], shifted[:, :, :-right]], 2) if right else shifted
        seen = torch.from_numpy((shifted - mean) / std)[None].requires_grad_()
        network.module(seen)
        (target.weight * (heard.pop()[0, list(target.channels)] ** 2).mean().log()).backward()  # type: ignore[no-untyped-call]
        assert seen.grad is not None
        gradient = seen.grad[0].numpy() / std
        gradient = np.roll(gradient / np.abs(gradient).mean(), (-down, -right), (1, 2))
        dreamt = np.clip(dreamt + np.float32(settings.step_size) * gradient, 0, 1)
    hook.remove()
    return dreamt


@pytest.mark.parametrize("size", [(48, 64), (37, 51)])
def test_two_steps_are_those_of_a_plain_account(size: tuple[int, int]) -> None:
    settings = changed(octaves=1, steps=2, gradient="plain", layers="deep:1,4,9=0.5")
    expected = plainly(tiny_network(), picture(*size)[0].numpy(), settings)
    np.testing.assert_allclose(dreams(tiny_network(), picture(*size), settings)[0], expected, rtol=0, atol=1e-5)


def test_a_finer_octave_goes_on_from_the_detail_of_the_coarser() -> None:
    network, settings = tiny_network(), changed(octaves=2, steps=3, jitter=0)
    alone = changed(octaves=1, steps=3, jitter=0)
    small, full = octave_sizes((48, 64), settings)
    base = resize(picture(), small)
    detail = dreams(network, base, alone) - base
    expected = dreams(network, picture() + resize(detail, full), alone)
    torch.testing.assert_close(dreams(network, picture(), settings), expected)


# --- what it depends on, and on nothing else


def test_the_same_call_gives_the_same_bits() -> None:
    assert torch.equal(*(dreams(tiny_network(), picture(), SETTINGS) for _ in range(2)))


def test_a_batch_is_dreamt_as_its_pictures_are_alone() -> None:
    pictures = [picture(seed=1), picture(seed=2)]
    alone = torch.cat([dreams(tiny_network(), each, SETTINGS) for each in pictures])
    torch.testing.assert_close(dreams(tiny_network(), torch.cat(pictures), SETTINGS), alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": "body"},
        {"layers": "deep:3"},
        {"layers": "deep+body"},
        {"layers": "deep+body=0.1"},
        {"layers": "deep=-1"},
        {"octaves": 1},
        {"octave_scale": 1.2},
        {"steps": 6},
        {"step_size": 0.021},
        {"jitter": 5},
        {"gradient": "plain"},
        {"gradient": "gaussian"},
        {"normalise": "std"},
        {"normalise": "zero_mean_std"},
        {"normalise": "rms"},
        {"normalise": "adam"},
        {"measure": "mean"},
        {"flip": True},
        {"total_variation": 5},
        {"l2": 100},
        {"carry": "result"},
        {"layers": "deep:3@0.2,0.7"},
        {"layers": "logits:3"},
        {"seed": 1},
    ],
    ids=str,
)
def test_each_setting_changes_the_picture(fields: dict[str, Any]) -> None:
    known = [SETTINGS, changed(layers="deep+body")]
    other = changed(**fields)
    for settings in known:
        if settings != other:
            difference = dreams(tiny_network(), picture(), other) - dreams(tiny_network(), picture(), settings)
            assert difference.abs().max() > 1e-3


def test_the_source_stays_as_it_was() -> None:
    source = picture()
    dreams(tiny_network(), source, SETTINGS)
    assert torch.equal(source, picture())
    assert not source.requires_grad


def test_somebody_may_watch() -> None:
    seen: list[tuple[int, int]] = []
    dreams(tiny_network(), picture(), changed(octaves=2, steps=3), on_step=lambda done, of: seen.append((done, of)))
    assert seen == [(done, 6) for done in range(1, 7)]


# --- what is measured, and what is held against it


SQUARES = ["mean_square", "half_sum_square", "l2_norm", "log_mean_square"]


@pytest.mark.parametrize("measure", SQUARES[1:])
def test_all_squares_of_one_layer_give_the_same_normalised_step(measure: str) -> None:
    """Ten steps without jitter, in float64, where chaos has not begun."""
    network = tiny_network()
    network.module.double()
    start = picture().double()
    plain = {"octaves": 1, "steps": 10, "jitter": 0, "step_size": 0.001, "gradient": "plain"}
    one, other = (dreams(network, start, changed(measure=name, **plain)) for name in ("mean_square", measure))
    assert 10 * torch.log10(1 / (one - other).square().mean()) > 120


@pytest.mark.parametrize("measure", [*SQUARES, "mean"])
def test_every_measure_can_be_climbed(measure: str) -> None:
    network, settings = tiny_network(), changed(measure=measure)
    assert score_of(network, dreams(network, picture(), settings), settings) > score_of(network, picture(), settings)


def test_total_variation_keeps_a_dream_smooth_and_l2_keeps_it_near() -> None:
    def roughness(dreamt: Tensor) -> float:
        return float((dreamt[..., 1:] - dreamt[..., :-1]).abs().mean())

    def change(dreamt: Tensor) -> float:
        return float((dreamt - picture()).square().mean())

    free = dreams(tiny_network(), picture(), changed(gradient="plain"))
    assert roughness(dreams(tiny_network(), picture(), changed(gradient="plain", total_variation=20))) < roughness(free)
    assert change(dreams(tiny_network(), picture(), changed(gradient="plain", l2=1000))) < change(free)


@pytest.mark.parametrize("at", [(0.2, 0.7), (0.5, 0.5), (1.0, 0.0)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_place_is_dreamt_where_it_is_whatever_the_jitter(at: tuple[float, float], flip: bool) -> None:
    """What changes most lies within the reach of the place, though each step shows the picture shifted."""
    layers = [{"layer": "deep", "channels": [3], "at": at}]
    settings = changed(layers=layers, octaves=1, jitter=20, flip=flip, steps=4, gradient="plain", step_size=1e-4)
    start = picture(64, 96)
    moved = (dreams(tiny_network(), start, settings) - start).abs().sum((0, 1))
    down, across = divmod(int(moved.argmax()), 96)
    apart = (abs(down - at[1] * 64), abs(across - at[0] * 96))
    assert max(min(d, side - d) for d, side in zip(apart, (64, 96), strict=True)) <= 12


def test_a_view_and_back_is_the_picture() -> None:
    for step in range(20):
        view = View.choose(changed(flip=True, jitter=9), 0, step)
        assert torch.equal(view.invert(view.apply(picture())), picture())


def test_flips_are_about_half_of_the_steps_and_only_when_asked_for() -> None:
    views = [View.choose(changed(flip=flip), 0, step) for flip in (True, False) for step in range(400)]
    assert 150 < sum(view.mirrored for view in views[:400]) < 250
    assert not any(view.mirrored for view in views[400:])


def test_a_result_is_carried_up_without_the_photographs_detail() -> None:
    """With no steps the detail of the photograph is what tells the two apart."""
    kept, lost = (dreams(tiny_network(), picture(), changed(steps=0, carry=carry)) for carry in ("detail", "result"))
    torch.testing.assert_close(kept, picture())
    small, full = octave_sizes((48, 64), changed(steps=0))
    torch.testing.assert_close(lost, resize(resize(picture(), small), full).clamp(0, 1))


def test_a_class_can_be_dreamt_and_suppressed() -> None:
    network = tiny_network()
    before = network.classify(picture())[0, 3]
    assert network.classify(dreams(network, picture(), changed(layers="logits:3")))[0, 3] > before
    assert network.classify(dreams(network, picture(), changed(layers="logits:3=-1")))[0, 3] < before


def test_a_class_is_its_logit_whatever_is_measured_of_layers() -> None:
    network = tiny_network()
    with torch.no_grad():
        answer = network.module((picture() - network.mean) / network.std)[0, 3].item()
    for measure in SQUARES:
        assert score_of(network, picture(), changed(layers="logits:3", measure=measure)) == pytest.approx(answer)


# --- jitter


@pytest.mark.parametrize("jitter", [0, 1, 4, 4096])
def test_jitter_stays_in_range_and_reaches_its_ends(jitter: int) -> None:
    offsets = [jitter_offset(changed(jitter=jitter), octave, step) for octave in range(4) for step in range(100)]
    sides = set(itertools.chain.from_iterable(offsets))
    assert sides <= set(range(-jitter, jitter + 1))
    if jitter <= 4:
        assert sides == set(range(-jitter, jitter + 1))


def test_jitter_differs_between_steps_octaves_and_seeds() -> None:
    counters = itertools.product((0, 1, 2**63 - 1), range(5), range(20))
    offsets = [jitter_offset(changed(jitter=4096, seed=seed), octave, step) for seed, octave, step in counters]
    assert len(set(offsets)) > 0.99 * len(offsets)


def test_jitter_is_what_it_always_was() -> None:
    """A change here changes every dream: raise ALGORITHM_VERSION with it."""
    settings = changed(jitter=32, seed=7)
    assert [jitter_offset(settings, octave, step) for octave, step in ((0, 0), (0, 1), (3, 9))] == [
        (-18, -17),
        (18, 10),
        (-31, -12),
    ]


# --- octaves


def test_octaves_go_from_coarse_to_fine_and_end_at_full_size() -> None:
    assert octave_sizes((200, 300), changed(octaves=3, octave_scale=2)) == [(50, 75), (100, 150), (200, 300)]
    assert octave_sizes((101, 301), changed(octaves=2, octave_scale=1.4)) == [(72, 215), (101, 301)]
    assert octave_sizes((200, 300), changed(octaves=1)) == [(200, 300)]


@pytest.mark.parametrize(("min_size", "least"), [(1, MIN_OCTAVE), (75, 75)])
def test_octaves_that_show_too_little_are_left_out(min_size: int, least: int) -> None:
    sizes = octave_sizes((150, 300), changed(octaves=32, octave_scale=1.3), min_size)
    assert sizes == sorted(sizes)
    assert sizes[-1] == (150, 300)
    assert least <= sizes[0][0] < 1.4 * least


def test_a_picture_below_the_least_octave_is_dreamt_at_its_own_size() -> None:
    assert octave_sizes((5, 9), SETTINGS) == [(5, 9)]
    assert dreams(tiny_network(), picture(5, 9), SETTINGS).shape == (1, 3, 5, 9)


def test_a_picture_too_small_for_the_network_is_refused() -> None:
    with pytest.raises(ImageError, match="60x40 pixels: the network needs 41") as caught:
        dreams(tiny_network(min_size=41), picture(40, 60), SETTINGS)
    assert caught.value.kind == "too_small"


# --- what it leaves behind


def hooks(network: Network) -> int:
    return sum(len(module._forward_hooks) for module in network.module.modules())


def test_weights_stay_without_gradients_and_as_they_were() -> None:
    network = tiny_network()
    dreams(network, picture(), SETTINGS)
    for used, fresh in zip(network.module.parameters(), tiny_network().module.parameters(), strict=True):
        assert used.grad is None
        assert not used.requires_grad
        assert torch.equal(used, fresh)


def test_nothing_behind_the_deepest_layer_runs() -> None:
    network, ran = tiny_network(), []
    for name, module in network.module.named_children():
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: ran.append(name))
    dreams(network, picture(), changed(layers="body+stem", octaves=1, steps=1))
    assert ran == ["stem", "stem_bend", "body"] * 2  # in the step, and in the look at what came of it


def test_hooks_are_gone_afterwards() -> None:
    network = tiny_network()
    dreams(network, picture(), SETTINGS)
    assert hooks(network) == 0


def test_hooks_are_gone_after_trouble_too() -> None:
    network = tiny_network()
    with pytest.raises(InvalidInput, match=r"layer 'deeep' does not exist in tiny; did you mean deep"):
        dreams(network, picture(), changed(layers="stem+deeep"))
    network.module.register_module("body", nn.Conv2d(99, 12, 1))
    with pytest.raises(RuntimeError, match="99 channels"):
        dreams(network, picture(), SETTINGS)
    assert hooks(network) == 0


# --- pixels


def test_pixels_survive_the_way_to_a_tensor_and_back() -> None:
    every = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    tensor = to_tensor(every)
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor.max() == 1
    np.testing.assert_array_equal(to_pixels(tensor)[0], every)


@pytest.mark.parametrize(("height", "where"), [(40, "cuda"), (20, "cpu")])
def test_what_a_gpu_cannot_shrink_smoothly_at_once_a_processor_does(height: int, where: str) -> None:
    """Seen on tensors that only say where they are: no GPU is needed."""
    done: list[str] = []

    class Note(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "upsample" in str(func):
                done.append(args[0].device.type)
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), Note():  # type: ignore[no-untyped-call]
        small = resize(torch.empty(1, 3, 1000, 90, device="cuda"), (height, 60))
    assert (done, small.device.type, tuple(small.shape)) == ([where], "cuda", (1, 3, height, 60))
