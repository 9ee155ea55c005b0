"""What is measured: networks, pictures, and the contenders for one step, all of which must take the same step."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.published import Clean, Published, score
from dreamcore.catalog import network_spec
from dreamcore.models import load_network
from dreamcore.network import Network
from dreamcore.settings import BUNDLED, DreamSettings
from dreamcore.zoo import build

Size = tuple[int, int]
Step = Callable[[Tensor], Tensor]
"""From pictures (B, 3, H, W) in [0, 1] to the gradient of their score."""


@dataclass(frozen=True)
class Subject:
    """A network and the layer of it that is excited."""

    model: str
    layer: str

    def flops(self, size: Size) -> float:
        """Multiplications and additions of one step, forward and back to the picture, by the network's card."""
        return network_spec(self.model).layer(self.layer).cost * math.prod(size) * 2.0 * 2.0


BUNDLED_SUBJECT = Subject(BUNDLED, "blocks.4")
SUBJECTS = (BUNDLED_SUBJECT, Subject("googlenet", "inception4c"))
SMALL, LARGE = (300, 451), (768, 1024)

PUBLISHED, CLEAN, PLAIN, ENGINE = "published", "clean eager", "plain network", "engine"
ENGINE_32 = "engine, 32 bits"
"""The engine as it is where the processor multiplies no bfloat16: in the units of large products of 32 bits."""


def module_of(model: str) -> nn.Module:
    """A module of its own for each contender, laid out as the libraries make it.

    The bundled network has its weights; any other is drawn from a seed, so that nothing is downloaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(model, pretrained=False)
    if model == BUNDLED:
        module.load_state_dict(load_network(BUNDLED).module.state_dict())  # which copies into the layout that is there
    return module


def network_for(subject: Subject, device: str = "cpu", *, plain: bool = False) -> Network:
    """Dreamgrid's own network."""
    return Network(module_of(subject.model), network_spec(subject.model), device=device, plain=plain)


def in_32_bits(network: Network, layer: str) -> Network:
    """A network whose gradients of a layer are taken in 32 bits on every processor; it has taken no step yet."""
    with mock.patch("dreamcore.engine.supports_bfloat16", return_value=False):
        assert network.precisions([frozenset([layer])]) == ["float32"]  # which makes the fast copy
    return network


def step_of(network: Network, layer: str) -> Step:
    """One step as the engine takes it: forward to the layer, score, gradient."""

    def step(pictures: Tensor) -> Tensor:
        pictures = pictures.detach().clone().requires_grad_()
        features = network.activations(pictures, [layer])[layer]
        return torch.autograd.grad(score(features), pictures)[0]

    return step


def contender(name: str, subject: Subject, device: str = "cpu") -> Step:
    """One of the contenders by its name."""
    if name in (ENGINE, ENGINE_32, PLAIN):
        network = network_for(subject, device, plain=name == PLAIN)
        return step_of(in_32_bits(network, subject.layer) if name == ENGINE_32 else network, subject.layer)
    known = network_spec(subject.model)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (known.mean, known.std))
    kind = Published if name == PUBLISHED else Clean
    return kind(module_of(subject.model).to(device), subject.layer, mean, std)


def agreement(steps: Mapping[str, Step], pictures: Tensor) -> dict[str, float]:
    """How near to that of the first contender the picture of each other one comes in a step, in dB."""
    size = DreamSettings().step_size
    moved = {}
    for name, step in steps.items():
        gradient = step(pictures)
        moved[name] = size * gradient / gradient.abs().mean()
    first = next(iter(moved))
    return {name: psnr(moved[first], moved[name]) for name in moved if name != first}


def psnr(one: Tensor, other: Tensor) -> float:
    """Peak signal to noise ratio in dB of pictures in [0, 1]; 0 where they are not numbers."""
    noise = (one - other).double().square().mean().item()
    return -10 * math.log10(noise + 1e-20) if math.isfinite(noise) else 0.0


def pixels(size: Size, seed: int = 0) -> NDArray[np.uint8]:
    """A photograph (H, W, 3) of sorts: soft waves with some grain, away from black and white."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    waves = [np.sin((x * across + y * down) / 9 + 1) for across, down in random.uniform(-1, 1, (3, 2))]
    picture = 128 + 50 * np.stack(waves, axis=-1) + random.normal(0, 8, (*size, 3))
    return picture.clip(0, 255).astype(np.uint8)


def pictures(size: Size, count: int = 1, device: str = "cpu") -> Tensor:
    """A batch (count, 3, H, W) of different photographs in [0, 1]."""
    batch = torch.stack([torch.from_numpy(pixels(size, seed)) for seed in range(count)])
    return (batch.permute(0, 3, 1, 2).float() / 255).contiguous().to(device)


def megapixels(size: Size) -> float:
    """Millions of pixels."""
    return math.prod(size) / 1e6


def spelt(subject: Subject, size: Size) -> str:
    """A case as the table names it."""
    return f"{subject.model} {size[1]}x{size[0]}"
