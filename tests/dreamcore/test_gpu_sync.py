"""A step never makes a GPU wait for the CPU. The tests need no GPU: they run on torch's meta device.

Tensors on the meta device have a shape but no values, so reading a value raises. Small tensors that a step creates on
the CPU, such as indices, and would copy to the GPU while the GPU recorder, are recorded.
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

IMAGE = torch.zeros(3, 96, 128, device="meta")


class CpuTensors(TorchDispatchMode):
    """Records, while active, the operations that create a tensor from Python numbers or involve a tensor on the CPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, output)) if isinstance(each, Tensor)]
        if func is torch.ops.aten.lift_fresh.default or any(each.device.type == "cpu" for each in tensors):
            self.operations.append(str(func))
        return output


def test_operations_that_would_make_a_gpu_wait_are_recorded() -> None:
    with CpuTensors() as recorder:
        IMAGE[[0, 1]]
        IMAGE[0].add(torch.tensor(1.0))
        assert recorder.operations == ["aten.lift_fresh.default", "aten.lift_fresh.default", "aten.add.Tensor"]
        with pytest.raises(RuntimeError, match="meta"):
            bool(IMAGE.isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient": "gaussian", "total_variation": 0.1, "normalise": "adam"},
        {"space": "fourier", "normalise": "adam", "stay_near": "blocks.0"},
        {"octaves_above": 1, "flip": True, "space": "network", "measure": "inner_mean_square"},
    ],
)
def test_a_step_never_makes_a_gpu_wait(settings: dict[str, Any]) -> None:
    """True from the second step on, for a batch with different layers."""
    network = Network(build(BUNDLED, pretrained=False).to("meta"), network_spec(BUNDLED), device="meta")
    samples = [
        Sample(IMAGE, DreamSettings(layers=layers, octaves=2, steps=3, **settings))
        for layers in ("blocks.4", "blocks.2:3,5=0.5+blocks.3", "blocks.1@0.5,0.5", "blocks.3:3*2,5*-1^2")
    ]
    counts: list[int] = []
    with CpuTensors() as recorder:
        ascend(network, samples, on_step=lambda _step, _steps: counts.append(len(recorder.operations)))
    assert len(counts) == 6
    assert recorder.operations[counts[0] : counts[-1]] == []
