"""Nothing in a step has a GPU wait for the processor: told without one, by torch's device that only knows shapes.

What is known of tensors there is their sizes: asking for a value raises. Indices and other small tensors that a step
makes on the processor, and would send to the GPU while that waits, are seen as they are made.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreamcore.ascent import Sample, ascend
from dreamcore.catalog import network_spec
from dreamcore.network import Network
from dreamcore.settings import BUNDLED, DreamSettings
from dreamcore.zoo import build

PICTURE = torch.zeros(3, 96, 128, device="meta")


class FromTheProcessor(TorchDispatchMode):
    """While it is entered, notes operations that make a tensor out of Python's numbers, or take one from there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, answer)) if isinstance(each, Tensor)]
        if func is torch.ops.aten.lift_fresh.default or any(each.device.type == "cpu" for each in tensors):
            self.seen.append(str(func))
        return answer


def test_what_would_have_a_gpu_wait_is_seen() -> None:
    with FromTheProcessor() as waits:
        PICTURE[[0, 1]]
        PICTURE[0].add(torch.tensor(1.0))
        assert waits.seen == ["aten.lift_fresh.default", "aten.lift_fresh.default", "aten.add.Tensor"]
        with pytest.raises(RuntimeError, match="meta"):
            bool(PICTURE.isfinite().all())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient": "gaussian", "total_variation": 0.1, "normalise": "adam"},
        {"octaves_above": 1, "flip": True, "space": "network", "measure": "inner_mean_square"},
    ],
)
def test_a_step_has_no_gpu_wait_for_the_processor(settings: dict[str, Any]) -> None:
    """From the second step on, whatever the samples of the batch have in common or not."""
    network = Network(build(BUNDLED, pretrained=False).to("meta"), network_spec(BUNDLED), device="meta")
    samples = [
        Sample(PICTURE, DreamSettings(layers=layers, octaves=2, steps=3, **settings))
        for layers in ("blocks.4", "blocks.2:3,5=0.5+blocks.3", "blocks.1@0.5,0.5")
    ]
    after: list[int] = []
    with FromTheProcessor() as waits:
        ascend(network, samples, on_step=lambda _done, _of: after.append(len(waits.seen)))
    assert len(after) == 6
    assert waits.seen[after[0] :] == []
