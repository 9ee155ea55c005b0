"""Optical flow, and dreams that follow it."""

import numpy as np
import pytest
import torch

from dreamcore.follow import finishing, follow, is_cut
from dreamcore.optical_flow import optical_flow, track
from dreamcore.results import to_tensor
from dreamcore.settings import DreamSettings
from tests.support.movies import moving
from tests.support.tiny import pixels

SHIFT = 3


def test_the_flow_is_the_known_motion_and_moves_the_dream_with_it() -> None:
    previous, frame = moving(2, SHIFT, (64, 96))
    flow = optical_flow(previous, frame)
    inside = flow.back[4:-4, 4 : -SHIFT - 8]
    assert torch.allclose(inside, torch.tensor([SHIFT, 0.0]), atol=0.3)
    dream = to_tensor(previous).clone()
    dream[..., 20:40, 40:60] += 0.2
    start = follow(to_tensor(frame), to_tensor(previous), dream.clamp(0, 1), flow, 0.5) - to_tensor(frame)
    detail = 0.5 * (dream.clamp(0, 1) - to_tensor(previous))
    assert (start[..., 22:38, 42 - SHIFT : 58 - SHIFT] - detail[..., 22:38, 42:58]).abs().mean() < 0.01
    assert start[..., 22:38, 59:70].abs().max() < 0.03, "the detail has left its old place"


def test_what_the_frame_before_did_not_show_starts_anew() -> None:
    previous, frame = moving(2, 6, (96, 128))
    flow = optical_flow(previous, frame)
    assert flow.visible[..., -3:].max() < 0.1
    assert flow.visible[..., 8:-16].mean() > 0.95
    start = follow(to_tensor(frame), to_tensor(previous), to_tensor(previous) * 0.5, flow, 0.9)
    assert torch.allclose(start[..., -2:], to_tensor(frame)[..., -2:], atol=0.02)


def test_a_cut_is_found_and_motion_is_none() -> None:
    frames = moving(3, 5)
    assert not is_cut(optical_flow(frames[1], frames[2]))
    assert is_cut(optical_flow(pixels(64, 96, 1), pixels(64, 96, 2)))


def test_tiny_frames_count_as_still() -> None:
    flow = optical_flow(pixels(16, 40, 1), pixels(16, 40, 2))
    assert (float(flow.back.abs().max()), float(flow.visible.min())) == (0.0, 1.0)


def test_a_flow_of_nothing_moves_nothing() -> None:
    image = to_tensor(pixels(20, 30))
    assert torch.allclose(track(image, torch.zeros(20, 30, 2), "bicubic"), image, atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("keep_colors", 0.4), ("blend", 0.7), ("contrast", 1.3)])
def test_what_is_applied_to_each_frame_adds_up_to_the_setting(name: str, value: float) -> None:
    """The detail settles at what it would be without the setting, times the factor that the setting stands for."""
    persistence, gain = 0.9, 0.01
    each = getattr(finishing(DreamSettings.model_validate({name: value}), persistence), name)
    if name == "contrast":  # a pixel 0.2 above the mean, without gain
        detail = 0.0
        for _ in range(400):
            detail = (0.2 + persistence * detail) * each - 0.2
        assert detail == pytest.approx(0.2 * (value - 1), rel=1e-3)
    else:
        detail = 0.0
        for _ in range(400):
            detail = (persistence * detail + gain) * (1 - each)
        factor = detail / (gain / (1 - persistence))
        assert factor == pytest.approx((1 - value), abs=1e-3)
    assert np.isfinite(each)
