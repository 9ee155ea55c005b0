"""One step of DeepDream in plain torch, without the engine: as most other programs do it, and without waste."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn


def score(features: Tensor) -> Tensor:
    """Return the score of every contender: the logarithm of the mean square of `features`.

    Its normalized gradient is that of the objective of 2015.
    """
    return features.square().mean().log()


class Published:
    """A step as most other programs do it.

    The whole network runs and a forward hook keeps the activations of the layer. `backward` computes the gradients of
    all weights up to the layer besides that of the image, and they are discarded.
    """

    def __init__(self, module: nn.Module, layer: str, mean: Tensor, std: Tensor) -> None:
        self.module, self.mean, self.std = module.eval().requires_grad_(), mean, std
        self.features: list[Tensor] = []
        module.get_submodule(layer).register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.features.append(output)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the gradient of the score of `images` (B, 3, H, W) in [0, 1]."""
        images = images.detach().clone().requires_grad_()
        self.module.zero_grad()
        self.module((images - self.mean) / self.std)
        score(self.features.pop()).backward()  # type: ignore[no-untyped-call]
        assert images.grad is not None
        return images.grad


class _StopForward(Exception):
    """Ends a forward pass at the layer."""


class Clean:
    """A step without waste and without the engine: weights are frozen, and nothing behind the layer runs.

    The modules are torch's own, on contiguous tensors, as the libraries create them.
    """

    def __init__(self, module: nn.Module, layer: str, mean: Tensor, std: Tensor) -> None:
        self.module, self.mean, self.std = module.eval().requires_grad_(False), mean, std
        self.features: list[Tensor] = []
        module.get_submodule(layer).register_forward_hook(self._stop)

    def _stop(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.features.append(output)
        raise _StopForward

    def __call__(self, images: Tensor) -> Tensor:
        """Return the gradient of the score of `images` (B, 3, H, W) in [0, 1]."""
        images = images.detach().clone().requires_grad_()
        with suppress(_StopForward):
            self.module((images - self.mean) / self.std)
        return torch.autograd.grad(score(self.features.pop()), images)[0]
