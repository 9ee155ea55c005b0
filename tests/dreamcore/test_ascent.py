"""Gradient ascent: against a plain implementation, and the effect of each setting."""

import itertools
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dreamcore.ascent import AscentResult, Sample, ascend
from dreamcore.batch import to_pixels, to_tensor
from dreamcore.errors import ImageError, InvalidInput
from dreamcore.network import Network
from dreamcore.objective import Objective
from dreamcore.observation import observe
from dreamcore.octaves import MIN_OCTAVE, octave_sizes, resize
from dreamcore.settings import DreamSettings
from dreamcore.stopping import GPU_INTERVAL, Stopping
from dreamcore.views import View
from tests.support.tiny import SETTINGS, changed, dreams, picture, tiny_network


def jitter_offset(settings: DreamSettings, octave: int, step: int) -> tuple[int, int]:
    view = View.choose(settings, octave, step)
    return view.down, view.right


def score_of(network: Network, images: Tensor, settings: DreamSettings) -> float:
    return observe(network, images, settings.layers, settings.measure)[0].score(settings.layers)


# --- one dream


@pytest.mark.parametrize("gradient", ["laplacian", "gaussian", "plain"])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU])
@pytest.mark.parametrize("layers", ["stem", "deep_bend", "body:0,5=2+deep"])
def test_the_score_rises(gradient: str, activation: Callable[[], nn.Module], layers: str) -> None:
    network, settings = tiny_network(activation), changed(gradient=gradient, layers=layers)
    before = score_of(network, picture(), settings)
    after = score_of(network, dreams(network, picture(), settings), settings)
    assert after > before + 0.1


def test_a_negative_weight_suppresses() -> None:
    network = tiny_network()
    suppressed = dreams(network, picture(), changed(layers="deep=-1"))
    assert score_of(network, suppressed, SETTINGS) < score_of(network, picture(), SETTINGS) - 0.1


def test_the_scores_of_a_mix_are_between_those_of_its_targets_alone() -> None:
    network = tiny_network()
    one, other = changed(layers="deep:1"), changed(layers="deep:9")
    mixed = dreams(network, picture(), changed(layers="deep:1+deep:9"))
    for measured, unmeasured in ((one, other), (other, one)):
        low = score_of(network, dreams(network, picture(), unmeasured), measured)
        high = score_of(network, dreams(network, picture(), measured), measured)
        assert low < score_of(network, mixed, measured) < high


def test_a_dream_without_steps_equals_the_image() -> None:
    torch.testing.assert_close(dreams(tiny_network(), picture(), changed(steps=0)), picture())


def test_a_step_changes_the_mean_pixel_by_step_size() -> None:
    settings = changed(octaves=1, steps=1, step_size=0.03)
    change = dreams(tiny_network(), picture(), settings) - picture()
    assert change.abs().mean().item() == pytest.approx(0.03, rel=1e-4)


def test_pixels_stay_between_black_and_white() -> None:
    dream = dreams(tiny_network(), picture(), changed(step_size=1))
    assert dream.min() == 0
    assert dream.max() == 1


def plain_ascent(network: Network, start: NDArray[np.float32], settings: DreamSettings) -> NDArray[np.float32]:
    """Dream one octave of one target with the plain gradient, in numpy except for the network itself."""
    (target,) = settings.layers
    outputs: list[Tensor] = []
    layer = network.module.get_submodule(target.layer)
    hook = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (network.spec.mean, network.spec.std))
    dream = start
    for step in range(settings.steps):
        down, right = jitter_offset(settings, 0, step)
        shifted = np.concatenate([dream[:, -down:], dream[:, :-down]], 1) if down else dream
        shifted = np.concatenate([shifted[:, :, -right:], shifted[:, :, :-right]], 2) if right else shifted
        normalized = torch.from_numpy((shifted - mean) / std)[None].requires_grad_()
        network.module(normalized)
        score = target.weight * (outputs.pop()[0, list(target.channels)] ** 2).mean().log()
        score.backward()  # type: ignore[no-untyped-call]
        assert normalized.grad is not None
        gradient = normalized.grad[0].numpy() / std
        gradient = np.roll(gradient / np.abs(gradient).mean(), (-down, -right), (1, 2))
        dream = np.clip(dream + np.float32(settings.step_size) * gradient, 0, 1)
    hook.remove()
    return dream


@pytest.mark.parametrize("size", [(48, 64), (37, 51)])
def test_two_steps_equal_those_of_the_plain_implementation(size: tuple[int, int]) -> None:
    settings = changed(octaves=1, steps=2, gradient="plain", layers="deep:1,4,9=0.5")
    expected = plain_ascent(tiny_network(), picture(*size)[0].numpy(), settings)
    np.testing.assert_allclose(dreams(tiny_network(), picture(*size), settings)[0], expected, rtol=0, atol=1e-5)


def test_an_octave_starts_from_the_image_plus_the_detail_of_the_octave_before() -> None:
    network, settings = tiny_network(), changed(octaves=2, steps=3, jitter=0)
    one_octave = changed(octaves=1, steps=3, jitter=0)
    small, full = octave_sizes((48, 64), settings)
    base = resize(picture(), small)
    detail = dreams(network, base, one_octave) - base
    expected = dreams(network, picture() + resize(detail, full), one_octave)
    torch.testing.assert_close(dreams(network, picture(), settings), expected)


# --- what a dream depends on


def test_the_same_call_gives_the_same_bits() -> None:
    assert torch.equal(*(dreams(tiny_network(), picture(), SETTINGS) for _ in range(2)))


def test_a_batch_gives_the_dreams_of_its_images_alone() -> None:
    images = [picture(seed=1), picture(seed=2)]
    alone = torch.cat([dreams(tiny_network(), each, SETTINGS) for each in images])
    torch.testing.assert_close(dreams(tiny_network(), torch.cat(images), SETTINGS), alone, rtol=0, atol=1e-4)


WITHOUT_EFFECT = {
    "model": "selects the network, which is an argument of `ascend`",
    "weights": "are loaded into the network, which is an argument of `ascend`",
    "max_pixels": "limits the size of the source image when it is decoded",
    "output": "is the format of the file that is written after the ascent",
    "enlarge": "names the dream to go on from, which is an argument of `ascend`",
    "movie": "is made of many ascents",
}
"""Settings that do not change the ascent, and the reason."""

VALUES: dict[str, list[Any]] = {
    "layers": ["body", "deep:3", "deep=-1", "deep+body", "deep:3@0.2,0.7", "logits:3"],
    "guide": [picture(40, 40, seed=5)[0]],
    "mask": [torch.linspace(0, 1, 96).expand(1, 80, 96)],
    "octaves": [1],
    "octave_scale": [1.2],
    "octaves_above": [1],
    "steps": [3],
    "step_size": [0.021],
    "stop_at": [-20],
    "color": [0.9],
    "soft_clip": [0.2],
    "calm": [0.5],
    "contrast": [1.3],
    "keep_colors": [1],
    "blend": [0.3],
    "jitter": [5],
    "tile": [64],
    "total_variation": [5],
    "l2": [100],
    "stay_near": ["body=5"],
    "seed": [1],
}
"""Values of settings that take numbers or files, to compare with the value in `SETTINGS`."""

CONTEXT: dict[str, dict[str, Any]] = {
    "clip": {"step_size": 0.5},
    "measure": {"layers": "deep+body"},  # for a single layer, all squares give the same normalized gradient
    "normalise": {"gradient": "plain", "measure": "mean_square", "layers": "deep=0.001"},  # keras needs tiny gradients
}
"""Other settings of both dreams, without which a setting has no effect."""


def values_of(field: str) -> list[Any]:
    """Return the values of a setting to compare: all other choices of a choice, or those in `VALUES`."""
    annotation = DreamSettings.model_fields[field].annotation
    choices = (False, True) if annotation is bool else get_args(annotation) if get_origin(annotation) is Literal else ()
    return [value for value in choices if value != getattr(SETTINGS, field)] or VALUES.get(field, [])


CASES = [
    *((field, CONTEXT.get(field, {}), value) for field in DreamSettings.model_fields for value in values_of(field)),
    ("layers", {"layers": "deep+body"}, "deep+body=0.1"),
]
"""(setting, other settings of both dreams, value)."""


def dream_of(fields: dict[str, Any]) -> Tensor:
    """Dream an image of 80x96 pixels in two steps, with `SETTINGS` and `fields`. Guide and mask are tensors."""
    settings = {name: value for name, value in fields.items() if name not in ("guide", "mask")}
    sample = Sample(picture(80, 96)[0], changed(**{"steps": 2, **settings}), fields.get("guide"), fields.get("mask"))
    return ascend(tiny_network(), [sample]).images[0]


def name_of(value: object) -> str:
    return "tensor" if isinstance(value, Tensor) else str(value)


@pytest.mark.parametrize(("field", "context", "value"), CASES, ids=name_of)
def test_each_setting_changes_the_image(field: str, context: dict[str, Any], value: object) -> None:
    difference = dream_of({**context, field: value}) - dream_of(context)
    assert difference.abs().max() > 1e-3


def test_every_setting_has_a_case_or_a_reason_for_none() -> None:
    tested = {field for field, _, _ in CASES}
    assert tested | set(WITHOUT_EFFECT) == set(DreamSettings.model_fields)
    assert tested.isdisjoint(WITHOUT_EFFECT)


def test_the_source_image_is_not_changed() -> None:
    source = picture()
    dreams(tiny_network(), source, SETTINGS)
    assert torch.equal(source, picture())
    assert not source.requires_grad


def test_on_step_is_called_after_every_step() -> None:
    calls: list[tuple[int, int]] = []
    settings = changed(octaves=2, steps=3)
    dreams(tiny_network(), picture(), settings, on_step=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 6) for done in range(1, 7)]


# --- measures and penalties


SQUARES = ["mean_square", "half_sum_square", "l2_norm", "log_mean_square"]


@pytest.mark.parametrize("measure", SQUARES[1:])
def test_all_squares_of_one_layer_give_the_same_normalized_step(measure: str) -> None:
    """Ten small steps in float64 without jitter, so that rounding errors do not grow."""
    network = tiny_network()
    network.module.double()
    start = picture().double()
    plain = {"octaves": 1, "steps": 10, "jitter": 0, "step_size": 0.001, "gradient": "plain"}
    one, other = (dreams(network, start, changed(measure=name, **plain)) for name in ("mean_square", measure))
    assert 10 * torch.log10(1 / (one - other).square().mean()) > 120


@pytest.mark.parametrize("measure", [*SQUARES, "mean"])
def test_the_score_rises_with_every_measure(measure: str) -> None:
    network, settings = tiny_network(), changed(measure=measure)
    assert score_of(network, dreams(network, picture(), settings), settings) > score_of(network, picture(), settings)


def test_total_variation_gives_a_smoother_dream_and_l2_a_smaller_change() -> None:
    def roughness(dream: Tensor) -> float:
        return float((dream[..., 1:] - dream[..., :-1]).abs().mean())

    def change(dream: Tensor) -> float:
        return float((dream - picture()).square().mean())

    free = dreams(tiny_network(), picture(), changed(gradient="plain"))
    assert roughness(dreams(tiny_network(), picture(), changed(gradient="plain", total_variation=20))) < roughness(free)
    assert change(dreams(tiny_network(), picture(), changed(gradient="plain", l2=1000))) < change(free)


@pytest.mark.parametrize("at", [(0.2, 0.7), (0.5, 0.5), (1.0, 0.0)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_position_is_excited_in_place_despite_jitter_and_flip(at: tuple[float, float], flip: bool) -> None:
    """The pixel that changes most is within the receptive field of the position, although each step is shifted."""
    layers = [{"layer": "deep", "channels": [3], "at": at}]
    settings = changed(layers=layers, octaves=1, jitter=20, flip=flip, steps=4, gradient="plain", step_size=1e-4)
    start = picture(64, 96)
    change = (dreams(tiny_network(), start, settings) - start).abs().sum((0, 1))
    y, x = divmod(int(change.argmax()), 96)
    distance = (abs(y - at[1] * 64), abs(x - at[0] * 96))
    assert max(min(d, side - d) for d, side in zip(distance, (64, 96), strict=True)) <= 12


def test_invert_undoes_a_view() -> None:
    for step in range(20):
        view = View.choose(changed(flip=True, jitter=9), 0, step)
        assert torch.equal(view.invert(view.apply(picture())), picture())


def test_flip_mirrors_about_half_of_the_steps() -> None:
    views = [View.choose(changed(flip=flip), 0, step) for flip in (True, False) for step in range(400)]
    assert 150 < sum(view.mirrored for view in views[:400]) < 250
    assert not any(view.mirrored for view in views[400:])


def test_carry_result_loses_the_detail_of_the_source() -> None:
    """Without steps, only the detail of the source image differs."""
    kept, lost = (dreams(tiny_network(), picture(), changed(steps=0, carry=carry)) for carry in ("detail", "result"))
    torch.testing.assert_close(kept, picture())
    small, full = octave_sizes((48, 64), changed(steps=0))
    torch.testing.assert_close(lost, resize(resize(picture(), small), full).clamp(0, 1))


def test_a_class_can_be_excited_and_suppressed() -> None:
    network = tiny_network()
    before = network.classify(picture())[0, 3]
    assert network.classify(dreams(network, picture(), changed(layers="logits:3")))[0, 3] > before
    assert network.classify(dreams(network, picture(), changed(layers="logits:3=-1")))[0, 3] < before


def test_the_score_of_a_class_is_its_logit_with_every_measure() -> None:
    network = tiny_network()
    with torch.no_grad():
        logit = network.module((picture() - network.mean) / network.std)[0, 3].item()
    for measure in SQUARES:
        assert score_of(network, picture(), changed(layers="logits:3", measure=measure)) == pytest.approx(logit)


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


def test_jitter_gives_pinned_offsets() -> None:
    """A change of these offsets changes every dream and must increase ALGORITHM_VERSION."""
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
def test_octaves_that_are_too_small_are_skipped(min_size: int, least: int) -> None:
    sizes = octave_sizes((150, 300), changed(octaves=32, octave_scale=1.3), min_size)
    assert sizes == sorted(sizes)
    assert sizes[-1] == (150, 300)
    assert least <= sizes[0][0] < 1.4 * least


def test_an_image_smaller_than_the_least_octave_has_one_octave() -> None:
    assert octave_sizes((5, 9), SETTINGS) == [(5, 9)]
    assert dreams(tiny_network(), picture(5, 9), SETTINGS).shape == (1, 3, 5, 9)


def test_an_image_too_small_for_the_network_is_rejected() -> None:
    with pytest.raises(ImageError, match="60x40 pixels: the network needs 41") as caught:
        dreams(tiny_network(min_size=41), picture(40, 60), SETTINGS)
    assert caught.value.kind == "too_small"


# --- side effects on the network


def hooks(network: Network) -> int:
    return sum(len(module._forward_hooks) for module in network.module.modules())


def test_weights_are_unchanged_and_without_gradients() -> None:
    network = tiny_network()
    dreams(network, picture(), SETTINGS)
    for used, fresh in zip(network.module.parameters(), tiny_network().module.parameters(), strict=True):
        assert used.grad is None
        assert not used.requires_grad
        assert torch.equal(used, fresh)


def test_modules_after_the_deepest_layer_do_not_run() -> None:
    network, ran = tiny_network(), []
    for name, module in network.module.named_children():
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: ran.append(name))
    dreams(network, picture(), changed(layers="body+stem", octaves=1, steps=1))
    assert ran == ["stem", "stem_bend", "body"] * 2  # in the step, and to measure the result


def test_hooks_are_removed_after_a_dream() -> None:
    network = tiny_network()
    dreams(network, picture(), SETTINGS)
    assert hooks(network) == 0


def test_hooks_are_removed_after_an_error() -> None:
    network = tiny_network()
    with pytest.raises(InvalidInput, match=r"layer 'deeep' does not exist in tiny; did you mean deep"):
        dreams(network, picture(), changed(layers="stem+deeep"))
    network.module.register_module("body", nn.Conv2d(99, 12, 1))
    with pytest.raises(RuntimeError, match="99 channels"):
        dreams(network, picture(), SETTINGS)
    assert hooks(network) == 0


# --- pixels


def test_pixels_survive_conversion_to_a_tensor_and_back() -> None:
    every = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    tensor = to_tensor(every)
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor.max() == 1
    np.testing.assert_array_equal(to_pixels(tensor)[0], every)


@pytest.mark.parametrize(("height", "where"), [(40, "cuda"), (20, "cpu")])
def test_large_reductions_on_a_gpu_run_on_the_cpu(height: int, where: str) -> None:
    """Fake tensors have a device but no data, so the test needs no GPU."""
    devices: list[str] = []

    class RecordDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "upsample" in str(func):
                devices.append(args[0].device.type)
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), RecordDevice():  # type: ignore[no-untyped-call]
        small = resize(torch.empty(1, 3, 1000, 90, device="cuda"), (height, 60))
    assert (devices, small.device.type, tuple(small.shape)) == ([where], "cuda", (1, 3, height, 60))


# --- the end of an octave


def test_scores_between_steps_are_computed_only_if_a_sample_may_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    score = Objective.score

    def counted(*args: Any) -> Tensor:
        calls.append(1)
        return score(*args)

    monkeypatch.setattr(Objective, "score", counted)
    dreams(tiny_network(), picture(), changed(octaves=2, steps=3))
    assert len(calls) == 2 * 3 + 2, "one for each gradient, and one for each octave"
    calls.clear()
    dreams(tiny_network(), picture(), changed(octaves=2, steps=3, stop_at=100))
    assert len(calls) == 2 * 2 * 3 + 2


@pytest.mark.parametrize("fields", [{}, {"normalise": "adam"}, {"space": "fourier"}, {"clip": False}], ids=str)
def test_an_octave_that_ends_some_steps_late_gives_the_same_dream(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU checks only sometimes whether all samples have stopped."""

    class Late(Stopping):
        def __init__(self, stop_at: Tensor | None, active: Tensor) -> None:
            super().__init__(stop_at, active)
            self._interval = GPU_INTERVAL

    settings = [changed(steps=GPU_INTERVAL + 4, stop_at=limit, **fields) for limit in (-5.5, -5.2)]
    found: list[tuple[AscentResult, int]] = []
    for kind in (Stopping, Late):
        monkeypatch.setattr("dreamcore.ascent.Stopping", kind)
        steps: list[int] = []
        samples = [Sample(picture()[0], each) for each in settings]
        found.append((ascend(tiny_network(), samples, on_step=lambda *_, steps=steps: steps.append(1)), len(steps)))
    (early, early_steps), (late, late_steps) = found
    assert early_steps < late_steps
    assert torch.equal(early.images, late.images)
    assert torch.equal(early.octave_scores, late.octave_scores)
