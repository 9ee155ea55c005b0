"""What is measured: networks, images, and the contenders, which all compute the same step."""

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
"""Height and width in pixels."""
Step = Callable[[Tensor], Tensor]
"""From images (B, 3, H, W) in [0, 1] to the gradient of their score."""


@dataclass(frozen=True)
class Subject:
    """A network and the layer to excite."""

    model: str
    layer: str

    def flops(self, size: Size) -> float:
        """Return multiplications and additions of one step, forward and backward, from the network's specification."""
        return network_spec(self.model).layer(self.layer).cost * math.prod(size) * 2.0 * 2.0


BUNDLED_SUBJECT = Subject(BUNDLED, "blocks.4")
SUBJECTS = (BUNDLED_SUBJECT, Subject("googlenet", "inception4c"))
SMALL, LARGE = (300, 451), (768, 1024)

PUBLISHED, CLEAN, PLAIN, ENGINE = "published", "clean eager", "plain network", "engine"
ENGINE_32 = "engine, float32"
"""The engine without bfloat16, as it runs on CPUs that have no instructions for it."""


def module_of(model: str) -> nn.Module:
    """Return a new module, with the memory layout that the libraries create.

    The bundled network has its own weights. Other networks have random weights, so that nothing is downloaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(model, pretrained=False)
    if model == BUNDLED:
        module.load_state_dict(load_network(BUNDLED).module.state_dict())  # keeps the layout of the new module
    return module


def network_for(subject: Subject, device: str = "cpu", *, plain: bool = False) -> Network:
    """Return Dreamgrid's network."""
    return Network(module_of(subject.model), network_spec(subject.model), device=device, plain=plain)


def without_bfloat16(network: Network, layer: str) -> Network:
    """Return `network`, which must not have run yet, with float32 gradients of `layer` on every CPU."""
    with mock.patch("dreamcore.engine.supports_bfloat16", return_value=False):
        assert network.precisions([frozenset([layer])]) == ["float32"]  # this also creates the optimized copy
    return network


def step_of(network: Network, layer: str) -> Step:
    """Return a step as the ascent computes it: forward to the layer, score, gradient."""

    def step(images: Tensor) -> Tensor:
        images = images.detach().clone().requires_grad_()
        features = network.activations(images, [layer])[layer]
        return torch.autograd.grad(score(features), images)[0]

    return step


def contender(name: str, subject: Subject, device: str = "cpu") -> Step:
    """Return the contender called `name`."""
    if name in (ENGINE, ENGINE_32, PLAIN):
        network = network_for(subject, device, plain=name == PLAIN)
        return step_of(without_bfloat16(network, subject.layer) if name == ENGINE_32 else network, subject.layer)
    spec = network_spec(subject.model)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    kind = Published if name == PUBLISHED else Clean
    return kind(module_of(subject.model).to(device), subject.layer, mean, std)


def agreement(steps: Mapping[str, Step], images: Tensor) -> dict[str, float]:
    """Return how well the images after one step agree with those of the first contender, in dB by contender."""
    step_size = DreamSettings().step_size
    changes = {}
    for name, step in steps.items():
        gradient = step(images)
        changes[name] = step_size * gradient / gradient.abs().mean()
    first = next(iter(changes))
    return {name: psnr(changes[first], changes[name]) for name in changes if name != first}


def psnr(one: Tensor, other: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of images in [0, 1]; 0 if they contain NaN or infinity."""
    noise = (one - other).double().square().mean().item()
    return -10 * math.log10(noise + 1e-20) if math.isfinite(noise) else 0.0


def pixels(size: Size, seed: int = 0) -> NDArray[np.uint8]:
    """Return a synthetic photograph (H, W, 3): soft waves with some noise, away from black and white."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    waves = [np.sin((x * across + y * down) / 9 + 1) for across, down in random.uniform(-1, 1, (3, 2))]
    image = 128 + 50 * np.stack(waves, axis=-1) + random.normal(0, 8, (*size, 3))
    return image.clip(0, 255).astype(np.uint8)


def images(size: Size, count: int = 1, device: str = "cpu") -> Tensor:
    """Return a batch (count, 3, H, W) of different photographs in [0, 1]."""
    batch = torch.stack([torch.from_numpy(pixels(size, seed)) for seed in range(count)])
    return (batch.permute(0, 3, 1, 2).float() / 255).contiguous().to(device)


def megapixels(size: Size) -> float:
    """Return the number of pixels in millions."""
    return math.prod(size) / 1e6


def case_name(subject: Subject, size: Size) -> str:
    """Return the name of a case in the table."""
    return f"{subject.model} {size[1]}x{size[0]}"
